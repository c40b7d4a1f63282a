"""Speculative decoding on emulated hosts: measured speed-up and draft length beside the planned ones.

For each setting (how slow the two devices are, the link's latency, which draft) the seconds of passes are measured
once in this process and scaled; the plan is made from them and from the acceptance in the model's profile, and then
plans of several draft lengths, and the target alone, are executed. Run it as root on an idle machine::

    python tests/benchmarks/speculative.py --write docs/measurements/speculative.md

Acceptance differs between prompts, so each plan runs on several (the target alone, whose tokens cost the same, on one);
every first one is compared with the target's own text. ``--quick`` runs two settings on one prompt, which
shows that it works and no more. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from edgeopt import planner
from edgeopt.costs.drafting import draft_model
from edgeopt.executor.run import execute
from edgeopt.plan import Plan
from edgeopt.profiles import load_model
from edgeopt.profiles.device import Device
from edgeopt.profiles.model import CausalLM
from edgeopt.profiles.network import Network
from edgeopt.profiles.problem import Problem
from edgeopt.programs.drafting import CachedScorer
from edgeopt.strategies.speculative import Speculative
from edgeopt_solvers import Result, Status
from edgeopt_solvers.policy import SpeculativeSolution

__all__ = ["Setting", "main", "measure_passes", "settings"]

PROMPT, NEW, LONGEST = 64, 64, 16


@dataclass(frozen=True, slots=True)
class Setting:
    """Fractions of this machine's speed at which the devices compute, seconds of latency one way, and the draft."""

    draft_quota: float
    target_quota: float
    latency_s: float
    draft: str


def settings(quick: bool) -> list[Setting]:
    """Twelve settings: two pairs of speeds, three latencies, two drafts."""
    everything = [
        Setting(a, b, latency, draft)
        for (a, b), latency, draft in product(((0.12, 0.05), (0.1, 0.1)), (0.0005, 0.005, 0.02), ("small", "medium"))
    ]
    return everything[:1] + everything[-1:] if quick else everything


def measure_passes(model: CausalLM, tokens: list[int], rest_s: float = 0.0, repeats: int = 20) -> dict[int, float]:
    """Median seconds of a pass over so many new tokens in the middle of a request, on one thread of this machine.

    ``rest_s`` is slept before each, as the target waits before each of its passes: caches are cold then.
    """
    assert model.architecture is not None
    options = {"dtype": torch.float32, "device": torch.device("cpu"), "max_tokens": PROMPT + NEW + LONGEST + 1}
    scorer = CachedScorer(model.architecture, **options)
    context = PROMPT + NEW // 2
    found = {}
    with torch.inference_mode():
        scorer.score([1] * context, 1)
        for count in tokens:
            samples = []
            for _ in range(repeats + 3):
                time.sleep(rest_s)
                started = time.perf_counter()
                scorer.score([1] * count, count).argmax(-1).tolist()
                samples.append(time.perf_counter() - started)
                scorer.keep(context)
            found[count] = statistics.median(samples[3:])
        samples = []
        for _ in range(repeats):
            scorer.reset()
            started = time.perf_counter()
            scorer.score([1] * PROMPT, 1)
            samples.append(time.perf_counter() - started)
        found[-PROMPT] = statistics.median(samples)
    return found


def timings(model: CausalLM, passes: dict[int, float], quota: float) -> list[dict[str, Any]]:
    """Rows of a device profile: what was measured here, at a fraction of the speed."""
    elements = sum(layer.count for layer in model.layers)
    common = {"model": model.name, "dtype": "float32", "batch": 1, "unit": "s", "repeats": 20}
    rows = []
    for count, seconds in passes.items():
        whole = seconds / quota
        phase = {"phase": "verify", "tokens": count, "elements": [whole]}
        if count < 0:
            phase = {"phase": "prefill", "tokens": -count, "elements": [whole, *[0.0] * (elements - 1)]}
        rows.append({**common, **phase, "source": "measured by tests/benchmarks/speculative.py"})
    return rows


def problem_of(setting: Setting, model: CausalLM, measured: dict[str, dict[int, float]]) -> Problem:
    """The phone owns the request and drafts; only the server may hold the target."""
    small = draft_model(model, setting.draft)
    whole = model.model_copy(update={"drafts": {setting.draft: model.drafts[setting.draft]}})

    def device(name: str, quota: float, memory: float) -> Device:
        rows = timings(whole, measured["target"], quota) + timings(small, measured[setting.draft], quota)
        return Device.model_validate(
            {
                "name": name, "source": "emulated", "compute": {"float32": 1e9}, "memory": memory,
                "memory_bandwidth": 1e10, "launch_overhead": 1e-6, "timings": rows,
                "efficiency": {"compute": 1.0, "memory_bandwidth": 1.0, "basis": "assumed"},
                "runtime": {"threads": 1, "cpu_quota": quota},
            }
        )  # fmt: skip

    network = {"rate": 12.5e6, "latency": setting.latency_s}
    return Problem.model_validate(
        {
            "name": "speculative", "model": whole, "strategy": "speculative",
            "workload": {"kind": "text", "prompt_tokens": PROMPT, "new_tokens": NEW},
            "devices": [device("phone", setting.draft_quota, 1.2e6), device("server", setting.target_quota, 1e9)],
            "network": Network.model_validate({"name": "emulated", "source": "emulated", "default": network}),
            "constraints": {"drafting": {"max_length": LONGEST}},
        }
    )  # fmt: skip


