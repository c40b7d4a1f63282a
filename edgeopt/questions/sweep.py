"""Solving a grid of problems, each point from the plan of its neighbour.

A point's row depends on nothing but the point and its predecessors on its line: a sweep that was interrupted, or
that many machines share, ends with the same rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from edgeopt import planner
from edgeopt.errors import EdgeoptError, InputError, NoPlanError, TimeLimitError
from edgeopt.plan import Plan
from edgeopt.profiles.problem import Problem
from edgeopt.questions.figures import traffic_bytes
from edgeopt.questions.grid import Grid
from edgeopt.questions.journal import Journal
from edgeopt_solvers import UnsupportedError

__all__ = [
    "FIGURES", "Options", "Record", "Runner", "Task", "head_of", "local", "rows", "solve_point", "sweep",
    "tasks_of",
]  # fmt: skip

#: Columns of a row after the fields of the grid; figures of the strategy (``ttft_s``) follow them.
FIGURES = (
    "status", "strategy", "objective", "bound", "gap", "latency_s", "throughput_per_s", "energy_j", "quality",
    "traffic_bytes", "num_stages", "stages", "message",
)  # fmt: skip

#: What is left out of a plan that only serves as a start: the problem is known, the rest follows from the decisions.
_NO_START = {"problem", "timeline", "notes", "alternatives"}

Record = dict[str, Any]
"""``row`` (figures of a point), ``start`` (what its neighbour starts from, ``None``: nothing) and ``seconds``."""


@dataclass(frozen=True, slots=True)
class Options:
    """How every point is solved; parameters as in :func:`edgeopt.planner.solve`."""

    strategy: str | None = None
    backend: str = "exact"
    time_limit_s: float | None = None
    gap: float = 0.0


@dataclass(frozen=True, slots=True)
class Task:
    """What is left of a line: points in order, and the start of the first of them."""

    indices: tuple[int, ...]
    start: Record | None


class Runner(Protocol):
    """Solves tasks in whatever order, and yields each point's record as soon as it is there."""

    def __call__(
        self, grid: Grid, tasks: Sequence[Task], options: Options
    ) -> contextlib.AbstractContextManager[Iterable[tuple[int, Record]]]:
        """Return the records of all points; leaving the context ends what is still under way."""
        ...


def sweep(
    grid: Grid,
    options: Options,
    journal: Journal | None = None,
    runner: Runner | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[int, Record]:
    """Solve every point that the journal does not hold.

    Parameters
    ----------
    grid
        What is solved.
    options
        How.
    journal
        Keeps each record as soon as it is there; ``None``: nothing is kept.
    runner
        Where; by default in this process.
    progress
        Called with the number of points that are done.

    Returns
    -------
    dict of int to Record
        Every point of the grid.
    """
    records: dict[int, Record] = dict(journal.records) if journal is not None else {}
    progress(len(records))
    with (runner or local)(grid, tasks_of(grid, records), options) as found:
        for index, record in found:
            if journal is not None:
                journal.add(index, record)
            records[index] = record
            progress(len(records))
    return records


def tasks_of(grid: Grid, records: dict[int, Record]) -> list[Task]:
    """Return what is left to do of each line."""
    tasks = []
    for line in grid.lines():
        start: Record | None = None
        for k, index in enumerate(line):
            if index not in records:
                tasks.append(Task(tuple(line[k:]), start))
                break
            start = records[index]["start"]
    return tasks


@contextlib.contextmanager
def local(grid: Grid, tasks: Sequence[Task], options: Options) -> Iterator[Iterable[tuple[int, Record]]]:
    """Solve one point after the other in this process."""

    def each() -> Iterator[tuple[int, Record]]:
        for task in tasks:
            start = task.start
            for index in task.indices:
                record = solve_point(grid.problem(index), options, start)
                start = record["start"]
                yield index, record

    yield each()


def solve_point(problem: Problem, options: Options, start: Record | None = None) -> Record:
    """Solve one point from its neighbour's plan; one without a plan hands the start on.

    Which limit leaves no plan is not looked for: that would take longer than all other points together.

    Parameters
    ----------
    problem
        Of the point.
    options
        How it is solved.
    start
        ``start`` of the neighbour's record.
    """
    try:
        warm = None if start is None else Plan.model_validate({**start, "problem": problem})
        plan = planner.solve(problem, **asdict(options), warm_start=warm, diagnose=False)
    except NoPlanError as error:
        return _without_plan("infeasible", error, start)
    except TimeLimitError as error:
        return _without_plan("time_limit", error, start)
    except (InputError, UnsupportedError) as error:
        return _without_plan("refused", error, start)
    row = {
        "status": plan.status, "strategy": plan.strategy, "objective": plan.objective, "bound": plan.bound,
        "gap": plan.gap, "latency_s": plan.latency_s, "throughput_per_s": plan.throughput_per_s,
        "energy_j": plan.energy_j, "quality": plan.quality, "traffic_bytes": traffic_bytes(plan),
        "num_stages": len(plan.stages), "stages": _stages(plan), "message": None, **plan.metrics,
    }  # fmt: skip
    return {"row": row, "start": plan.model_dump(mode="json", exclude=_NO_START), "seconds": plan.runtime_s}


def _without_plan(status: str, error: EdgeoptError | UnsupportedError, start: Record | None) -> Record:
    row = dict.fromkeys(FIGURES) | {"status": status, "message": str(error)}
    return {"row": row, "start": start, "seconds": 0.0}


def _stages(plan: Plan) -> str:
    """Write stages as one cell: ``laptop 0:3, desktop (small) 3:6``."""
    return ", ".join(
        f"{stage.device}{f' ({stage.variant})' if stage.variant else ''} {stage.start}:{stage.stop}"
        for stage in plan.stages
    )


def head_of(grid: Grid, options: Options) -> dict[str, Any]:
    """Return what a sweep is, as plain data: two sweeps of equal heads have equal rows."""
    from edgeopt import __version__

    problem = grid.editor.problem
    content = json.dumps(problem.model_dump(mode="json", by_alias=True), sort_keys=True)
    return {
        "version": __version__,
        "problem": problem.name,
        "content": hashlib.sha256(content.encode()).hexdigest(),
        "axes": [{"field": axis.field, "values": list(axis.values)} for axis in grid.axes],
        "options": asdict(options),
    }


def rows(grid: Grid, records: dict[int, Record]) -> list[dict[str, Any]]:
    """Return a row per point, in the order of the grid: its values, then its figures, with the same keys in all."""
    further = dict.fromkeys(key for index in sorted(records) for key in records[index]["row"])
    keys = [*FIGURES, *(key for key in further if key not in FIGURES)]
    return [
        {"point": index, **grid.cells(index), **{key: records[index]["row"].get(key) for key in keys}}
        for index in sorted(records)
    ]
