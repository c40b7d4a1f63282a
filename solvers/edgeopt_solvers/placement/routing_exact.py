"""Routing: an interior point over the columns that matter, certified by prices; a tree over which models are loaded.

With a price p_s >= 0 per unit of load of queue s, ν >= 0 per unit of accuracy and λ_v >= 0 per byte,

    N >= Σ_s min_{0 <= ρ <= r} (ρ / (1 − ρ) − p_s ρ) + Σ_c min_mv (cost of sending class c there at these prices) +
    constants

for every routing, N the mean number of queries in the system and N / Σ arrivals the mean response (Little's law).
The first minimum is −(√p − 1)² for p > 1, unless r is reached before. The bound is evaluated over all (class, model,
device), also where the interior point saw only some of them: columns that are cheap at its prices are added until
bound and plan agree.
"""

from __future__ import annotations

import math
import time

import numpy as np

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.placement.check import evaluate
from edgeopt_solvers.placement.routing import Routing, RoutingSolution
from edgeopt_solvers.placement.routing_flows import Answer, Flows
from edgeopt_solvers.placement.tree import Bits, branch
from edgeopt_solvers.result import Reason, Result, Status, relative_gap
from edgeopt_solvers.solve import Options

__all__ = ["solve_routing"]

#: Relative gap up to which a result is called optimal: what the interior point leaves open.
PROVEN = 1e-6


def solve_routing(instance: Routing, options: Options) -> Result:
    """Route the queries; with a time limit the best routing found is returned with its bound."""
    limit = options.time_limit_s
    stop_at = math.inf if limit is None else time.perf_counter() + limit
    best: tuple[float, RoutingSolution | None] = (math.inf, None)

    def offer(solution: RoutingSolution | None) -> float:
        nonlocal best
        if solution is not None:
            evaluation = evaluate(instance, solution)
            if not evaluation.violations and evaluation.objective < best[0]:
                best = evaluation.objective, solution
        return best[0]

    if isinstance(options.warm_start, RoutingSolution):
        offer(options.warm_start)
    M, V = instance.num_models, instance.num_devices
    able = instance.service_per_s > 0
    num_nodes = 1.0
    if not instance.chooses:
        answer = Flows(instance, able).solve(options.gap, stop_at)
        offer(answer.solution)
        bound, finished = answer.bound, answer.decided
    else:
        bound, finished, num_nodes = _choose(instance, able.reshape(M * V), offer, options.gap, stop_at)
    if best[1] is None:
        reason: Reason = "infeasible" if finished and bound == math.inf else "time_limit"
        return Result(Status(reason, False), math.inf, bound, None, "exact", 0.0, statistics={"num_nodes": num_nodes})
    bound = min(bound, best[0])
    gap = relative_gap(best[0], bound)
    reason = "optimal" if gap <= PROVEN else "gap_reached" if time.perf_counter() < stop_at else "time_limit"
    return Result(Status(reason, True), best[0], bound, best[1], "exact", 0.0, statistics={"num_nodes": num_nodes})


def _choose(instance: Routing, able: Bits, offer: object, gap: float, stop_at: float) -> tuple[float, bool, float]:
    """Branch on which models are loaded where."""
    assert callable(offer)
    M, V = instance.num_models, instance.num_devices
    assert instance.model_bytes is not None
    assert instance.memory_bytes is not None
    sizes = np.broadcast_to(instance.model_bytes[:, None], (M, V))
    limit = instance.memory_bytes * (1 + 0.5e-9)
    low = (able.reshape(M, V) & ((sizes == 0) | np.isinf(instance.memory_bytes))).ravel()
    high = (able.reshape(M, V) & (sizes <= limit)).ravel()

    def relax(low: Bits, high: Bits) -> tuple[float, Array | None]:
        held = low.reshape(M, V)
        if (np.where(held, sizes, 0.0).sum(axis=0) > limit).any():
            return math.inf, None
        answer: Answer = Flows(instance, high.reshape(M, V), held).solve(1e-7, stop_at)
        return answer.bound, None if answer.worth is None else np.where(held, 1.0, answer.worth).ravel()

    def settle(low: Bits, high: Bits, relaxed: Array | None) -> float:
        held = _filled(low.reshape(M, V), high.reshape(M, V), relaxed, sizes, limit)
        return float(offer(Flows(instance, held).solve(1e-7, stop_at).solution))

    outcome = branch(low, high, relax, settle, M * V, max(gap, PROVEN / 4), stop_at)
    return outcome.bound, outcome.finished, float(outcome.num_nodes)


def _filled(low: Bits, high: Bits, relaxed: Array | None, sizes: Array, limit: Array) -> Bits:
    """Return ``low`` with what the relaxation wants most, as memory allows: more models are never worse."""
    held = low.copy()
    room = limit - np.where(held, sizes, 0.0).sum(axis=0)
    wish = np.zeros(low.shape) if relaxed is None else relaxed.reshape(low.shape)
    for index in np.argsort(-wish.ravel(), kind="stable").tolist():
        m, v = divmod(index, low.shape[1])
        if high[m, v] and not held[m, v] and sizes[m, v] <= room[v]:
            held[m, v] = True
            room[v] -= sizes[m, v]
    return held