def plan_of(problem: Problem, length: int, drafts: int) -> Plan:
    """Write down the plan of a given length with device ``drafts`` as the one that drafts (length 0: nobody does)."""
    technique = Speculative()
    instance = technique.build(problem)
    solution = SpeculativeSolution(0, drafts, 0, 1, length) if length else SpeculativeSolution(-1, -1, 0, 1, 0)
    value = technique.evaluate(instance, solution).objective
    return technique.plan(problem, instance, Result(Status("optimal", True), value, value, solution, "exact", 0.0))


def run(plan: Plan, on: str, seeds: int) -> tuple[float, bool]:
    """Mean seconds over prompts (medians of two runs each), and whether the first one's tokens were the target's."""
    times, equal = [], True
    for seed in range(seeds if plan.decisions["draft_length"] else 1):
        report = execute(plan, on=on, repeat=2, warmup=1, seed=seed, timeout_s=300.0, check=seed == 0)
        times.append(report.latency_s.median)
        equal = equal and (seed > 0 or bool(report.output and report.output.equal))
    return statistics.fmean(times), equal


def measure(
    setting: Setting, model: CausalLM, measured: dict[str, dict[int, float]], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Plan and run one setting."""
    problem = problem_of(setting, model, measured)
    chosen = planner.solve(problem)
    length = int(chosen.decisions["draft_length"])  # type: ignore[arg-type]
    tried = sorted({0, length} if arguments.quick else {0, max(1, length // 2), length, length + 3})
    lengths = [each for each in tried if each <= LONGEST]
    drafts = 1 if chosen.decisions["draft_device"] == "server" else 0
    plans = {each: plan_of(problem, each, drafts) for each in lengths}
    seconds, equal = {}, True
    for each, plan in plans.items():
        seconds[each], same = run(plan, arguments.on, arguments.seeds)
        equal = equal and same
    best = min(seconds, key=lambda each: seconds[each])
    predicted, found = plans[0].latency_s / plans[length].latency_s, seconds[0] / seconds[length]
    return {
        "setting": [setting.draft_quota, setting.target_quota, setting.latency_s, setting.draft],
        "draft_device": chosen.decisions["draft_device"],
        "chosen": length,
        "best": best,
        "above_best": seconds[length] / seconds[best] - 1,
        "speed_up": found,
        "predicted_speed_up": predicted,
        "error": predicted / found - 1,
        "latency_error": plans[length].latency_s / seconds[length] - 1,
        "seconds": seconds,
        "predicted_s": {each: plan.latency_s for each, plan in plans.items()},
        "equal": equal,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown of the results."""
    lines = [
        "| draft, target at | latency (ms) | draft | length | measured best | above best | speed-up | predicted |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        a, b, latency, draft = row["setting"]
        lines.append(
            f"| {a:g}, {b:g} | {1e3 * latency:g} | {draft} on {row['draft_device'] or 'none'} | {row['chosen']} "
            f"| {row['best']} | {row['above_best']:.1%} | {row['speed_up']:.2f} | {row['predicted_speed_up']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure all settings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two settings, the chosen length, one prompt")
    parser.add_argument("--on", choices=["emulated", "local"], default="emulated", help="launcher")
    parser.add_argument("--seeds", type=int, help="prompts per plan; default 6, quick 1")
    parser.add_argument("--write", type=Path, help="file for the table")
    arguments = parser.parse_args()
    arguments.seeds = arguments.seeds or (1 if arguments.quick else 6)
    torch.set_num_threads(1)
    model = load_model("text")
    assert isinstance(model, CausalLM)
    measured = {"target": measure_passes(model, list(range(1, LONGEST + 2)), rest_s=0.005)}
    for name in model.drafts:
        measured[name] = measure_passes(draft_model(model, name), [1, 2])
    rows = []
    for setting in settings(arguments.quick):
        rows.append(measure(setting, model, measured, arguments))
        row = rows[-1]
        print(
            f"{row['setting']}: length {row['chosen']} on {row['draft_device']}, best {row['best']} "
            f"(+{row['above_best']:.1%}), speed-up {row['speed_up']:.2f}, predicted {row['predicted_speed_up']:.2f}",
            flush=True,
        )
    if arguments.write:
        arguments.write.write_text(table(rows) + "\n", encoding="utf-8")
    summary = {
        "settings": len(rows),
        "all_equal": all(row["equal"] for row in rows),
        "median_speed_up_error": statistics.median(abs(row["error"]) for row in rows),
        "largest_speed_up_error": max(abs(row["error"]) for row in rows),
        "largest_above_best": max(row["above_best"] for row in rows),
        "rows": rows,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
