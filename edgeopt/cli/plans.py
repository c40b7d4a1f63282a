"""The verbs on problems and plans: solve, verify, execute."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeopt.cli import completion
from edgeopt.cli.common import (
    Backend,
    Json,
    Output,
    PlanFile,
    ProblemName,
    drawable,
    duration,
    existing,
    print_json,
    progress_line,
    writable,
    write,
)
from edgeopt.files import write_whole

if TYPE_CHECKING:
    from edgeopt.plan import Plan
    from edgeopt.report.data import Report

__all__ = ["execute", "solve", "verify"]


def solve(
    problem: ProblemName,
    output: Output = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="Technique, in place of the file's own; auto: the best that fits.",
            autocompletion=completion.strategies_or_auto,
        ),
    ] = None,
    backend: Backend = "exact",
    time_limit: Annotated[str | None, typer.Option(metavar="DURATION", help="For example 10s; default: none.")] = None,
    gap: Annotated[float, typer.Option(help="Stop once this relative gap is proven.")] = 0.0,
    json: Json = False,
) -> None:
    """Find the best plan and prove how good it is."""
    from edgeopt import planner
    from edgeopt.profiles import load_problem

    limit_s = duration("--time-limit", time_limit)
    writable(output)
    loaded = load_problem(problem)
    with progress_line(json) as progress:
        progress(f"solving {loaded.name}")
        plan = planner.solve(loaded, strategy=strategy, backend=backend, time_limit_s=limit_s, gap=gap)
    if output is not None:
        write(output, plan)
    if json:
        from edgeopt.report.document import plan_document

        print_json(plan_document(plan))
        return
    from edgeopt.report import tables

    tables.show(*tables.plan_view(plan))
    print(f"plan written to {output}" if output else "keep the plan with -o plan.yaml")


def verify(plan: PlanFile, json: Json = False) -> None:
    """Recompute a plan from its decisions alone; exit 1 if anything differs."""
    from edgeopt import planner
    from edgeopt.errors import CheckFailedError
    from edgeopt.profiles import load_plan

    mismatches = planner.verify(load_plan(existing(plan)))
    if mismatches and not json:
        raise CheckFailedError(f"{plan}: " + "; ".join(mismatches))
    if json:
        print_json({"plan": str(plan), "verified": not mismatches, "mismatches": mismatches})
    else:
        print(f"{plan}: verified; cost, memory and limits recomputed from the decisions agree")
    if mismatches:
        raise typer.Exit(1)


def execute(
    plan: PlanFile,
    on: Annotated[
        str,
        typer.Option(
            help="local: a process per device; emulated: a network namespace per device; torchrun: the machines of "
            "--hosts; ray: the nodes of a Ray cluster.",
            autocompletion=completion.launchers,
        ),
    ] = "local",
    repeat: Annotated[int, typer.Option(help="Measured requests.")] = 5,
    warmup: Annotated[int, typer.Option(help="Requests before them, not measured.")] = 1,
    in_flight: Annotated[
        int | None, typer.Option(help="Requests under way at a time; default: 1, or stages + 1 for throughput plans.")
    ] = None,
    timeout: Annotated[str, typer.Option(metavar="DURATION", help="Everything must be over by then.")] = "120 s",
    seed: Annotated[int, typer.Option(help="Of the request.")] = 0,
    check: Annotated[bool, typer.Option(help="Compare the result with a single-process run.")] = True,
    port: Annotated[int | None, typer.Option(help="Where the workers meet; default: the system chooses.")] = None,
    hosts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Which machine is which device, for torchrun and ray.")
    ] = None,
    ssh: Annotated[
        bool, typer.Option("--ssh", help="Start the workers of torchrun over SSH; default: print the commands.")
    ] = False,
    enforce_memory: Annotated[
        bool, typer.Option("--enforce-memory", help="Hold each worker to its device's memory.")
    ] = False,
    on_fault: Annotated[
        str,
        typer.Option(
            help="A worker is lost: fail; retry with all devices; replan without it. Both go on.",
            autocompletion=completion.faults,
        ),
    ] = "fail",
    stall: Annotated[
        str | None, typer.Option(metavar="DURATION", help="A worker that stands still for so long is lost.")
    ] = None,
    output: Output = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write both timelines for Perfetto or chrome://tracing.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw predicted above measured: .svg, .png or .pdf.")
    ] = None,
    json: Json = False,
) -> None:
    """Run a plan and show what was predicted beside what was measured; exit 1 if the result is wrong."""
    from edgeopt.executor import execute as run
    from edgeopt.profiles import load_plan

    timeout_s = duration("--timeout", timeout)
    writable(output)
    writable(trace, "--trace")
    drawable(picture, "--picture")
    loaded = load_plan(existing(plan))
    with progress_line(json) as progress:
        report = run(
            loaded, on=on, repeat=repeat, warmup=warmup, in_flight=in_flight, timeout_s=timeout_s, seed=seed,
            check=check, port=port, hosts=hosts, ssh=ssh, enforce_memory=enforce_memory, on_fault=on_fault,
            stall_s=duration("--stall", stall), progress=progress,
        )  # fmt: skip
    if not json:  # before anything is written: a full disk must not cost the figures
        from edgeopt.report import tables

        tables.show(*tables.report_view(report))
    if output is not None:
        write(output, report)
    _write_timelines(report.replanned or loaded, report, trace, picture)
    if json:
        print_json(report.model_dump(mode="json", by_alias=True))
    elif output is not None:
        print(f"report written to {output}")
    if report.output is not None and not (report.output.equal and report.output.repeats_equal):
        raise typer.Exit(1)


def _write_timelines(plan: Plan, report: Report, trace: Path | None, picture: Path | None) -> None:
    from edgeopt.report.timeline import draw_timeline, trace_document

    if trace is not None:
        write_whole(trace, dumps(trace_document(plan, report)) + "\n")
    if picture is not None:
        draw_timeline(plan, report, picture)
