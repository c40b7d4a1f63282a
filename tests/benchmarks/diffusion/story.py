"""Figure 4 of the paper that this project began with, on the digits: six ways to share one run among three boards.

Within a fixed time each method draws the best images it can: (a) on boards of several speeds, (b) over links of several
rates. (c) says how latency divides into computation and transmission, predicted and measured, (d) shows images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from edgeopt.executor import execute
from edgeopt.plan import Plan
from edgeopt.profiles.problem import Problem
from edgeopt.report.data import Report
from tests.benchmarks.diffusion import pictures
from tests.benchmarks.diffusion.bench import Bench
from tests.benchmarks.diffusion.curve import EQUAL, tight_problem
from tests.benchmarks.diffusion.methods import METHODS, Methods, Way, at_speed, cascade_problem
from tests.benchmarks.diffusion.stages import here

__all__ = [
    "DEADLINE_S",
    "PART",
    "digits",
    "floor",
    "run",
    "section",
    "shares",
    "sweep_compute",
    "sweep_rate",
    "verdicts",
]

PART = "story"
DEADLINE_S = 0.15
#: Speeds of all boards, as multiples of what their datasheets say, and the rate of the links meanwhile.
SPEEDS, FAST_MBIT = (0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.6, 2.5), 1000
#: Rates of the links, Mbit/s.
RATES = (1, 5, 20, 50, 100, 200, 500, 1000)
#: Rate at which latency is divided, and images are drawn.
SHARED_MBIT = 100
Say = Callable[[str], None]


def _quiet(text: str) -> None:
    pass


def _row(methods: Methods, problem: Problem, budget: float) -> dict[str, Any]:
    """Plan every method within the time, and sample what it draws."""
    row: dict[str, Any] = {"budget": budget}
    for method in METHODS:
        way = methods.best(method, problem, DEADLINE_S)
        row[method] = None if way is None else _sampled(methods, way)
    return row


def _sampled(methods: Methods, way: Way) -> dict[str, Any]:
    found = methods.quality(way)
    return {
        "text": way.text, "latency_s": way.plan.latency_s, "traffic_bytes": sum(t.bytes for t in way.plan.transfers),
        "predicted": way.predicted, "sampled": found.frechet,
    }  # fmt: skip


def sweep_compute(methods: Methods, say: Say = _quiet) -> list[dict[str, Any]]:
    """Return a row per speed of the boards."""
    problem = tight_problem(methods.bench, FAST_MBIT)
    rows = []
    for speed in SPEEDS[:: 4 if methods.bench.quick else 1]:
        boards = [at_speed(device, speed) for device in problem.devices]
        rows.append(_row(methods, problem.model_copy(update={"devices": boards}), speed))
        say(f"speed {speed:g}: {rows[-1]['multi-stage']}")
    return rows


def sweep_rate(methods: Methods, say: Say = _quiet) -> list[dict[str, Any]]:
    """Return a row per rate of the links."""
    rows = []
    for rate in RATES[:: 7 if methods.bench.quick else 1]:
        rows.append(_row(methods, tight_problem(methods.bench, rate), rate))
        say(f"{rate} Mbit/s: {rows[-1]['multi-stage']}")
    return rows


def floor(methods: Methods) -> dict[str, float]:
    """Return what real digits score, and what real ones do that went through 16 x 16 pixels and back."""
    return {"real": methods.bench.reference.floor.frechet, "averaged": methods.averaging().frechet}


def _chosen(methods: Methods, problem: Problem) -> list[Way]:
    """Return each method at its best quality; multi-stage only as good as split, since that is the comparison."""
    ways = []
    for method in METHODS:
        is_multi = method == "multi-stage"
        way = methods.as_good(problem, methods.bench.profile.base) if is_multi else methods.best(method, problem)
        if way is not None:
            ways.append(way)
    return ways


def shares(methods: Methods, say: Say = _quiet) -> dict[str, Any]:
    """Divide the latency of each method's plan; run the plans where hosts can be emulated.

    The boards are then fractions of this machine, measured right before.
    """
    bench, reason = methods.bench, methods.bench.not_run()
    problem = tight_problem(bench, SHARED_MBIT)
    if not reason:
        problem = here(problem, say, beside=[cascade_problem(problem, methods.cascade)])
    rows = []
    for way in _chosen(methods, problem):
        measured = None
        if not reason:
            report = execute(way.plan, on="emulated", repeat=3, warmup=1, check=False, timeout_s=240.0)
            latency_s = report.latency_s.median  # medians of parts may add up to more than that of the whole
            measured = {"latency_s": latency_s, "compute_s": min(latency_s, _longest(way.plan, report))}
            say(f"{way.method}: {1e3 * way.plan.latency_s:.1f} ms predicted, {measured}")
        predicted = {"latency_s": way.plan.latency_s, "compute_s": _longest(way.plan)}
        rows.append({"method": way.method, "text": way.text, "predicted": predicted, "measured": measured})
    return {"mbit": SHARED_MBIT, "rows": rows, "not_measured": reason}


def _longest(plan: Plan, report: Report | None = None) -> float:
    """Seconds of computing that nothing else overlaps: of all stages in a chain, else of the busiest device."""
    if report is None:
        taken = {stage.index: stage.compute_s for stage in plan.stages}
    else:
        taken = {stage.index: stage.compute_s.median for stage in report.stages}
    if plan.is_chain:
        return sum(taken.values())
    by_device: dict[str, float] = {}
    for stage in plan.stages:
        by_device[stage.device] = by_device.get(stage.device, 0.0) + taken[stage.index]
    return max(by_device.values())


def digits(methods: Methods) -> list[tuple[str, Any]]:
    """Return the first image of each class that each method draws, real digits first."""
    reference = methods.bench.reference
    labels = reference.labels.tolist()
    first = [labels.index(digit) for digit in sorted(set(labels))]
    rows = [("real", reference.images[first, 0].numpy())]
    for way in _chosen(methods, tight_problem(methods.bench, SHARED_MBIT)):
        rows.append((way.method, methods.images(way)[first, 0].numpy()))
    return rows


def run(bench: Bench, say: Say) -> dict[str, Any]:
    """Make all four panels and save them."""
    methods = Methods(bench)
    found: dict[str, Any] = {
        "deadline_s": DEADLINE_S, "images": bench.images, "steps": bench.steps, "floor": floor(methods),
        "compute": sweep_compute(methods, say), "rate": sweep_rate(methods, say), "shares": shares(methods, say),
    }  # fmt: skip
    drawn = {
        "quality.svg": pictures.quality_figure(found["compute"], found["rate"], found["floor"]["real"]),
        "shares.svg": pictures.shares_figure(found["shares"]["rows"]),
        "digits.png": pictures.digits_figure(digits(methods)),
    }
    for name, figure in drawn.items():
        pictures.saved(figure, bench.figures / f"story-{name}")
    return found


def verdicts(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Say of each other method at how many budgets multi-stage draws better, as good or worse images."""
    lines = []
    for method in METHODS[1:]:
        gains = [row[method]["sampled"] - row["multi-stage"]["sampled"] for row in rows if row[method]]
        better, worse = sum(gain > EQUAL for gain in gains), sum(gain < -EQUAL for gain in gains)
        lines.append(
            f"against {method}: better at {better}, as good at {len(gains) - better - worse}, worse at {worse}; "
            f"{method} is too slow at {len(rows) - len(gains)} of {len(rows)}"
        )
    return lines


