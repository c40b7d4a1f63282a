"""The figures of the house: seconds per answer against latency, one panel for each rate; predicted beside measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.benchmarks.diffusion.pictures import new_figure
from tests.benchmarks.llm.methods import METHODS

__all__ = ["grid_figure", "measured_figure"]

#: Colour and marker by method, told apart without red and green, and without colours.
STYLE = dict(
    zip(
        METHODS,
        [("#0072b2", "o"), ("#d55e00", "s"), ("#cc79a7", "^"), ("#56b4e9", "D"), ("#000000", "P"), ("#999999", "v")],
        strict=True,
    )
)


def grid_figure(rows: Sequence[dict[str, Any]]) -> Any:
    """Draw a panel for each rate: latency of the links across, milliseconds per answer up."""
    rates = sorted({row["mbit"] for row in rows})
    figure, panels = new_figure(3.4 * len(rates), 3.8, len(rates))
    panels = [panels] if len(rates) == 1 else list(panels)
    for axes, rate in zip(panels, rates, strict=True):
        own = [row for row in rows if row["mbit"] == rate]
        for method, (colour, marker) in STYLE.items():
            points = [(1e3 * row["latency_s"], 1e3 * row["methods"][method]["latency_s"])
                      for row in own if row["methods"][method]]  # fmt: skip
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, marker=marker, label=method)
        axes.set_title(f"{rate:g} Mbit/s", fontsize=10)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("latency of a link [ms]")
    panels[0].set_ylabel("per answer [ms]")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    return figure


def measured_figure(rows: Sequence[dict[str, Any]]) -> Any:
    """Draw predicted against measured milliseconds, a point for each run."""
    figure, axes = new_figure(4.6, 4.2)
    for method, (colour, marker) in STYLE.items():
        points = [(1e3 * row["measured_s"], 1e3 * row["latency_s"]) for row in rows if row["method"] == method]
        if points:
            axes.plot(*zip(*points, strict=True), ls="", color=colour, marker=marker, label=method)
    ends = [min(axes.get_xlim()[0], axes.get_ylim()[0]), max(axes.get_xlim()[1], axes.get_ylim()[1])]
    axes.plot(ends, ends, color="#666666", lw=1, ls=":")
    axes.set_xlabel("measured [ms]")
    axes.set_ylabel("predicted [ms]")
    axes.legend(frameon=False, fontsize=8)
    return figure
