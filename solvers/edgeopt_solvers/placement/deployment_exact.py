"""Deployment: branch and bound over which variants each node keeps; requests then take their cheapest ways.

For kept variants fixed, a floor on the mean quality couples the requests by one row: every request moves along the
lower hull of (quality, seconds), the steps that cost least per quality first (exact for fractions). The relaxation is
that of facility location, x_io <= y_o with one row per way, solved by HiGHS; its bound is evaluated anew at the
prices α of these rows, λ of memory and ν of quality:

    Σ_i min_o (r_i (s_o − ν q_o) + α_io) + Σ_y min over {0, 1} (λ bytes − Σ α) y − Σ λ M + ν floor.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.chain.segments import unit_of
from edgeopt_solvers.placement.check import evaluate
from edgeopt_solvers.placement.deployment import Deployment, DeploymentSolution
from edgeopt_solvers.placement.tree import Bits, branch
from edgeopt_solvers.result import Reason, Result, Status, relative_gap
from edgeopt_solvers.solve import Options

__all__ = ["Ways", "cheapest", "solution_of", "solve_deployment", "ways_of"]

#: Relative gap up to which a result is called optimal.
PROVEN = 1e-9

#: A quality floor counts as met up to this part of it.
MET = 0.5e-9


@dataclass(frozen=True, slots=True)
class Ways:
    """All ways to serve a request, (n,) each: of demand ``demand``, by ``variant`` at ``node`` (−1: downloaded)."""

    demand: NDArray[np.int64]
    variant: NDArray[np.int64]
    node: NDArray[np.int64]
    seconds: Array
    quality: Array
    weight: Array
    task: NDArray[np.int64]
    origin: NDArray[np.int64]

    @property
    def num_demands(self) -> int:
        """Demands with requests."""
        return len(self.weight)


def ways_of(instance: Deployment) -> Ways:
    """List the ways that take finite time; ``weight``, ``task`` and ``origin`` are by demand, weights sum to 1."""
    N = instance.num_nodes
    rates = instance.rate_bytes_per_s
    task, origin = np.nonzero(instance.request_per_s > 0)
    parts: list[tuple[Any, Any, Any, Array]] = []
    for i, (k, n) in enumerate(zip(task.tolist(), origin.tolist(), strict=True)):
        js = np.flatnonzero(instance.task == k)
        if not len(js):
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            sends = np.where(instance.request_bytes[k] > 0, instance.request_bytes[k] / rates[n], 0.0)
            gets = np.where(instance.reply_bytes[k] > 0, instance.reply_bytes[k] / rates[:, n], 0.0)
            travel = sends + gets + instance.latency_s[n] + instance.latency_s[:, n]
            travel[(rates[n] == 0) | (rates[:, n] == 0)] = math.inf
            travel[n] = 0.0
            load_s = instance.variant_bytes[js] / instance.download_bytes_per_s[n]
        if instance.download_bytes_per_s[n] == 0:
            load_s = np.full(len(js), math.inf)
        seconds = np.column_stack([travel + instance.run_s[js], load_s + instance.run_s[js, n]])
        rows, columns = np.nonzero(np.isfinite(seconds))
        where = np.where(columns == N, -1, columns)
        parts.append((np.full(len(rows), i), js[rows], where, seconds[rows, columns]))
    joined = [np.concatenate(part) for part in zip(*parts, strict=True)] if parts else [np.zeros(0)] * 4
    demand, variant, node = (part.astype(np.int64) for part in joined[:3])
    request = instance.request_per_s[task, origin]
    return Ways(
        demand, variant, node, joined[3], instance.quality[variant], request / math.fsum(request.tolist()), task, origin
    )


def cheapest(ways: Ways, usable: NDArray[np.bool_], floor: float | None) -> tuple[float, Array] | None:
    """Return the least mean seconds and the part of each demand on each way; ``None``: not all can be served."""
    value = np.where(usable, ways.seconds, math.inf)
    part = np.zeros(len(value))
    order = np.lexsort((-ways.quality, value, ways.demand))
    firsts = order[np.unique(ways.demand[order], return_index=True)[1]]
    if len(firsts) < ways.num_demands or not np.isfinite(value[firsts]).all():
        return None
    part[firsts] = 1.0
    need = 0.0 if floor is None else floor * (1 - MET) - math.fsum((ways.weight * ways.quality[firsts]).tolist())
    if need > 0:
        steps: list[tuple[float, int, int, int]] = []
        for i, first in enumerate(firsts.tolist()):
            mine = np.flatnonzero((ways.demand == i) & usable)
            at, hull = first, 0
            while True:
                better = mine[ways.quality[mine] > ways.quality[at]]
                if not len(better):
                    break
                slope = (ways.seconds[better] - ways.seconds[at]) / (ways.quality[better] - ways.quality[at])
                best = np.lexsort((-ways.quality[better], slope))[0]
                steps.append((float(slope[best]), hull, at, int(better[best])))
                at, hull = int(better[best]), hull + 1
        for _, _, at, to in sorted(steps):
            gain = float(ways.weight[ways.demand[to]] * (ways.quality[to] - ways.quality[at]))
            moved = min(1.0, need / gain)
            part[to], part[at] = moved, 1.0 - moved
            need -= moved * gain
            if need <= 0:
                break
        if need > MET * (floor or 0.0):
            return None
    used = part > 0
    return math.fsum((ways.weight[ways.demand[used]] * ways.seconds[used] * part[used]).tolist()), part


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

    def offer(solution: DeploymentSolution) -> None:
        nonlocal best
        evaluation = evaluate(instance, solution)
        if not evaluation.violations and evaluation.objective < best[0]:
            best = evaluation.objective, solution

    def relax(low: Bits, high: Bits) -> tuple[float, Array | None]:
        if (np.where(low.reshape(J, N), instance.variant_bytes[:, None], 0.0).sum(axis=0) > limit).any():
            return math.inf, None
        return _relax(instance, ways, at, low, high, stop_at)

    def settle(low: Bits, high: Bits, relaxed: Array | None) -> float:
        kept = low.reshape(J, N).copy()
        room = limit - np.where(kept, instance.variant_bytes[:, None], 0.0).sum(axis=0)
        wish = np.ones(J * N) if relaxed is None else relaxed
        for index in np.argsort(-wish, kind="stable").tolist():
            j, n = divmod(index, N)
            if high[index] and not kept[j, n] and instance.variant_bytes[j] <= room[n]:
                kept[j, n] = True
                room[n] -= instance.variant_bytes[j]
        found = cheapest(ways, np.where(at >= 0, kept.ravel()[at], True), instance.min_quality)
        if found is not None and found[0] < best[0]:
            offer(solution_of(instance, ways, kept, found[1]))
        return best[0]

    if isinstance(options.warm_start, DeploymentSolution):
        offer(options.warm_start)
    useful = np.zeros(J * N, dtype=np.bool_)
    useful[at[at >= 0]] = True
    high = useful & (instance.variant_bytes[:, None] <= limit).ravel()
    outcome = branch(np.zeros(J * N, dtype=np.bool_), high, relax, settle, J * N, max(options.gap, PROVEN / 2), stop_at)
    statistics = {"num_nodes": float(outcome.num_nodes), "num_ways": float(len(at))}
    if best[1] is None:
        reason: Reason = "infeasible" if outcome.finished else "time_limit"
        bound = math.inf if outcome.finished else max(outcome.bound, 0.0)
        return Result(Status(reason, False), math.inf, bound, None, "exact", 0.0, statistics=statistics)
    bound = max(0.0, min(outcome.bound, best[0]))
    gap = relative_gap(best[0], bound)
    reason = "optimal" if gap <= PROVEN else "gap_reached" if outcome.finished else "time_limit"
    return Result(Status(reason, True), best[0], bound, best[1], "exact", 0.0, statistics=statistics)


def _relax(
    instance: Deployment, ways: Ways, at: NDArray[np.int64], low: Bits, high: Bits, stop_at: float
) -> tuple[float, Array | None]:
    """Solve the relaxation of a node; return its bound by prices and the relaxed decisions."""
    import scipy.sparse as sp
    from scipy.optimize import linprog

    needs = at >= 0
    open_ways = ~needs | high[at]
    if len(np.unique(ways.demand[open_ways])) < ways.num_demands:
        return math.inf, None
    w = np.flatnonzero(open_ways)
    n, num_y = len(w), len(low)
    columns = np.arange(n)
    weight = ways.weight[ways.demand[w]]
    unit = unit_of((weight * ways.seconds[w]).tolist())
    cost = np.concatenate([weight * ways.seconds[w] / unit, np.zeros(num_y)])
    tied = np.flatnonzero(needs[w] & ~low[at[w]])
    t = len(tied)
    link = sp.csr_matrix(
        (
            np.concatenate([np.ones(t), -np.ones(t)]),
            (np.tile(np.arange(t), 2), np.concatenate([tied, n + at[w][tied]])),
        ),
        shape=(t, n + num_y),
    )
    rows, below = [link], [np.zeros(t)]
    limited = np.flatnonzero(instance.memory_bytes < math.fsum(instance.variant_bytes.tolist()))
    sizes = np.repeat(instance.variant_bytes, instance.num_nodes)
    scale = float(sizes.max()) or 1.0
    if len(limited):
        where = (np.tile(np.arange(instance.num_nodes), instance.num_variants), n + np.arange(num_y))
        rows.append(sp.csr_matrix((sizes / scale, where), shape=(instance.num_nodes, n + num_y))[limited])
        below.append(instance.memory_bytes[limited] / scale)
    quality = ways.quality[w] * weight
    top = max(float(ways.quality.max(initial=0.0)), 1e-300)
    floor = None if instance.min_quality is None else instance.min_quality * (1 - MET)
    if floor is not None:
        rows.append(sp.csr_matrix((-quality / top, (np.zeros(n, dtype=int), columns)), shape=(1, n + num_y)))
        below.append(np.array([-floor / top]))
    one = sp.csr_matrix((np.ones(n), (ways.demand[w], columns)), shape=(ways.num_demands, n + num_y))
    bounds = np.column_stack([np.concatenate([np.zeros(n), low]), np.concatenate([np.ones(n), high])])
    left = stop_at - time.perf_counter()
    answer = linprog(
        cost, sp.vstack(rows, format="csr"), np.concatenate(below), one, np.ones(ways.num_demands), bounds,
        method="highs-ds", options={"time_limit": max(0.01, left)} if math.isfinite(left) else {},
    )  # fmt: skip
    if answer.status == 2:
        return math.inf, None
    duals = np.zeros(sum(len(part) for part in below))
    if answer.status == 0 and answer.x is not None:
        duals = np.maximum(-np.asarray(answer.ineqlin.marginals), 0.0) * unit
    alpha, memory, nu = duals[:t], duals[t : t + len(limited)] / scale, 0.0
    if floor is not None:
        nu = float(duals[-1]) / top
    reduced = weight * ways.seconds[w] - nu * quality
    reduced[tied] += alpha
    least = np.full(ways.num_demands, math.inf)
    np.minimum.at(least, ways.demand[w], reduced)
    worth = np.zeros(num_y)
    np.add.at(worth, at[w][tied], -alpha)
    per_node = np.zeros(instance.num_nodes)
    per_node[limited] = memory
    worth += sizes * np.tile(per_node, instance.num_variants)
    fixed = np.where(low, worth, np.where(high, np.minimum(worth, 0.0), 0.0))
    spent = -memory * instance.memory_bytes[limited] * (1 + 0.5e-9)
    bound = math.fsum([*least.tolist(), *fixed.tolist(), *spent.tolist(), nu * (floor or 0.0)])
    simple = math.fsum((ways.weight * _least_s(ways, open_ways)).tolist())
    value = None if answer.x is None or answer.status != 0 else np.clip(answer.x[n:], 0.0, 1.0)
    return max(bound, simple) if math.isfinite(bound) else simple, value


def _least_s(ways: Ways, usable: NDArray[np.bool_]) -> Array:
    least = np.full(ways.num_demands, math.inf)
    np.minimum.at(least, ways.demand[usable], ways.seconds[usable])
    return least
