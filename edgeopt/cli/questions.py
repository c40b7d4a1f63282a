"""The verbs that ask what else could be: compare, explain, diff, elastic."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeopt.cli import completion
from edgeopt.cli.common import (
    Backend,
    Json,
    PlanFile,
    ProblemName,
    drawable,
    duration,
    existing,
    print_json,
    progress_line,
)  # fmt: skip

if TYPE_CHECKING:
    from edgeopt.plan import Plan

__all__ = ["compare", "diff", "elastic", "explain"]


def compare(
    problem: ProblemName,
    backend: Backend = "exact",
    time_limit: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="For all strategies together, and again for a frontier; default: none."),
    ] = None,
    gap: Annotated[float, typer.Option(help="Stop a strategy once this relative gap is proven.")] = 0.0,
    pareto: Annotated[
        str | None, typer.Option(metavar="A,B", help="Frontier of two of latency, throughput, energy, quality.")
    ] = None,
    points: Annotated[int, typer.Option(min=2, help="Most plans on the frontier, for each strategy.")] = 20,
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the frontier: .svg, .png or .pdf.")] = None,
    json: Json = False,
) -> None:
    """Solve by every strategy that fits, and show them side by side, with the best that one device can do."""
    from edgeopt.errors import Finding, InputError
    from edgeopt.profiles import load_problem
    from edgeopt.questions.compare import compare as side_by_side
    from edgeopt.questions.frontier import frontier, parse_axes
    from edgeopt.report import comparison as report

    limit_s = duration("--time-limit", time_limit)
    if picture is not None:
        if pareto is None:
            raise InputError(Finding("--picture", "draws a frontier, and none is asked for", "add --pareto A,B"))
        drawable(picture, "--picture")
    loaded = load_problem(problem)
    axes = None if pareto is None else parse_axes(pareto, loaded)
    with progress_line(json) as progress:
        progress(f"comparing strategies for {loaded.name}")
        compared = side_by_side(loaded, backend=backend, time_limit_s=limit_s, gap=gap)
        line = None
        if axes is not None:
            progress(f"looking for the frontier of {axes[0]} and {axes[1]}")
            line = frontier(loaded, axes, points, limit_s)
    if line is not None and picture is not None:
        report.draw_frontier(line, compared, picture)
    if json:
        print_json(report.comparison_document(compared, line))
    else:
        from edgeopt.report import tables

        tables.show(*report.comparison_view(compared))
        if line is not None:
            tables.show(*report.frontier_view(line))
        if line is not None and picture is not None:
            print(f"picture written to {picture}")


def explain(
    plan: Annotated[
        str,
        typer.Argument(
            metavar="PLAN|PROBLEM",
            help="A plan file, or a problem to solve first.",
            autocompletion=completion.problems,
        ),
    ],
    why_not: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Price of a decision: 'stage 1 on phone', 'without phone'; repeatable."),
    ] = None,
    time_limit: Annotated[
        str, typer.Option(metavar="DURATION", help="For everything that has to be solved again.")
    ] = "60 s",
    json: Json = False,
) -> None:
    """Say why a plan is as it is: its cost by term, what each limit costs, what another decision would cost."""
    from edgeopt.questions.explain import explain as ask
    from edgeopt.report import explanation as report

    limit_s = duration("--time-limit", time_limit)
    with progress_line(json) as progress:
        progress(f"explaining {plan}")
        explained = ask(_plan_of(plan, limit_s), why_not or (), limit_s)
    if json:
        print_json(report.explanation_document(explained))
        return
    from edgeopt.report import tables

    tables.show(*report.explanation_view(explained))


def _plan_of(text: str, limit_s: float | None) -> Plan:
    """Read a plan, or read a problem and solve it."""
    from edgeopt import planner
    from edgeopt.profiles import load_plan, load_problem
    from edgeopt.profiles.reader import read_document
    from edgeopt.profiles.writer import parse_own

    path = Path(text)
    if path.is_file() and "format" in read_document(path, None if path.suffix == ".json" else parse_own).data:
        return load_plan(path)
    return planner.solve(load_problem(text), time_limit_s=limit_s)


def diff(
    before: Annotated[Path, typer.Argument(metavar="A", help="A plan, or a report of `edgeopt execute -o`.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Another of the same kind.")],
    json: Json = False,
) -> None:
    """Compare two plans or two reports: figures, what moved where, and what was asked differently."""
    from edgeopt.questions.diff import diff as between
    from edgeopt.questions.diff import load_subject
    from edgeopt.report import explanation as report

    difference = between(load_subject(before), load_subject(after))
    if json:
        print_json(report.difference_document(difference))
        return
    from edgeopt.report import tables

    tables.show(*report.difference_view(difference))


def elastic(
    plan: PlanFile,
    at_step: Annotated[int, typer.Option(metavar="STEPS", help="Denoising steps that are done when it happens.")],
    event: Annotated[
        list[str],
        typer.Option(metavar="TEXT", help="leave:NAME, slow:NAME:2x, join:PROFILE or join:NAME=PROFILE; repeatable."),
    ],
    time_limit: Annotated[str, typer.Option(metavar="DURATION", help="For planning the rest.")] = "10 s",
    json: Json = False,
) -> None:
    """Plan the rest of a diffusion request whose devices change under way; exit 1 if no plan keeps its limits."""
    from edgeopt.profiles import load_plan
    from edgeopt.questions.elastic import elastic as ask
    from edgeopt.questions.events import parse_event
    from edgeopt.report import elastic as report

    limit_s = duration("--time-limit", time_limit)
    loaded = load_plan(existing(plan))
    events = [parse_event(text) for text in event]
    with progress_line(json) as progress:
        progress("planning what is left")
        found = ask(loaded, at_step, events, limit_s)
    if json:
        print_json(report.elastic_document(found))
    else:
        from edgeopt.report import tables

        tables.show(*report.elastic_view(found))
    if found.replanned.reason:
        raise typer.Exit(1)
