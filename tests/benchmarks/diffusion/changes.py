"""Devices that leave, join or slow down half-way: the request before and after, its two runs sampled; some executed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeopt import planner
from edgeopt.questions.elastic import Outcome, elastic
from edgeopt.questions.events import parse_event
from tests.benchmarks.diffusion.bench import Bench
from tests.benchmarks.diffusion.leaving import executed, executed_lines

__all__ = ["PART", "run", "section"]

PART = "changes"
PROBLEM = "digits-three-stages"
#: Steps done, and what happens then.
CASES = (
    (5, ("leave:tablet",)),
    (13, ("leave:tablet",)),
    (13, ("leave:desktop",)),
    (13, ("leave:desktop", "join:laptop-cpu")),
    (13, ("slow:desktop:3x",)),
    (5, ("slow:tablet:4x",)),
    (13, ("join:laptop-cpu",)),
)


def run(bench: Bench, say: Callable[[str], None]) -> dict[str, Any]:
    """Plan the bundled problem, then what is left of it after each change."""
    plan = planner.solve(bench.problem(PROBLEM))
    rows = []
    for step, texts in CASES[: 2 if bench.quick else None]:
        found = elastic(plan, step, [parse_event(text) for text in texts])
        rows.append(
            {
                "events": list(texts), "step": step, "resumed_at": found.resumed_at, "holder": found.holder,
                "spent_s": found.spent_s, "reason": found.replanned.reason,
                **{name: _figures(bench, getattr(found, name)) for name in ("planned", "kept", "replanned")},
            }
        )  # fmt: skip
        say(f"after {step} steps {', '.join(texts)}: {rows[-1]['replanned']}")
    asked = bench.predict_only and not bench.quick
    return {"problem": PROBLEM, "rows": rows, "executed": None if asked else executed(bench, PROBLEM, say)}


def _figures(bench: Bench, outcome: Outcome) -> dict[str, Any] | None:
    if outcome.latency_s is None:
        return None
    steps = [bench.names.index(name) for name in outcome.variants]
    return {
        "latency_s": outcome.latency_s, "predicted": outcome.quality, "run": bench.spelled(steps),
        "sampled": bench.sampled(steps),
    }  # fmt: skip


def section(found: dict[str, Any]) -> list[str]:
    """Write the findings down."""
    planned = found["rows"][0]["planned"]
    lines = [
        f"`{found['problem']}`: {planned['run']}, {_ms(planned)} ms, "
        f"Fréchet {planned['predicted']:.2f} predicted, {planned['sampled']:.2f} sampled. "
        "What `edgeopt elastic` makes of it when devices change under way; latencies are predicted and count from the "
        "start of the request.",
        "",
        "| after steps | event | goes on from | old plan ms | planned again ms | plan | Fréchet predicted / sampled |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        kept, again = row["kept"], row["replanned"]
        figures = f"{again['predicted']:.2f} / {again['sampled']:.2f}" if again else row["reason"]
        note = " (the quality asked for cannot be kept)" if again and row["reason"] else ""
        lines.append(
            f"| {row['step']} | {', '.join(row['events'])} | step {row['resumed_at']}, {row['holder']} | "
            f"{_ms(kept)} | {_ms(again)} | {again['run'] if again else ''} | {figures}{note} |"
        )
    return lines if found["executed"] is None else [*lines, *executed_lines(found["executed"])]


def _ms(figures: dict[str, Any] | None) -> str:
    return "impossible" if figures is None else f"{1e3 * figures['latency_s']:.1f}"
