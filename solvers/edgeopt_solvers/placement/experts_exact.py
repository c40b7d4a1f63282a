"""Experts: prices bound the makespan, moves find a placement near the bound, branch and bound closes small gaps.

1. The relaxation in which a copy may be held in parts gives the bound (``expert_bounds.py``) and, rounded, a placement.
2. Moves improve it, all layers side by side (``expert_search.py``), until it is as good as asked or no move helps.
   Where experts exchange tokens between layers, ``exchange_exact.py`` takes over from here.
3. Instances with few decisions go to HiGHS (``experts_highs.py``), and what that leaves open is searched through
   (``tree.py``): does device d hold expert e of layer g, and, where its latencies may exceed the makespan, does it
   serve in that layer?
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.placement.check import evaluate
from edgeopt_solvers.placement.exchange_exact import offered, solve_exchange
from edgeopt_solvers.placement.expert_bounds import Node, relax, root
from edgeopt_solvers.placement.expert_search import Search, first_homes
from edgeopt_solvers.placement.experts import Experts, ExpertsSolution
from edgeopt_solvers.placement.experts_highs import closed_by_highs
from edgeopt_solvers.placement.levels import fluid_levels, table_of
from edgeopt_solvers.placement.tree import Bits, branch
from edgeopt_solvers.result import Reason, Result, Status, relative_gap
from edgeopt_solvers.solve import Options

__all__ = ["Incumbent", "solve_experts"]

#: Relative gap up to which a result is called optimal: the rounding of sums.
PROVEN = 1e-9

#: More (layer, expert, device) triples than this are not searched through: each node would take longer than it gains.
MOST_TRIPLES = 4_000


#: From so many triples on, up to ``MOST_TRIPLES``, the best placement is disturbed and improved anew so many times;
#: of every expert with replicas all but one are dropped with this probability.
FEWEST_KICKED, MOST_KICKS, DROPPED = 60, 400, 0.3

#: Part of the spare memory that first homes leave free.
KEPT_FREE = 0.5


class Incumbent:
    """The best placement so far."""

    def __init__(self, instance: Experts) -> None:
        self.instance = instance
        self.objective, self.solution = math.inf, None

    objective: float
    solution: ExpertsSolution | None

    def offer(self, solution: ExpertsSolution) -> bool:
        """Keep a placement if it is allowed and better; return whether it is allowed."""
        evaluation = evaluate(self.instance, solution)
        if evaluation.violations:
            return False
        if evaluation.objective < self.objective:
            self.objective, self.solution = evaluation.objective, solution
        return True


def solve_experts(instance: Experts, options: Options) -> Result:
    """Place the experts; with a time limit the best placement found is returned with its bound."""
    limit = options.time_limit_s
    stop_at = math.inf if limit is None else time.perf_counter() + limit
    # rounding, splitting and checking the last placement take time too
    soft = stop_at if limit is None else stop_at - min(0.2 * limit, 0.05 + 1e-6 * instance.load.size)
    table = table_of(instance)
    lo = fluid_levels(instance, table)
    if not np.isfinite(lo).all() or not np.isfinite(table.unit_s).any(axis=1).all():
        return Result(Status("infeasible", False), math.inf, math.inf, None, "exact", 0.0)
    best = Incumbent(instance)
    if instance.exchanges:
        if isinstance(options.warm_start, ExpertsSolution):
            offered(instance, options.warm_start, best)
        bound, finished, counted = solve_exchange(instance, best, lo, options.gap, soft)
        return _result(best, bound, finished, options, stop_at, counted)
    relaxation = relax(root(instance, table, lo), soft - time.perf_counter())
    if relaxation.bound == math.inf:
        return Result(Status("infeasible", False), math.inf, math.inf, None, "exact", 0.0)
    bound = relaxation.bound
    num_moves = 0
    wish = np.zeros((*instance.load.shape, instance.num_devices)) if relaxation.value is None else relaxation.value
    start = options.warm_start
    if isinstance(start, ExpertsSolution) and start.replicas.shape == wish.shape:
        best.offer(start)
        num_moves += _improve(instance, Search(instance, table, relaxation.level_s, soft), start.replicas, best)
    if relative_gap(best.objective, bound) > max(options.gap, PROVEN):
        search = Search(instance, table, relaxation.level_s, soft)
        search.enough = bound * (1 + max(options.gap, PROVEN) / 2)
        homes = first_homes(search, _wish(instance, root(instance, table, lo), wish, soft))
        if homes is not None:
            num_moves += _improve(instance, search, homes, best)
    kicked_until = soft if limit is None else soft - 0.8 * max(0.0, soft - time.perf_counter())
    if FEWEST_KICKED <= wish.size <= MOST_TRIPLES:
        num_moves += _kick(instance, best, bound, relaxation.level_s, options, kicked_until)
    num_nodes, finished = 0, False
    if wish.size <= MOST_TRIPLES:
        bound = closed_by_highs(instance, best, bound, max(options.gap, PROVEN), soft)
        finished = bound == math.inf
    if not finished and relative_gap(best.objective, bound) > max(options.gap, PROVEN) and wish.size <= MOST_TRIPLES:
        bound, finished, num_nodes = _search_through(instance, lo, best, bound, options.gap, soft)
    statistics = {"num_moves": float(num_moves), "num_nodes": float(num_nodes)}
    return _result(best, bound, finished, options, stop_at, statistics)


def _wish(instance: Experts, node: Node, wish: Array, stop_at: float) -> Array:
    """Return a relaxed placement that leaves most of the spare memory of every device to replicas.

    The first optimum fills fast devices with whatever fits; there would be no room to level their layers by replicas.
    """
    spare = float(node.room.sum()) - math.fsum(instance.expert_bytes.ravel().tolist())
    left = stop_at - time.perf_counter()
    if wish.size <= MOST_TRIPLES or not 0 < spare < math.inf or left < 0.5:
        return wish
    room = node.room - KEPT_FREE * spare * node.room / node.room.sum()
    answer = relax(replace(node, room=room), 0.6 * left)
    return wish if answer.value is None else answer.value


def _result(
    best: Incumbent, bound: float, finished: bool, options: Options, stop_at: float, statistics: dict[str, float]
) -> Result:
    if best.solution is None:
        reason: Reason = "infeasible" if finished else "time_limit"
        message = "" if finished else "no placement within the memory was found, nor proven impossible"
        return Result(
            Status(reason, False), math.inf, math.inf if finished else bound, None, "exact", 0.0,
            message=message, statistics=statistics,
        )  # fmt: skip
    bound = min(bound, best.objective)
    gap = relative_gap(best.objective, bound)
    reason = "optimal" if gap <= PROVEN else "time_limit" if time.perf_counter() > stop_at - 0.06 else "gap_reached"
    message = ""
    if reason == "gap_reached" and gap > options.gap:
        message = "no move improves this placement; with so many decisions it was not searched through"
    return Result(
        Status(reason, True), best.objective, bound, best.solution, "exact", 0.0, message=message,
        statistics=statistics,
    )  # fmt: skip


def _improve(instance: Experts, search: Search, held: Bits, best: Incumbent) -> int:
    """Make moves from ``held`` on, and keep what they lead to."""
    if not np.asarray(held).any(axis=2).all() or not search.begin(np.asarray(held)):
        return 0
    search.improve()
    best.offer(search.solution())
    return search.num_moves


def _kick(
    instance: Experts, best: Incumbent, bound: float, level_s: Array, options: Options, stop_at: float
) -> int:  # fmt: skip
    """Disturb the best placement and improve it anew, many times; return the number of moves."""
    rng, table, num_moves = np.random.default_rng(options.seed), table_of(instance), 0
    goal = max(options.gap, PROVEN)
    for _ in range(MOST_KICKS):
        if best.solution is None or relative_gap(best.objective, bound) <= goal or time.perf_counter() > stop_at:
            break
        search = Search(instance, table, level_s, stop_at)
        num_moves += _improve(instance, search, _disturbed(rng, search, best.solution), best)
    return num_moves


def _disturbed(rng: np.random.Generator, search: Search, solution: ExpertsSolution) -> Bits:
    """Drop some replicas everywhere, and move some experts of one layer, as memory allows."""
    held: Bits = solution.replicas.copy()
    for g, e in np.argwhere(held.sum(axis=2) > 1).tolist():
        if rng.random() < DROPPED:
            held[g, e] = np.arange(held.shape[2]) == int(solution.share[g, e].argmax())
    room = search.limit - np.einsum("ge,ged->d", search.instance.expert_bytes, held)
    g = int(rng.integers(held.shape[0]))
    for e in rng.permutation(held.shape[1])[: max(2, held.shape[1] // 4)].tolist():
        size = search.instance.expert_bytes[g, e]
        free = np.flatnonzero(search.able[g] & (room >= size) & ~held[g, e])
        if len(free):
            d = int(rng.choice(free))
            room[held[g, e]] += size
            held[g, e] = np.arange(held.shape[2]) == d
            room[d] -= size
    return held


def _search_through(
    instance: Experts, lo: Array, best: Incumbent, bound: float, gap: float, stop_at: float
) -> tuple[float, bool, int]:
    """Branch on holding and serving; return the bound, whether it is final, and the number of nodes."""
    table = table_of(instance)
    shape = (*instance.load.shape, instance.num_devices)
    able = np.isfinite(table.unit_s)
    size = int(np.prod(shape))
    limit = instance.memory_bytes * (1 + 0.5 * 1e-9) - instance.reserved_bytes

    def parts(decisions: Bits) -> tuple[Bits, Bits]:
        return decisions[:size].reshape(shape), decisions[size:].reshape(able.shape)

    def bounded(low: Bits, high: Bits) -> tuple[float, Array | None]:
        held, serves = parts(low)
        may_hold, may_serve = parts(high)
        open_before = table.fixed_s > lo[:, None]
        if instance.max_replicas is not None and (held.sum(axis=2) > instance.max_replicas).any():
            return math.inf, None
        node = root(instance, table, lo, held, may_hold, serves & open_before, ~may_serve)
        answer = relax(node, stop_at - time.perf_counter())
        if answer.value is None:
            return answer.bound, None
        total = np.maximum(instance.load.sum(axis=1), 1e-300)
        served = (instance.load[:, :, None] * answer.value).sum(axis=1) / total[:, None]
        return answer.bound, np.concatenate([np.where(held, 1.0, answer.value).ravel(), served.ravel()])

    def settle(low: Bits, high: Bits, relaxed: Array | None) -> float:
        held, _ = parts(low)
        may_hold, _ = parts(high)
        tries = [held]
        if relaxed is not None:
            wish = relaxed[:size].reshape(shape)
            tries += [held | (may_hold & (wish > 1e-7)), held | (may_hold & (wish >= 0.5))]
            search = Search(instance, table, lo, stop_at)
            homes = first_homes(search, wish)
            if homes is not None:
                tries.append(homes)
        for each in tries:
            used = np.einsum("ge,ged->d", instance.expert_bytes, each)
            if each.any(axis=2).all() and (used <= limit).all():
                search = Search(instance, table, lo, stop_at)
                search.held = each
                best.offer(search.solution())
        return best.objective

    low = np.zeros(size + able.size, dtype=np.bool_)
    low[size:] = (table.fixed_s <= lo[:, None]).ravel()
    high = np.concatenate([np.broadcast_to(able[:, None, :], shape).ravel(), np.ones(able.size, dtype=np.bool_)])
    outcome = branch(low, high, bounded, settle, size, max(gap, PROVEN / 2), stop_at)
    return max(bound, outcome.bound), outcome.finished, outcome.num_nodes
