"""Quality against a budget of time and against one of bandwidth: multi-stage, split, two fixed stages, one denoiser.

Three boards, of which the two fast ones have memory for the medium denoiser and for half of the large one, and the slow
one for all of it. So the large denoiser runs slowly on one device, or split over two with features crossing at every
step (the slow one is left out then), or for some of the steps. All plans are sampled from the same noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from edgeopt import planner
from edgeopt.costs.quality import asked_for
from edgeopt.errors import NoPlanError
from edgeopt.profiles import load_device
from edgeopt.profiles.network import LinkQuality, Network
from edgeopt.profiles.problem import ImageWorkload, Problem
from edgeopt_solvers.chain import Solution, evaluate
from tests.benchmarks.diffusion.bench import Bench, limited, runs, steps_of
from tests.benchmarks.diffusion.splitting import STRATEGY, split_latency_s

__all__ = ["PART", "run", "section", "tight_problem"]

PART = "curve"
MBIT = 1e6 / 8
RATES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
#: Rates of the sweeps of time, Mbit/s, and their budgets as multiples of the fastest plan's latency.
SWEPT = (100, 1000)
BUDGETS = (1.1, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0, 14.0, 20.0)
CUTS = (5, 10, 15, 20)
#: Sampled Fréchet distances that differ by less count as equal: what other noise alone changes is ten times as much.
EQUAL = 0.02


def tight_problem(bench: Bench, rate_mbit: float = SWEPT[0]) -> Problem:
    """Return the three boards at a link rate."""
    slow, fast = load_device("raspberry-pi-4-8gb"), load_device("mini-pc-n100")

    def board(profile: Any, name: str, memory: float) -> Any:
        return profile.model_copy(update={"name": name, "memory": memory, "margin": None, "power": None})

    link = LinkQuality(rate=rate_mbit * MBIT, latency=0.0005)
    return Problem(
        name="tight", model=bench.model, strategy="multi_stage", workload=ImageWorkload(steps=bench.steps, images=16),
        devices=[board(slow, "phone", 2.3e6), board(fast, "left", 1.6e6), board(fast, "right", 1.6e6)],
        network=Network(name="swept", source="swept by the benchmark", default=link),
    )  # fmt: skip


@dataclass(frozen=True)
class Option:
    """A way to run: its latency, its run, and what it is called."""

    latency_s: float
    run: tuple[int, ...]
    text: str


def _grid(bench: Bench, problem: Problem) -> list[Option]:
    """Every pair of denoisers at every fixed hand-off, on its best devices."""
    chain = planner.choose_strategy(problem, "multi_stage").build(problem)
    found = []
    for a, b, cut in product(range(len(bench.names)), range(len(bench.names)), CUTS):
        if a != b:
            best = min(
                (_latency(chain, (cut, bench.steps), where, (a + 1, b + 1)) for where in product(range(3), repeat=2)),
            )
            text = f"{cut} {bench.names[a]}, {bench.steps - cut} {bench.names[b]}"
            if np.isfinite(best):
                found.append(Option(best, tuple(runs([(a, cut), (b, bench.steps - cut)])), text))
    return found


def _single(bench: Bench, problem: Problem, name: str) -> Option | None:
    chain = planner.choose_strategy(problem, "multi_stage").build(problem)
    variant = bench.names.index(name)
    best = min(_latency(chain, (bench.steps,), (d,), (variant + 1,)) for d in range(3))
    return Option(best, (variant,) * bench.steps, name) if np.isfinite(best) else None


def _latency(chain: Any, cuts: tuple[int, ...], devices: tuple[int, ...], variants: tuple[int, ...]) -> float:
    found = evaluate(chain, Solution(cuts, devices, variants))
    return float("inf") if found.violations else found.metrics["latency_s"]


def _best(bench: Bench, options: list[Option], budget_s: float) -> Option | None:
    """Return the option within a budget that is predicted best."""
    within = [option for option in options if option.latency_s <= budget_s]
    return min(within, key=lambda option: (bench.predicted(option.run), option.latency_s)) if within else None


def _ways(bench: Bench, problem: Problem) -> dict[str, list[Option]]:
    split_s = split_latency_s(limited(problem, forbid=["phone"]), "large")
    large = (bench.names.index("large"),) * bench.steps
    singles = {name: _single(bench, problem, name) for name in ("small", "large")}
    return {
        "split": [] if split_s is None else [Option(split_s, large, "large, split")],
        "two fixed stages": _grid(bench, problem),
        **{f"single {name}": [option] if option else [] for name, option in singles.items()},
    }


def _multi(bench: Bench, problem: Problem, **limits: Any) -> Option | None:
    """Return the best plan within a deadline, the fastest of those if several are; or the fastest of a quality."""
    try:
        if "deadline" in limits:
            best = planner.solve(limited(problem, **limits).model_copy(update={"objective": "quality"}))
            assert best.quality is not None
            limits["quality"] = asked_for(problem, best.quality)
        plan = planner.solve(limited(problem, **limits))
    except NoPlanError:
        return None
    run = tuple(steps_of(plan))
    return Option(plan.latency_s, run, bench.spelled(run))


def run(bench: Bench, say: Callable[[str], None]) -> dict[str, Any]:
    """Sweep time at two rates, then rates; sample whatever was picked."""
    sweeps = [_sweep(bench, rate, say) for rate in SWEPT[: 1 if bench.quick else None]]
    rates = [_at_rate(bench, rate) for rate in RATES[:: 9 if bench.quick else 1]]
    worse = [
        {"mbit": sweep["mbit"], "budget_s": row["budget_s"], "than": name, "by": by}
        for sweep in sweeps
        for row in sweep["rows"]
        for name in row
        if name not in ("budget_s", "multi-stage") and row[name]
        if (by := row["multi-stage"]["sampled"] - row[name]["sampled"]) > EQUAL
    ]
    return {
        "split_by": STRATEGY if _has_split() else "a chain of blocks", "equal": EQUAL, "sweeps": sweeps,
        "budgets": sum(len(sweep["rows"]) for sweep in sweeps), "worse": worse, "rates": rates,
        "crossover_mbit": _crossover(bench),
    }  # fmt: skip


def _sweep(bench: Bench, rate: float, say: Callable[[str], None]) -> dict[str, Any]:
    problem = tight_problem(bench, rate)
    ways = _ways(bench, problem)
    fastest = _multi(bench, problem)
    assert fastest is not None
    rows = []
    for factor in BUDGETS[:: 5 if bench.quick else 1]:
        budget_s = factor * fastest.latency_s
        picked = {"multi-stage": _multi(bench, problem, deadline=budget_s)}
        picked |= {name: _best(bench, options, budget_s) for name, options in ways.items()}
        rows.append({"budget_s": budget_s, **{name: _measured(bench, option) for name, option in picked.items()}})
        say(f"{rate} Mbit/s, {1e3 * budget_s:.0f} ms: {rows[-1]['multi-stage']}")
    return {"mbit": rate, "rows": rows}


def _has_split() -> bool:
    from edgeopt.strategies import strategy_names

    return STRATEGY in strategy_names()


def _measured(bench: Bench, option: Option | None) -> dict[str, Any] | None:
    if option is None:
        return None
    predicted, sampled = bench.predicted(option.run), bench.sampled(option.run)
    return {"latency_s": option.latency_s, "run": option.text, "predicted": predicted, "sampled": sampled}


def _at_rate(bench: Bench, rate: float) -> dict[str, Any]:
    """Latency of split, and of multi-stage as good as split and at a quality a third worse."""
    problem = tight_problem(bench, rate)
    equal, looser = (_multi(bench, problem, quality=bench.profile.base * by) for by in (1.0, 4 / 3))
    large = _single(bench, problem, "large")
    split_s = split_latency_s(limited(problem, forbid=["phone"]), "large")
    return {
        "mbit": rate, "split_s": split_s, "single_large_s": large and large.latency_s,
        "multi_equal_s": equal and equal.latency_s, "multi_equal": equal and equal.text,
        "multi_looser_s": looser and looser.latency_s, "multi_looser": looser and looser.text,
    }  # fmt: skip


def _crossover(bench: Bench) -> float | None:
    """Rate in Mbit/s below which split is slower than multi-stage as good as it; ``None``: at all rates or none."""

    def split_wins(rate: float) -> bool:
        found = _at_rate(bench, rate)
        return found["split_s"] is not None and found["split_s"] < found["multi_equal_s"]

    low, high = float(RATES[0]), float(RATES[-1])
    if split_wins(low) or not split_wins(high):
        return None
    while high / low > 1.01:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if split_wins(middle) else (middle, high)
    return high


def section(found: dict[str, Any]) -> list[str]:
    """Write the findings down."""
    crossover, worse = found["crossover_mbit"], found["worse"]
    worse_at = len({(item["mbit"], item["budget_s"]) for item in worse})
    lines = [
        "Three boards: a slow one with memory for the large denoiser, two fast ones with memory for the medium one and "
        f"for half of the large one; 16 images; split priced by {found['split_by']}. Latencies are predicted; Fréchet "
        "distances predicted / sampled, all from one noise.",
        "",
        f"**Budgets of time.** Multi-stage is worse than another way by more than {found['equal']} sampled at "
        f"{worse_at} of {found['budgets']} budgets"
        + (f" (at most by {max(item['by'] for item in worse):.3f})." if worse else "."),
    ]
    for sweep in found["sweeps"]:
        names = [name for name in sweep["rows"][0] if name != "budget_s"]
        lines += [
            "",
            f"| ms, at {sweep['mbit']} Mbit/s | multi-stage plan | " + " | ".join(names) + " |",
            "|---|---|" + "---|" * len(names),
        ]
        for row in sweep["rows"]:
            cells = [f"{row[n]['predicted']:.2f} / {row[n]['sampled']:.2f}" if row[n] else "–" for n in names]
            lines.append(f"| {1e3 * row['budget_s']:.0f} | {row['multi-stage']['run']} | {' | '.join(cells)} |")
    named = (
        f"Below **{crossover:.3g} Mbit/s** split diffusion is slower than multi-stage of the same quality."
        if crossover is not None
        else "Split diffusion is slower than multi-stage of the same quality at every rate of the sweep."
        if all(row["split_s"] is None or row["split_s"] >= row["multi_equal_s"] for row in found["rates"])
        else "Split diffusion is faster than multi-stage of the same quality at every rate of the sweep."
    )
    lines += [
        "",
        f"**Bandwidth.** {named} Predicted ms; “equal” is predicted as good as split, “looser” a third worse.",
        "",
        "| Mbit/s | split | single large | multi-stage, equal | split / equal | multi-stage, looser | split / looser |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rates"]:
        lines.append(
            f"| {row['mbit']} | {_ms(row['split_s'])} | {_ms(row['single_large_s'])} | {_ms(row['multi_equal_s'])} | "
            f"{_ratio(row['split_s'], row['multi_equal_s'])} | {_ms(row['multi_looser_s'])} | "
            f"{_ratio(row['split_s'], row['multi_looser_s'])} |"
        )
    return lines


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:.1f}"


def _ratio(a: float | None, b: float | None) -> str:
    return "–" if a is None or b is None else f"{a / b:.2f}"
