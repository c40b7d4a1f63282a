"""The verb that shows: report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli.common import Json, PlanFile, duration, existing, print_json, progress_line, writable

__all__ = ["report"]


def report(
    plan: PlanFile,
    run: Annotated[
        Path | None, typer.Argument(metavar="REPORT", help="A run of that plan, written by `edgeopt execute -o`.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The page; default: the plan's name with .html.")
    ] = None,
    pareto: Annotated[
        str | None, typer.Option(metavar="A,B", help="Frontier of two of latency, throughput, energy, quality.")
    ] = None,
    points: Annotated[int, typer.Option(min=2, help="Most plans on the frontier, for each strategy.")] = 20,
    time_limit: Annotated[str, typer.Option(metavar="DURATION", help="For the frontier.")] = "60 s",
    json: Json = False,
) -> None:
    """Write one page of a plan, and of a run of it: charts, tables, proof, and where every number comes from."""
    from edgeopt.errors import Finding, InputError
    from edgeopt.profiles import load_plan
    from edgeopt.questions.diff import load_subject
    from edgeopt.questions.frontier import frontier, parse_axes
    from edgeopt.report.data import Report
    from edgeopt.report.page import check_page, write_page

    limit_s = duration("--time-limit", time_limit)
    target = plan.with_suffix(".html") if output is None else output
    writable(target)
    check_page(target)
    loaded = load_plan(existing(plan))
    measured = None if run is None else load_subject(run)
    if measured is not None and not isinstance(measured, Report):
        mend = "give a file written by `edgeopt execute -o`"
        raise InputError(Finding("REPORT", f"'{run}' is a plan, not the report of a run", mend))
    axes = None if pareto is None else parse_axes(pareto, loaded.problem)
    with progress_line(json) as progress:
        line = None
        if axes is not None:
            progress(f"looking for the frontier of {axes[0]} and {axes[1]}")
            line = frontier(loaded.problem, axes, points, limit_s)
        progress(f"drawing {target}")
        write_page(target, loaded, measured, line)
    if json:
        print_json({"page": str(target), "plan": str(plan), "report": None if run is None else str(run)})
    else:
        print(f"page written to {target}")
