"""First come first served: branch and bound over boxes of mean squares, and over what a device holds.

In a box of r_v = Q_v / L_v the number waiting has a convex bound that is tight at the box's ends
(``serving_point.py``). Where a device's bound and its true number disagree most, the box is cut at its present r; where
a device uses more models than its memory holds, the node splits into the largest sets of models that fit. A device
whose queries all take equally long needs no cut: the relaxation is exact there.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.placement.check import evaluate
from edgeopt_solvers.placement.serving import Serving, ServingSolution
from edgeopt_solvers.placement.serving_point import Columns, columns_of, least_load, relax
from edgeopt_solvers.result import Reason, Result, Status, relative_gap
from edgeopt_solvers.solve import Options

__all__ = ["fitting_sets", "solve_serving"]

#: Relative gap up to which a result is called optimal: what the interior point leaves open.
PROVEN = 1e-6

#: Fractions below this are what an inner point leaves on columns that are not used.
TRACE = 1e-6

#: Nodes after which the search ends, with the bound that it has.
MOST_NODES = 5_000

#: A box is cut no nearer to its ends than this part of its logarithmic width.
MARGIN = 0.1

Bits = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Node:
    usable: Bits
    low: Array | None = None
    high: Array | None = None


def solve_serving(instance: Serving, options: Options) -> Result:
    """Route the queries; with a time limit the best routing found is returned with its bound."""
    limit = options.time_limit_s
    search = _Search(instance, math.inf if limit is None else time.perf_counter() + limit)
    if isinstance(options.warm_start, ServingSolution):
        search.offer(options.warm_start)
    bound, finished = search.run(max(options.gap, PROVEN / 4))
    statistics = {"num_nodes": float(search.num_nodes)}
    if search.best is None:
        reason: Reason = "infeasible" if finished else "time_limit"
        bound = math.inf if finished else max(bound, 0.0)
        return Result(Status(reason, False), math.inf, bound, None, "exact", 0.0, statistics=statistics)
    bound = min(bound, search.value)
    gap = relative_gap(search.value, bound)
    ended = time.perf_counter() > search.stop_at
    reason = "optimal" if gap <= PROVEN else "time_limit" if ended else "gap_reached"
    return Result(Status(reason, True), search.value, bound, search.best, "exact", 0.0, statistics=statistics)


def fitting_sets(instance: Serving, usable: Bits, v: int) -> list[Bits]:
    """Return the largest sets of models that device v has memory for, (M,) each."""
    models = np.flatnonzero(usable[:, v])
    assert instance.model_bytes is not None
    assert instance.memory_bytes is not None
    room = float(instance.memory_bytes[v]) * (1 + 0.5e-9)
    sizes = instance.model_bytes
    found: list[set[int]] = []
    for count in range(len(models), -1, -1):
        for chosen in itertools.combinations(models.tolist(), count):
            mine = set(chosen)
            if math.fsum(float(sizes[m]) for m in chosen) <= room and not any(mine <= other for other in found):
                found.append(mine)
    return [np.isin(np.arange(len(usable)), list(mine)) for mine in found]


class _Search:
    """Best bound first."""

    def __init__(self, instance: Serving, stop_at: float) -> None:
        self.instance, self.stop_at = instance, stop_at
        self.total = math.fsum(instance.arrival_per_s.tolist())
        self.value, self.best = math.inf, None
        self.num_nodes = 0
        self._unsure = False  # whether a node was left without having been decided
        self._begun: dict[bytes, tuple[Columns, Array] | None] = {}

    best: ServingSolution | None
    value: float

    def offer(self, solution: ServingSolution) -> None:
        """Keep a solution if it is allowed and better."""
        evaluation = evaluate(self.instance, solution)
        if not evaluation.violations and evaluation.objective < self.value:
            self.value, self.best = evaluation.objective, solution

    def run(self, gap: float) -> tuple[float, bool]:
        """Search; return the bound on the mean response and whether every node was closed."""
        instance = self.instance
        usable = np.asarray(np.isfinite(instance.service_s).any(axis=0))
        if instance.memory_bytes is not None and instance.model_bytes is not None:
            usable &= instance.model_bytes[:, None] <= instance.memory_bytes * (1 + 0.5e-9)
        counter = itertools.count()
        heap: list[tuple[float, int, _Node]] = [(-math.inf, next(counter), _Node(usable))]
        bound, loose = -math.inf, math.inf  # loose: the least bound of nodes that could not be split further
        while heap:
            parent = heap[0][0]
            bound = max(bound, min(parent, loose, self.value))
            if parent >= self.value * (1 - gap):
                return bound, not self._unsure
            if time.perf_counter() > self.stop_at or self.num_nodes >= MOST_NODES:
                return bound, False
            _, _, node = heapq.heappop(heap)
            self.num_nodes += 1
            value, children = self._look(node, gap)
            value = max(value, parent)
            if not children:
                loose = min(loose, value)
            for child in children:
                heapq.heappush(heap, (value, next(counter), child))
        return (bound, False) if self._unsure else (min(loose, self.value), True)

    def _look(self, node: _Node, gap: float) -> tuple[float, list[_Node]]:
        """Bound a node (mean response), try its routing, and split it; no children: nothing better is in it."""
        begun = self._begin(node.usable)
        if begun is None:
            return math.inf, []
        columns, start = begun
        low, high = columns.square_ranges()
        if node.low is not None and node.high is not None:
            empty = np.bincount(columns.at[2], minlength=len(low)) == 0
            low, high = (
                np.where(empty, low, np.maximum(low, node.low)),
                np.where(empty, high, np.minimum(high, node.high)),
            )
        if (low > high * (1 + 1e-12)).any():  # only unused, which the box beside it says as well
            return math.inf, []
        high = np.maximum(low, high)
        point = relax(columns, low, high, start)
        bound = point.bound / self.total
        self._try(columns, point.x)
        x = np.where(point.x > TRACE, point.x, 0.0)
        if (split := self._overfull(node, columns, x)) is not None:
            return bound, split
        if bound >= self.value * (1 - gap):
            return bound, []
        return bound, _cut(node, columns, x, low, high)

    def _begin(self, usable: Bits) -> tuple[Columns, Array] | None:
        """Return the columns for what devices may use and fractions to start from; ``None``: none keep the limits."""
        key = usable.tobytes()
        if key not in self._begun:
            self._begun[key] = None
            columns, limit = columns_of(self.instance, usable), self.instance.max_load
            if not columns.hopeless:
                left_s = self.stop_at - time.perf_counter()
                found = least_load(columns, left_s if math.isfinite(left_s) else None)
                self._unsure = self._unsure or found is None
                if found is not None and found[1] is not None and found[0] <= limit * (1 + 1e-9) and found[0] < 1:
                    self._try(columns, found[1])
                    self._begun[key] = columns, _inner(columns, found[1], limit)
        return self._begun[key]

    def _overfull(self, node: _Node, columns: Columns, x: Array) -> list[_Node] | None:
        """Split by what a device holds where the routing uses more models than fit."""
        instance = self.instance
        if instance.memory_bytes is None or instance.model_bytes is None:
            return None
        used = np.zeros(node.usable.shape, dtype=np.bool_)
        _, m, v = columns.at
        used[m[x > 0], v[x > 0]] = True
        over = np.where(used, instance.model_bytes[:, None], 0.0).sum(axis=0) / np.maximum(
            instance.memory_bytes, 1e-300
        )
        device = int(over.argmax())
        if over[device] <= 1 + 0.5e-9:
            return None
        children = []
        for held in fitting_sets(instance, node.usable, device):
            usable = node.usable.copy()
            usable[:, device] = held
            children.append(_Node(usable, node.low, node.high))
        return children

    def _try(self, columns: Columns, x: Array) -> None:
        """Offer a point without its traces, and as it is."""
        for given in (np.where(x > TRACE, x, 0.0), x):
            sums = columns.one @ given
            if not (sums > 0.5).all():
                continue
            fractions = np.zeros(self.instance.service_s.shape)
            fractions[columns.at] = given / (sums @ columns.one)
            loaded = np.asarray((fractions > 0).any(axis=0))
            idle = np.flatnonzero(self.instance.arrival_per_s == 0)
            m, v = np.argwhere(loaded)[0]
            fractions[idle, m, v] = 1.0
            self.offer(ServingSolution(fractions, loaded))


def _inner(columns: Columns, x: Array, limit: float) -> Array:
    """Move fractions off the edge, as far as loads stay below the limit."""
    spread = columns.one.T @ (1 / columns.one.sum(axis=1))
    before, after = columns.devices[2] @ x, columns.devices[2] @ spread
    room = (limit + before) / 2 - before
    share = float(np.where(after > before, room / np.maximum(after - before, 1e-300), 1.0).min())
    share = min(max(share, 1e-6), 0.5)
    inner: Array = (1 - share) * x + share * spread
    return inner


def _cut(node: _Node, columns: Columns, x: Array, low: Array, high: Array) -> list[_Node]:
    """Cut the box of the device whose true number is farthest above its bound."""
    Q, L, R = columns.devices @ x
    ratio = Q / np.maximum(L, 1e-300)
    missed = (L * Q - (Q * Q + low * high * L * L) / (low + high)) / (2 * np.maximum(1 - R, 1e-9))
    missed = np.where(high > low * (1 + 1e-9), missed, 0.0)
    device = int(missed.argmax())
    if not missed[device] > 0:
        return []
    a, b = math.log(low[device]), math.log(high[device])
    at = math.exp(min(max(math.log(max(ratio[device], 1e-300)), a + MARGIN * (b - a)), b - MARGIN * (b - a)))
    children = []
    for first, last in ((low[device], at), (at, high[device])):
        box_low, box_high = low.copy(), high.copy()
        box_low[device], box_high[device] = first, last
        children.append(_Node(node.usable, box_low, box_high))
    return children
