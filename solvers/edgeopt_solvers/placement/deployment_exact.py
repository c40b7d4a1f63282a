"""Deployment: which variants each node keeps; requests then take their cheapest ways.

For kept variants fixed, a floor on the mean quality couples the requests by one row: every request moves along the
lower hull of (quality, seconds), the steps that cost least per quality first (exact for fractions). Which variants are
kept is facility location: HiGHS closes the program; what it leaves open is searched locally, then branched on by the
priced relaxation.
"""

from __future__ import annotations

import math
import time

import numpy as np

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.placement.check import evaluate
from edgeopt_solvers.placement.deployment import Deployment, DeploymentSolution
from edgeopt_solvers.placement.deployment_program import Program
from edgeopt_solvers.placement.deployment_search import Neighbourhood
from edgeopt_solvers.placement.deployment_ways import Ways, cheapest, ways_of
from edgeopt_solvers.placement.tree import Bits, branch
from edgeopt_solvers.result import Reason, Result, Status, relative_gap
from edgeopt_solvers.solve import Options

__all__ = ["solution_of", "solve_deployment"]

#: Relative gap up to which a result is called optimal.
PROVEN = 1e-9

#: Times that a plan is disturbed and improved again.
KICKS = 4

#: Part of the time that HiGHS may take.
HIGHS_SHARE = 0.6


def solution_of(instance: Deployment, ways: Ways, kept: Bits, part: Array) -> DeploymentSolution:
    """Return the decisions for the parts of every demand on every way."""
    J, N = instance.num_variants, instance.num_nodes
    served, loaded = np.zeros((N, J, N)), np.zeros((N, J))
    for w in np.flatnonzero(part > 0).tolist():
        n, j, m = ways.origin[ways.demand[w]], ways.variant[w], ways.node[w]
        if m < 0:
            loaded[n, j] = part[w]
        else:
            served[n, j, m] = part[w]
    return DeploymentSolution(kept, served, loaded)


def solve_deployment(instance: Deployment, options: Options) -> Result:
    """Choose kept variants; with a time limit the best found is returned with its bound."""
    stop_at = math.inf if options.time_limit_s is None else time.perf_counter() + options.time_limit_s
    ways = ways_of(instance)
    J, N = instance.num_variants, instance.num_nodes
    best: tuple[float, DeploymentSolution | None] = (math.inf, None)
    limit = instance.memory_bytes * (1 + 0.5e-9)
    at = np.where(ways.node >= 0, ways.variant * N + ways.node, -1)  # the decision that a way needs
    near = Neighbourhood(instance, ways, at, limit, options.seed)

    def offer(solution: DeploymentSolution) -> None:
        nonlocal best
        evaluation = evaluate(instance, solution)
        if not evaluation.violations and evaluation.objective < best[0]:
            best = evaluation.objective, solution

    def relax(low: Bits, high: Bits) -> tuple[float, Array | None]:
        if (np.where(low.reshape(J, N), instance.variant_bytes[:, None], 0.0).sum(axis=0) > limit).any():
            return math.inf, None
        return Program(instance, ways, at, low, high).relaxed(stop_at)

    def settle(low: Bits, high: Bits, relaxed: Array | None) -> float:
        kept = low.reshape(J, N).copy()
        room = limit - np.where(kept, instance.variant_bytes[:, None], 0.0).sum(axis=0)
        wish = np.ones(J * N) if relaxed is None else relaxed
        for index in np.argsort(-wish, kind="stable").tolist():
            j, n = divmod(index, N)
            if high[index] and not kept[j, n] and instance.variant_bytes[j] <= room[n]:
                kept[j, n] = True
                room[n] -= instance.variant_bytes[j]
        use(kept)
        return best[0]

    def search(kept: Bits) -> None:
        kept = near.improve(kept, stop_at)
        use(kept)
        for _ in range(KICKS):
            other = near.improve(near.kicked(kept), stop_at)
            if use(other):
                kept = other

    def use(kept: Bits) -> bool:
        """Offer the best use of what is kept; whether it is the best plan so far."""
        found = cheapest(ways, np.where(at >= 0, kept.ravel()[at], True), instance.min_quality)
        better = found is not None and found[0] < best[0]
        if better and found is not None:
            offer(solution_of(instance, ways, kept, found[1]))
        return better

    if isinstance(options.warm_start, DeploymentSolution):
        offer(options.warm_start)
    useful = np.zeros(J * N, dtype=np.bool_)
    useful[at[at >= 0]] = True
    high = useful & (instance.variant_bytes[:, None] <= limit).ravel()
    low, gap = np.zeros(J * N, dtype=np.bool_), max(options.gap, PROVEN / 2)
    bound, relaxed = relax(low, high)
    if bound < math.inf:
        settle(low, high, relaxed)
    if bound < best[0] * (1 - gap) and bound < math.inf:
        now = time.perf_counter()
        known, kept = Program(instance, ways, at, low, high).whole(gap, now + HIGHS_SHARE * (stop_at - now))
        if kept is not None:
            use(kept)
        bound = max(bound, min(known, best[0]))
    finished = bound == math.inf or (best[1] is not None and bound >= best[0] * (1 - gap))
    statistics = {"num_ways": float(len(at))}
    if not finished:  # HiGHS could not close it
        if best[1] is not None:
            search(best[1].kept)
        outcome = branch(low, high, relax, settle, J * N, gap, stop_at)
        bound, finished = max(bound, outcome.bound), outcome.finished
        statistics["num_nodes"] = float(outcome.num_nodes)
    if best[1] is None:
        reason: Reason = "infeasible" if finished else "time_limit"
        bound = math.inf if finished else max(bound, 0.0)
        return Result(Status(reason, False), math.inf, bound, None, "exact", 0.0, statistics=statistics)
    bound = max(0.0, min(bound, best[0]))
    gap = relative_gap(best[0], bound)
    reason = "optimal" if gap <= PROVEN else "gap_reached" if finished else "time_limit"
    return Result(Status(reason, True), best[0], bound, best[1], "exact", 0.0, statistics=statistics)
