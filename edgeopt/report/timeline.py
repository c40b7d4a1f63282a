"""The timeline of a request, predicted above measured: for a trace viewer, and as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeopt.plan import Interval, Plan
from edgeopt.report.data import Report
from edgeopt.report.pictures import check_picture

__all__ = ["draw_timeline", "is_link", "lanes_of", "trace_document"]


def trace_document(plan: Plan, report: Report) -> dict[str, Any]:
    """Return both timelines in the trace event format that Perfetto and Chrome read.

    Two processes, *predicted* and *measured*, with a thread per device and link; times in microseconds.
    """
    events: list[dict[str, Any]] = []
    lanes = lanes_of(plan.timeline, report.timeline)
    for process, (name, intervals) in enumerate((("predicted", plan.timeline), ("measured", report.timeline)), 1):
        events.append({"ph": "M", "pid": process, "name": "process_name", "args": {"name": name}})
        for thread, lane in enumerate(lanes, 1):
            where = {"pid": process, "tid": thread}
            events.append({"ph": "M", **where, "name": "thread_name", "args": {"name": lane}})
            events += [
                {
                    "ph": "X",
                    **where,
                    "name": one.label,
                    "cat": "transfer" if is_link(one) else "compute",
                    "ts": 1e6 * one.start_s,
                    "dur": 1e6 * (one.stop_s - one.start_s),
                }
                for one in intervals
                if one.lane == lane and math.isfinite(one.stop_s)
            ]
    facts = {"plan": report.plan_digest, "launcher": report.launcher, "emulated": report.emulated}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": facts}


def draw_timeline(plan: Plan, report: Report, path: Path) -> None:
    """Draw both timelines on one axis, the prediction in the upper half; exceptions as :func:`.check_picture`."""
    check_picture(path)
    from matplotlib.figure import Figure

    lanes = lanes_of(plan.timeline, report.timeline)
    figure = Figure(figsize=(10, 1.2 + 0.55 * len(lanes)), layout="constrained")
    axes = figure.subplots()
    last_s = max((one.stop_s for one in (*plan.timeline, *report.timeline)), default=1.0)
    factor, unit = (1.0, "s") if last_s >= 2 else (1e3, "ms")
    rows = (("predicted", plan.timeline, -0.36, "#9ecae1"), ("measured", report.timeline, 0.02, "#2171b5"))
    for name, intervals, offset, colour in rows:
        for row, lane in enumerate(lanes):
            bars = [
                (factor * one.start_s, factor * (one.stop_s - one.start_s)) for one in intervals if one.lane == lane
            ]
            axes.broken_barh(bars, (row + offset, 0.34), facecolors=colour, edgecolor="white", linewidth=0.3)
        axes.plot([], [], color=colour, linewidth=6, label=name)
    axes.set_yticks(range(len(lanes)), lanes)
    axes.set_ylim(len(lanes) - 0.5, -0.5)
    axes.set_xlabel(f"time since the request [{unit}]")
    where = f"{report.launcher}, emulated" if report.emulated and report.launcher != "emulated" else report.launcher
    axes.set_title(f"{report.problem}: {report.strategy} on {where}", loc="left", fontsize="medium")
    axes.legend(loc="lower center", bbox_to_anchor=(0.8, 1.0), ncols=2, frameon=False)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path)


def lanes_of(*timelines: Sequence[Interval]) -> list[str]:
    """Return lanes in the order in which they are first used, devices and links mixed as the request passes them."""
    return list(dict.fromkeys(one.lane for timeline in timelines for one in timeline))


def is_link(interval: Interval) -> bool:
    """Say whether a bar is a transfer: links are lanes with an arrow in their name."""
    return " → " in interval.lane
