"""Reference formulation in cvxpy, solved by Clarabel.

    minimise    Σ_k w_k (c_k + T_k)              or  Σ_g τ_g  with  w_k (c_k + T_k) <= τ_g for k on g
    subject to  Σ_{k on g} b_k <= B_g,   low_k <= b_k <= high_k
                T_k = t_k / ρ_k(x_k),    ρ_k(x_k) >= t_k / (deadline_k − c_k)
                ρ_k(x) = x                                           fixed rate (second-order cone through 1/ρ)
                ρ_k(x) = −x ln(x / (x + γ'_k)) / ln(1 + γ'_k)         radio (relative entropy: exponential cone)

The largest end is the largest τ_g, and media share nothing: the sum of the levels (each in its own unit) has the same
best levels as their maximum, without leaving the media that do not decide it undetermined.

Shares are counted in units β_k near what is expected of them, b_k = β_k x_k with γ'_k = γ_k / β_k and t_k the transfer
time at x_k = 1: the cone solver then meets numbers near 1 whatever the units. A maximum depends on each share to first
order, so that small shares need their own unit: the problem is solved again in units of its own answer while the gap
is wide.

The bound is the Lagrangian at the cone solver's multipliers, evaluated in ``certificate.py``: it holds whatever they
are.
Shares are moved inside their limits by what the cone solver left open (about 1e-9).
"""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from edgeopt_solvers.bandwidth.certificate import lagrangian_bound
from edgeopt_solvers.bandwidth.fit import fit
from edgeopt_solvers.bandwidth.flows import Flows, arrange
from edgeopt_solvers.bandwidth.instance import Bandwidth, Solution
from edgeopt_solvers.bandwidth.limits import with_least_shares
from edgeopt_solvers.bandwidth.validate import Array
from edgeopt_solvers.errors import BackendError
from edgeopt_solvers.result import Reason, Result, Status, relative_gap
from edgeopt_solvers.solve import Options

__all__ = ["STATUS", "solve"]

#: Status of cvxpy → why we stopped; anything else is a failure of the backend.
STATUS: dict[str, Reason] = {
    "optimal": "optimal",
    "optimal_inaccurate": "gap_reached",
    "infeasible": "infeasible",
    "user_limit": "time_limit",
}

#: Asked of Clarabel for gap and residuals; it returns what it reached when it cannot get there.
TOLERANCE = 1e-11

#: Added to the diagonal of the matrices it factors. Its default, 1e-8, stops maxima of exponential cones at 1e-5, and
#: is needed only to prove some instances infeasible.
REGULARISATIONS = (1e-12, 1e-8)

#: The problem is solved again, in units of its own best answer, until the gap is this or the rounds are used up.
REFINED, MOST_ROUNDS = 1e-9, 4

#: Relative gap, by the Lagrangian at Clarabel's multipliers, up to which its answer is called optimal.
PROVEN = 1e-6


def solve(instance: Bandwidth, options: Options) -> Result:
    """Build the cone program, solve it, and move its answer inside the limits."""
    stop_at = math.inf if options.time_limit_s is None else time.perf_counter() + options.time_limit_s
    flows = arrange(instance)
    if _hopeless(flows):
        return _without("infeasible", math.inf)
    limited = with_least_shares(flows)
    best, bound, units = None, -math.inf, _first_units(instance.objective, flows)
    for _ in range(MOST_ROUNDS):
        left = stop_at - time.perf_counter()
        if left <= 0 or (best is not None and relative_gap(best[0], bound) <= REFINED):
            break
        answer = _solve_in(instance.objective, flows, units, left)
        if STATUS[answer.status] == "infeasible" and best is None:
            return _without("infeasible", math.inf)
        if answer.shares is None:
            break
        if limited is None:
            if answer.status == "optimal":
                raise BackendError("Clarabel converged where the limits leave no allocation; use backend='exact'")
            return _without("infeasible", math.inf)  # it stopped undecided; the least shares decide
        shares = fit(limited, np.clip(answer.shares, limited.low, limited.high))
        by_medium = lagrangian_bound(limited, answer.multipliers, answer.prices).tolist()
        bound = max(bound, math.fsum(by_medium) if instance.objective == "sum" else max(by_medium))
        objective = _objective(instance.objective, flows, shares)
        if best is None or objective < best[0]:
            best = objective, shares
        units = np.maximum(best[1], 1e-3 * units)
    if best is None:
        return _without("time_limit", -math.inf)
    objective, bound = best[0], min(bound, best[0])
    gap = relative_gap(objective, bound)
    reason: Reason = "time_limit"
    if gap <= PROVEN:
        reason = "optimal"
    elif gap <= options.gap or time.perf_counter() < stop_at:
        reason = "gap_reached"
    restored = np.empty(instance.num_flows)
    restored[flows.index] = best[1]
    message = f"Clarabel converged to a gap of {gap:.1e}" if reason == "gap_reached" else ""
    return Result(Status(reason, True), objective, bound, Solution(restored), "cvxpy", 0.0, {}, message)