def section(found: dict[str, Any]) -> list[str]:
    """Write the findings down."""
    real, back = found["floor"]["real"], found["floor"]["averaged"]
    lines = [
        f"The best images that each method draws within {1e3 * found['deadline_s']:.0f} ms on the three boards of "
        f"“Quality against budgets”, planned by edgeopt. {found['images']} images each from the same noise, Fréchet "
        f"distance in features of 8 x 8 digits; real digits against real ones score {real:.3f}. Split is the large "
        "denoiser over the two fast boards, patch any denoiser over these, hierarchical a cascade that draws 16 x 16 "
        "pixels. Those are averaged to 8 x 8 before they are compared, which by itself changes little (real digits "
        f"enlarged and averaged so score {back:.3f}). Its number of steps is the planner's choice; the others take "
        f"{found['steps']}.",
        "",
        "![Quality against speed and rate](figures/story-quality.svg)",
    ]
    lines += ["", f"Multi-stage, at {len(found['compute'])} speeds and {len(found['rate'])} rates:", ""]
    lines += [f"- {line}" for line in verdicts([*found["compute"], *found["rate"]])]
    for key, head in (("compute", f"speed, at {FAST_MBIT} Mbit/s"), ("rate", "Mbit/s, at speed 1")):
        lines += ["", f"| {head} | {' | '.join(METHODS)} | multi-stage plan |", "|---|" + "---|" * (len(METHODS) + 1)]
        for row in found[key]:
            cells = [f"{row[method]['sampled']:.2f}" if row[method] else "–" for method in METHODS]
            plan = row["multi-stage"]["text"] if row["multi-stage"] else "–"
            lines.append(f"| {row['budget']:g} | {' | '.join(cells)} | {plan} |")
    shared = found["shares"]
    why = f"Predicted only, of the boards' datasheets: {shared['not_measured']}." if shared["not_measured"] else (
        "Predicted for this machine, measured right before, and measured on emulated hosts, medians of 3."
    )  # fmt: skip
    lines += [
        "",
        f"Each method at its best quality, multi-stage as good as split, over {shared['mbit']} Mbit/s. {why}",
        "",
        "![Shares of latency](figures/story-shares.svg)",
        "",
        "| method | runs | predicted ms | computing | measured ms | computing |",
        "|---|---|---|---|---|---|",
    ]
    for row in shared["rows"]:
        cells = [f"{row['method']} | {row['text']}"]
        for kind in ("predicted", "measured"):
            side = row[kind]
            cells.append("– | –" if side is None else
                         f"{1e3 * side['latency_s']:.1f} | {side['compute_s'] / side['latency_s']:.0%}")  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", "![Digits that the methods draw](figures/story-digits.png)"]
