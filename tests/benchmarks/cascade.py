"""Cascades on emulated hosts: accuracy on held-out queries, floors, and response times of streams beside the plans.

    python tests/benchmarks/cascade.py [--quick] [--write docs/measurements/llm.md]

The seconds of prefills and decode rounds are measured once in this process and scaled to a phone, which asks and cannot
hold the largest model, and a server. First each floor on accuracy is planned and all held-out queries are asked, one
after the other. At last queries arrive so fast that the fullest device is planned to be busy for 0.3, 0.6 and 0.8 of
the time. Before and after each load a stream that is not compared says by how much each model takes longer in place,
since near full load a per cent of service is five of waiting. No formula of a queue knows how lucky a stream is: twenty
are followed on paper with the planned seconds, and the one that comes nearest to the formula is executed. Six minutes
as root on an idle machine; ``--quick`` shows in one that it works. Results are kept in ``--folder``: a run that was cut
off goes on. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from edgeopt import planner
from edgeopt.costs.answering import answer_s
from edgeopt.costs.drafting import draft_model
from edgeopt.executor.run import execute
from edgeopt.plan import Plan, Stage
from edgeopt.profiles import load_model
from edgeopt.profiles.answers import read_answers
from edgeopt.profiles.device import Device
from edgeopt.profiles.model import CausalLM
from edgeopt.profiles.problem import Problem
from edgeopt.programs.answers import build
from edgeopt.strategies.cascade import Cascade
from tests.benchmarks.answer_seconds import (
    Known,
    at_other_seconds,
    between_queries,
    device_rows,
    family,
    measured_seconds,
)  # fmt: skip
from tests.benchmarks.sections import made_by, write_section

__all__ = ["at_floor", "at_load", "followed", "main", "problem_at"]

FLOORS, LOADS, FLOOR = (0.5, 0.7, 0.8, 0.85, 0.9), (0.3, 0.6, 0.8), 0.85
#: Requests of a stream by load: a full queue forgets slowly, so that more are needed.
REQUESTS = {0.3: 400, 0.6: 900, 0.8: 1800}
#: Streams that are followed on paper.
STREAMS = 20
#: Fractions of this machine's speed, and memory: the phone has no room for the largest model.
DEVICES = {"phone": (0.4, 1.2e6), "server": (0.4, 1e9)}
LINK = {"rate": 12.5e6, "latency": 0.002}
PROMPT, NEW = 162, 40


def problem_at(floor: float, known: Known, requests: int, rate: float | None = None) -> Problem:
    """A phone that asks and a server, 2 ms apart; seconds as they were measured, at the devices' fractions."""
    model = load_model("text")
    assert isinstance(model, CausalLM)
    devices = [
        Device.model_validate(
            {
                "name": name, "source": "emulated", "compute": {"float32": 1e9}, "memory": memory,
                "memory_bandwidth": 1e10, "launch_overhead": 1e-6,
                "timings": [row for m in family(model).values() for row in device_rows(m, known, name, quota)],
                "efficiency": {"compute": 1.0, "memory_bandwidth": 1.0, "basis": "assumed"},
                "messages": {"each": 0.0, "per_mebibyte": 0.0, "rested": known.rested_s},
                    "runtime": {"threads": 1, "cpu_quota": quota, "yardstick": known.yardstick_s},
            }
        )
        for name, (quota, memory) in DEVICES.items()
    ]  # fmt: skip
    load = {"kind": "text", "prompt_tokens": PROMPT, "new_tokens": NEW, "requests": requests, "requests_per_s": rate}
    return Problem.model_validate(
        {
            "name": "cascade", "model": model, "strategy": "cascade", "devices": devices, "workload": load,
            "network": {"name": "emulated", "source": "emulated", "default": LINK}, "constraints": {"accuracy": floor},
        }
    )  # fmt: skip


def at_floor(floor: float, known: Known, requests: int, on: str) -> dict[str, Any]:
    """Plan a floor and ask held-out queries one after the other."""
    plan = planner.solve(problem_at(floor, known, requests))
    report = execute(plan, on=on, repeat=1, warmup=0, seed=0, timeout_s=400.0)
    right = report.metrics["accuracy"].median
    return {
        "floor": floor,
        "decisions": plan.decisions,
        "predicted": [plan.metrics[f"accuracy{end}"] for end in ("", "_low", "_high")],
        "accuracy": right,
        "inside": plan.metrics["accuracy_low"] <= right <= plan.metrics["accuracy_high"],
        "kept": right >= floor,
        "predicted_s": plan.latency_s,
        "measured_s": report.latency_s.median,
        "passed_on": [each.messages for each in report.transfers if each.purpose == "input"],
        "largest_alone_s": plan.metrics["largest_alone_s"],
        "equal": bool(report.output and report.output.equal),
    }


def in_place(known: Known, requests: int, on: str) -> Known:
    """Run a stream that is not compared, and say by what factor each model takes longer than planned in place."""
    plan = planner.solve(problem_at(FLOOR, known, requests, rate_of(0.6, known)))
    seed = 2 * STREAMS  # none of those that are compared
    report = execute(plan, on=on, repeat=1, warmup=0, seed=seed, timeout_s=400.0, check=False)
    stages = zip(followed(plan, seed)[1], report.stages, plan.stages, strict=True)
    factors = {(model_name(stage, plan), stage.device): ran.compute_s.median / s for s, ran, stage in stages if s}
    return replace(known, factors=factors, between_s=between_queries(report, plan.problem))


