"""The verb that solves a grid of problems: sweep."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeopt.cli import completion
from edgeopt.cli.common import Backend, Json, ProblemName, drawable, duration, print_json, writable

__all__ = ["sweep"]

_PLACES = ("local", "ray")


def sweep(
    problem: ProblemName,
    over: Annotated[
        list[str],
        typer.Option(
            metavar="FIELD=VALUES",
            help="A field and its values: 'network.links[0].rate=10..1000 Mbit/s log 20', 'workload.steps=10..50 step "
            "10', 'model=a,b', 'devices=all, leave one out'; repeatable: the grid has every combination.",
            autocompletion=completion.fields,
        ),
    ],
    output: Annotated[
        list[Path] | None,
        typer.Option("-o", "--output", help="Table to write, .csv or .parquet; repeatable. FILE.journal keeps points."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw the objective along the longest axis: .svg, .png or .pdf."),
    ] = None,
    on: Annotated[
        str,
        typer.Option(
            help="local: this process; ray: the Ray cluster, or one started here.", autocompletion=completion.places
        ),
    ] = "local",
    strategy: Annotated[
        str | None,
        typer.Option(help="Technique, in place of the file's own.", autocompletion=completion.strategies_or_auto),
    ] = None,
    backend: Backend = "exact",
    time_limit: Annotated[
        str | None, typer.Option(metavar="DURATION", help="For each point, for example 10s; default: none.")
    ] = None,
    gap: Annotated[float, typer.Option(help="Stop a point once this relative gap is proven.")] = 0.0,
    restart: Annotated[bool, typer.Option("--restart", help="Forget the points that the journal holds.")] = False,
    json: Json = False,
) -> None:
    """Solve a problem at every point of a grid over its fields, each from its neighbour's plan.

    An interrupted sweep goes on where it was when the same command is given again.
    """
    from edgeopt.profiles import load_problem
    from edgeopt.questions.grid import parse_grid
    from edgeopt.questions.sweep import Options, rows
    from edgeopt.report import sweeping as report

    options = Options(strategy, backend, duration("--time-limit", time_limit), gap)
    files = list(output or ())
    _check(on, files, plot, restart)
    grid = parse_grid(load_problem(problem), over)
    _check_solving(grid, options)
    records, kept = _solve(grid, options, on, files, restart, quiet=json)
    table = rows(grid, records)
    for path in files:
        report.write_table(table, path)
    if plot is not None:
        report.draw_sweep(grid, table, plot)
    if json:
        print_json(report.sweep_document(grid, table, kept, [*files, *([plot] if plot else [])]))
        return
    from edgeopt.report import tables

    tables.show(*report.sweep_view(grid, table))
    if kept:
        print(f"{kept} of them were kept from before")
    print("\n".join(f"rows written to {path}" for path in files) or "keep the rows with -o sweep.csv")
    if plot is not None:
        print(f"picture written to {plot}")


def _check(on: str, files: list[Path], plot: Path | None, restart: bool) -> None:
    """Refuse what cannot be written or run before anything is read."""
    from edgeopt.errors import Finding, InputError
    from edgeopt.report import sweeping as report

    if on not in _PLACES:
        raise InputError(Finding("--on", f"'{on}' is no place where points are solved", "write local or ray"))
    for path in files:
        writable(path)
        report.check_table(path)
    if restart and not files:
        raise InputError(Finding("--restart", "there is no journal without a table", "add -o sweep.csv"))
    drawable(plot, "--plot")


def _check_solving(grid: Any, options: Any) -> None:
    """Refuse options that fit no point: an unknown strategy or backend, a gap that is none."""
    from edgeopt.errors import Finding, InputError
    from edgeopt.strategies import strategy_names
    from edgeopt_solvers.solve import BACKENDS
    from edgeopt_solvers.solve import Options as SolverOptions

    known = ["auto", *strategy_names()]
    axis = next((axis for axis in grid.axes if axis.field == "strategy"), None)
    asked = axis.values if axis else [options.strategy or grid.editor.problem.strategy]
    for name in asked:
        if name not in known:
            field = "--over strategy" if axis else "--strategy"
            raise InputError(Finding(field, f"unknown strategy {name!r}", f"known: {', '.join(known)}"))
    if axis and options.strategy:
        raise InputError(Finding("--strategy", "is an axis of the grid already", "leave --strategy away"))
    if options.backend not in BACKENDS:
        mend = f"choose one of {', '.join(BACKENDS)}"
        raise InputError(Finding("--backend", f"unknown backend {options.backend!r}", mend))
    SolverOptions(options.time_limit_s, options.gap)


def _solve(
    grid: Any, options: Any, on: str, files: list[Path], restart: bool, quiet: bool
) -> tuple[dict[int, dict[str, Any]], int]:
    """Return all records, and how many of them were there before."""
    from edgeopt.questions import sweep as sweeping
    from edgeopt.questions.journal import Journal

    runner: sweeping.Runner = sweeping.local
    if on == "ray":
        from edgeopt.executor.points import on_ray

        runner = on_ray
    with contextlib.ExitStack() as stack:
        journal = None
        if files:
            path = files[0].with_name(f"{files[0].name}.journal")
            journal = stack.enter_context(Journal(path, sweeping.head_of(grid, options), restart))
        kept = len(journal.records) if journal is not None else 0
        done = kept
        try:
            with _progress_bar(len(grid), quiet) as advance:

                def progress(count: int) -> None:
                    nonlocal done
                    done = count
                    advance(count)

                records = sweeping.sweep(grid, options, journal, runner, progress)
        except KeyboardInterrupt:
            if journal is not None:
                print(f"{done} of {len(grid)} points are in {journal.path}; the same command goes on", file=sys.stderr)
            raise
    return records, kept


@contextlib.contextmanager
def _progress_bar(total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Yield a function that shows how many points are done, on a terminal only."""
    if quiet or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("points"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("points", total=total)
        yield lambda done: bar.update(task, completed=done)