def _without(reason: Reason, bound: float) -> Result:
    return Result(Status(reason, False), math.inf, bound, None, "cvxpy", 0.0)


def _hopeless(flows: Flows) -> bool:
    """Whether a limit fails that is no constraint of a cone program: no link, no time, no budget."""
    sends = flows.unit_s > 0
    counts = (flows.weight > 0) | np.isfinite(flows.deadline_s)
    no_time = np.where(sends, flows.fixed_s >= flows.deadline_s, flows.fixed_s > flows.deadline_s)
    no_share = (flows.low > flows.high) | (sends & counts & (flows.high == 0))
    return bool((no_time | no_share | (np.isinf(flows.unit_s) & counts)).any())


@dataclass(frozen=True, slots=True)
class _Answer:
    """Shares (n,), multipliers (n,) on seconds and prices (m,) on shares, as the cone solver left them."""

    status: str
    shares: Array | None
    multipliers: Array
    prices: Array


def _first_units(objective: str, flows: Flows) -> Array:
    """Return a guess of each share: half an equal split, half what a fixed rate would make it."""
    split = (flows.budget / flows.sums(np.ones(len(flows.group))))[flows.group]
    split = np.where(split > 0, split, 1.0)
    seconds = np.where(np.isfinite(flows.unit_s), flows.weight * flows.transfer_s(split), 0.0)
    wish = np.sqrt(seconds) if objective == "sum" else seconds
    total = flows.sums(wish)[flows.group]
    part = np.where(total > 0, wish / np.where(total > 0, total, 1.0), 0.0)
    return np.clip(0.5 * split + 0.5 * part * flows.budget[flows.group], flows.low, np.maximum(flows.high, 1e-300))