def model_name(stage: Stage, plan: Plan) -> str:
    """Name of a stage's model in device profiles."""
    model = plan.problem.model
    assert isinstance(model, CausalLM)
    return draft_model(model, stage.variant).name if stage.variant else model.name


def rate_of(load: float, known: Known) -> float:
    """Rate at which the fullest device is busy for this fraction of the time; the cascade stays that of no load."""
    plan = planner.solve(problem_at(FLOOR, known, 1))
    busy: dict[str, float] = {}
    for stage in plan.stages:
        busy[stage.device] = busy.get(stage.device, 0.0) + stage.compute_s
    return load / max(busy.values())


def followed(plan: Plan, seed: int) -> tuple[float, list[float]]:
    """Mean response of the very stream that is executed, if every query took what the costs say.

    Beside it the mean seconds that each stage computes, those of queries that never get there too.
    """
    model, load = plan.problem.model, plan.problem.workload
    assert isinstance(model, CausalLM)
    times, rows = (tensor.tolist() for tensor in build(plan, ()).request(seed))
    trace, devices = read_answers(model), {device.name: device for device in plan.problem.devices}
    assert trace.prompt_tokens is not None
    assert trace.tokens is not None
    where, thresholds = {int(row): k for k, row in enumerate(trace.query)}, plan.decisions["thresholds"]
    assert isinstance(thresholds, list)
    source, arrivals = plan.problem.devices[0].name, [(at, n) for n, at in enumerate(times)]
    done, spent = [0.0] * len(times), []
    for stage in plan.stages:  # no two stages share a device here
        name = stage.variant or model.name
        m, each = trace.models.index(name), model if stage.variant is None else draft_model(model, name)
        busy = answer_s(each, load, devices[stage.device], trace.prompt_tokens, trace.tokens[:, m])[0]  # type: ignore[arg-type]
        way_s, free, passed = (0.0 if stage.device == source else LINK["latency"]), 0.0, []
        spent.append(sum(float(busy[where[rows[n]]]) for _, n in arrivals) / len(times))
        for at, n in sorted(arrivals):
            free = max(free, at + way_s) + float(busy[where[rows[n]]])
            done[n] = free + way_s
            if stage.index < len(thresholds) and trace.confidence[where[rows[n]], m] < thresholds[stage.index]:  # type: ignore[operator]
                passed.append((done[n], n))
        arrivals = passed
    return statistics.fmean(b - a for a, b in zip(times, done, strict=True)), spent


def at_load(
    load: float, given: tuple[Known, Known], requests: int, count: int, on: str
) -> tuple[dict[str, Any], Known]:
    """Let queries arrive at a rate, and compare what they wait; and what was found in place afterwards.

    Rate and cascade are those of the seconds found in place before; what they come to is compared as the mean of those
    before and after says, since the machine may have changed meanwhile.

    Parameters
    ----------
    given
        Seconds timed here, and with what was found in place before.
    count
        Requests of the stream that tells afterwards.
    """
    known, before = given
    rate = rate_of(load, before)
    first = planner.solve(problem_at(FLOOR, before, requests, rate))
    streams = [followed(first, seed)[0] for seed in range(STREAMS)]
    seed = min(range(STREAMS), key=lambda k: abs(streams[k] - first.latency_s))
    report = execute(first, on=on, repeat=1, warmup=0, seed=seed, timeout_s=300.0 + 2 * requests / rate)
    after = in_place(known, count, on)
    plan = at_other_seconds(Cascade(), first, problem_at(FLOOR, before.beside(after), requests, rate))
    streams = [followed(plan, each)[0] for each in range(STREAMS)]
    assert report.responses is not None
    row = {
        "load": plan.metrics["load"],
        "measured_load": report.metrics["load"].median,
        "rate": rate,
        "requests": requests,
        "before_s": first.latency_s,
        "predicted_s": plan.latency_s,
        "streams_s": statistics.fmean(streams),
        "seed": seed,
        "followed_s": streams[seed],
        "measured_s": report.responses.mean_s,
        "low_s": report.responses.low_s,
        "high_s": report.responses.high_s,
        "error": plan.latency_s / report.responses.mean_s - 1,
        "accuracy": report.metrics["accuracy"].median,
        "stages": [[at.compute_s, ran.compute_s.median] for at, ran in zip(plan.stages, report.stages, strict=True)],
        "drift": after.drift(before),
        "decisions": plan.decisions,
        "equal": bool(report.output and report.output.equal),
    }
    return row, after


