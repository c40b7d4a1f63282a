r"""Shares without choices, in cvxpy (Clarabel): the reference for everything that is convex here.

Where every user has one option (one cut, at most one server, no refusal) only shares are left to decide,

.. math::

    \min \sum_u lin_u + \frac{a_u^2}{x_u} + \frac{b_u^2}{y_u} \quad \text{or} \quad \min \max_u (\ldots), \qquad
    \sum_{u \in cell} x_u \le 1, \quad \sum_u y_u \le 1, \quad
    lin_u + \frac{a_u^2}{x_u} + \frac{b_u^2}{y_u} \le \omega_u D_u,

a second-order cone program. The multipliers of the sums of shares are prices, and any prices give a bound
(``model.py``). With choices this would be a mixed-integer cone program, which no solver among the dependencies takes.
"""

from __future__ import annotations

import math
import time
import warnings
from typing import Any

import numpy as np

from edgeopt_solvers.errors import BackendError
from edgeopt_solvers.fleet.check import evaluate
from edgeopt_solvers.fleet.even import largest_cost
from edgeopt_solvers.fleet.instance import MEMORY_SLIP, Array, Fleet
from edgeopt_solvers.fleet.levels import refuted
from edgeopt_solvers.fleet.model import Columns, Model, build, columns, price
from edgeopt_solvers.fleet.shares import Allocation, solution
from edgeopt_solvers.result import Reason, Result, Status, relative_gap
from edgeopt_solvers.solve import Options

__all__ = ["STATUS", "solve"]

#: Status of cvxpy → whether there are shares; anything else is a failure of the backend or the end of the time.
STATUS = {"optimal": True, "optimal_inaccurate": True, "infeasible": False, "infeasible_inaccurate": False}
#: A cone solver's answer is called optimal up to this gap.
OPTIMAL = 1e-6


def solve(fleet: Fleet, options: Options) -> Result:
    """Divide cells and the server among users that have no choice."""
    import cvxpy as cp

    model = build(fleet)
    _, keys, least, _ = price(model, np.zeros(model.num_prices), math.inf)
    nothing = Result(Status("infeasible", False), math.inf, math.inf, None, "cvxpy", 0.0)
    if np.isinf(least).any():
        return nothing
    cols = columns(model, keys)
    if cols.held is not None and (cols.memory() > 1 + MEMORY_SLIP).any():
        return nothing
    unit = float(least.mean()) or 1.0
    share, cost, limits, sums = _program(cp, model, cols, unit)
    level = cp.Variable()
    if fleet.objective == "max":
        program = cp.Problem(cp.Minimize(level), [*limits, *(term <= level for term in cost)])
    else:
        program = cp.Problem(cp.Minimize(sum(cost)), limits)
    limit = {} if options.time_limit_s is None else {"time_limit": max(options.time_limit_s - 0.05, 1e-3)}
    started = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program.solve(solver="CLARABEL", tol_feas=1e-10, tol_gap_rel=1e-10, **limit)
    except cp.SolverError as error:
        raise BackendError(f"Clarabel failed: {error}") from error
    if program.status not in STATUS:
        if options.time_limit_s is not None and time.perf_counter() - started >= options.time_limit_s - 0.06:
            return Result(Status("time_limit", False), math.inf, -math.inf, None, "cvxpy", 0.0)
        raise BackendError(f"cvxpy returned {program.status!r}; use backend='exact'")
    if not STATUS[program.status]:
        return nothing
    spectrum, compute = (_filled(cols, which, variables) for which, variables in zip((0, 1), share, strict=True))
    prices = np.zeros(model.num_prices)
    for resource, constraint in sums.items():
        prices[resource] = math.sqrt(max(0.0, float(constraint.dual_value) * unit))
    plan = solution(fleet, model, cols, Allocation(0.0, prices, np.ones(len(spectrum)), spectrum, compute))
    value, bound = _value(cols, spectrum, compute), price(model, prices)[0]
    if fleet.objective == "max":
        value = largest_cost(fleet, plan)
        bound = max(float(least.max()), _level(fleet, prices, value))
    if violations := evaluate(fleet, plan).violations:
        raise BackendError(f"Clarabel converged to too few digits ({violations[0]}); use backend='exact'")
    gap = relative_gap(value, min(bound, value))
    reason: Reason = "optimal" if gap <= OPTIMAL else "gap_reached" if gap <= options.gap else "time_limit"
    return Result(Status(reason, True), value, min(bound, value), plan, "cvxpy", 0.0)


def _program(
    cp: Any, model: Model, cols: Columns, unit: float
) -> tuple[list[Any], list[Any], list[Any], dict[int, Any]]:
    """Return the variables (spectrum, compute), each user's cost, the limits, and the sums of shares by resource."""
    share = [cp.Variable(len(cols.user), nonneg=True) for _ in range(2)]
    cost, limits, sums = [], [], {}
    for i in range(len(cols.user)):
        terms = [
            use * use / unit * cp.inv_pos(variable[i])
            for use, variable in ((float(cols.a[i]), share[0]), (float(cols.b[i]), share[1]))
            if use > 0
        ]
        cost.append(float(cols.lin[i]) / unit + sum(terms))
        if cols.slack is not None and math.isfinite(cols.slack[i]) and terms:
            limits.append(unit / float(cols.slack[i]) * sum(terms) <= 1 - 1e-9)
    for resource in range(model.num_resources):
        for use, place, variable in ((cols.a, cols.cell, share[0]), (cols.b, cols.resource, share[1])):
            mine = np.flatnonzero((place == resource) & (use > 0))
            if len(mine):
                sums[resource] = cp.sum(variable[mine]) <= 1
                limits.append(sums[resource])
    return share, cost, limits, sums


def _filled(cols: Columns, which: int, variable: Any) -> Array:
    """Return shares that use all there is, moved into their limits by what the cone solver left open."""
    use, place = ((cols.a, cols.cell), (cols.b, cols.resource))[which]
    value = np.where(use > 0, np.maximum(np.zeros(len(use)) if variable.value is None else variable.value, 1e-300), 0.0)
    total = np.bincount(place, value, cols.num_resources + 1)
    return np.asarray(value / np.where(total > 0, total, 1.0)[place])


def _value(cols: Columns, spectrum: Array, compute: Array) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        seconds = np.where(cols.a > 0, cols.a**2 / spectrum, 0.0) + np.where(cols.b > 0, cols.b**2 / compute, 0.0)
    return float((cols.lin + seconds).sum())


def _level(fleet: Fleet, prices: Array, high: float) -> float:
    """Return the highest level that ``prices`` refute."""
    low = 0.0
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if refuted(fleet, prices, middle) else (low, middle)
    return low
