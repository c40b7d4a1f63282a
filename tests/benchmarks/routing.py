"""Routing on emulated hosts: response times and accuracy of streams of queries beside the planned ones.

    python tests/benchmarks/routing.py [--quick] [--write docs/measurements/llm.md]

The seconds of prefills and decode rounds are measured once in this process and scaled to three devices. Arrivals are
raised until the fullest device is planned to be busy for 0.3, 0.6 and 0.8 of the time, and each plan is executed with a
stream of held-out queries. Before and after each a short stream that asks every model on every device says by how much
each pair differs in place, since near full load a per cent of service is five of waiting. Means of streams vary (at 0.8
by a tenth for 4,000 requests): of twenty the one is run whose mean, followed on paper with the planned seconds, is
nearest to the formula's. Six minutes as root on an idle machine; ``--quick`` shows in two that it works. Results are
kept in ``--folder``: a run that was cut off goes on. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from edgeopt import planner
from edgeopt.costs.answering import answer_s
from edgeopt.costs.drafting import draft_model
from edgeopt.errors import NoPlanError
from edgeopt.executor.run import execute
from edgeopt.plan import Plan
from edgeopt.profiles import load_model
from edgeopt.profiles.answers import read_answers
from edgeopt.profiles.device import Device
from edgeopt.profiles.model import CausalLM
from edgeopt.profiles.problem import Problem, TextWorkload
from edgeopt.programs.routing import build
from edgeopt.strategies.routing import Routing
from edgeopt_solvers.placement import ServingSolution
from tests.benchmarks.answer_seconds import (
    Known,
    at_other_seconds,
    between_queries,
    device_rows,
    family,
    measured_seconds,
    planned,
)  # fmt: skip
from tests.benchmarks.sections import made_by, write_section

__all__ = ["busy_seconds", "calibrated", "followed", "main", "plan_at", "problem_at"]

NEW, LOADS, FLOOR = 40, (0.3, 0.6, 0.8), 0.85
#: Requests of a stream by load: a full queue forgets slowly, so that more are needed.
REQUESTS = {0.3: 600, 0.6: 1500, 0.8: 3500}
#: Streams to choose from.
STREAMS = 20
#: Requests of the streams that tell how long answers take in place.
CALIBRATING = 400
QUOTAS = {"gateway": 0.15, "server": 0.35, "annex": 0.3}
LINK = {"rate": 12.5e6, "latency": 0.001}


def problem_at(rate: float, requests: int, known: Known) -> Problem:
    """Three devices at fractions of this machine, 1 ms apart; the first is the source and answers, too."""
    model = load_model("text")
    assert isinstance(model, CausalLM)
    devices = []
    for name, quota in QUOTAS.items():
        rows = [row for m in family(model).values() for row in device_rows(m, known, name, quota)]
        devices.append(
            Device.model_validate(
                {
                    "name": name, "source": "emulated", "compute": {"float32": 1e9}, "memory": 1e9,
                    "memory_bandwidth": 1e10, "launch_overhead": 1e-6, "timings": rows,
                    "efficiency": {"compute": 1.0, "memory_bandwidth": 1.0, "basis": "assumed"},
                    "messages": {"each": 0.0, "per_mebibyte": 0.0, "rested": known.rested_s},
                    "runtime": {"threads": 1, "cpu_quota": quota, "yardstick": known.yardstick_s},
                }
            )
        )  # fmt: skip
    return Problem.model_validate(
        {
            "name": "routing", "model": model, "strategy": "routing", "devices": devices,
            "workload": {
                "kind": "text", "prompt_tokens": 200, "new_tokens": NEW, "requests_per_s": rate, "requests": requests,
            },
            "network": {"name": "emulated", "source": "emulated", "default": LINK},
            "constraints": {"accuracy": FLOOR},
        }
    )  # fmt: skip


def calibrated(known: Known, on: str, requests: int) -> Known:
    """Run a stream that asks every model on every device alike, and compare each pair's computing with the costs."""
    technique = Routing()
    instance = technique.build(problem_at(1.0, requests, known))
    alike = np.full(instance.service_s.shape, 1 / instance.service_s[0].size)
    solution = ServingSolution(alike, np.ones(alike.shape[1:], dtype=bool))
    full = technique.evaluate(instance, solution).metrics["load"]
    problem = problem_at(0.5 / full, requests, known)
    instance = technique.build(problem)
    plan = planned(technique, problem, instance, solution)
    seed = STREAMS  # none of those that are compared
    report = execute(plan, on=on, repeat=1, warmup=0, seed=seed, timeout_s=300.0, check=False)
    _, rows, stages = build(plan, ()).request(seed)
    busy, where = busy_seconds(plan)
    factors = {}
    for stage, measured in zip(plan.stages, report.stages, strict=True):
        asked = [float(busy[stage.index][where[row]]) for row in rows[stages == stage.index].tolist()]
        if asked:
            name = draft_model(problem.model, stage.variant).name if stage.variant else problem.model.name
            factors[name, stage.device] = measured.compute_s.median * requests / sum(asked)
    between_s = between_queries(report, problem)
    return replace(known, factors=factors, between_s=between_s)


