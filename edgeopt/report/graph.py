"""Devices and links as a graph, with the plan's stages on the devices and its transfers on the links."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from edgeopt.costs.links import link_arrays
from edgeopt.costs.memory import usable_bytes
from edgeopt.plan import Plan, Transfer
from edgeopt.report.inline import Chart, Sheet, colour, draw, shortened
from edgeopt.report.tables import format_bytes, format_seconds
from edgeopt.strategies.chain import source_index

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patches import FancyBboxPatch

__all__ = ["graph_chart"]

#: Pixels: a line of text, what surrounds the lines in a box, and the widths of boxes on wide and narrow screens.
_LINE, _PADDING, _WIDTH, _NARROW_WIDTH = 16, 22, 206, 154
#: How far an arrow bends to the left of its direction: its middle lies half of this part of its length off the line.
_BEND = 0.16
#: Stages that a box names one by one.
_NAMED = 3


class _Node(NamedTuple):
    name: str
    x: float
    y: float
    lines: tuple[str, ...]
    is_used: bool
    stages: tuple[int, ...]

    @property
    def height(self) -> float:
        return _PADDING + _LINE * len(self.lines)


def graph_chart(plan: Plan) -> Chart:
    """Draw every device of the problem, those that the plan uses first, clockwise in the order of use."""
    stages = "; ".join(
        f"stage {stage.index} on {stage.device}{f' with {stage.variant}' if stage.variant else ''}: {stage.elements}"
        for stage in plan.stages
    )
    transfers = "; ".join(
        f"{one.purpose} from {one.source} to {one.destination}: {_amounts(one)}" for one in plan.transfers
    )
    description = f"{len(plan.problem.devices)} devices. {stages}. Transfers: {transfers or 'none'}."
    return draw("graph", "Devices, links and stages", description, lambda sheet: _paint(sheet, plan))


def _paint(sheet: Sheet, plan: Plan) -> None:
    order = _order(plan)
    texts = {name: _lines(plan, name) for name in order}
    tallest = _PADDING + _LINE * max(map(len, texts.values()))
    places = _columns(len(order), tallest) if sheet.narrow else _ellipse(len(order))
    top, bottom = min(y for _, y in places), max(y for _, y in places)
    height = bottom - top + tallest + (28 if sheet.narrow or len(order) == 1 else 84)
    axes = sheet.axes(height, left=0, right=0, top=0, bottom=0)
    axes.axis("off")
    axes.set_xlim(0, sheet.width)
    axes.set_ylim(height, 0)
    nodes = {}
    for name, (x, y) in zip(order, places, strict=True):
        stages = tuple(stage.index for stage in plan.stages if stage.device == name)
        nodes[name] = _Node(
            name, sheet.width / 2 + x, height / 2 + y - (top + bottom) / 2, texts[name], bool(stages), stages
        )
    _links(axes, plan, nodes)
    boxes = {name: _box(sheet, axes, node) for name, node in nodes.items()}
    _transfers(sheet, axes, plan, nodes, boxes)


def _order(plan: Plan) -> list[str]:
    names = [device.name for device in plan.problem.devices]
    used = [names[source_index(plan.problem)], *(stage.device for stage in plan.stages)]
    return list(dict.fromkeys([*used, *names]))


def _ellipse(count: int) -> list[tuple[float, float]]:
    """Return places around the middle, clockwise from the upper left, a level pair on top."""
    if count == 1:
        return [(0.0, 0.0)]
    across, down = 345.0, 0.0 if count == 2 else max(88.0, 27.0 * count)
    angles = [math.radians(-90 - 180 / count + 360 * i / count) for i in range(count)]
    return [(across * math.cos(angle), down * math.sin(angle)) for angle in angles]


def _columns(count: int, tallest: float) -> list[tuple[float, float]]:
    """Return places in two columns, clockwise from the upper left; an odd one stands alone below."""
    if count == 1:
        return [(0.0, 0.0)]
    rows, step, x = math.ceil(count / 2), tallest + 46, 88.0
    middle = (rows - 1) / 2
    right = [(x, (row - middle) * step) for row in range(count // 2)]
    left = [(-x, (row - middle) * step) for row in reversed(range(count // 2))]
    alone = [(0.0, middle * step)] if count % 2 else []
    return [left[-1], *right, *alone, *left[:-1]]


def _lines(plan: Plan, name: str) -> tuple[str, ...]:
    """Return what a box says: the name, what plans may use of the memory, and the stages."""
    devices = plan.problem.devices
    device = next(one for one in devices if one.name == name)
    is_source = devices[source_index(plan.problem)].name == name
    lines = [name, f"{format_bytes(usable_bytes(device))}{', source' if is_source else ''}"]
    stages = [stage for stage in plan.stages if stage.device == name]
    for stage in stages[:_NAMED]:
        variant = f"{stage.variant} " if stage.variant else ""
        lines.append(f"{stage.index}: {variant}{stage.elements}")
    if len(stages) > _NAMED:
        lines.append(f"and {len(stages) - _NAMED} more")
    return tuple(lines if stages else [*lines, "no stage"])


def _links(axes: Axes, plan: Plan, nodes: dict[str, _Node]) -> None:
    names = [device.name for device in plan.problem.devices]
    links = link_arrays(plan.problem.network, names)
    for i, first in enumerate(names):
        for j, second in enumerate(names[:i]):
            if links.rate_bytes_per_s[i, j] or links.rate_bytes_per_s[j, i]:
                a, b = nodes[first], nodes[second]
                style = "-" if links.medium[i, j] < 0 else (0, (4, 3))
                axes.plot([a.x, b.x], [a.y, b.y], color=colour("line"), linewidth=1.6, linestyle=style, zorder=1)


def _box(sheet: Sheet, axes: Axes, node: _Node) -> FancyBboxPatch:
    from matplotlib.patches import FancyBboxPatch

    width = _NARROW_WIDTH if sheet.narrow else _WIDTH
    box = FancyBboxPatch(
        (node.x - width / 2, node.y - node.height / 2), width, node.height, boxstyle="round,pad=0,rounding_size=9",
        facecolor=colour("compute" if node.is_used else "card"),
        edgecolor=colour("compute" if node.is_used else "overhead"), lw=1.5, zorder=3,
    )  # fmt: skip
    axes.add_patch(box)
    sheet.mark(box, "; ".join(node.lines), device=node.name, stages=" ".join(map(str, node.stages)))
    size = 10.5 if sheet.narrow else 12
    most = int((width - 14) / (0.6 * size))
    for row, text in enumerate(node.lines):
        y = node.y + _LINE * (row - (len(node.lines) - 1) / 2)
        token = "card" if node.is_used else ("muted" if row else "ink")
        axes.text(
            node.x, y, shortened(text, most - 2 if not row else most), fontsize=size,
            weight="normal" if row else "bold", color=colour(token), ha="center", va="center_baseline", zorder=4,
        )  # fmt: skip
    return box


def _transfers(sheet: Sheet, axes: Axes, plan: Plan, nodes: dict[str, _Node], boxes: dict[str, FancyBboxPatch]) -> None:
    from matplotlib.patches import FancyArrowPatch

    together: dict[tuple[str, str], list[Transfer]] = {}
    for one in plan.transfers:
        together.setdefault((one.source, one.destination), []).append(one)
    taken = [(node.x, node.y, boxes[name].get_width(), node.height) for name, node in nodes.items()]
    for (source, destination), moves in together.items():
        a, b = nodes[source], nodes[destination]
        arrow = FancyArrowPatch(
            (a.x, a.y), (b.x, b.y), connectionstyle=f"arc3,rad={-_BEND}", arrowstyle="-|>", mutation_scale=15,
            patchA=boxes[source], patchB=boxes[destination], shrinkA=2, shrinkB=2, color=colour("transfer"),
            linewidth=2.4, zorder=2,
        )  # fmt: skip
        axes.add_patch(arrow)
        words = [f"{one.purpose}: {_amounts(one)}" for one in moves]
        sheet.mark(arrow, f"{source} → {destination}: {'; '.join(words)}", source=source, destination=destination)
        if not sheet.narrow:
            lines = words if len(nodes) < 4 else [line for word in words for line in word.split(", ")]
            size = (6.3 * max(map(len, lines)), 15.0 * len(lines))
            arcs = [
                (*_along(nodes[i], nodes[j], t / 20), 9.0, 9.0)
                for i, j in together
                if (i, j) != (source, destination)
                for t in range(3, 18)
            ]
            x, y = _free_place(a, b, size, taken + arcs)
            taken.append((x, y, *size))
            axes.text(
                x, y, "\n".join(lines), fontsize=11, ha="center", va="center", color=colour("ink"), zorder=5,
                bbox={"facecolor": colour("card"), "edgecolor": "none", "pad": 0.5, "alpha": 0.9},
            )  # fmt: skip


def _amounts(one: Transfer) -> str:
    return f"{format_bytes(one.bytes)}, {format_seconds(one.seconds)}"


def _free_place(
    a: _Node, b: _Node, size: tuple[float, float], taken: Sequence[tuple[float, float, float, float]]
) -> tuple[float, float]:
    """Return where along the arc from ``a`` to ``b`` a text covers the least of what is drawn, outside it at best."""
    normal = _normal(a, b)
    beside = abs(normal[0]) * size[0] / 2 + abs(normal[1]) * size[1] / 2 + 3
    best = (math.inf, 0.0, 0.0)
    far = beside + 42  # past the corners of boxes that stand close together
    for away, worse in ((beside, 0.0), (-beside, 0.0), (far, 600.0), (-far, 600.0)):
        for t in (0.5, 0.42, 0.58, 0.34, 0.66, 0.27, 0.73):
            x, y = (at + away * n for at, n in zip(_along(a, b, t), normal, strict=True))
            covered = worse + sum(_overlap((x, y, *size), one) for one in taken)
            best = min(best, (covered, x, y), key=lambda one: one[0])
    return best[1:]


def _normal(a: _Node, b: _Node) -> tuple[float, float]:
    """Return the direction to the left of the way from ``a`` to ``b``, whither arcs bend; y points down."""
    length = math.hypot(b.x - a.x, b.y - a.y)
    return (b.y - a.y) / length, (a.x - b.x) / length


def _along(a: _Node, b: _Node, t: float) -> tuple[float, float]:
    """Return a point of the arc, a quadratic curve, from ``a`` (t = 0) to ``b`` (t = 1)."""
    away = 2 * t * (1 - t) * _BEND * math.hypot(b.x - a.x, b.y - a.y)
    across, down = _normal(a, b)
    return a.x + t * (b.x - a.x) + away * across, a.y + t * (b.y - a.y) + away * down


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    """Return the area that two boxes, given by middle and size, share."""
    shared = [
        min(one[i] + one[i + 2] / 2, other[i] + other[i + 2] / 2)
        - max(one[i] - one[i + 2] / 2, other[i] - other[i + 2] / 2)
        for i in (0, 1)
    ]
    return max(shared[0], 0.0) * max(shared[1], 0.0)
