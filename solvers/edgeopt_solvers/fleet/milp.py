r"""The fleet as a mixed-integer program with tangents (PuLP, HiGHS): the general-purpose reference.

Binary :math:`x_{up}` picks one option p of user u, with constant cost ``lin`` and uses ``s`` of its cell and server
(square roots of weighted demand over capacity, so that shares are eliminated):

.. math::

    \min \sum_{up} lin_{up} x_{up} + \theta, \qquad \sum_p x_{up} = 1, \qquad
    S_r = \sum_{up} s_{upr} x_{up}, \qquad \theta \ge \sum_r z_r, \qquad z_r \ge 2 \mu S_r - \mu^2
    \quad \forall \mu \ge 0.

The last family are the tangents of :math:`z_r \ge S_r^2`; they are added where the incumbent lies until they touch it.
With deadlines the value of fixed choices is the dual over share prices, which is linear in x for fixed prices:

.. math::

    \theta \ge \sum_{up} (charge_{up}(\mu) - lin_{up}) x_{up} - \sum_r \mu_r^2, \qquad
    \sum_{up} \frac{h_{up}(\mu)^2}{slack_{up}} x_{up} \le \sum_r \mu_r^2,

the second for choices that no shares can save (``h`` and ``charge`` as in ``model.py``). What is held of a server's
memory adds up to at most 1. Costs are scaled by the mean cost of a user, because HiGHS works with absolute tolerances.

For the objective ``admitted`` only refusals cost, :math:`\theta = 0`, and the second family of cuts does the rest. For
``max`` the question is put again and again whether nobody need be refused just below the level of the best plan.

Status: PuLP's ``sol_status`` 1 is proven, 2 feasible; -1 infeasible; anything else has no plan. ``status`` alone says
"Optimal" after a time limit and is not used.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np

from edgeopt_solvers.errors import BackendError
from edgeopt_solvers.fleet.admission import as_sum, refusals
from edgeopt_solvers.fleet.even import evened, largest_cost
from edgeopt_solvers.fleet.instance import MEMORY_SLIP, REFUSED, Array, Fleet, Ints
from edgeopt_solvers.fleet.levels import at_level
from edgeopt_solvers.fleet.model import Columns, Model, build, charge, columns, price
from edgeopt_solvers.fleet.shares import allocate, solution
from edgeopt_solvers.result import Reason, Result, Status, relative_gap
from edgeopt_solvers.solve import Options

__all__ = ["Program", "solve"]

#: A relative gap of at most this counts as proven optimal.
OPTIMAL = 1e-6
#: Rounds on the linear relaxation, which place most tangents cheaply.
_RELAXED_ROUNDS = 12


def solve(fleet: Fleet, options: Options) -> Result:
    """Solve by tangents: relaxed rounds first, then integer rounds until the tangents touch the incumbent."""
    stop_at = math.inf if options.time_limit_s is None else time.perf_counter() + options.time_limit_s - 0.02
    return _levels(fleet, options, stop_at) if fleet.objective == "max" else _tangents(fleet, options, stop_at)


def _levels(fleet: Fleet, options: Options, stop_at: float) -> Result:
    """Ask for plans below the level of the best one until there are none."""
    found = _tangents(replace(fleet, objective="sum"), replace(options, gap=0.05), stop_at)
    if found.solution is None:
        return found
    plan = evened(fleet, found.solution)
    high, low = largest_cost(fleet, plan), max(0.0, found.bound / fleet.num_users)
    goal = max(options.gap, 0.5 * OPTIMAL)
    rounds = found.statistics["rounds"]
    while relative_gap(high, low) > goal and time.perf_counter() < stop_at:
        level = high * (1 - 0.9 * goal)
        probe = _tangents(at_level(fleet, level), replace(options, gap=0.0), stop_at)
        rounds += probe.statistics.get("rounds", 0.0)
        if probe.bound > 0.5:
            low = level
        elif probe.solution is not None and probe.objective == 0:
            better = evened(fleet, probe.solution)
            if not largest_cost(fleet, better) < high:
                break
            plan, high = better, largest_cost(fleet, better)
        else:
            break
    gap = relative_gap(high, low)
    reason: Reason = "optimal" if gap <= OPTIMAL else "gap_reached" if gap <= options.gap else "time_limit"
    return Result(Status(reason, True), high, min(low, high), plan, "pulp", 0.0, statistics={"rounds": rounds})


def _tangents(fleet: Fleet, options: Options, stop_at: float) -> Result:
    """Minimise the sum of costs, or of refusal costs."""
    counting = fleet.objective == "admitted"
    model = build(as_sum(fleet)[0] if counting else fleet)
    _, keys, least, _ = price(model, np.zeros(model.num_prices), math.inf, 10**9)
    if np.isinf(least).any():
        return Result(Status("infeasible", False), math.inf, math.inf, None, "pulp", 0.0)
    program = Program(model, columns(model, np.unique(keys)), counting)
    for _ in range(_RELAXED_ROUNDS):
        weight = program.run(stop_at, 0.0, relax=True)
        if weight is None or not program.cut_relaxed(weight):
            break
    target = max(options.gap, 0.5 * OPTIMAL)
    best, bound, plan, reason, rounds = math.inf, -math.inf, None, "time_limit", 0
    while time.perf_counter() < stop_at:
        weight = program.run(stop_at, 0.5 * target)
        rounds += 1
        if program.infeasible:
            reason = "infeasible" if plan is None else "optimal"
            bound = bound if plan is None else best
            break
        bound = max(bound, program.bound)
        if weight is None:
            break
        picked = program.pick(weight)
        if program.cut_overfull(picked):
            continue
        chosen = program.cols.take(picked)
        allocation = allocate(model, chosen)
        if math.isfinite(allocation.value):
            candidate = solution(fleet, model, chosen, allocation)
            value = refusals(fleet, candidate) if counting else allocation.value
            if value < best:
                best, plan = value, candidate
        if math.isfinite(best) and best - bound <= target * abs(best):
            reason = "optimal" if best - bound <= OPTIMAL * abs(best) else "gap_reached"
            break
        program.cut(picked, allocation.prices, math.isfinite(allocation.value))
    if reason == "infeasible":
        return Result(Status("infeasible", False), math.inf, math.inf, None, "pulp", 0.0)
    why: Reason = "optimal" if reason == "optimal" else "gap_reached" if reason == "gap_reached" else "time_limit"
    statistics = {"rounds": float(rounds), "columns": float(len(program.cols.user)), "cuts": float(program.num_cuts)}
    return Result(Status(why, plan is not None), best, min(bound, best), plan, "pulp", 0.0, statistics=statistics)


class Program:
    """The PuLP model, its cuts, and one run of it; ``counting``: only refusals cost."""

    def __init__(self, model: Model, cols: Columns, counting: bool = False) -> None:
        import pulp

        self.pulp, self.model, self.cols, self.counting = pulp, model, cols, counting
        usable = np.ones(len(cols.user), dtype=bool) if cols.slack is None else cols.slack > 0
        cost = cols.lin
        if counting:
            cost = np.where((cols.key < 0) & (model.solo_cut[cols.user] == REFUSED), cols.lin, 0.0)
        cheapest = np.minimum.reduceat(np.where(usable, cost, math.inf), cols.first)
        self.scale = 1.0 if counting else float(np.abs(cheapest).mean()) or 1.0
        self.root = math.sqrt(self.scale)
        self.bound, self.infeasible, self.num_cuts = -math.inf, False, 0
        self.program = pulp.LpProblem("fleet", pulp.LpMinimize)
        self.x = [pulp.LpVariable(f"x_{i}", 0, 1 if usable[i] else 0, "Binary") for i in range(len(cols.user))]
        size = model.num_resources
        self.load = [pulp.LpVariable(f"load_{r}", 0) for r in range(size)]
        self.paid = [pulp.LpVariable(f"paid_{r}", 0) for r in range(size)]
        self.shared = pulp.LpVariable("shared", 0)
        self.program += pulp.lpSum([cost[i] / self.scale * x for i, x in enumerate(self.x)] + [self.shared])
        self.program += self.shared >= pulp.lpSum(self.paid), "shared"
        ends = np.append(cols.first[1:], len(cols.user))
        for user, (low, high) in enumerate(zip(cols.first.tolist(), ends.tolist(), strict=True)):
            self.program += pulp.lpSum(self.x[low:high]) == 1, f"one_{user}"
        parts: list[list[Any]] = [[] for _ in range(size)]
        for i in np.flatnonzero(cols.key >= 0).tolist():
            if cols.a[i] > 0:
                parts[cols.cell[i]].append(cols.a[i] / self.root * self.x[i])
            if cols.b[i] > 0:
                parts[cols.resource[i]].append(cols.b[i] / self.root * self.x[i])
        for r in range(size):
            self.program += self.load[r] == pulp.lpSum(parts[r]), f"load_{r}"
        if cols.held is not None:
            for e in range(model.num_servers):
                on = np.flatnonzero((cols.resource == model.num_cells + e) & (cols.held > 0)).tolist()
                if on:
                    held = pulp.lpSum([cols.held[i] * self.x[i] for i in on])
                    self.program += held <= 1, f"memory_{e}"

    def run(self, stop_at: float, gap: float, relax: bool = False) -> Array | None:
        """Solve the program as it stands; return the values of x, or ``None`` without a solution."""
        left = stop_at - time.perf_counter()
        if left <= 0:
            return None
        solver = self.pulp.HiGHS(
            mip=not relax, msg=False, gapRel=gap, gapAbs=0.0, timeLimit=None if math.isinf(left) else left
        )
        if not solver.available():
            raise BackendError("PuLP finds no HiGHS: pip install highspy")
        self.program.solve(solver)
        if self.program.status == self.pulp.LpStatusInfeasible:
            self.infeasible = not relax
            return None
        info = self.program.solverModel.getInfo()
        if not relax and math.isfinite(info.mip_dual_bound):
            self.bound = info.mip_dual_bound * self.scale
        if self.program.sol_status not in (self.pulp.LpSolutionOptimal, self.pulp.LpSolutionIntegerFeasible):
            return None
        return np.array([x.value() or 0.0 for x in self.x])

    def pick(self, weight: Array) -> Ints:
        """Return the column of largest weight of every user."""
        peak = np.maximum.reduceat(weight, self.cols.first)
        top = np.flatnonzero(weight >= peak[self.cols.user])
        chosen = np.zeros(len(self.cols.first), dtype=np.int64)
        chosen[self.cols.user[top]] = top
        return chosen

    def cut_overfull(self, picked: Ints) -> bool:
        """Exclude what fits only within the tolerance of the solver; return whether there was any."""
        if self.cols.held is None:
            return False
        over = np.flatnonzero(self.cols.memory(picked) > 1 + MEMORY_SLIP)
        for resource in over.tolist():
            there = [int(i) for i in picked if self.cols.resource[i] == resource and self.cols.held[i] > 0]
            self.program += self.pulp.lpSum([self.x[i] for i in there]) <= len(there) - 1, f"full_{self.num_cuts}"
            self.num_cuts += 1
        return len(over) > 0

    def cut_relaxed(self, weight: Array) -> bool:
        """Add tangents at the loads of a fractional plan; return whether any was missing by more than 0.1%."""
        added = False
        if self.counting:
            return False
        for r, (load, paid) in enumerate(zip(self.load, self.paid, strict=True)):
            at = load.value() or 0.0
            if at > 0 and at * at - (paid.value() or 0.0) > 1e-3 * at * at:
                self._tangent(r, at)
                added = True
        return added

    def cut(self, picked: Ints, prices: Array, feasible: bool) -> None:
        """Cut off the value that the program gave to the picked columns."""
        cols, pulp = self.cols, self.pulp
        chosen = cols.take(picked)
        size = self.model.num_resources + 1
        loads = np.bincount(chosen.cell, chosen.a, size) + np.bincount(chosen.resource, chosen.b, size)
        for r in range(size - 1):
            if loads[r] > 0 and not self.counting:
                self._tangent(r, loads[r] / self.root)
        if cols.slack is None:
            return
        extended = np.append(prices, 0.0)
        use = cols.a * extended[cols.cell] + cols.b * extended[cols.resource]
        usable = np.flatnonzero((cols.slack > 0) & (use > 0))
        total = float((prices**2).sum())
        if feasible and not self.counting:
            more = (charge(cols.lin, use, cols.slack) - cols.lin)[usable] / self.scale
            terms = [c * self.x[i] for i, c in zip(usable.tolist(), more.tolist(), strict=True)]
            self.program += self.shared >= pulp.lpSum(terms) - total / self.scale, f"deadline_{self.num_cuts}"
        else:
            worth = use[usable] * (use[usable] / cols.slack[usable])
            needed = float((use * (use / np.where(cols.slack > 0, cols.slack, math.inf)))[picked].sum())
            if needed > total * (1 + 1e-6):
                terms = [c / total * self.x[i] for i, c in zip(usable.tolist(), worth.tolist(), strict=True)]
                self.program += pulp.lpSum(terms) <= 1, f"room_{self.num_cuts}"
            else:
                # Too close to call by prices: exclude just these choices.
                self.program += (
                    pulp.lpSum([self.x[i] for i in picked.tolist()]) <= len(picked) - 1,
                    f"not_{self.num_cuts}",
                )
        self.num_cuts += 1

    def _tangent(self, r: int, at: float) -> None:
        self.program += self.paid[r] >= 2 * at * self.load[r] - at * at, f"tangent_{self.num_cuts}"
        self.num_cuts += 1
