"""Hand-made plans for the toy program."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from edgeopt.plan import Plan, Stage, Transfer
from tests.edgeopt.factories import device, text_problem

ELEMENTS = 6


def toy_plan(
    *places: tuple[str, int],
    source: str | None = None,
    rounds: int = 3,
    devices: dict[str, dict[str, Any]] | None = None,
    **options: Any,
) -> Plan:
    """Return a plan of stages ``(device, stop)``; ``options`` go to the toy, ``devices`` hold fields of devices."""
    fields = {"runtime": {"threads": 1}}
    names = ["phone", "laptop", "server"]
    problem = text_problem(
        description=json.dumps(options),
        devices=[device(name, **(fields | (devices or {}).get(name, {}))) for name in names],
        workload={"kind": "text", "prompt_tokens": 10, "new_tokens": rounds},
        constraints={"source": source},
    )
    starts = [0, *(stop for _, stop in places)]
    stages = [
        Stage(
            index=k, device=name, variant=None, start=start, stop=stop, elements=f"block.{start} … block.{stop - 1}",
            compute_s=0.01, transfer_s=0.002, transfer_bytes=100.0, memory_bytes=1e6,
        )
        for k, ((name, stop), start) in enumerate(zip(places, starts, strict=False))
    ]  # fmt: skip
    hops = [(source or "phone", stages[0].device, "input", 0)]
    hops += [(a.device, b.device, "cut", b.start) for a, b in pairwise(stages)]
    hops += [(stages[-1].device, stages[0].device, "loop", stages[-1].stop)]
    hops += [(stages[-1].device, source or "phone", "output", stages[-1].stop)]
    transfers = [
        Transfer(purpose=purpose, cut=cut, source=a, destination=b, bytes=1.0, messages=1.0, seconds=0.002)
        for a, b, purpose, cut in hops
        if a != b
    ]
    return Plan(
        edgeopt_version="0", problem=problem, strategy="pipeline", backend="hand", status="optimal", objective=0.1,
        bound=0.1, gap=0.0, runtime_s=0.0, latency_s=0.1, throughput_per_s=float("inf"), metrics={"ttft_s": 0.05},
        cuts=[stage.stop for stage in stages], devices=[names.index(stage.device) for stage in stages],
        variants=[0] * len(stages), stages=stages, transfers=transfers,
    )  # fmt: skip
