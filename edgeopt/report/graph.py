"""Devices and links as a graph, with the plan's stages on the devices and its transfers on the links."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from edgeopt.costs.links import link_arrays
from edgeopt.costs.memory import usable_bytes
from edgeopt.plan import Plan, Stage
from edgeopt.report.inline import Chart, Sheet, colour, draw
from edgeopt.report.tables import format_bytes, format_seconds
from edgeopt.strategies.chain import source_index

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["graph_chart"]

#: Pixels: a node's radius, how much a node's text takes in height, what is left beside the graph.
_RADIUS, _LINE, _ROW = 17, 16, 96


class _Node(NamedTuple):
    name: str
    x: float
    y: float
    side: int  # -1: its text is on the left, 1: on the right
    stages: Sequence[Stage]


def graph_chart(plan: Plan) -> Chart:
    """Draw every device of the problem, those that the plan uses first, clockwise in the order of use."""
    stages = "; ".join(
        f"stage {stage.index} on {stage.device}{f' with {stage.variant}' if stage.variant else ''}: {stage.elements}"
        for stage in plan.stages
    )
    transfers = "; ".join(
        f"{one.purpose} from {one.source} to {one.destination}, {format_bytes(one.bytes)}, {format_seconds(one.seconds)}"
        for one in plan.transfers
    )
    description = f"{len(plan.problem.devices)} devices. {stages}. Transfers: {transfers or 'none'}."
    return draw("graph", "Devices, links and stages", description, lambda sheet: _paint(sheet, plan))


def _paint(sheet: Sheet, plan: Plan) -> None:
    order = _order(plan)
    per_side = math.ceil(len(order) / 2)
    height = 40 + _ROW * max(per_side, 1 if len(order) < 3 else 2)
    axes = sheet.axes(height, left=0, right=0, top=0, bottom=0)
    axes.axis("off")
    axes.set_xlim(0, sheet.width)
    axes.set_ylim(height, 0)
    nodes = _places(plan, order, sheet, height)
    _links(axes, plan, nodes)
    _transfers(sheet, axes, plan, nodes)
    for node in nodes.values():
        _device(sheet, axes, plan, node)


def _order(plan: Plan) -> list[str]:
    names = [device.name for device in plan.problem.devices]
    used = [names[source_index(plan.problem)], *(stage.device for stage in plan.stages)]
    return list(dict.fromkeys([*used, *names]))


def _places(plan: Plan, order: Sequence[str], sheet: Sheet, height: float) -> dict[str, _Node]:
    """Put devices on an ellipse, clockwise from the upper left, their texts outside."""
    half = math.ceil(len(order) / 2)
    sides = [(name, -1, i, half) for i, name in enumerate(reversed(order[half:]))]
    sides = [(name, 1, i, half) for i, name in enumerate(order[:half])] + sides
    if len(order) == 2:
        sides = [(order[0], -1, 0, 1), (order[1], 1, 0, 1)]
    radius = 42 if sheet.narrow else 190
    nodes = {}
    for name, side, i, count in sides:
        count = max(count, sum(1 for one in sides if one[1] == side))
        y = (i + 0.5) / count
        x = sheet.width / 2 + side * radius * (0.72 + 0.28 * math.sin(math.pi * y))
        nodes[name] = _Node(name, x, 20 + y * (height - 40), side, [s for s in plan.stages if s.device == name])
    return nodes


def _links(axes: Axes, plan: Plan, nodes: dict[str, _Node]) -> None:
    names = [device.name for device in plan.problem.devices]
    links = link_arrays(plan.problem.network, names)
    for i, first in enumerate(names):
        for j, second in enumerate(names[:i]):
            if links.rate_bytes_per_s[i, j] or links.rate_bytes_per_s[j, i]:
                a, b = nodes[first], nodes[second]
                style = "-" if links.medium[i, j] < 0 else (0, (4, 3))
                axes.plot([a.x, b.x], [a.y, b.y], color=colour("line"), linewidth=1.4, linestyle=style, zorder=1)


def _transfers(sheet: Sheet, axes: Axes, plan: Plan, nodes: dict[str, _Node]) -> None:
    from matplotlib.patches import FancyArrowPatch

    together: dict[tuple[str, str], list[str]] = {}
    for one in plan.transfers:
        words = f"{one.purpose}: {format_bytes(one.bytes)}, {format_seconds(one.seconds)}"
        together.setdefault((one.source, one.destination), []).append(words)
    for (source, destination), words in together.items():
        a, b = nodes[source], nodes[destination]
        length = math.hypot(b.x - a.x, b.y - a.y)
        bend = 0.16 if not sheet.narrow else 0.3
        arrow = FancyArrowPatch(
            (a.x, a.y), (b.x, b.y), connectionstyle=f"arc3,rad={bend}", arrowstyle="-|>", mutation_scale=15,
            shrinkA=_RADIUS + 2, shrinkB=_RADIUS + 2, color=colour("transfer"), linewidth=2.4, zorder=2,
        )  # fmt: skip
        axes.add_patch(arrow)
        sheet.mark(arrow, f"{source} → {destination}: {'; '.join(words)}", source=source, destination=destination)
        if sheet.narrow:
            continue
        # The middle of the arc; matplotlib bends to the right of the direction, y pointing down.
        x = (a.x + b.x) / 2 + bend / 2 * (b.y - a.y) * -1
        y = (a.y + b.y) / 2 + bend / 2 * (b.x - a.x)
        away = 4 + 7 * len(words)
        x += (b.y - a.y) / length * -away * 0.4
        y += (b.x - a.x) / length * away
        axes.text(
            x, y, "\n".join(words), fontsize=11, ha="center", va="center", color=colour("ink"), zorder=5,
            bbox={"facecolor": colour("card"), "edgecolor": "none", "pad": 1.5, "alpha": 0.85},
        )  # fmt: skip


def _device(sheet: Sheet, axes: Axes, plan: Plan, node: _Node) -> None:
    from matplotlib.patches import Circle

    device = next(one for one in plan.problem.devices if one.name == node.name)
    used = bool(node.stages)
    shade = colour("compute" if used else "card")
    circle = Circle((node.x, node.y), _RADIUS, facecolor=shade, edgecolor=colour("compute" if used else "muted"), lw=2)
    circle.set_zorder(3)
    axes.add_patch(circle)
    sheet.mark(circle, node.name, device=node.name, stages=" ".join(str(stage.index) for stage in node.stages))
    if used:
        inside = ",".join(str(stage.index) for stage in node.stages[:2]) + ("…" if len(node.stages) > 2 else "")
        axes.text(
            node.x, node.y, inside, fontsize=13, weight="bold", ha="center", va="center_baseline",
            color=colour("card"), zorder=4,
        )  # fmt: skip
    is_source = plan.problem.devices[source_index(plan.problem)].name == node.name
    about = format_bytes(usable_bytes(device)) + (", source" if is_source else "")
    lines = [(node.name, "ink", "bold"), (about, "muted", "normal")]
    for stage in node.stages[:2]:
        text = f"{stage.variant}: {stage.elements}" if stage.variant else stage.elements
        lines.append((text, "ink", "normal"))
    if not used:
        lines.append(("no stage", "muted", "normal"))
    x = node.x + node.side * (_RADIUS + 8)
    y = node.y - _LINE * (len(lines) - 1) / 2
    most = 17 if sheet.narrow else 34
    for row, (text, token, weight) in enumerate(lines):
        short = text if len(text) <= most else text[: most - 1] + "…"
        axes.text(
            x, y + row * _LINE, short, fontsize=10.5 if sheet.narrow else 12.5, weight=weight, color=colour(token),
            ha="left" if node.side > 0 else "right", va="center_baseline", zorder=4,
        )  # fmt: skip
