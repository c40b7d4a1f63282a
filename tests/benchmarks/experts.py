"""Experts on emulated hosts: the planned placement beside experts dealt out in turn, predicted and measured.

A mixture whose gates favour some experts (made here; its frequencies are measured, not set) on three devices joined at
100 Mbit/s. For each setting (sequences at once, latency, how fast the devices are) the trunk's and an expert's seconds
are measured once in this process; the plan and the placement that deals experts out in turn are then executed by turns.
Run it as root on an idle machine; about six minutes::

    python tests/benchmarks/experts.py --write docs/measurements/llm.md

``--quick`` runs one setting once, which shows that it works and no more; ``--save FILE`` keeps every row as it is made.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from edgeopt import planner
from edgeopt.executor.party import pack_message
from edgeopt.executor.run import execute
from edgeopt.plan import Plan
from edgeopt.profiler.architectures import derive_model
from edgeopt.profiler.gates import measure_gates
from edgeopt.profiles.device import Device
from edgeopt.profiles.model import Architecture, CausalLM
from edgeopt.profiles.network import Network
from edgeopt.profiles.problem import Problem
from edgeopt.programs.experts import Experts as Party
from edgeopt.programs.language import build_model, model_config
from edgeopt.programs.mixtures import HeldExperts, expert_layers
from edgeopt.programs.parties import Links
from edgeopt.programs.weights import open_weights
from edgeopt.strategies.expert_requests import Request
from edgeopt.strategies.experts import Experts
from edgeopt_solvers import Result, Status
from edgeopt_solvers.placement import ExpertsSolution
from tests.benchmarks.sections import made_by, write_section
from tests.edgeopt.expert_cases import write_skewed

__all__ = ["Setting", "main", "settings"]

PROMPT, NEW, NUM_EXPERTS, RATE = 32, 32, 8, 12.5e6
#: Rows of an expert that are timed; seconds in between are interpolated.
ROWS = (1, 2, 4, 8, 16, 64, PROMPT * 8)
#: Slept before each timed piece, as a device waits for the others: caches are cold then.
REST_S = 0.003
CONFIG = {
    "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "vocab_size": 256, "hidden_size": 256,
    "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 64, "num_local_experts": NUM_EXPERTS, "num_experts_per_tok": 2, "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Setting:
    """Sequences at once, seconds of latency one way, and at which fraction of this machine the devices compute."""

    batch: int
    latency_s: float
    quotas: tuple[float, float, float]


def settings(quick: bool) -> list[Setting]:
    """Two batches, two latencies; equal devices and unequal ones."""
    everything = [
        Setting(batch, latency, quotas)
        for batch in (1, 8)
        for latency, quotas in ((0.001, (0.6, 0.6, 0.6)), (0.003, (0.6, 0.6, 0.6)), (0.001, (0.8, 0.4, 0.2)))
    ]
    return everything[1:2] if quick else everything


def make_model(folder: Path) -> CausalLM:
    """Derive the mixture, write its checkpoint, and measure its gates."""
    bare = derive_model(CONFIG, name="skewed", source="tests/benchmarks/experts.py", dtype="float32")
    assert isinstance(bare, CausalLM)
    assert bare.architecture is not None
    known = write_skewed(
        folder / "skewed.safetensors", bare.architecture.model_dump(by_alias=True, exclude_none=True), strength=4.0
    )
    model = bare.model_copy(update={"architecture": Architecture.model_validate(known)})
    gates = measure_gates(model, prompts=64, prompt_tokens=PROMPT, new_tokens=NEW, seed=1000)
    return model.model_copy(update={"gates": gates})


class _Stub(Links):
    """Links of a trunk whose experts answer nothing at once; notes its processor time by round."""

    rank = 0

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}
        self._asked: list[list[torch.Tensor]] = []

    def send(self, to: int, tensors: Sequence[torch.Tensor], label: str = "") -> None:
        pack_message(0, 0, tensors, label)
        self._asked.append(list(tensors))

    def receive(self, source: int) -> list[torch.Tensor]:
        time.sleep(REST_S)
        _, index, states = self._asked.pop()
        return [torch.zeros(index.shape[1], states.shape[1])]

    def poll(self, source: int) -> list[torch.Tensor] | None:
        return None

    @contextlib.contextmanager
    def computing(self, stage: int, round_index: int = 0) -> Iterator[None]:
        started = time.thread_time()
        yield
        took = time.thread_time() - started
        self.seconds[round_index] = self.seconds.get(round_index, 0.0) + took


def measure_trunk(alone: Plan, asking: Plan, repeats: int = 7) -> tuple[float, float, float]:
    """Processor seconds of the trunk's prefill and of a decode round, and what a round that waits takes longer.

    Parameters
    ----------
    alone, asking
        Plans with all experts on the trunk, and with none.
    """

    def seconds(plan: Plan) -> tuple[float, float]:
        party, found = Party(plan, (0,)), []
        for spread in party._spread:
            if spread.own is not None:
                spread.own = _nothing  # type: ignore[assignment]
        for seed in range(repeats):
            links = _Stub()
            party.begin()
            party.play(links, party.request(seed))
            found.append((links.seconds[0], statistics.median(links.seconds[k] for k in range(1, NEW))))
        prefill, decode = (statistics.median(values) for values in zip(*found[1:], strict=True))
        return prefill, decode

    (prefill, decode), (_, waiting) = seconds(alone), seconds(asking)
    return prefill, decode, max(0.0, waiting - decode)


def _nothing(states: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(states)


def measure_expert(model: CausalLM, repeats: int = 15) -> dict[tuple[int, int], float]:
    """Median processor seconds of a call of so many experts over so many tokens each."""
    assert model.architecture is not None
    config = model_config(model.architecture)
    templates = expert_layers(build_model(model.architecture, config))
    source = open_weights(model.architecture)
    held = [HeldExperts(t, g, range(NUM_EXPERTS), source, dtype=torch.float32) for g, t in templates.items()]
    generator, found = torch.Generator().manual_seed(0), {}
    with torch.inference_mode():
        for count, rows in product((1, 3), ROWS):
            samples = []
            for k in range(repeats + 3):
                states = torch.randn(count * rows, config.hidden_size, generator=generator)
                chosen = (k + torch.arange(count)).remainder(NUM_EXPERTS).repeat(rows)
                time.sleep(REST_S)
                started = time.thread_time()
                held[k % len(held)](states, chosen)
                samples.append(time.thread_time() - started)
            found[count, rows] = statistics.median(samples[3:])
    return found


def problem_of(
    setting: Setting,
    model: CausalLM,
    trunk: tuple[float, float, float] | None,
    expert: dict[tuple[int, int], float],
) -> Problem:
    """The desk owns the request; each device has room for three experts of each layer beside what else it holds."""
    load = {"kind": "text", "prompt_tokens": PROMPT, "new_tokens": NEW, "batch": setting.batch}
    elements = sum(layer.count for layer in model.layers)

    def row(name: str, phase: str, seconds: list[float], **where: float) -> dict[str, Any]:
        return {
            "model": name, "phase": phase, "dtype": "float32", "unit": "s", "elements": seconds, "repeats": 7,
            "source": "measured by tests/benchmarks/experts.py", **where,
        }  # fmt: skip

    def device(name: str, quota: float, memory: float) -> Device:
        rows = [row(model.name, "expert", [s / quota], tokens=n, batch=b) for (b, n), s in expert.items()]
        nothing = [0.0] * (elements - 1)
        if trunk is not None:
            at: dict[str, float] = {"batch": setting.batch}
            name_ = f"{model.name}.trunk"
            rows.append(row(name_, "prefill", [trunk[0] / quota, *nothing], tokens=PROMPT, **at))
            at["wake"] = trunk[2] / quota
            rows += [row(name_, "decode", [trunk[1] / quota, *nothing], context=c, **at) for c in (1, PROMPT + NEW)]
        return Device.model_validate(
            {
                "name": name, "source": "emulated", "compute": {"float32": 1e9}, "memory": memory,
                "memory_bandwidth": 1e10, "launch_overhead": 1e-6, "timings": rows,
                "efficiency": {"compute": 1.0, "memory_bandwidth": 1.0, "basis": "assumed"},
                "runtime": {"threads": 1, "cpu_quota": quota},
            }
        )  # fmt: skip

    def problem(room: tuple[float, float]) -> Problem:
        names = zip(("desk", "shelf", "hall"), setting.quotas, (room[0], room[1], room[1]), strict=True)
        network = {"rate": RATE, "latency": setting.latency_s}
        return Problem.model_validate(
            {
                "name": "experts", "model": model, "strategy": "experts", "workload": load,
                "devices": [device(*each) for each in names],
                "network": Network.model_validate({"name": "emulated", "source": "emulated", "default": network}),
                "constraints": {"experts": {"trunk": "desk"}},
            }
        )  # fmt: skip

    costs = Request.of(problem((1e12, 1e12))).costs
    three = 3 * float(costs.expert_bytes.sum())
    return problem((costs.trunk_bytes + three, costs.visiting_bytes + three))


def written(problem: Problem, homes: np.ndarray) -> Plan:
    """Write down the plan of a placement: the device of each expert of each layer, (G, E)."""
    technique, (case,) = Experts(), Experts().cases(problem)
    instance = technique.build(case)
    held = np.eye(len(problem.devices), dtype=bool)[homes].reshape(*instance.load.shape, -1)
    solution = ExpertsSolution(held, held.astype(float))
    found = technique.evaluate(instance, solution)
    assert not found.violations, found.violations
    value = found.objective
    return technique.plan(case, instance, Result(Status("optimal", True), value, value, solution, "exact", 0.0))


def measure(setting: Setting, model: CausalLM, asked: argparse.Namespace) -> dict[str, Any]:
    """Plan one setting and run it and its rival by turns."""
    layers = model.layers[1].count
    expert = measure_expert(model)
    bare = problem_of(setting, model, None, expert)
    elsewhere = bare.model_copy(update={"devices": [d.model_copy(update={"memory": 1e12}) for d in bare.devices]})
    places = [np.full((layers, NUM_EXPERTS), device) for device in (0, 1)]
    trunk = measure_trunk(*(written(elsewhere, homes) for homes in places))
    problem = problem_of(setting, model, trunk, expert)
    plans = {
        "planned": planner.solve(problem, time_limit_s=asked.limit),
        "in turn": written(problem, np.tile(np.arange(NUM_EXPERTS) % 3, (layers, 1))),
    }
    seconds: dict[str, list[float]] = {name: [] for name in plans}
    equal = True
    for turn in range(asked.turns):
        for name, plan in plans.items():
            is_checked = turn == 0 and name == "planned"
            report = execute(
                plan, on=asked.on, repeat=asked.repeat, warmup=1, seed=turn, timeout_s=300.0, check=is_checked
            )
            seconds[name].append(report.metrics["tpot_s"].median)
            equal = equal and (not is_checked or bool(report.output and report.output.equal))
    found = {name: statistics.median(values) for name, values in seconds.items()}
    predicted = {name: plan.metrics["tpot_s"] for name, plan in plans.items()}
    return {
        "batch": setting.batch, "latency_s": setting.latency_s, "quotas": setting.quotas,
        "tpot_s": found, "predicted_tpot_s": predicted, "turns_s": seconds, "equal": equal,
        "ratio": found["planned"] / found["in turn"],
        "predicted_ratio": predicted["planned"] / predicted["in turn"],
        "errors": {name: predicted[name] / found[name] - 1 for name in plans},
        "gap": plans["planned"].gap, "replicas": plans["planned"].metrics["replicas"],
    }  # fmt: skip


def section(rows: list[dict[str, Any]], model: CausalLM) -> list[str]:
    """Markdown of the results."""
    assert model.gates is not None
    most = [sum(sorted(row)[-2:]) / 2 for row in model.gates.frequencies]
    lines = [
        f"A Mixtral of {len(most)} layers with {NUM_EXPERTS} experts, 2 of which work on a token, on three emulated "
        "devices joined at 100 Mbit/s, each with room for three experts of each layer; the desk is the trunk. In each "
        f"layer the two favourites of the gates get {min(most):.0%} to {max(most):.0%} of the work (25% if all were "
        "equal). *In turn* deals experts 0, 1, 2 … out to the devices one after the other.",
        "",
        "| sequences | latency (ms) | devices at | per token, planned (ms) | predicted | in turn (ms) | predicted "
        "| measured ratio | predicted |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        quotas = ", ".join(f"{quota:g}" for quota in row["quotas"])
        cells = [
            f"{1e3 * row[kind][name]:.2f}" for name in ("planned", "in turn") for kind in ("tpot_s", "predicted_tpot_s")
        ]
        lines.append(
            f"| {row['batch']} | {1e3 * row['latency_s']:g} | {quotas} | {' | '.join(cells)} "
            f"| {row['ratio']:.2f} | {row['predicted_ratio']:.2f} |"
        )
    return lines


def main() -> None:
    """Measure all settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one setting, one turn, one request each")
    parser.add_argument("--on", choices=["emulated", "local"], default="emulated", help="launcher")
    parser.add_argument(
        "--turns", type=int, help="prompts, on each of which both plans run by turns; default 2, quick 1"
    )
    parser.add_argument("--repeat", type=int, help="requests per run; default 3, quick 1")
    parser.add_argument("--limit", type=float, default=5.0, help="seconds for a plan")
    parser.add_argument("--save", type=Path, help="file for the rows, as JSON lines")
    parser.add_argument("--write", type=Path, metavar="FILE", help="page whose section is replaced")
    asked = parser.parse_args()
    asked.turns, asked.repeat = asked.turns or (1 if asked.quick else 2), asked.repeat or (1 if asked.quick else 3)
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder))
        for setting in settings(asked.quick):
            rows.append(measure(setting, model, asked))
            row = rows[-1]
            print(
                f"{row['batch']} sequences, {1e3 * row['latency_s']:g} ms, {row['quotas']}: planned "
                f"{1e3 * row['tpot_s']['planned']:.2f} ms ({row['errors']['planned']:+.1%}), in turn "
                f"{1e3 * row['tpot_s']['in turn']:.2f} ms ({row['errors']['in turn']:+.1%}), ratio {row['ratio']:.2f} "
                f"predicted {row['predicted_ratio']:.2f}, equal {row['equal']}",
                flush=True,
            )
            if asked.save:
                with asked.save.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    if asked.write:
        made = made_by("python tests/benchmarks/experts.py", quick=asked.quick, on="hosts emulated on")
        write_section(asked.write, "Experts", [made, "", *section(rows, model)])
    summary = {
        "settings": len(rows),
        "all_equal": all(row["equal"] for row in rows),
        "largest_ratio": max(row["ratio"] for row in rows),
        "median_ratio": statistics.median(row["ratio"] for row in rows),
        "median_error": statistics.median(abs(e) for row in rows for e in row["errors"].values()),
        "rows": rows,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
