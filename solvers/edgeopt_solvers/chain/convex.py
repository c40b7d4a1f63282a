"""Chain as a mixed-integer cone program in cvxpy: the segment flow with the shares of reserved media as variables.

Variables and rows (1) to (11) are those of ``milp.py``, variables as a vector v = (y, f, p, u, T, Z, P), y binary. For
every transfer t that may move over reserved medium g (input to d, hand-over i→j at a cut, loop, result from d), x_t is
the sum of the y, f or p that make it happen, and a_t > 0 its weighted seconds with the whole medium:

    (13) share     Σ_{t on g} b_t <= 1,   b_t >= 0                                             for all g
    (14) seconds   z_t r_t >= a_t x_t²                   (second-order cone)                    for all t
    (15) rate      r_t <= b_t                             fixed rates
                   r_t <= b_t ln(1 + γ_t x_t / b_t) / ln(1 + γ_t)   radio (exponential cone)    for all t
    (16) price     Z_g >= Σ_{t on g} z_t                                                       for all g

At x_t = 1 this is z_t = a_t / r_t, the seconds at share b_t; at x_t = 0 it costs nothing: the perspective of that
function, so that relaxing y to [0, 1] stays close.

None of the solvers that come with cvxpy takes integers and cones at once. The program is solved by outer approximation
(Duran & Grossmann 1986, doi:10.1007/BF02592064): Clarabel solves it with y relaxed, and with y fixed to each plan met
(in the bandwidth family, which then only divides the media); its shares give the plan's cost, its multiplier of (13) is
a price λ. At any price

    (12) tangent   Z_g >= Σ_{t on g} φ_t(λ) x_t − λ,     φ_t(λ) = min over 0 < b <= 1 of a_t / r(b) + λ b

holds for every plan and is tight for the one it comes from. The master, rows (1) to (12) through cvxpy's HiGHS, gives
the next plan and a proven bound, until plan and bound meet.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pulp
import scipy.sparse

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.chain.check import evaluate
from edgeopt_solvers.chain.instance import Chain, Solution
from edgeopt_solvers.chain.milp import Model, build
from edgeopt_solvers.chain.milp_media import add_price
from edgeopt_solvers.chain.pulp_run import HIGHS_TURN
from edgeopt_solvers.chain.segments import Segments
from edgeopt_solvers.chain.shares import with_shares
from edgeopt_solvers.errors import BackendError
from edgeopt_solvers.result import Reason, Result, Status, relative_gap
from edgeopt_solvers.solve import Options

__all__ = ["STATUS", "Relaxed", "relax", "solve"]

#: Status of cvxpy after HiGHS → why it stopped; anything else is a failure of the backend.
STATUS: dict[str, Reason] = {
    "optimal": "optimal",
    "infeasible": "infeasible",
    "infeasible_or_unbounded": "infeasible",  # every objective here is bounded below
    "user_limit": "time_limit",
}

#: Relative gap between plan and master at which the plan is called optimal: what HiGHS's tolerances leave.
PROVEN = 1e-6


@dataclass(frozen=True, slots=True)
class Relaxed:
    """The cone program with y relaxed: its value (not a proof), the multipliers of (13), shares, and status."""

    status: str
    value: float
    price: Array
    shares: dict[tuple[int, int, int], float]


@dataclass(frozen=True, slots=True)
class _Transfers:
    """What may move over a reserved medium: (cut, sender, receiver), cut -1 the loop; a_t, γ_t, and x_t = rows @ v."""

    key: list[tuple[int, int, int]]
    amount: Array
    snr: Array
    rows: Any


def solve(chain: Chain, options: Options) -> Result:
    """Solve by outer approximation.

    Raises
    ------
    BackendError
        cvxpy is missing, or a solver stopped for a reason that has no meaning here.
    """
    stop_at = math.inf if options.time_limit_s is None else time.perf_counter() + options.time_limit_s
    model = build(chain)
    statistics = {"columns": float(len(model.y) + len(model.f)), "rows": float(model.problem.numConstraints())}
    best = Result(Status("infeasible", False), math.inf, math.inf, None, "cvxpy", 0.0, statistics=statistics)
    if not any(k.start == 0 for k in model.y):
        return best
    media = list(range(len(model.z)))
    if isinstance(options.warm_start, Solution):
        best = _better(best, chain, with_shares(chain, options.warm_start))
    if model.z and time.perf_counter() < stop_at:
        relaxed = relax(model, time_limit_s=stop_at - time.perf_counter())
        if relaxed.price.size:
            add_price(model, relaxed.price, media)
    bound, tried = -math.inf, set[Solution]()
    while True:
        reason, proven, chosen = _master(model, options, stop_at)
        bound = max(bound, proven * model.objective_unit)
        if reason == "infeasible" or (best.solution is not None and bound >= best.objective):
            found = best.solution is not None  # nothing else is left
            return replace(best, status=Status("optimal" if found else "infeasible", found), bound=best.objective)
        if chosen is not None:
            plan = with_shares(chain, Segments.solution(chosen), cones=True)
            best = _better(best, chain, plan)
            if model.z:  # where the cone solver loses digits (ratios far from 1), its shares are not the plan's best
                best = _better(best, chain, with_shares(chain, plan))
            if best.solution is not None:
                rounding = PROVEN * max(abs(best.objective), model.objective_unit)
                if best.objective - bound <= rounding and reason != "time_limit":
                    return replace(best, status=Status("optimal", True), bound=min(bound, best.objective))
                if relative_gap(best.objective, bound) <= options.gap:
                    return replace(best, status=Status("gap_reached", True), bound=min(bound, best.objective))
            bare = replace(plan, shares=None)
            if model.z and bare not in tried:
                tried.add(bare)
                add_price(model, model.segments.reserved.price_of(plan), media)
            else:  # all is known about it: what is left are the others
                model.problem += pulp.LpAffineExpression({model.y[k]: 1.0 for k in chosen}) <= len(chosen) - 1
        if reason == "time_limit" or time.perf_counter() >= stop_at:
            return replace(
                best, status=Status("time_limit", best.solution is not None), bound=min(bound, best.objective)
            )


def _better(best: Result, chain: Chain, solution: Solution) -> Result:
    """The cheaper of a result and a plan, where the plan keeps all limits."""
    evaluation = evaluate(chain, solution)
    if evaluation.violations or not evaluation.objective < best.objective:
        return best
    return replace(best, status=Status("time_limit", True), objective=evaluation.objective, solution=solution)


# ── programs ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _import() -> Any:
    try:
        import cvxpy
    except ImportError as error:  # pragma: no cover - cvxpy is a dependency
        raise BackendError(f"cvxpy cannot be imported ({error}); pip install edgeopt-solvers") from error
    return cvxpy


def _matrix(rows: list[dict[Any, float]], column: dict[str, int]) -> Any:
    """Rows over named variables as a sparse matrix."""
    entries = [(i, column[variable.name], value) for i, row in enumerate(rows) for variable, value in row.items()]
    i, j, values = zip(*entries, strict=True) if entries else ((), (), ())
    return scipy.sparse.csr_matrix((values, (i, j)), shape=(len(rows), len(column)))


def _linear(cp: Any, model: Model, *, integer: bool) -> tuple[Any, Any, list[Any], dict[str, int]]:
    """Rows (1) to (12) over one vector: its variable, the objective, the constraints, and the column of each name."""
    variables = model.problem.variables()
    column = {variable.name: i for i, variable in enumerate(variables)}
    binary = [i for i, variable in enumerate(variables) if variable.cat != pulp.LpContinuous]
    at = [(i,) for i in binary] if integer else None
    v = cp.Variable(len(variables), boolean=[*zip(*at, strict=True)] if at else False)
    high = np.array([math.inf if variable.upBound is None else variable.upBound for variable in variables])
    constraints = [v >= 0]
    if np.isfinite(high).any():
        constraints.append(v[np.flatnonzero(np.isfinite(high))] <= high[np.isfinite(high)])
    by_sense: dict[int, list[Any]] = {}
    for row in model.problem.constraints():
        by_sense.setdefault(row.sense, []).append(row)
    for sense, rows in by_sense.items():
        left = _matrix([dict(row.items()) for row in rows], column) @ v
        right = -np.array([float(row.constant) for row in rows])
        constraints.append(left == right if sense == 0 else left <= right if sense < 0 else left >= right)
    cost = _matrix([dict(model.problem.objective.items())], column).toarray()[0]
    return v, cost @ v, constraints, column


def _master(model: Model, options: Options, stop_at: float) -> tuple[Reason, float, list[Any] | None]:
    """Rows (1) to (12) with y binary, by HiGHS: why it stopped, a proven bound, and the segments chosen, if any."""
    cp = _import()
    v, cost, constraints, column = _linear(cp, model, integer=True)
    problem = cp.Problem(cp.Minimize(cost), constraints)
    settings: dict[str, Any] = {"mip_rel_gap": options.gap, "mip_abs_gap": 0.0, "random_seed": options.seed % 2**31}
    free = HIGHS_TURN.acquire(timeout=-1 if math.isinf(stop_at) else max(0.0, stop_at - time.perf_counter()))
    if not free:
        return "time_limit", -math.inf, None
    try:
        if stop_at < math.inf:
            settings["time_limit"] = max(0.01, stop_at - time.perf_counter())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "may be inaccurate" after a time limit: the bound says it
            problem.solve(solver=cp.HIGHS, **settings)
    except cp.error.SolverError as error:
        raise BackendError(f"HiGHS failed under cvxpy ({error}); use backend='exact'") from error
    finally:
        HIGHS_TURN.release()
    if problem.status not in STATUS:
        raise BackendError(f"HiGHS stopped with {problem.status!r} under cvxpy; use backend='exact'")
    reason, info = STATUS[problem.status], problem.solver_stats.extra_stats
    if reason == "infeasible":
        return reason, math.inf, None
    bound = float(info.mip_dual_bound)
    if v.value is None or info.primal_solution_status != 2:
        return reason, bound, None
    return reason, bound, [k for k, variable in model.y.items() if v.value[column[variable.name]] > 0.5]


def relax(model: Model, *, time_limit_s: float = math.inf, fixed: Solution | None = None) -> Relaxed:
    """Solve rows (1) to (16) with y relaxed, or fixed to a plan, by Clarabel.

    Its value is as good as the cone solver's tolerances, so only prices are taken from it: at any price >= 0 row (12)
    holds.
    """
    cp = _import()
    v, cost, constraints, column = _linear(cp, model, integer=False)
    constraints.append(v[[column[variable.name] for variable in model.y.values()]] <= 1)
    if fixed is not None:
        chosen = set(model.segments.chosen(fixed) or [])
        at = [column[variable.name] for variable in model.y.values()]
        constraints.append(v[at] == np.array([float(k in chosen) for k in model.y]))
    budgets: list[Any] = []
    shares: list[tuple[list[tuple[int, int, int]], Any]] = []
    for g, price in enumerate(model.z):
        moves = _transfers(model, g, column)
        if not moves.key:
            budgets.append(None)
            continue
        x, b, z, r = moves.rows @ v, *(cp.Variable(len(moves.key)) for _ in range(3))
        half = cp.multiply(2 * np.sqrt(moves.amount / model.shared_unit), x)
        constraints += [b >= 0, r >= 0, cp.SOC(z + r, cp.vstack([half, z - r]), axis=0)]
        if model.segments.reserved.is_radio(g):
            entropy = -cp.rel_entr(b, b + cp.multiply(moves.snr, x))
            constraints.append(r <= cp.multiply(1 / np.log1p(moves.snr), entropy))
        else:
            constraints.append(r <= b)
        budgets.append(cp.sum(b) <= 1)
        constraints += [budgets[-1], v[column[price.name]] >= cp.sum(z)]
        shares.append((moves.key, b))
    problem = cp.Problem(cp.Minimize(cost), constraints)
    settings = {} if math.isinf(time_limit_s) else {"time_limit": max(0.01, time_limit_s)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "may be inaccurate": nothing here is taken as a proof
            problem.solve(solver=cp.CLARABEL, max_threads=1, **settings)
    except cp.error.SolverError as error:
        return Relaxed(str(error), math.nan, np.zeros(0), {})
    if v.value is None:
        return Relaxed(str(problem.status), math.nan, np.zeros(0), {})
    factor = model.segments.reserved.factor["objective"] / model.objective_unit if model.z else 1.0
    prices = [0.0 if row is None or factor == 0 else float(row.dual_value) / factor for row in budgets]
    value = {key: float(share) for keys, b in shares for key, share in zip(keys, b.value, strict=True)}
    known = bool(np.isfinite(prices).all())
    return Relaxed(
        str(problem.status), float(problem.value) * model.objective_unit,
        np.maximum(prices, 0.0) if known else np.zeros(0), value,
    )  # fmt: skip


def _transfers(model: Model, g: int, column: dict[str, int]) -> _Transfers:
    """List what may move over reserved medium ``g``."""
    chain, reserved = model.chain, model.segments.reserved
    root, rows = reserved.root(g), defaultdict[tuple[int, int, int], dict[Any, float]](dict)
    for k, variable in model.y.items():
        if chain.source is not None and k.start == 0:
            rows[0, chain.source, k.device][variable] = 1.0
        if chain.source is not None and k.stop == chain.num_elements:
            rows[chain.num_elements, k.device, chain.source][variable] = 1.0
    for h, variable in model.f.items():
        rows[h.cut, h.before[0], h.after[0]][variable] = 1.0
    for (last, first), variable in model.p.items():
        rows[-1, last, first][variable] = 1.0
    amounts = {key: float((root.loop if key[0] < 0 else root.cut[key[0]])[key[1:]]) ** 2 for key in rows}
    keys = [key for key in rows if amounts[key] > 0 and key[1] != key[2]]
    snr = np.array([chain.snr[key[1:]] for key in keys])
    return _Transfers(keys, np.array([amounts[key] for key in keys]), snr, _matrix([rows[key] for key in keys], column))
