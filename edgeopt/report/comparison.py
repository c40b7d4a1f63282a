"""Strategies side by side and the frontier of two metrics: as tables, as a document, as a picture."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from edgeopt.plan import Alternative
from edgeopt.questions.compare import Comparison
from edgeopt.questions.figures import amount
from edgeopt.questions.frontier import METRICS, Frontier
from edgeopt.report.document import plain
from edgeopt.report.pictures import check_picture
from edgeopt.report.tables import format_bytes, format_percent, format_seconds, new_table

__all__ = ["comparison_document", "comparison_view", "draw_frontier", "frontier_view"]


def comparison_document(comparison: Comparison, frontier: Frontier | None = None) -> dict[str, Any]:
    """Return what ``edgeopt compare --json`` prints."""
    problem = comparison.problem
    document: dict[str, Any] = {
        "problem": problem.name,
        "model": problem.model.name,
        "objective": problem.objective,
        "best": comparison.plan.strategy,
        "strategies": [one.model_dump() for one in comparison.strategies],
        "baseline": comparison.baseline.model_dump(),
        "unfit": [{"strategy": name, "reason": reason} for name, reason in comparison.unfit.items()],
        "frontier": None,
    }
    if frontier is not None:
        first, second = frontier.axes
        document["frontier"] = {
            "axes": [{"metric": axis, "unit": METRICS[axis][1]} for axis in frontier.axes],
            "complete": frontier.complete,
            "points": [
                {
                    first: point.first,
                    second: point.second,
                    "strategy": point.plan.strategy,
                    "status": point.plan.status,
                    "stages": [
                        {key: getattr(stage, key) for key in ("device", "variant", "start", "stop")}
                        for stage in point.plan.stages
                    ],
                }
                for point in frontier.points
            ],
        }
    return plain(document)


def comparison_view(comparison: Comparison) -> Iterable[RenderableType]:
    """Yield the strategies, best first, with the plan on one device as the last row."""
    problem = comparison.problem
    columns = (">objective", ">bound", ">gap", ">latency", ">requests/s", ">energy", ">quality", ">traffic", ">memory")
    table = new_table(f"{problem.name}: {problem.model.name}", "strategy", "result", *columns, "devices")
    rows = [*comparison.strategies, comparison.baseline]
    for row in rows:
        table.add_row(row.strategy, row.outcome.replace("_", " "), *_cells(row, comparison), ", ".join(row.devices))
    yield table
    yield from (Text(f"{row.strategy}: {row.remark}") for row in rows if row.remark)
    yield from (Text(f"does not fit: {reason}") for reason in comparison.unfit.values())
    yield Text(_gain(comparison), style="bold")


def _cells(row: Alternative, comparison: Comparison) -> list[str]:
    def cell(value: float | None, write: Any) -> str:
        return "–" if value is None else write(value)

    def objective(value: float) -> str:
        return amount(value, comparison.problem)

    return [
        cell(row.objective, objective), cell(row.bound, objective), cell(row.gap, format_percent),
        cell(row.latency_s, format_seconds), cell(row.throughput_per_s, lambda value: f"{value:.4g}"),
        cell(row.energy_j, lambda value: f"{value:.4g} J"), cell(row.quality, lambda value: f"{value:.4g}"),
        cell(row.traffic_bytes, format_bytes), cell(row.memory_bytes, format_bytes),
    ]  # fmt: skip


def _gain(comparison: Comparison) -> str:
    """Say what collaboration gains over one device, the reader's first question."""
    plan, alone = comparison.plan, comparison.baseline.objective
    if alone is None:
        return f"best: {plan.strategy}; no single device can run all of it"
    if plan.objective >= alone - 1e-9 * abs(alone):
        return f"best: {plan.strategy}, which is no better than one device alone"
    return (
        f"best: {plan.strategy}, {amount(plan.objective - alone, comparison.problem, signed=True)} against one device"
    )


def frontier_view(frontier: Frontier) -> Iterable[RenderableType]:
    """Yield the points of a frontier with the plans that reach them."""
    headings = [f">{axis} {f'({METRICS[axis][1]})' if METRICS[axis][1] else ''}".rstrip() for axis in frontier.axes]
    table = new_table("", *headings, "strategy", "stages")
    for point in frontier.points:
        stages = ", ".join(
            f"{stage.device}{f' ({stage.variant})' if stage.variant else ''} {stage.start}:{stage.stop}"
            for stage in point.plan.stages
        )
        table.add_row(f"{point.first:.4g}", f"{point.second:.4g}", point.plan.strategy, stages)
    yield table
    yield Text(_completeness(frontier))


def _completeness(frontier: Frontier) -> str:
    if frontier.complete:
        return f"{len(frontier.points)} plans; no other is better in one of the two without being worse in the other"
    return f"{len(frontier.points)} plans; there may be more between them (--points, --time-limit)"


def draw_frontier(frontier: Frontier, comparison: Comparison, path: Path) -> None:
    """Draw the frontier, each strategy's plans in a colour of their own; exceptions as :func:`.check_picture`."""
    check_picture(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    points = frontier.points
    axes.step([p.first for p in points], [p.second for p in points], where="post", color="0.8", linewidth=1, zorder=1)
    for name in dict.fromkeys(point.plan.strategy for point in points):
        own = [point for point in points if point.plan.strategy == name]
        axes.scatter([point.first for point in own], [point.second for point in own], s=22, label=name, zorder=2)
    for axis, set_label in zip(frontier.axes, (axes.set_xlabel, axes.set_ylabel), strict=True):
        unit = METRICS[axis][1]
        set_label(f"{axis} [{unit}]" if unit else axis)
    axes.set_title(f"{comparison.problem.name}: {comparison.problem.model.name}", loc="left", fontsize="medium")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path)
