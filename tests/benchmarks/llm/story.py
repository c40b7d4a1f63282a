"""Where each of five techniques wins as rates and latencies of links change: planned on a grid, run at some points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from edgeopt.costs.drafting import draft_model
from edgeopt.executor import execute
from edgeopt.executor.netlab import missing
from edgeopt.plan import Plan
from edgeopt.profiler import profile_device
from edgeopt.profiles.device import Device
from tests.benchmarks.llm.methods import EXACT, LOAD, METHODS, Methods
from tests.benchmarks.sections import table

__all__ = ["EXACT", "LATENCIES_S", "POINTS", "RATES_MBIT", "grid", "here", "run", "section", "told", "winner"]

RATES_MBIT, LATENCIES_S = (1.0, 10.0, 100.0, 1000.0), (0.0002, 0.002, 0.02)
#: Rate and latency of the runs.
POINTS = ((100.0, 0.0002), (100.0, 0.01), (5.0, 0.002))
#: Methods on the character model, of which the fastest is looked for.
TEXT_METHODS = METHODS[:4]

Say = Callable[[str], None]


def _quiet(text: str) -> None:
    """Say nothing."""


def here(methods: Methods, say: Say = _quiet) -> Device:
    """Measure this machine with one thread for all models of the story."""
    text = methods.text
    models = [text, *(draft_model(text, name) for name in text.drafts), methods.mixture]
    longest, mean = methods.workloads()
    runs = [(model, load) for model in models for load in (mean, longest)]
    return profile_device(
        "here",
        threads=1,
        models=[model for model, _ in runs],
        workloads=[load for _, load in runs],
        repeats=3,
        processes=2,
        progress=say,
        command="tests/benchmarks/llm_story.py",
    )


def grid(
    methods: Methods, rates: Sequence[float] = RATES_MBIT, latencies: Sequence[float] = LATENCIES_S, say: Say = _quiet
) -> list[dict[str, Any]]:
    """Plan every method at every rate and latency: seconds of an answer, the part that is right, and who computes."""
    rows = []
    for mbit in rates:
        for latency_s in latencies:
            plans = {method: methods.best(method, mbit, latency_s) for method in METHODS}
            found = {method: None if plan is None else told(plan) for method, plan in plans.items()}
            rows.append({"mbit": mbit, "latency_s": latency_s, "methods": found})
            say(f"{mbit:g} Mbit/s, {1e3 * latency_s:g} ms: {winner(rows[-1])} answers first")
    return rows


def told(plan: Plan) -> dict[str, Any]:
    """Say what matters of a plan in numbers and words."""
    parts = [f"{stage.device} {stage.variant or 'whole' if plan.strategy != 'pipeline' else stage.elements}"
             for stage in plan.stages]  # fmt: skip
    return {"latency_s": plan.latency_s, "accuracy": plan.metrics.get("accuracy"), "text": ", ".join(parts)}


def winner(row: dict[str, Any], among: Sequence[str] = TEXT_METHODS) -> str:
    """Return the method that answers first."""
    known = [method for method in among if row["methods"][method]]
    return min(known, key=lambda method: float(row["methods"][method]["latency_s"]))


def run(methods: Methods, points: Sequence[tuple[float, float]] = POINTS, say: Say = _quiet) -> dict[str, Any]:
    """Plan for this machine, measured right before, and run every method's plan at some points on emulated hosts."""
    if reason := missing():
        return {"not_measured": reason, "rows": []}
    own = Methods(here(methods, say), methods.requests)
    rows = []
    for mbit, latency_s in points:
        for method in METHODS:
            plan = own.best(method, mbit, latency_s)
            if plan is None:
                continue
            stream = method == "routing"
            report = execute(
                plan, on="emulated", repeat=1 if stream else 5, warmup=1, check=not stream, timeout_s=240.0
            )  # fmt: skip
            equal = None if report.output is None else report.output.equal
            rows.append(
                {"mbit": mbit, "link_s": latency_s, "method": method, **told(plan),
                 "measured_s": report.latency_s.median, "equal": equal}
            )  # fmt: skip
            say(f"{mbit:g} Mbit/s, {1e3 * latency_s:g} ms, {method}: {1e3 * plan.latency_s:.1f} ms predicted, "
                f"{1e3 * report.latency_s.median:.1f} measured")  # fmt: skip
    return {"not_measured": "", "rows": rows}


def _ms(found: dict[str, Any] | None) -> str:
    return "–" if found is None else f"{1e3 * found['latency_s']:.1f}"


def section(methods: Methods, rows: Sequence[dict[str, Any]], measured: dict[str, Any]) -> list[str]:
    """Write the findings down."""
    load = methods.mean
    lines = [
        f"A phone asks; two fast boards hold half of the large model each, a slow server all of it. A question has "
        f"{load.prompt_tokens} characters on average, its answer {load.new_tokens}. Pipeline and speculative decoding "
        f"answer as the large model; cascade and routing keep {methods.accuracy:.0%} right. Routing serves a stream at "
        f"which the server alone, with the large model, would be busy {LOAD:.0%} of the time, so that waiting is part "
        "of it; the others answer one question at a time. Experts are those of a mixture of about the same size, to "
        "be compared with its own pipeline (mixture alone).",
        "",
        "Predicted ms per answer, boards by datasheet; the fastest of the first four in bold:",
        "",
    ]
    predicted = []
    for row in rows:
        first = winner(row)
        cells = [f"**{_ms(row['methods'][m])}**" if m == first else _ms(row["methods"][m]) for m in METHODS]
        predicted.append([f"{row['mbit']:g}", f"{1e3 * row['latency_s']:g}", *cells])
    lines += table(["Mbit/s", "ms", *METHODS], predicted)
    exact = {(row["mbit"], row["latency_s"]): winner(row, EXACT) for row in rows}
    split = [f"{mbit:g} Mbit/s and {1e3 * latency:g} ms" for (mbit, latency), name in exact.items() if name == EXACT[0]]
    lines += [
        "",
        "With the large model's own answers, the pipeline is faster than speculative decoding "
        + (f"at {', '.join(split)}; elsewhere speculative decoding is." if split else "nowhere."),
        "",
    ]
    if measured["not_measured"]:
        return [*lines, f"Not run: {measured['not_measured']}."]
    lines += [
        "The same boards as parts of this machine's speed, measured right before, run on emulated hosts:",
        "",
    ]
    heads = ["Mbit/s", "ms", "method", "plan", "predicted ms", "measured ms", "error", "output of one process"]
    ran = []
    for row in measured["rows"]:
        error = row["latency_s"] / row["measured_s"] - 1
        equal = {True: "equal", False: "DIFFERS", None: "–"}[row["equal"]]
        times = f"{1e3 * row['latency_s']:.1f}", f"{1e3 * row['measured_s']:.1f}", f"{error:+.1%}"
        ran.append([f"{row['mbit']:g}", f"{1e3 * row['link_s']:g}", row["method"], row["text"], *times, equal])
    return [*lines, *table(heads, ran)]