def plan_at(load: float, requests: int, known: Known) -> Plan:
    """Raise arrivals until the fullest device of the best plan has this load; the rate is found by bisection."""
    low, high = 0.0, 4.0
    while True:
        try:
            found = planner.solve(problem_at(high, requests, known), gap=1e-3)
        except NoPlanError:
            break
        if found.metrics["load"] >= load:
            break
        low, high = high, 2 * high
    while high - low > 0.005 * high:
        rate = (low + high) / 2
        try:
            full = planner.solve(problem_at(rate, requests, known), gap=1e-3).metrics["load"] >= load
        except NoPlanError:
            full = True
        low, high = (low, rate) if full else (rate, high)
    return planner.solve(problem_at(low, requests, known))


def busy_seconds(plan: Plan) -> tuple[dict[int, Any], dict[int, int]]:
    """Seconds of every recorded query by stage, as the costs say, and where each query is among them."""
    model, load = plan.problem.model, plan.problem.workload
    assert isinstance(model, CausalLM)
    assert isinstance(load, TextWorkload)
    trace, devices = read_answers(model), {device.name: device for device in plan.problem.devices}
    assert trace.prompt_tokens is not None
    assert trace.tokens is not None
    busy = {}
    for stage in plan.stages:
        name = stage.variant or model.name
        each = model if stage.variant is None else draft_model(model, stage.variant)
        tokens = trace.tokens[:, trace.models.index(name)]
        busy[stage.index] = answer_s(each, load, devices[stage.device], trace.prompt_tokens, tokens)[0]
    return busy, {int(row): k for k, row in enumerate(trace.query)}


def followed(plan: Plan, seed: int) -> float:
    """Mean response of the very stream that is executed, if every query took what the costs say."""
    times, rows, stages = build(plan, ()).request(seed)
    busy, where = busy_seconds(plan)
    free, response = {device.name: 0.0 for device in plan.problem.devices}, []
    source = plan.problem.devices[0].name
    for at, row, k in zip(times.tolist(), rows.tolist(), stages.tolist(), strict=True):
        device, n = plan.stages[k].device, where[row]
        way_s = 0.0 if device == source else LINK["latency"]
        free[device] = max(free[device], at + way_s) + float(busy[k][n])
        response.append(free[device] + way_s - at)
    return float(np.mean(response))


def measure(
    load: float, requests: int, given: tuple[Known, Known], count: int, on: str
) -> tuple[dict[str, Any], Known]:
    """Plan, execute and compare one load; and what was found in place afterwards.

    The rate and the choice are those of the seconds found in place before; what they come to is compared as the mean
    of those before and after says, since the machine may have changed meanwhile.

    Parameters
    ----------
    given
        Seconds timed here, and with what was found in place before.
    count
        Requests of the stream that tells afterwards.
    """
    known, before = given
    first = plan_at(load, requests, before)
    rate = first.problem.workload.requests_per_s  # type: ignore[union-attr]
    on_paper = {seed: followed(first, seed) for seed in range(STREAMS)}
    seed = min(on_paper, key=lambda each: abs(on_paper[each] - first.latency_s))
    report = execute(first, on=on, repeat=1, warmup=0, seed=seed, timeout_s=300.0 + 2 * requests / rate)
    after = calibrated(known, on, count)
    plan = at_other_seconds(Routing(), first, problem_at(rate, requests, before.beside(after)))
    on_paper = {seed: followed(plan, seed) for seed in range(STREAMS)}
    assert report.responses is not None
    right = report.metrics["accuracy"].median
    row = {
        "load": plan.metrics["load"],
        "measured_load": report.metrics["load"].median,
        "rate": rate,
        "requests": requests,
        "before_s": first.latency_s,
        "predicted_s": plan.latency_s,
        "followed_s": on_paper[seed],
        "spread_of_streams": float(np.std(list(on_paper.values()))) / plan.latency_s,
        "seed": seed,
        "measured_s": report.responses.mean_s,
        "low_s": report.responses.low_s,
        "high_s": report.responses.high_s,
        "error": plan.latency_s / report.responses.mean_s - 1,
        "equal": bool(report.output and report.output.equal),
        "accuracy": right,
        "predicted_accuracy": [plan.metrics[f"accuracy{end}"] for end in ("", "_low", "_high")],
        "floor_kept": right >= FLOOR,
        "stages": [f"{stage.elements} on {stage.device}" for stage in plan.stages],
        "gap": first.gap,
        "drift": after.drift(before),
    }
    return row, after