def section(floors: list[dict[str, Any]], loads: list[dict[str, Any]], quick: bool) -> list[str]:
    """Lines of the page."""
    quotas = ", ".join(f"{name} {quota:g}" for name, (quota, _) in DEVICES.items())
    lines = [
        made_by("python tests/benchmarks/cascade.py", quick=quick, on="emulated hosts on"),
        "",
        f"Three character models on a phone, which asks, and a server, at fractions of a core ({quotas}), 2 ms apart; "
        "decided from one half of the recorded queries. The other half, one query after the other:",
        "",
        "| floor | models | thresholds | accuracy planned | measured | floor kept | mean time planned (ms) | measured "
        "| largest alone |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in floors:
        mean, low, high = row["predicted"]
        thresholds = ", ".join(f"{value:.3g}" for value in row["decisions"]["thresholds"]) or "–"
        lines.append(
            f"| {row['floor']:g} | {', '.join(row['decisions']['models'])} | {thresholds} "
            f"| {mean:.3f} ({low:.3f} to {high:.3f}) | {row['accuracy']:.3f} | {'yes' if row['kept'] else 'NO'} "
            f"| {1e3 * row['predicted_s']:.1f} | {1e3 * row['measured_s']:.1f} | {1e3 * row['largest_alone_s']:.1f} |"
        )
    lines += [
        "",
        f"Queries that arrive by themselves, floor {FLOOR:g}; seconds of answers from streams of their own before and "
        "after each load (*drift*: the largest difference between the two). *Followed*: streams on paper, with the "
        f"planned seconds of each query; {STREAMS} on average, and the one nearest to the plan, which is executed. "
        "*Before*: planned with the seconds of the stream before alone, as a planner has to; *planned*: what the same "
        "decisions come to by the mean of both streams, which the machine may have changed between.",
        "",
        "| load | measured | requests/s | requests | computing, planned / measured | drift "
        "| mean response before (ms) | planned | followed | this one | measured | 95 % confidence "
        "| planned / measured |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in loads:
        known = row["low_s"] is not None
        interval = f"{1e3 * row['low_s']:.1f} to {1e3 * row['high_s']:.1f}" if known else "–"
        computing = ", ".join(f"{planned / ran:.3f}" for planned, ran in row["stages"])
        lines.append(
            f"| {row['load']:.2f} | {row['measured_load']:.2f} | {row['rate']:.1f} | {row['requests']} | {computing} "
            f"| {100 * row['drift']:.1f} % | {1e3 * row['before_s']:.1f} | {1e3 * row['predicted_s']:.1f} "
            f"| {1e3 * row['streams_s']:.1f} "
            f"| {1e3 * row['followed_s']:.1f} "
            f"| {1e3 * row['measured_s']:.1f} "
            f"| {interval} | {1 + row['error']:.3f} |"
        )
    equal = "All" if all(row["equal"] for row in [*floors, *loads]) else "NOT ALL"
    return [*lines, "", f"{equal} answers are, token by token, those of the single process."]


def main() -> None:
    """Measure floors and loads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one floor, one load, few requests: shows that it works")
    parser.add_argument("--on", choices=["emulated", "local"], default="emulated", help="launcher")
    parser.add_argument("--folder", type=Path, default=Path("build/cascade"), help="keeps what was measured")
    parser.add_argument("--write", type=Path, metavar="FILE", help="page whose section is replaced")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.folder.mkdir(parents=True, exist_ok=True)
    model, started = load_model("text"), time.monotonic()
    assert isinstance(model, CausalLM)
    known = measured_seconds({each.name: each for each in family(model).values()}, 4 if asked.quick else 15)

    def kept(name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        file = asked.folder / f"{name}.json"
        if asked.quick or not file.exists():
            row = measure()
            if not asked.quick:
                file.write_text(json.dumps(row), encoding="utf-8")
        else:
            row = json.loads(file.read_text(encoding="utf-8"))
        words = ", ".join(f"{key} {row[key]:.4g}" for key in ("accuracy", "predicted_s", "measured_s"))
        print(f"[{time.monotonic() - started:5.0f} s] {name}: {words}", file=sys.stderr, flush=True)
        return row

    held_out = len(read_answers(model).part("held-out"))
    count = 40 if asked.quick else held_out
    floors = [
        kept(f"floor-{floor:g}", lambda floor=floor: at_floor(floor, known, count, asked.on))
        for floor in (FLOORS[-1:] if asked.quick else FLOORS)
    ]
    before, loads, count = None, [], 60 if asked.quick else 400
    for load in LOADS[1:2] if asked.quick else LOADS:
        after: list[Known] = []

        def measure(load: float = load, before: Known | None = before, after: list[Known] = after) -> dict[str, Any]:
            given = known, before or in_place(known, count, asked.on)
            row, found = at_load(load, given, 250 if asked.quick else REQUESTS[load], count, asked.on)
            after.append(found)
            return row

        loads.append(kept(f"load-{load:g}", measure))
        before = after[0] if after else None
    if asked.write:
        write_section(asked.write, "Cascade", section(floors, loads, asked.quick))
    summary = {
        "benchmark": "cascade",
        "quick": asked.quick,
        "inside": all(row["inside"] for row in floors),
        "floors_kept": all(row["kept"] for row in floors),
        "largest_error": max(abs(row["error"]) for row in loads),
        "all_equal": all(row["equal"] for row in [*floors, *loads]),
        "floors": floors,
        "loads": loads,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
