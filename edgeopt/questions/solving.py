"""Solving many variations of an instance, of which most may be infeasible."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

from edgeopt_solvers import Result
from edgeopt_solvers.solve import Options

__all__ = ["solve_undiagnosed"]


def solve_undiagnosed(
    instance: Any, time_limit_s: float | None = None, warm_start: Any | None = None, cutoff: float = math.inf
) -> Result:
    """Solve by the family's own method alone: no reason is looked for where there is no plan, nothing is rechecked.

    Finding out which limit binds takes up to two seconds, far longer than most instances take to be refuted. The one
    plan that is kept in the end has to go through :func:`edgeopt_solvers.solve`. Plans that cost ``cutoff`` or more
    need not be found.
    """
    exact = import_module(f"edgeopt_solvers.{instance.family}.exact")
    found: Result = exact.solve(instance, Options(time_limit_s=time_limit_s, warm_start=warm_start, cutoff=cutoff))
    return found