def section(rows: list[dict[str, Any]], quick: bool) -> list[str]:
    """Lines of the page."""
    lines = [
        made_by("python tests/benchmarks/routing.py", quick=quick, on="emulated hosts on"),
        "",
        f"Questions of five classes to three character models on devices of {', '.join(map(str, QUOTAS.values()))} of "
        f"a core, 1 ms apart; floor on accuracy {FLOOR:g}. *Followed*: the same stream on paper, with the planned "
        "seconds of each query (of twenty streams the most typical one is run). Seconds of answers are those of "
        "streams of their own before and after each load (*drift*: the largest difference between the two). *Before*: "
        "planned with those of the stream before alone, as a planner has to; *planned*: what the same decisions come "
        "to by the mean of both. Accuracy is that of held-out queries.",
        "",
        "| load | measured | requests/s | requests | drift | mean response before (ms) | planned | followed "
        "| measured | 95 % interval | planned / measured | accuracy planned | measured |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        known = row["low_s"] is not None
        interval = f"{1e3 * row['low_s']:.1f} to {1e3 * row['high_s']:.1f}" if known else "–"
        mean, low, high = row["predicted_accuracy"]
        lines.append(
            f"| {row['load']:.2f} | {row['measured_load']:.2f} | {row['rate']:.1f} | {row['requests']} "
            f"| {100 * row['drift']:.1f} % | {1e3 * row['before_s']:.1f} | {1e3 * row['predicted_s']:.1f} "
            f"| {1e3 * row['followed_s']:.1f} "
            f"| {1e3 * row['measured_s']:.1f} "
            f"| {interval} | {1 + row['error']:.3f} | {mean:.3f} ({low:.3f} to {high:.3f}) | {row['accuracy']:.3f} |"
        )
    equal = "All" if all(row["equal"] for row in rows) else "NOT ALL"
    return [*lines, "", f"{equal} answers are, token by token, those of the single process."]


def main() -> None:
    """Measure all loads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one load, few requests: shows that it works")
    parser.add_argument("--on", choices=["emulated", "local"], default="emulated", help="launcher")
    parser.add_argument("--folder", type=Path, default=Path("build/routing"), help="keeps what was measured")
    parser.add_argument("--write", type=Path, metavar="FILE", help="page whose section is replaced")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.folder.mkdir(parents=True, exist_ok=True)
    model, started = load_model("text"), time.monotonic()
    assert isinstance(model, CausalLM)
    known = measured_seconds({each.name: each for each in family(model).values()}, 4 if asked.quick else 15)
    count = 90 if asked.quick else CALIBRATING
    before, rows = None, []
    for load in LOADS[1:2] if asked.quick else LOADS:
        kept = asked.folder / f"load-{load:g}{'-quick' if asked.quick else ''}.json"
        if kept.exists() and not asked.quick:
            rows.append(json.loads(kept.read_text(encoding="utf-8")))
        else:
            before = before or calibrated(known, asked.on, count)
            print(f"[{time.monotonic() - started:5.0f} s] in place: {before}", file=sys.stderr, flush=True)
            row, before = measure(load, 200 if asked.quick else REQUESTS[load], (known, before), count, asked.on)
            rows.append(row)
            kept.write_text(json.dumps(rows[-1]), encoding="utf-8")
        row = rows[-1]
        print(
            f"[{time.monotonic() - started:5.0f} s] load {row['load']:.2f} (measured {row['measured_load']:.2f}): "
            f"{1e3 * row['predicted_s']:.1f} ms planned, {1e3 * row['followed_s']:.1f} followed, "
            f"{1e3 * row['measured_s']:.1f} measured ({row['error']:+.1%}); accuracy {row['accuracy']:.3f}",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    if asked.write:
        write_section(asked.write, "Routing", section(rows, asked.quick))
    summary = {
        "benchmark": "routing",
        "quick": asked.quick,
        "largest_error": max(abs(row["error"]) for row in rows),
        "within": all(row["predicted_accuracy"][1] <= row["accuracy"] <= row["predicted_accuracy"][2] for row in rows),
        "floors_kept": all(row["floor_kept"] for row in rows),
        "all_equal": all(row["equal"] for row in rows),
        "rows": rows,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
