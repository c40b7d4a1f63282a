"""Latency of split diffusion over that of multi-stage as good as it, measured on emulated hosts at several link rates.

The three boards of the curve become fractions of this machine, which is measured right before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from edgeopt.executor import execute
from edgeopt.plan import Plan
from edgeopt.profiles.network import LinkQuality
from edgeopt.profiles.problem import Problem
from tests.benchmarks.diffusion.bench import Bench
from tests.benchmarks.diffusion.curve import MBIT, tight_problem
from tests.benchmarks.diffusion.methods import Methods
from tests.benchmarks.diffusion.stages import here

__all__ = ["PART", "at_rate", "crossing", "run", "section"]

PART = "ratio"
RATES = (10, 50, 100, 500)
#: Rates, Mbit/s, between which the predicted crossover is looked for.
RANGE = (1.0, 10_000.0)


def at_rate(problem: Problem, rate_mbit: float) -> Problem:
    """Return the problem with links of another rate."""
    link = LinkQuality(rate=rate_mbit * MBIT, latency=problem.network.default.latency)  # type: ignore[union-attr]
    return problem.model_copy(update={"network": problem.network.model_copy(update={"default": link})})


def run(bench: Bench, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure this machine, then plan and run both ways at every rate."""
    methods, reason = Methods(bench), bench.not_run()
    problem = tight_problem(bench) if reason else here(tight_problem(bench), say)
    rows = []
    for rate in RATES[:: 3 if bench.quick else 1]:
        split, multi = _pair(methods, problem, rate)
        row: dict[str, Any] = {"mbit": rate, "split": _row(split), "multi": _row(multi)}
        if not reason:
            for name, plan in (("split", split), ("multi", multi)):
                row[name] |= _measured(plan)
                measured = row[name]["measured_s"]
                say(f"{rate} Mbit/s, {name}: {1e3 * plan.latency_s:.1f} ms predicted, {1e3 * measured:.1f} measured")
            row["measured"] = row["split"]["measured_s"] / row["multi"]["measured_s"]
        row["predicted"] = split.latency_s / multi.latency_s
        rows.append(row)
    return {
        "not_measured": reason, "rows": rows,
        "boards": [{"name": d.name, "quota": d.runtime.cpu_quota or 1.0} for d in problem.devices],
        "crossover_predicted_mbit": _crossover(methods, problem),
        "crossover_measured_mbit": crossing([(row["mbit"], row["measured"]) for row in rows if "measured" in row]),
    }  # fmt: skip


def _pair(methods: Methods, problem: Problem, rate_mbit: float) -> tuple[Plan, Plan]:
    rated = at_rate(problem, rate_mbit)
    split = methods.best("split", rated)
    multi = methods.as_good(rated, methods.bench.profile.base)
    assert split is not None
    assert multi is not None
    return split.plan, multi.plan


def _row(plan: Plan) -> dict[str, Any]:
    stages = [f"{stage.device} {stage.variant} {stage.start}:{stage.stop}" for stage in plan.stages]
    return {"predicted_s": plan.latency_s, "stages": stages}


def _measured(plan: Plan) -> dict[str, Any]:
    report = execute(plan, on="emulated", repeat=3, warmup=1, check=True, timeout_s=240.0)
    assert report.output is not None
    found = report.latency_s
    return {"measured_s": found.median, "spread_s": found.spread, "equal": report.output.equal}


def _crossover(methods: Methods, problem: Problem) -> float | None:
    """Rate above which split is predicted faster, to one percent; ``None``: nowhere in the range."""

    def ratio(rate: float) -> float:
        split, multi = _pair(methods, problem, rate)
        return split.latency_s / multi.latency_s

    low, high = RANGE
    if ratio(low) < 1 or ratio(high) > 1:
        return None
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if ratio(middle) < 1 else (middle, high)
    return high


def crossing(points: Sequence[tuple[float, float]]) -> float | None:
    """Return the rate at which a ratio that falls with it passes 1, straight between points on logarithmic axes.

    Examples
    --------
    >>> crossing([(10.0, 10.0), (1000.0, 0.1)])
    100.0
    >>> crossing([(10.0, 10.0), (50.0, 2.0)]) is None
    True
    """
    for (slow, above), (fast, below) in pairwise(points):
        if above >= 1 > below:
            part = math.log(above) / (math.log(above) - math.log(below))
            return round(slow * (fast / slow) ** part, 9)
    return None


def section(found: dict[str, Any]) -> list[str]:
    """Write the findings down."""
    boards = ", ".join(f"{board['name']} {board['quota']:.0%}" for board in found["boards"])
    is_measured = not found["not_measured"]
    how = (
        f"measured on emulated hosts, medians of 3; boards as parts of this machine's speed: {boards}; outputs "
        + ("bitwise those of one process" if _all_equal(found["rows"]) else "DIFFER from those of one process")
        if is_measured
        else f"predicted only, of the boards' datasheets: {found['not_measured']}"
    )
    lines = [
        "The large denoiser split over the two fast boards, against the fastest multi-stage plan that is predicted as "
        f"good; 16 images; {how}.",
        "",
        _named(found),
        "",
        "| Mbit/s | split: predicted / measured ms | multi-stage: predicted / measured ms | ratio predicted | "
        "ratio measured | multi-stage plan |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        cells = [str(row["mbit"])]
        for name in ("split", "multi"):
            side = row[name]
            measured = f"{1e3 * side['measured_s']:.1f} ± {1e3 * side['spread_s']:.1f}" if is_measured else "–"
            cells.append(f"{1e3 * side['predicted_s']:.1f} / {measured}")
        cells += [f"{row['predicted']:.2f}", f"{row['measured']:.2f}" if is_measured else "–"]
        lines.append(f"| {' | '.join(cells)} | {', '.join(row['multi']['stages'])} |")
    return lines


def _all_equal(rows: Sequence[dict[str, Any]]) -> bool:
    return all(row[name]["equal"] for row in rows for name in ("split", "multi"))


def _named(found: dict[str, Any]) -> str:
    predicted, measured = found["crossover_predicted_mbit"], found["crossover_measured_mbit"]
    first = (
        f"Split is predicted slower at every rate from {RANGE[0]:g} to {RANGE[1]:g} Mbit/s, or faster at all of them"
        if predicted is None
        else f"Predicted crossover: **{predicted:.3g} Mbit/s**, below which split is slower"
    )
    if found["not_measured"]:
        return f"{first}."
    ratios = [row["measured"] for row in found["rows"]]
    rates = f"{found['rows'][0]['mbit']} to {found['rows'][-1]['mbit']} Mbit/s"
    if measured is not None:
        return f"{first}; measured: **{measured:.3g} Mbit/s**, between the rates that were run."
    side = "slower" if min(ratios) >= 1 else "faster" if max(ratios) < 1 else "neither always slower nor faster"
    return f"{first}; measured, split is {side} over all of {rates}."
