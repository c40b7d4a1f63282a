"""The points of a sweep on a Ray cluster: lines side by side, the points of a line one after the other."""

from __future__ import annotations

import contextlib
import importlib.util
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from edgeopt.errors import MissingDependencyError
from edgeopt.executor.launchers.ray import cluster
from edgeopt.executor.layout import usable_cores
from edgeopt.questions.grid import Grid
from edgeopt.questions.sweep import Options, Record, Task, solve_point

__all__ = ["on_ray"]

#: Lines under way for each processor of the cluster: enough that none waits for this process.
_LINES_PER_CPU = 2


@contextlib.contextmanager
def on_ray(grid: Grid, tasks: Sequence[Task], options: Options) -> Iterator[Iterable[tuple[int, Record]]]:
    """Solve points on the cluster that ``RAY_ADDRESS`` names or the caller is connected to, or a new one here.

    Raises
    ------
    MissingDependencyError
        Ray is not installed.
    ExecutionError
        There is no cluster at ``RAY_ADDRESS``.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingDependencyError("ray", "ray", "--on ray")
    if not tasks:
        yield ()
        return
    with cluster(usable_cores()) as ray:
        yield _solve_lines(ray, grid, tasks, options)


def _solve_lines(ray: Any, grid: Grid, tasks: Sequence[Task], options: Options) -> Iterator[tuple[int, Record]]:
    """Yield records as they come, those of a line in its order: what a journal holds of a line is its beginning."""
    remote = ray.remote(_solve_next).options(num_cpus=1, max_retries=3)
    most = max(1, int(_LINES_PER_CPU * ray.cluster_resources().get("CPU", 1)))
    waiting = deque(tasks)
    lines: dict[Any, tuple[int, deque[tuple[int, Any]]]] = {}  # next record of a line → its point, and what follows
    while waiting or lines:
        while waiting and len(lines) < most:
            task, before = waiting.popleft(), None
            results: deque[tuple[int, Any]] = deque()
            for k, index in enumerate(task.indices):
                before = remote.remote(grid.problem(index), options, {"start": task.start} if k == 0 else before)
                results.append((index, before))
            index, first = results.popleft()
            lines[first] = (index, results)
        ready, _ = ray.wait(list(lines), num_returns=1)
        for reference in ready:
            index, rest = lines.pop(reference)
            if rest:
                following, record = rest.popleft()
                lines[record] = (following, rest)
            yield index, ray.get(reference)


def _solve_next(problem: Any, options: Options, before: Record) -> Record:
    """Solve a point, on a worker, from the record of the one before it."""
    return solve_point(problem, options, before["start"])
