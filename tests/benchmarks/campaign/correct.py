"""Distributed equals single process: drawn plans of every program on local workers, tokens and latents to the bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from edgeopt.errors import EdgeoptError
from edgeopt.executor import execute
from edgeopt.plan import Plan
from edgeopt.profiles.device import Runtime
from tests.benchmarks.campaign.draws import MODELS, draw_cluster, draw_plan
from tests.benchmarks.campaign.ledger import Ledger
from tests.benchmarks.campaign.predict import devices_of

__all__ = ["PART", "run", "summary"]

PART = "correct"


def run(ledger: Ledger, quick: bool, seed: int, say) -> None:
    """Draw plans and run each once with the check, two at a time: nothing here is timed."""
    each = 2 if quick else 10
    devices = [device.model_copy(update={"timings": []}) for device in devices_of(ledger, quick, say)]
    due = [
        (strategy, number)
        for number in range(each)
        for strategy in MODELS
        if ledger.get(PART, f"{strategy}.{number}") is None
    ]
    with ThreadPoolExecutor(2) as lanes:
        jobs = [(lanes.submit(_one, devices, seed, *which), *which) for which in due]
        for job, strategy, number in jobs:
            record = ledger.put(PART, f"{strategy}.{number}", job.result())
            say(f"{strategy}, plan {number + 1} of {each}: {'equal' if record['equal'] else 'DIFFERENT'}")


def _one(devices: list[Any], seed: int, strategy: str, number: int) -> dict[str, Any]:
    plan = _draw(devices, np.random.default_rng([seed, 77, number, strategy == "pipeline"]), strategy)
    record = {"strategy": strategy, "stages": len(plan.stages), "devices": len({s.device for s in plan.stages})}
    try:
        report = execute(plan, repeat=2, warmup=0, timeout_s=240.0, seed=number)
    except EdgeoptError as error:
        return {**record, "equal": False, "kind": str(error)}
    found = report.output
    assert found is not None
    # A tolerance would do for other machines; on one machine a latent has to agree to the last bit.
    exact = found.equal and found.kind in ("tokens", "bitwise") and found.repeats_equal
    return {**record, "equal": exact, "kind": found.kind}


def _draw(devices: list[Any], rng: np.random.Generator, strategy: str) -> Plan:
    """Draw a plan; devices have one or two threads, since the order of floating point sums depends on that."""
    while True:
        threaded = [
            device.model_copy(update={"runtime": Runtime(threads=int(rng.integers(1, 3)))}) for device in devices[:3]
        ]
        cluster = draw_cluster(rng, "drawn", strategy, threaded, steps=3)
        plan = draw_plan(rng, cluster.problem)
        if plan is not None:
            return plan


def summary(ledger: Ledger) -> dict[str, Any] | None:
    """Plans that were equal, by program."""
    rows = list(ledger.of(PART).values())
    if not rows:
        return None
    return {
        strategy: {
            "plans": len(own), "equal": sum(row["equal"] for row in own),
            "kinds": sorted({row["kind"] for row in own}),
        }
        for strategy in MODELS
        if (own := [row for row in rows if row["strategy"] == strategy])
    }  # fmt: skip
