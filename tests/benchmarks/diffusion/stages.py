"""Where three stages and more win: the bundled problem's best plan beside the best one of two stages, executed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from edgeopt import planner
from edgeopt.executor import execute
from edgeopt.executor.netlab import missing
from edgeopt.plan import Plan
from edgeopt.profiler import profile_device
from edgeopt.profiler.device import slowed
from edgeopt.profiles.problem import Problem
from tests.benchmarks.diffusion.bench import Bench, limited

__all__ = ["PART", "here", "run", "section"]

PART = "stages"
PROBLEM = "digits-three-stages"
#: Most stages that a plan may have; ``None``: any number.
LIMITS = (1, 2, 3, None)


def here(problem: Problem, say: Callable[[str], None], beside: Sequence[Problem] = ()) -> Problem:
    """Return the problem with its devices replaced by this machine, measured once and slowed down by their speeds.

    Memory, network and request stay; the fastest device is this machine with one thread. Requests ``beside`` are timed
    too, so that the devices serve for these as well.
    """
    fastest = max(device.compute["float32"] for device in problem.devices)
    timed = (problem, *beside)
    whole = profile_device(
        "here", threads=1, models=[each.model for each in timed], workloads=[each.workload for each in timed],
        repeats=3, processes=2, progress=say, command="tests/benchmarks/quality.py", patches=True,
    )  # fmt: skip
    devices = []
    for device in problem.devices:
        speed = round(device.compute["float32"] / fastest, 3)
        limits = {"memory": device.memory, "margin": device.margin, "power": None}
        devices.append(slowed(whole, speed, device.name).model_copy(update=limits))
    return problem.model_copy(update={"devices": devices})


def run(bench: Bench, say: Callable[[str], None]) -> dict[str, Any]:
    """Plan with at most so many stages, for the datasheets' devices and for this machine's, and run the latter."""
    problem = bench.problem(PROBLEM)
    datasheet = [_row(limit, planner.solve(limited(problem, max_stages=limit))) for limit in LIMITS]
    # A shake-down does not measure this machine: the datasheets' devices run as fast as processes do here.
    own = problem if bench.quick else here(problem, say)
    on = "local" if bench.quick or missing() else "emulated"
    rows = []
    for limit in LIMITS[2 if bench.quick else 1 : 3]:
        plan = planner.solve(limited(own, max_stages=limit))
        say(f"at most {limit} stages: {plan.latency_s * 1e3:.1f} ms predicted; running on {on} hosts")
        report = execute(
            plan, on=on, repeat=2 if bench.quick else 9, warmup=1 if bench.quick else 2, check=True, timeout_s=240.0
        )
        measured = report.latency_s
        rows.append(
            _row(limit, plan)
            | {"measured_s": measured.median, "spread_s": measured.spread, "bitwise": bool(report.output.equal)}
        )
    return {
        "problem": PROBLEM, "launcher": on, "datasheet": datasheet, "executed": rows,
        "gain_datasheet": datasheet[1]["predicted_s"] / datasheet[2]["predicted_s"] - 1,
        "gain_predicted": rows[0]["predicted_s"] / rows[-1]["predicted_s"] - 1,
        "gain_measured": rows[0]["measured_s"] / rows[-1]["measured_s"] - 1,
    }  # fmt: skip


def _row(limit: int | None, plan: Plan) -> dict[str, Any]:
    stages = [f"{stage.device} {stage.stop - stage.start} {stage.variant}" for stage in plan.stages]
    return {"limit": limit, "stages": stages, "predicted_s": plan.latency_s, "quality": plan.quality}


def section(found: dict[str, Any]) -> list[str]:
    """Write the findings down."""
    lines = [
        f"`{found['problem']}` with at most so many stages: the best plan with three is {found['gain_datasheet']:.1%} "
        "faster than the best with two (goal 5 %), both at least as good as the problem asks for.",
        "",
        "| stages allowed | plan | predicted ms | Fréchet predicted |",
        "|---|---|---|---|",
    ]
    for row in found["datasheet"]:
        cells = f"{row['limit'] or 'any'} | {', '.join(row['stages'])} | {1e3 * row['predicted_s']:.1f}"
        lines.append(f"| {cells} | {row['quality']:.3f} |")
    lines += [
        "",
        "The same devices as fractions of this machine's speed, planned again and executed on "
        f"{found['launcher']} hosts: {found['gain_predicted']:.1%} predicted, {found['gain_measured']:.1%} measured; "
        f"outputs {'bitwise those of one process' if all(row['bitwise'] for row in found['executed']) else 'DIFFER'}.",
        "",
        "| stages allowed | plan | predicted ms | measured ms | spread ms |",
        "|---|---|---|---|---|",
    ]
    for row in found["executed"]:
        lines.append(
            f"| {row['limit']} | {', '.join(row['stages'])} | {1e3 * row['predicted_s']:.1f} | "
            f"{1e3 * row['measured_s']:.1f} | {1e3 * row['spread_s']:.1f} |"
        )
    return lines
