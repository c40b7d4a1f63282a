"""What the page of a plan draws: where time passes, what fills memory, what could be had instead."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from edgeopt.costs.memory import usable_bytes
from edgeopt.plan import Interval, Plan
from edgeopt.report.data import Report
from edgeopt.report.inline import Chart, Sheet, colour, draw, shortened
from edgeopt.report.tables import format_bytes, format_percent, format_seconds
from edgeopt.report.timeline import is_link, lanes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from edgeopt.questions.frontier import Frontier

__all__ = ["Row", "frontier_chart", "memory_chart", "split_chart", "split_rows", "timeline_charts"]

#: A prediction shorter than this part of the latency shows the beginning of a request only.
_WHOLE = 0.8
#: Largest share of a device's memory that is drawn.
_MOST = 1.5
#: Pixels.
_BAR, _LABEL, _GAP = 15, 19, 10


def timeline_charts(plan: Plan, report: Report | None) -> list[Chart]:
    """Return the timeline, predicted above measured; where only its beginning is predicted, then all of it measured."""
    planned = [one for one in plan.timeline if math.isfinite(one.stop_s)]
    measured = report.timeline if report is not None else []
    if not planned and not measured:
        return []
    predicted_s = max((one.stop_s for one in planned), default=0.0)
    measured_s = max((one.stop_s for one in measured), default=0.0)
    is_whole = predicted_s >= _WHOLE * plan.latency_s or not planned
    until_s = max(predicted_s, measured_s)
    if not is_whole and measured:
        until_s = 1.02 * max(predicted_s, sorted(one.stop_s for one in measured)[: len(planned)][-1])
    what = "A request" if is_whole else "The beginning of a request"
    title = f"{what}, predicted above measured" if measured else f"{what}, as predicted"
    rows = {"predicted": planned, "measured": [one for one in measured if one.start_s < until_s]}
    lanes = lanes_of(*rows.values())
    ends = f"{format_seconds(predicted_s)} predicted"
    if measured:
        ends += f", {format_seconds(measured_s)} measured"
    description = f"Bars on {len(lanes)} devices and links in the order of use: {', '.join(lanes)}. It ends at {ends}."
    charts = [draw("timeline", title, description, lambda sheet: _timeline(sheet, lanes, rows, until_s))]
    if measured and not is_whole:
        description = f"The same request up to its end at {format_seconds(measured_s)}, {len(measured)} bars."
        everything = "The whole request, as measured"
        charts.append(draw("whole", everything, description, lambda sheet: _whole(sheet, measured, measured_s)))
    return charts


def _timeline(sheet: Sheet, lanes: Sequence[str], rows: Mapping[str, Sequence[Interval]], until_s: float) -> None:
    kinds = [kind for kind in rows if rows[kind]]
    height = _LABEL + _BAR * len(kinds) + _GAP
    axes = _lane_axes(sheet, lanes, height)
    factor = _time_axis(axes, until_s)
    from matplotlib.patches import Rectangle

    for place, lane in enumerate(lanes):
        for offset, kind in enumerate(kinds):
            top = place * height + _LABEL + offset * _BAR
            for one in rows[kind]:
                if one.lane != lane:
                    continue
                shade = _shade(one, kind == "predicted" and len(kinds) > 1)
                width = factor * (one.stop_s - one.start_s)
                bar = Rectangle((factor * one.start_s, top), width, _BAR - 2, facecolor=shade, edgecolor=shade, lw=0.5)
                axes.add_patch(bar)
                seconds = format_seconds(one.stop_s - one.start_s)
                sheet.mark(
                    bar, f"{kind}: {lane}, {one.label}, {seconds} from {format_seconds(one.start_s)}",
                    kind=kind, lane=lane, label=one.label, start=one.start_s, stop=one.stop_s,
                )  # fmt: skip


def _whole(sheet: Sheet, bars: Sequence[Interval], until_s: float) -> None:
    height = _LABEL + _BAR + _GAP
    lanes = lanes_of(bars)
    axes = _lane_axes(sheet, lanes, height)
    factor = _time_axis(axes, until_s)
    for place, lane in enumerate(lanes):
        own = [one for one in bars if one.lane == lane]
        spans = [(factor * one.start_s, factor * (one.stop_s - one.start_s)) for one in own]
        shade = _shade(own[0], False)
        drawn = axes.broken_barh(spans, (place * height + _LABEL, _BAR - 2), facecolors=shade, edgecolors=shade, lw=0.5)
        busy_s = sum(one.stop_s - one.start_s for one in own)
        sheet.mark(drawn, f"{lane}: {len(own)} bars, {format_seconds(busy_s)} in all", lane=lane, bars=len(own))


def _lane_axes(sheet: Sheet, lanes: Sequence[str], height: float) -> Axes:
    """Return axes with one row per lane, its name above its bars: names of any length fit a narrow screen."""
    axes = sheet.axes(48 + height * len(lanes))
    axes.set_ylim(height * len(lanes), 0)
    axes.set_yticks([])
    for place, lane in enumerate(lanes):
        axes.text(
            0.0, place * height + _LABEL - 5, shortened(lane, 52 if sheet.narrow else 120), fontsize=12, va="baseline"
        )
    return axes


def _time_axis(axes: Axes, until_s: float) -> float:
    factor, unit = (1.0, "s") if until_s >= 2 else (1e3, "ms")
    axes.set_xlim(0, factor * max(until_s, 1e-9) * 1.005)
    axes.set_xlabel(f"time since the request [{unit}]")
    return factor


def _shade(one: Interval, soft: bool) -> str:
    return colour(("transfer" if is_link(one) else "compute") + ("-soft" if soft else ""))


class Row(NamedTuple):
    """A bar of the latency split: whose time, from where it is known, and its parts as (term, seconds)."""

    who: str
    basis: str
    parts: tuple[tuple[str, float], ...]


def split_rows(plan: Plan, report: Report | None) -> list[Row]:
    """Return the latency by term, predicted and measured, and how it passed on each device.

    A device waits for its input, transfers included; what is left is overhead. Without a run a device waits whenever
    it does not compute. Parties that work at the same time have no sum: the device that computes longest stands for the
    request, and what is left of the latency for its transfers.
    """
    busy: dict[str, float] = {}
    for stage in plan.stages:
        busy[stage.device] = busy.get(stage.device, 0.0) + stage.compute_s
    if plan.is_chain:
        compute_s = sum(busy.values())
        transfer_s = sum(transfer.seconds for transfer in plan.transfers)
    else:
        compute_s = max(busy.values(), default=0.0)
        transfer_s = max(plan.latency_s - compute_s, 0.0)
    rest_s = plan.latency_s - compute_s - transfer_s
    overhead = (("overhead", rest_s),) if rest_s > 1e-6 * plan.latency_s else ()
    rows = [Row("request", "predicted", (("compute", compute_s), ("transfer", transfer_s), *overhead))]
    if report is None:
        for name, seconds in busy.items():
            parts = (("compute", seconds), ("waiting", max(plan.latency_s - seconds, 0.0)))
            rows.append(Row(name, "predicted", parts))
        return rows
    measured_compute_s, measured_transfer_s = compute_s - report.error.compute_s, transfer_s - report.error.transfer_s
    left_s = report.latency_s.median - measured_compute_s - measured_transfer_s
    parts = (("compute", measured_compute_s), ("transfer", measured_transfer_s), ("overhead", max(left_s, 0.0)))
    rows.append(Row("request", "measured", parts))
    for device in report.devices:
        other_s = device.idle_s.median - device.waiting_s.median
        terms = (("compute", device.compute_s.median), ("waiting", device.waiting_s.median))
        rows.append(Row(device.device, "measured", (*terms, ("overhead", max(other_s, 0.0)))))
    return rows


def split_chart(rows: Sequence[Row]) -> Chart:
    """Draw what :func:`split_rows` found."""
    words = "; ".join(
        f"{row.who} {row.basis}: {', '.join(f'{term} {format_seconds(seconds)}' for term, seconds in row.parts)}"
        for row in rows
    )
    return draw("split", "Where the time goes", words + ".", lambda sheet: _split(sheet, rows))


def _split(sheet: Sheet, rows: Sequence[Row]) -> None:
    from matplotlib.patches import Rectangle

    axes = _lane_axes(sheet, [f"{row.who}, {row.basis}" for row in rows], _LABEL + _BAR + _GAP)
    factor = _time_axis(axes, max(sum(seconds for _, seconds in row.parts) for row in rows))
    axes.set_xlabel(axes.get_xlabel().replace("time since the request", "time per request"))
    for place, row in enumerate(rows):
        left = 0.0
        for term, seconds in row.parts:
            corner = (factor * left, place * (_LABEL + _BAR + _GAP) + _LABEL)
            bar = Rectangle(corner, factor * seconds, _BAR - 2, facecolor=colour(term), lw=0)
            axes.add_patch(bar)
            tip = f"{row.who}, {row.basis}: {term} {format_seconds(seconds)}"
            sheet.mark(bar, tip, who=row.who, basis=row.basis, term=term, seconds=seconds)
            left += seconds


class _Filling(NamedTuple):
    device: str
    planned: float
    usable: float
    peak: float | None


def memory_chart(plan: Plan, report: Report | None, planned: Mapping[str, float]) -> Chart:
    """Draw how full each device that hosts a stage is, of what a plan may use of it; measured peaks as marks."""
    peaks = {} if report is None else {one.device: one.peak_memory_bytes for one in report.devices if one.stages}
    rows = [
        _Filling(device.name, planned[device.name], usable_bytes(device), peaks.get(device.name))
        for device in plan.problem.devices
        if device.name in planned
    ]
    words = "; ".join(f"{row.device} {format_bytes(row.planned)} of {format_bytes(row.usable)}" for row in rows)
    title = "Memory, planned and measured" if peaks else "Memory, as planned"
    return draw("memory", title, f"Of what plans may use: {words}.", lambda sheet: _memory(sheet, rows))


def _memory(sheet: Sheet, rows: Sequence[_Filling]) -> None:
    from matplotlib.patches import Rectangle

    names = []
    for row in rows:
        peak = "" if row.peak is None else f", {format_bytes(row.peak)} measured"
        names.append(f"{row.device}: {format_bytes(row.planned)} of {format_bytes(row.usable)}{peak}")
    height = _LABEL + _BAR + _GAP
    axes = _lane_axes(sheet, names, height)
    shares = [max(row.planned, row.peak or 0.0) / row.usable for row in rows if row.usable]
    # A process of a small device is mostly libraries: its peak is written, and drawn only where it leaves room.
    axes.set_xlim(0, 102 * max([1.0, *(share for share in shares if share <= _MOST)]))
    axes.set_xlabel("of the memory that plans may use [%]")
    for place, row in enumerate(rows):
        top = place * height + _LABEL
        axes.add_patch(Rectangle((0, top), 100, _BAR - 2, facecolor=colour("waiting"), lw=0))
        share = row.planned / row.usable if row.usable else 0.0
        bar = Rectangle((0, top), 100 * share, _BAR - 2, facecolor=colour("compute" if share <= 1 else "alarm"), lw=0)
        axes.add_patch(bar)
        sheet.mark(bar, f"{row.device}: {format_percent(share)} planned", device=row.device, bytes=row.planned)
        if row.peak is not None and row.usable and row.peak / row.usable <= _MOST:
            (mark,) = axes.plot([100 * row.peak / row.usable] * 2, [top - 2, top + _BAR], color=colour("ink"), lw=2.5)
            mark.set_solid_capstyle("butt")
            tip = f"{row.device}: {format_bytes(row.peak)} measured at the peak, libraries included"
            sheet.mark(mark, tip, device=row.device, peak=row.peak)


class _Place(NamedTuple):
    x: float
    y: float
    name: str
    is_plan: bool


def frontier_chart(plan: Plan, frontier: Frontier | None) -> Chart | None:
    """Draw the plans that trade two metrics, or else the plan among its alternatives; ``None`` if there are none."""
    from edgeopt.questions.frontier import METRICS, value_of

    if frontier is not None:
        axes = [f"{axis} [{METRICS[axis][1]}]".replace(" []", "") for axis in frontier.axes]
        places = [_Place(one.first, one.second, one.plan.strategy, False) for one in frontier.points]
        places.append(_Place(*(value_of(plan, axis) for axis in frontier.axes), "this plan", True))
        title = f"What {frontier.axes[1]} costs in {frontier.axes[0]}"
    else:
        second, axes = _second_figure(plan)
        places = [
            _Place(one.latency_s, value, one.strategy, False)
            for one in plan.alternatives
            if one.latency_s is not None and (value := getattr(one, second)) is not None
        ]
        if not places:
            return None
        own = sum(one.bytes for one in plan.transfers) if second == "traffic_bytes" else getattr(plan, second)
        places.append(_Place(plan.latency_s, own, f"{plan.strategy}, this plan", True))
        title = "This plan among its alternatives"
    words = "; ".join(f"{one.name}: {one.x:.4g}, {one.y:.4g}" for one in places)
    description = f"Horizontally {axes[0]}, vertically {axes[1]}. {words}."
    return draw("frontier", title, description, lambda sheet: _scatter(sheet, axes, places, frontier is not None))


def _second_figure(plan: Plan) -> tuple[str, list[str]]:
    for name, label in (("quality", "quality"), ("energy_j", "energy [J]")):
        if getattr(plan, name) is not None and any(getattr(one, name) is not None for one in plan.alternatives):
            return name, ["latency [s]", label]
    return "traffic_bytes", ["latency [s]", "traffic [B]"]


def _scatter(sheet: Sheet, names: Sequence[str], places: Sequence[_Place], is_line: bool) -> None:
    axes = sheet.axes(320, left=62, top=24, right=16, bottom=48)
    axes.grid(color=colour("line"), linewidth=0.8)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(names[0])
    axes.set_title(names[1], loc="left", fontsize=12, color=colour("muted"), x=-0.0)
    others = [one for one in places if not one.is_plan]
    if is_line:
        axes.step([one.x for one in others], [one.y for one in others], where="post", color=colour("overhead"), lw=1.2)
    for one in places:
        shape = {"marker": "D", "markersize": 11} if one.is_plan else {"marker": "o", "markersize": 8}
        shade = colour("accent" if one.is_plan else "compute")
        (mark,) = axes.plot([one.x], [one.y], color=shade, linestyle="none", markeredgecolor=colour("card"), **shape)
        sheet.mark(mark, f"{one.name}: {names[0]} {one.x:.4g}, {names[1]} {one.y:.4g}", x=one.x, y=one.y)
        if one.is_plan or not is_line:
            axes.annotate(one.name, (one.x, one.y), (8, 8), textcoords="offset points", fontsize=12)
    axes.margins(0.16, 0.14)
