"""The figures of the story: lines of quality, bars of seconds, rows of digits; each draws into axes it is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "digits_figure", "draw_budget", "draw_digits", "draw_shares", "new_figure", "quality_figure", "saved",
    "shares_figure",
]  # fmt: skip

#: Colour and marker by method; colours are told apart without red and green, markers without colours.
STYLE = {
    "multi-stage": ("#0072b2", "o"), "split": ("#d55e00", "s"), "patch": ("#cc79a7", "^"),
    "hierarchical": ("#56b4e9", "D"), "single small": ("#999999", "v"), "single large": ("#000000", "P"),
}  # fmt: skip
COMPUTE, TRANSMIT = "#0072b2", "#e69f00"


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    """Return a figure and its axes, which no window shows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns)


def draw_budget(rows: Sequence[dict[str, Any]], floor: float, label: str, ax: Any = None) -> Any:
    """Draw sampled quality against a budget, a line for each method; what a method cannot do in time is left out."""
    axes = new_figure(5.5, 4)[1] if ax is None else ax
    for method, (colour, marker) in STYLE.items():
        points = [(row["budget"], row[method]["sampled"]) for row in rows if row.get(method)]
        if points:
            dashes = "--" if method == "hierarchical" else "-"
            axes.plot(*zip(*points, strict=True), dashes, color=colour, marker=marker, label=method)
    axes.axhline(floor, color="#666666", lw=1, ls=":", label="real against real")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(label)
    axes.set_ylabel("Fréchet distance, sampled (less is better)")
    return axes


def draw_shares(rows: Sequence[dict[str, Any]], ax: Any = None) -> Any:
    """Draw the parts of latency in computation and in transmission; predicted above measured, where that is known."""
    axes = new_figure(8, 4)[1] if ax is None else ax
    places, names = [], []
    for number, row in enumerate(rows):
        for offset, kind in enumerate(kind for kind in ("predicted", "measured") if row[kind]):
            place = 2.4 * number + offset
            total = row[kind]["latency_s"]
            part = row[kind]["compute_s"] / total
            axes.barh(place, part, color=COMPUTE, label="computation" if not places else None)
            axes.barh(place, 1 - part, left=part, color=TRANSMIT, label="transmission" if not places else None)
            axes.text(1.01, place, f"{1e3 * total:.0f} ms", va="center", fontsize=8)
            places.append(place)
            names.append(f"{row['method']}, {kind}")
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12)
    axes.set_xlabel("share of latency")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    return axes


def draw_digits(rows: Sequence[tuple[str, np.ndarray]], ax: Any = None) -> Any:
    """Draw a row of images for each name; images of any side are drawn equally large.

    Parameters
    ----------
    rows
        Name and images, (N, side, side) in −1 to 1.
    """
    axes = new_figure(8, 0.75 * len(rows))[1] if ax is None else ax
    for place, (_, images) in enumerate(rows):
        for column, image in enumerate(images):
            extent = (column, column + 0.95, place + 0.95, place)
            axes.imshow(-image, cmap="gray", vmin=-1, vmax=1, extent=extent, interpolation="nearest")
    axes.set_xlim(0, max(len(images) for _, images in rows))
    axes.set_ylim(len(rows), 0)
    axes.set_yticks([place + 0.475 for place in range(len(rows))], [name for name, _ in rows])
    axes.set_xticks([])
    axes.set_frame_on(False)
    axes.tick_params(length=0)
    return axes


def saved(figure: Any, path: Path) -> Path:
    """Write a figure; the same figure makes the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".svg":
        from matplotlib import rc_context

        with rc_context({"svg.hashsalt": path.stem}):
            figure.savefig(path, metadata={"Date": None})
    else:
        figure.savefig(path, dpi=110)
    return path


def quality_figure(compute: Sequence[dict[str, Any]], rate: Sequence[dict[str, Any]], floor: float) -> Any:
    """Draw both budgets beside each other, with one legend."""
    figure, (left, right) = new_figure(11, 4.4, 2)
    draw_budget(compute, floor, "(a) speed of the boards", left)
    draw_budget(rate, floor, "(b) rate of the links [Mbit/s]", right)
    named: dict[str, Any] = {}
    for axes in (left, right):
        handles, names = axes.get_legend_handles_labels()
        named |= dict(zip(names, handles, strict=True))
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named), frameon=False)
    return figure


def shares_figure(rows: Sequence[dict[str, Any]]) -> Any:
    """Draw the shares of latency."""
    figure, axes = new_figure(8, 4.5)
    draw_shares(rows, axes)
    return figure


def digits_figure(rows: Sequence[tuple[str, np.ndarray]]) -> Any:
    """Draw images side by side."""
    figure, axes = new_figure(8, 5.5)
    draw_digits(rows, axes)
    return figure