def _solve_in(objective: str, flows: Flows, units: Array, time_limit_s: float) -> _Answer:
    """Build and solve the problem with shares counted in ``units`` (n,)."""
    try:
        import cvxpy as cp
    except ImportError as error:  # pragma: no cover - cvxpy is a dependency
        raise BackendError(f"cvxpy cannot be imported ({error}); pip install edgeopt-solvers") from error

    n = flows.num_fixed
    x = cp.Variable(len(units))
    arrives = np.isfinite(flows.unit_s) & (flows.unit_s > 0)
    unit_s = np.where(arrives, flows.transfer_s(units), 0.0)  # t_k
    gamma = flows.snr / units

    def rates(chosen: NDArray[np.bool_]) -> list[tuple[NDArray[np.int64], Any]]:
        """Pairs of (indices, ρ(x) there) for the chosen flows: those at fixed rates, those on radio media."""
        fixed, radio = np.flatnonzero(chosen[:n]), n + np.flatnonzero(chosen[n:])
        pairs = [(fixed, x[fixed])] if len(fixed) else []
        if len(radio):
            entropy = -cp.rel_entr(x[radio], x[radio] + gamma[radio])
            pairs.append((radio, cp.multiply(1 / np.log1p(gamma[radio]), entropy)))
        return pairs

    full = np.where(flows.budget > 0, flows.budget, 1.0)
    row = (units / full[flows.group]).tolist()
    by_medium = scipy.sparse.csr_matrix((row, (flows.group, np.arange(len(units)))))
    budgets = by_medium @ x <= (flows.budget > 0).astype(np.float64)
    constraints = [x >= 0, budgets]
    floor, cap = flows.low > 0, flows.high < flows.budget[flows.group]
    if floor.any():
        constraints.append(x[floor] >= (flows.low / units)[floor])
    if cap.any():
        constraints.append(x[cap] <= (flows.high / units)[cap])
    for at, rate in rates(arrives & np.isfinite(flows.deadline_s)):
        constraints.append(rate >= unit_s[at] / (flows.deadline_s - flows.fixed_s)[at])

    counts = arrives & (flows.weight > 0)
    transfer = np.where(counts, flows.weight * unit_s, 0.0)
    fixed_part = flows.weight * flows.fixed_s
    ends: list[tuple[NDArray[np.int64], Any]] = []
    if objective == "sum":
        scale = float(transfer.sum()) or 1.0
        value = sum(cp.sum(cp.multiply(transfer[at] / scale, cp.inv_pos(rate))) for at, rate in rates(counts))
        problem = cp.Problem(cp.Minimize(value), constraints)
    else:
        # each level is counted from the largest fixed part on its medium, which no allocation changes
        base = flows.largest(fixed_part)
        scales = flows.largest(transfer - base[flows.group] + fixed_part)
        scales = np.where(scales > 0, scales, np.where(base > 0, base, 1.0))
        scale, level = 1.0, cp.Variable(len(base))
        for at, rate in rates(counts):
            g = flows.group[at]
            late = (fixed_part[at] - base[g]) / scales[g] + cp.multiply(transfer[at] / scales[g], cp.inv_pos(rate))
            ends.append((at, late <= level[g]))
        problem = cp.Problem(cp.Minimize(cp.sum(level)), [*constraints, level >= 0, *(row for _, row in ends)])
    status = _run(cp, problem, time_limit_s)
    if x.value is None:
        return _Answer(status, None, np.zeros(0), np.zeros(0))
    prices = np.maximum(np.atleast_1d(budgets.dual_value), 0.0) * scale / full
    multipliers = flows.weight.copy()
    if objective == "max":
        part = np.zeros(len(units))
        for at, constraint in ends:
            part[at] = np.maximum(constraint.dual_value, 0.0)
        # what "level >= 0" carries falls to a flow with the largest fixed part
        rank = np.arange(len(units))
        latest = flows.largest(np.where(fixed_part == base[flows.group], rank, -1))
        part[latest] += np.maximum(0.0, 1 - flows.sums(part))
        multipliers *= part / flows.sums(part)[flows.group]
        prices *= scales / flows.sums(part)
    return _Answer(status, x.value * units, multipliers, prices)


def _run(cp: Any, problem: Any, time_limit_s: float) -> str:
    """Solve and return cvxpy's status."""
    settings: dict[str, Any] = {
        "tol_gap_abs": TOLERANCE, "tol_gap_rel": TOLERANCE, "tol_feas": TOLERANCE, "max_threads": 1,
        "accept_unknown": True,  # "insufficient progress" still has an answer, and we have our own bound
    }  # fmt: skip
    if time_limit_s < math.inf:
        settings["time_limit"] = time_limit_s
    status = "not solved"
    for regularisation in REGULARISATIONS:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "may be inaccurate": the gap says it
                problem.solve(solver=cp.CLARABEL, static_regularization_constant=regularisation, **settings)
            status = str(problem.status)
        except cp.error.SolverError as error:
            status = str(error)
        if status in STATUS:
            break
    if status not in STATUS:
        raise BackendError(f"Clarabel stopped with {status!r}; use backend='exact'")
    return status


def _objective(objective: str, flows: Flows, shares: Array) -> float:
    """Return the value of ``shares``; only flows that count enter it."""
    counts = flows.weight > 0
    ends = flows.weight[counts] * (flows.fixed_s + flows.transfer_s(shares))[counts]
    return math.fsum(ends.tolist()) if objective == "sum" else float(ends.max(initial=0.0))
