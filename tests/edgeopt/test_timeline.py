"""Both timelines of a run: as trace events and as a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeopt.errors import InputError
from edgeopt.executor.layout import Layout
from edgeopt.executor.messages import Trace
from edgeopt.executor.trace import intervals_of, shifted, times_of
from edgeopt.plan import Interval
from edgeopt.report.timeline import draw_timeline, trace_document
from tests.edgeopt.executor.plans import toy_plan


class Run:
    """A report as far as timelines go."""

    problem, strategy, launcher, emulated, plan_digest = "p", "pipeline", "emulated", True, "0" * 64

    def __init__(self, timeline: list[Interval]) -> None:
        self.timeline = timeline


def example() -> tuple:
    plan = toy_plan(("phone", 2), ("server", 6), rounds=2)
    traces = {
        0: Trace(
            request=0, warmup=False, start=10.0, stop=11.0,
            computes=[(0, 0, 10.0, 10.1), (0, 1, 10.5, 10.6)],
            sends=[(1, 0, 100, 10.1), (1, 1, 10, 10.6)],
            receives=[(3, 1, 10.1, 10.5), (2, 1, 10.6, 11.0)],
        ),
        1: Trace(
            request=0, warmup=False,
            computes=[(1, 0, 7.2, 7.4), (1, 1, 7.7, 7.9)],
            sends=[(3, 1, 8, 7.4), (2, 1, 16, 7.9)],
            receives=[(1, 0, 7.0, 7.2), (1, 1, 7.4, 7.7)],
        ),
    }  # fmt: skip
    return plan, Layout.of(plan), traces


def test_a_shifted_clock_puts_bars_where_they_belong() -> None:
    plan, layout, traces = example()
    traces = {rank: shifted(trace, 3.0 * rank) for rank, trace in traces.items()}
    bars = intervals_of(plan, layout, traces)
    assert [(b.lane, round(b.start_s, 6), round(b.stop_s, 6)) for b in bars] == [
        ("phone", 0.0, 0.1),
        ("phone → server", 0.1, 0.2),
        ("server", 0.2, 0.4),
        ("server → phone", 0.4, 0.5),
        ("phone", 0.5, 0.6),
        ("phone → server", 0.6, 0.7),
        ("server", 0.7, 0.9),
        ("server → phone", 0.9, 1.0),
    ]
    times = times_of(layout, traces)
    assert times.total_compute_s + times.transfer_s == pytest.approx(1.0)


def test_the_trace_holds_every_bar_in_microseconds() -> None:
    plan, layout, traces = example()
    predicted = [Interval(lane="phone", label="all", start_s=0.0, stop_s=0.25)]
    plan = plan.model_copy(update={"timeline": predicted})
    report = Run(intervals_of(plan, layout, {rank: shifted(trace, 3.0 * rank) for rank, trace in traces.items()}))
    document = json.loads(json.dumps(trace_document(plan, report), allow_nan=False))
    events = document["traceEvents"]
    names = {(e["pid"], e.get("tid")): e["args"]["name"] for e in events if e["ph"] == "M"}
    assert names[1, None] == "predicted"
    assert names[2, None] == "measured"
    bars = [(names[e["pid"], None], names[e["pid"], e["tid"]], e["ts"], e["dur"]) for e in events if e["ph"] == "X"]
    assert ("predicted", "phone", 0.0, 250_000.0) in bars
    assert sum(name == "measured" for name, *_ in bars) == 8
    transfer = next(e for e in events if e["ph"] == "X" and e["cat"] == "transfer")
    assert (transfer["ts"], transfer["dur"]) == pytest.approx((100_000, 100_000))


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plan, layout, traces = example()
    report = Run(intervals_of(plan, layout, {rank: shifted(trace, 3.0 * rank) for rank, trace in traces.items()}))
    draw_timeline(plan, report, tmp_path / "run.svg")
    text = (tmp_path / "run.svg").read_text()
    assert "<svg" in text
    with pytest.raises(InputError, match=r"\.svg, \.png"):
        draw_timeline(plan, report, tmp_path / "run.txt")
