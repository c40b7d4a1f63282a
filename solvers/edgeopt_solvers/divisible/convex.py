"""Shares for given loads, in cvxpy (Clarabel): the reference for the joint division of the medium.

Where limits leave every device one load (least units equal to what the memory holds), only shares are left to decide:

    min τ    subject to    offset_d + z_d <= τ,    z_d b_d >= a_d (a second-order cone),    Σ_d b_d <= 1

with a_d the exchange seconds with the whole medium. Multipliers λ >= 0 of the first rows that add up to 1 give a bound
whatever they are (Cauchy and Schwarz):

    τ >= min over b of Σ_d λ_d (offset_d + a_d / b_d) = Σ_d λ_d offset_d + (Σ_d √(λ_d a_d))²

With loads to choose there is no such program. Seconds are (a0 + a1 h) / b: not convex in load and share together, even
for fractions of units; ``milp.py`` has the cone of the binary form, in cuts.
"""

from __future__ import annotations

import math
import time
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.bandwidth.validate import Array
from edgeopt_solvers.divisible.check import evaluate
from edgeopt_solvers.divisible.instance import Divisible, Solution
from edgeopt_solvers.divisible.table import Table
from edgeopt_solvers.errors import BackendError
from edgeopt_solvers.result import Reason, Result, Status, relative_gap
from edgeopt_solvers.solve import Options

__all__ = ["STATUS", "solve"]

#: Status of cvxpy → whether it holds shares; anything else is a failure of the backend or the end of the time.
STATUS = {"optimal": True, "optimal_inaccurate": True, "user_limit": False}

#: A cone solver's answer is called optimal up to this gap.
PROVEN = 1e-6


def solve(instance: Divisible, options: Options) -> Result:
    """Divide the medium among devices whose loads are given.

    Raises
    ------
    BackendError
        cvxpy is missing, or Clarabel failed.
    """
    started = time.perf_counter()
    table = Table(instance)
    loads = table.most
    nothing = Result(Status("infeasible", False), math.inf, math.inf, None, "cvxpy", 0.0)
    most_devices = instance.num_devices if instance.max_devices is None else instance.max_devices
    if loads.sum() != instance.num_units or len(loads) > most_devices:
        return nothing
    seconds, offset = table.seconds[table.rows, loads], table.offset[table.rows, loads]
    others = float(table.end[table.rows, loads].max())
    sends = np.flatnonzero(seconds > 0)
    if not math.isfinite(others):
        return nothing
    shares, bound_s = np.where(instance.shared[table.devices], 0.0, 1.0), others
    if len(sends):
        left = None if options.time_limit_s is None else options.time_limit_s - (time.perf_counter() - started)
        answer = _divide(offset[sends], seconds[sends], left)
        if answer is None:
            return Result(Status("time_limit", False), math.inf, -math.inf, None, "cvxpy", 0.0)
        shares[sends], level_s = answer
        bound_s = max(bound_s, level_s)
    given = np.zeros(instance.num_devices, dtype=np.int64)
    held = np.zeros(instance.num_devices)
    given[table.devices], held[table.devices] = loads, shares
    solution = Solution(tuple(given.tolist()), tuple(held.tolist()))
    evaluation = evaluate(instance, solution)
    if evaluation.violations:
        return nothing
    energy = evaluation.metrics["energy_j"]
    weights = instance.weights
    bound = weights.get("makespan", 0.0) * bound_s + weights.get("energy", 0.0) * energy
    bound = min(bound, evaluation.objective)
    reason: Reason = "optimal" if relative_gap(evaluation.objective, bound) <= PROVEN else "gap_reached"
    return Result(Status(reason, True), evaluation.objective, bound, solution, "cvxpy", 0.0)


def _divide(offset: Array, seconds: Array, time_limit_s: float | None) -> tuple[Array, float] | None:
    """Return shares that add up to 1 and a bound on the level; ``None``: out of time."""
    try:
        import cvxpy as cp
    except ImportError as error:  # pragma: no cover - cvxpy is a dependency
        raise BackendError(f"cvxpy cannot be imported ({error}); pip install edgeopt-solvers") from error
    # shares in units of an equal level without offsets, seconds in units of what that level is
    unit = float(seconds.sum())
    usual = np.maximum(seconds / unit, 1e-9)
    level, x, z = cp.Variable(), cp.Variable(len(seconds)), cp.Variable(len(seconds))
    root = np.sqrt(seconds / unit / usual)
    ends = (offset - offset.max()) / unit + z <= level
    constraints: list[Any] = [ends, usual @ x <= 1]
    constraints += [cp.SOC(z + x, cp.vstack([2 * root, z - x]), axis=0)]
    problem = cp.Problem(cp.Minimize(level), constraints)
    settings = {} if time_limit_s is None else {"time_limit": max(0.01, time_limit_s)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "may be inaccurate": the bound below says how good it is
            problem.solve(solver=cp.CLARABEL, max_threads=1, **settings)
    except cp.error.SolverError as error:
        raise BackendError(f"Clarabel failed under cvxpy ({error}); use backend='exact'") from error
    if problem.status not in STATUS:
        raise BackendError(f"Clarabel stopped with {problem.status!r} under cvxpy; use backend='exact'")
    if x.value is None or not STATUS[problem.status]:
        return None
    shares = usual * np.maximum(x.value, 1e-9)
    shares = shares / shares.sum()
    weight = np.maximum(ends.dual_value, 0.0)
    weight = weight / weight.sum() if weight.sum() > 0 else np.full(len(seconds), 1 / len(seconds))
    return shares, _bound(offset, seconds, weight)


def _bound(offset: Array, seconds: Array, weight: NDArray[np.float64]) -> float:
    return float(weight @ offset + np.sqrt(weight * seconds).sum() ** 2)
