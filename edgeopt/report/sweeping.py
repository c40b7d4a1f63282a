"""A sweep as CSV, Parquet, a table, one JSON document, and a picture."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from edgeopt.errors import Finding, InputError, MissingDependencyError
from edgeopt.files import write_whole
from edgeopt.questions.figures import objective_unit, short
from edgeopt.questions.grid import Axis, Grid
from edgeopt.questions.sweep import FIGURES
from edgeopt.report.document import plain
from edgeopt.report.pictures import check_picture
from edgeopt.report.tables import format_bytes, format_seconds, new_table

__all__ = ["TABLES", "check_table", "draw_sweep", "sweep_document", "sweep_view", "write_table"]

#: File name endings of tables.
TABLES = (".csv", ".parquet")

#: Rows that are shown rather than counted, and curves that are named rather than coloured by number.
_SHOWN_ROWS, _NAMED_CURVES = 40, 10

_TEXT = {"status", "strategy", "stages", "message"}
_WHOLE = {"point", "num_stages"}

Row = dict[str, Any]


def check_table(path: Path) -> None:
    """Refuse a table that cannot be written before any work is done for it.

    Raises
    ------
    InputError
        ``path`` does not end in one of :data:`TABLES`.
    MissingDependencyError
        Parquet is asked for and pyarrow is not installed.
    """
    from importlib.util import find_spec

    if path.suffix not in TABLES:
        mend = f"end its name in {' or '.join(TABLES)}"
        raise InputError(Finding("-o", f"'{path}' is no table that can be written", mend))
    if path.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise MissingDependencyError("pyarrow", "table", "writing Parquet")


def write_table(rows: Sequence[Row], path: Path) -> None:
    """Write rows, whole or not at all; what has no value is an empty cell, in Parquet a null.

    CSV spells floats so that they read back bit for bit, and infinity as ``inf``.
    """
    check_table(path)
    write_whole(path, _csv(rows) if path.suffix == ".csv" else _parquet(rows))


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _parquet(rows: Sequence[Row]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    columns = {name: [row[name] for row in rows] for name in rows[0]}
    table = pyarrow.table({name: pyarrow.array(cells, _type(name, cells)) for name, cells in columns.items()})
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(table, sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _type(name: str, cells: Sequence[Any]) -> Any:
    """Return a column's type, which must not depend on which points had a plan."""
    import pyarrow

    if name in _TEXT or any(isinstance(cell, str) for cell in cells):
        return pyarrow.string()
    if name in _WHOLE or (name not in FIGURES and all(isinstance(cell, int | None) for cell in cells)):
        return pyarrow.int64()
    return pyarrow.float64()


def sweep_document(grid: Grid, rows: Sequence[Row], kept: int, files: Sequence[Path]) -> dict[str, Any]:
    """Return what ``edgeopt sweep --json`` prints; ``kept`` points were in the journal already."""
    axes = [
        {"field": axis.field, "unit": axis.unit, "scale": axis.scale, "values": list(axis.cells)} for axis in grid.axes
    ]
    return plain(
        {
            "problem": grid.editor.problem.name,
            "axes": axes,
            "points": len(grid),
            "resumed": kept,
            "files": [str(path) for path in files],
            "rows": list(rows),
        }
    )


def sweep_view(grid: Grid, rows: Sequence[Row]) -> Iterable[RenderableType]:
    """Yield the rows where they are few, then how many have a plan and where the best one is."""
    problem = grid.editor.problem
    if len(rows) <= _SHOWN_ROWS:
        fields = [f">{axis.field}" if axis.scale else axis.field for axis in grid.axes]
        table = new_table(f"{problem.name}: {problem.model.name}", *fields, "result", ">objective", ">latency",
                          ">traffic", "stages")  # fmt: skip
        for index, row in enumerate(rows):
            place = grid.place(index)
            given = [_written(axis, k) for axis, k in zip(grid.axes, place, strict=True)]
            table.add_row(*given, str(row["status"]).replace("_", " "), *_figures(row), row["stages"] or "")
        yield table
    solved = [row for row in rows if row["objective"] is not None]
    counts = Counter(str(row["status"]) for row in rows)
    said = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in counts.items())
    yield Text(f"{len(rows)} points: {said}")
    if solved:
        best = min(solved, key=lambda row: row["objective"])
        where = ", ".join(
            f"{axis.field} = {_written(axis, k)}" for axis, k in zip(grid.axes, grid.place(best["point"]), strict=True)
        )
        unit = "" if any(axis.field == "objective" for axis in grid.axes) else objective_unit(problem)
        yield Text(f"smallest objective: {short(best['objective'])} {unit}".rstrip() + f" at {where}", style="bold")


def _written(axis: Axis, k: int) -> str:
    value = axis.cells[k] if axis.field == "devices" else axis.values[k]
    if axis.scale:
        return f"{_in_unit(axis)[k]:.6g} {axis.unit}".rstrip()
    return "none" if value is None else str(value)


def _figures(row: Row) -> list[str]:
    if row["objective"] is None:
        return ["–", "–", "–"]
    return [short(row["objective"]), format_seconds(row["latency_s"]), format_bytes(row["traffic_bytes"])]


def draw_sweep(grid: Grid, rows: Sequence[Row], path: Path) -> None:
    """Draw the objective along the longest axis of numbers, a curve for each combination of the others.

    Exceptions as :func:`.check_picture`.
    """
    check_picture(path, "--plot")
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    axis = grid.axes[grid.along]
    curves = _curves(grid, rows)
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    colours = colormaps["viridis"]
    for place, (name, values) in enumerate(curves.items()):
        x, y = range(len(axis)) if not axis.scale else _in_unit(axis), values
        axes.plot(x, y, marker=".", linewidth=1, label=name, color=colours(place / max(len(curves) - 1, 1)))
    if not axis.scale:
        axes.set_xticks(range(len(axis)), [_written(axis, k) for k in range(len(axis))], rotation=30, ha="right")
    if axis.scale == "log":
        axes.set_xscale("log")
    problem = grid.editor.problem
    axes.set_xlabel(f"{axis.field} [{axis.unit}]" if axis.unit else axis.field)
    unit = objective_unit(problem)
    axes.set_ylabel(f"{problem.objective} [{unit}]" if unit and isinstance(problem.objective, str) else "objective")
    axes.set_title(f"{problem.name}: {problem.model.name}", loc="left", fontsize="medium")
    if 1 < len(curves) <= _NAMED_CURVES:
        axes.legend(frameon=False, fontsize="small")
    elif len(curves) > 1:
        names = list(curves)
        axes.set_title(f"{len(curves)} curves, {names[0]} (dark) to {names[-1]} (light)", loc="right", fontsize="small")
    axes.grid(alpha=0.3)
    figure.savefig(path)


def _curves(grid: Grid, rows: Sequence[Row]) -> dict[str, list[float]]:
    """Return objectives along the drawn axis by the values of all others; NaN where there is no plan."""
    curves: dict[str, list[float]] = {}
    for row in rows:
        place = grid.place(row["point"])
        others = [
            f"{axis.field} {_written(axis, k)}"
            for i, (axis, k) in enumerate(zip(grid.axes, place, strict=True))
            if i != grid.along
        ]
        curve = curves.setdefault(", ".join(others), [math.nan] * len(grid.axes[grid.along]))
        curve[place[grid.along]] = math.nan if row["objective"] is None else row["objective"]
    return curves


def _in_unit(axis: Axis) -> list[float]:
    """Return an axis's numbers in the unit in which they were written."""
    return [float(str(value).split()[0]) if isinstance(value, str) else float(value) for value in axis.values]
