"""Routing in cvxpy, solved by Clarabel: the reference for models that are all loaded.

    minimise    Σ cost_cmv x_cmv + Σ_s (1 / (1 − ρ_s) − 1)          second-order cone, through the inverse
    subject to  Σ_mv x_cmv = 1,   x >= 0
                ρ_s = Σ weight_cmv x_cmv <= max_load
                Σ_c part_c Σ accuracy_cm x_cmv >= floor            or one such row per class

x_cmv is the part of class c that model m on device v answers, cost its arrivals times the network delay, weight
its arrivals over the service rate; the objective is the mean number in the system, arrivals times the mean response.
The bound is what the prices of the queues and rows prove (``routing_exact.py``), whatever Clarabel's tolerance.
"""

from __future__ import annotations

import math
import time
import warnings
from typing import Any

import numpy as np

from edgeopt_solvers.errors import BackendError
from edgeopt_solvers.placement.interior import Point
from edgeopt_solvers.placement.routing import Routing
from edgeopt_solvers.placement.routing_flows import Flows
from edgeopt_solvers.result import Reason, Result, Status, relative_gap
from edgeopt_solvers.solve import Options

__all__ = ["STATUS", "solve"]

#: Status of cvxpy → why we stopped; anything else is a failure of the backend.
STATUS: dict[str, Reason] = {
    "optimal": "optimal",
    "optimal_inaccurate": "gap_reached",
    "infeasible": "infeasible",
    "infeasible_inaccurate": "infeasible",
    "user_limit": "time_limit",
}

#: Relative gap, by the prices, up to which its answer is called optimal.
PROVEN = 1e-6

TOLERANCE = 1e-10


def solve(instance: Routing, options: Options) -> Result:
    """Build the cone program, solve it, and certify its answer by its own prices.

    Raises
    ------
    BackendError
        Clarabel failed.
    """
    try:
        import cvxpy as cp
        import scipy.sparse as sp
    except ImportError as error:  # pragma: no cover - cvxpy is a dependency
        raise BackendError(f"cvxpy cannot be imported ({error}); pip install edgeopt-solvers") from error

    stop_at = math.inf if options.time_limit_s is None else time.perf_counter() + options.time_limit_s
    flows = Flows(instance, instance.service_per_s > 0)
    nothing = Result(Status("infeasible", False), math.inf, math.inf, None, "cvxpy", 0.0)
    if flows.hopeless or not flows.allowed.any(axis=(1, 2)).all():
        return nothing
    columns = np.flatnonzero(flows.allowed)
    c, m, v = np.unravel_index(columns, flows.allowed.shape)
    n, at = len(columns), np.arange(len(columns))
    x = cp.Variable(n)
    of_class = sp.csr_matrix((np.ones(n), (c, at)))
    used, queue = np.unique(flows.queue[c, m, v], return_inverse=True)
    load = sp.csr_matrix((flows.weight[c, m, v], (queue, at))) @ x
    whole = of_class @ x == 1
    below = load <= instance.max_load
    constraints = [whole, x >= 0, below]
    floors = np.isfinite(flows.class_floor)
    if flows.mean_floor is not None:
        constraints.append((flows.part[c] * flows.accuracy[c, m]) @ x >= flows.mean_floor)
    if floors.any():
        right = sp.csr_matrix((flows.accuracy[c, m], (c, at)))[floors]
        constraints.append(right @ x >= flows.class_floor[floors])
    cost = flows.cost[c, m, v]
    scale = max(1.0, float(np.bincount(c, cost).sum()) * 1e-2)
    value = (cost / scale) @ x + cp.sum(cp.inv_pos(1 - load) - 1) / scale
    problem = cp.Problem(cp.Minimize(value), constraints)
    status = _run(cp, problem, stop_at)
    if STATUS[status] == "infeasible":
        return nothing
    if x.value is None:
        return Result(Status("time_limit", False), math.inf, 0.0, None, "cvxpy", 0.0)
    part = np.zeros(flows.allowed.size)
    part[columns] = np.maximum(x.value, 0.0)
    rho = np.bincount(queue, flows.weight[c, m, v] * part[columns], minlength=len(used))
    price = np.ones(flows.num_queues)
    slope = 1 / np.maximum(1 - rho, 1e-12) ** 2
    price[used] = (
        slope + np.maximum(np.atleast_1d(below.dual_value), 0.0) * scale if below.dual_value is not None else slope
    )
    rows = [np.zeros(len(flows.classes))]
    for row in constraints[3:]:
        rows.append(np.maximum(np.atleast_1d(row.dual_value), 0.0) * scale)
    bound = flows.bound(Point(part[columns], np.concatenate(rows), price, True, 0.0))
    solution, number = flows.plan(part.reshape(flows.allowed.shape))
    if solution is None:
        return Result(Status("time_limit", False), math.inf, bound / flows.total, None, "cvxpy", 0.0)
    objective, bound = number / flows.total, min(bound, number) / flows.total
    gap = relative_gap(objective, bound)
    reason: Reason = "optimal" if gap <= PROVEN else "gap_reached" if time.perf_counter() < stop_at else "time_limit"
    message = f"Clarabel converged to a gap of {gap:.1e}" if reason == "gap_reached" else ""
    return Result(Status(reason, True), objective, bound, solution, "cvxpy", 0.0, message=message)


def _run(cp: Any, problem: Any, stop_at: float) -> str:
    """Solve and return cvxpy's status."""
    settings: dict[str, Any] = {
        "tol_gap_abs": TOLERANCE, "tol_gap_rel": TOLERANCE, "tol_feas": TOLERANCE, "max_threads": 1,
        "accept_unknown": True,  # "insufficient progress" still has an answer, and we have our own bound
    }  # fmt: skip
    left = stop_at - time.perf_counter()
    if left < math.inf:
        settings["time_limit"] = max(0.01, left)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "may be inaccurate": the gap says it
            problem.solve(solver=cp.CLARABEL, **settings)
        status = str(problem.status)
    except cp.error.SolverError as error:
        status = str(error)
    if status not in STATUS:
        raise BackendError(f"Clarabel stopped with {status!r}; use backend='exact'")
    return status
