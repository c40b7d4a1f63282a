"""Branch and bound over boxes of thresholds, for grids too large to list.

A box gives each threshold a range lo..hi. A query that reaches a model surely goes on if its code is below lo, surely
stops if it is at least hi, and is open in between. Then, for every threshold vector in the box,

    value    >= Σ_j value_j over the queries that surely reach model j         (more going on only adds)
    correct  <= the scores where they surely stop, and for open ones the better of stopping and going on
    value    >= λ floor + Σ over queries of V_1
                V_j = value_j + (−λ score_j where it stops, V_{j+1} where it goes on, the lesser where it is open)

The third, at a price λ >= 0 on the score, lets no open query be right without paying for it. λ is the slope of the
lower convex hull of (score, value) at the floor on a coarse grid; any λ is valid.

A box whose bound on the score misses the floor, or whose bound on the value misses the best cascade found, is closed.
Others are halved at the median code of the open queries of the model where stopping and going on differ most. Queries
that nothing in a box leaves open are added up once, and looked at no more inside it.
"""

from __future__ import annotations

import heapq
import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.policy.grid import MOST_CELLS, grid_of, num_cells
from edgeopt_solvers.policy.traces import Traces

__all__ = ["Best", "polish", "price", "search"]

#: Boxes looked at before what was reached is returned; some minutes for traces of 100,000 queries.
MOST_BOXES = 200_000

#: Numbers of open queries kept with the boxes, in all: 400 MB.
MOST_HELD = 50_000_000

#: The middle of a box is tried where at most this part of the queries is open.
SMALL = 0.25

#: Rounding of sums, relative to their parts.
ROUNDING = 1e-12

Ints = NDArray[np.int64]


@dataclass(slots=True)
class Best:
    """The best cascade so far: sum of the values, models, and threshold numbers."""

    value: float = math.inf
    models: tuple[int, ...] = ()
    levels: Ints | None = None


@dataclass(frozen=True, slots=True)
class _Pool:
    """Queries open somewhere in a box (``None``: all), and sums over the others."""

    rest: Ints | None
    value: float
    correct: float
    used: tuple[float, ...]

    def size(self, traces: Traces) -> int:
        """Number of open queries."""
        return traces.num_queries if self.rest is None else len(self.rest)


@dataclass(frozen=True, slots=True)
class _Bounds:
    """Bounds of a box; ``position``: the model to split at (-1: none is open), ``split`` the code; and its pool."""

    value: float
    correct: float
    allowed: bool
    position: int
    split: int
    pool: _Pool


def price(traces: Traces, choices: list[tuple[int, ...]]) -> float:
    """Return the price λ of a score at the floor that makes the bound over all cells of ``choices`` largest."""
    grids = [grid_of(traces, models) for models in choices if num_cells(traces, models) <= MOST_CELLS]
    if not grids or not math.isfinite(traces.floor):
        return 0.0
    value = np.concatenate([grid.value.ravel() for grid in grids])
    correct = np.concatenate([grid.correct.ravel() for grid in grids])
    kept = correct >= traces.floor
    if not kept.any() or not value.max() > 0:
        return 0.0
    low, high = 0.0, float(value.max())
    for _ in range(60):
        middle = 0.5 * (low + high) if low else high / 8
        if correct[np.argmin(value - middle * correct)] >= traces.floor:
            high = middle
        else:
            low = middle
        if high < 1e-12 * value.max() or (low and high - low <= 1e-6 * high):
            break
    return high


def _bounds(traces: Traces, models: tuple[int, ...], low: Ints, high: Ints, lam: float, pool: _Pool) -> _Bounds:
    """Go through the models from the last to the first; ``low == high`` is one threshold vector, and exact."""

    def of(table: NDArray[Any], m: int) -> NDArray[Any]:
        row: NDArray[Any] = table[m]
        return row if pool.rest is None else row[pool.rest]

    last = len(models) - 1
    value, score = of(traces.value, models[last]), of(traces.correct, models[last])
    used = [of(amounts, models[last]) for amounts, _ in traces.limits]
    settled, priced = np.ones(len(value), dtype=bool), value - lam * score
    opened: list[tuple[NDArray[np.bool_], Array, NDArray[np.bool_]]] = []
    for j in range(last - 1, -1, -1):
        m = models[j]
        code = of(traces.codes, m)
        stops, goes = code >= high[j], code < low[j]
        own_value, own_score = of(traces.value, m), of(traces.correct, m)
        stopping = -lam * own_score
        opened.append((~(stops | goes), np.abs(stopping - priced), stops))
        priced = own_value + np.where(stops, stopping, np.where(goes, priced, np.minimum(stopping, priced)))
        score = np.where(stops, own_score, np.where(goes, score, np.maximum(own_score, score)))
        value = own_value + np.where(goes, value, 0.0)
        used = [of(amounts, m) + np.where(goes, later, 0.0) for later, (amounts, _) in
                zip(used, traces.limits, strict=True)]  # fmt: skip
        settled = stops | (goes & settled)
    totals = tuple(kept + float(amount.sum()) for kept, amount in zip(pool.used, used, strict=True))
    allowed = all(total <= limit for total, (_, limit) in zip(totals, traces.limits, strict=True))
    bound, correct = pool.value + float(value.sum()), pool.correct + float(score.sum())
    if lam:
        lagrangian = pool.value + float(priced.sum()) + lam * (traces.floor - pool.correct)
        bound = max(bound, lagrangian - ROUNDING * lam * max(traces.floor, 1.0))
    position, split = -1, 0
    if not settled.all():
        position, split = _split(traces, models, opened[::-1], pool)
    index = np.flatnonzero(~settled)
    inner = _Pool(
        index if pool.rest is None else pool.rest[index], pool.value + float(value[settled].sum()),
        pool.correct + float(score[settled].sum()),
        tuple(kept + float(amount[settled].sum()) for kept, amount in zip(pool.used, used, strict=True)),
    )  # fmt: skip
    return _Bounds(bound, correct, allowed, position, split, inner)


def _split(
    traces: Traces, models: tuple[int, ...], opened: list[tuple[NDArray[np.bool_], Array, NDArray[np.bool_]]],
    pool: _Pool,
) -> tuple[int, int]:  # fmt: skip
    """Return the model at which stopping and going on differ most, and the median code of its open queries."""
    reached: NDArray[np.bool_] | None = None
    most, position, chosen = -1.0, -1, np.zeros(0, dtype=np.int64)
    for j, (is_open, differ, stops) in enumerate(opened):
        here = np.flatnonzero(is_open if reached is None else is_open & reached)
        total = float(differ[here].sum())
        if len(here) and total > most:
            most, position, chosen = total, j, here
        reached = ~stops if reached is None else reached & ~stops
    codes = traces.codes[models[position]][chosen if pool.rest is None else pool.rest[chosen]]
    return position, int(np.partition(codes, len(codes) // 2)[len(codes) // 2])


def polish(traces: Traces, models: tuple[int, ...], levels: Ints, best: Best) -> None:
    """Move one threshold at a time to its best place, the others fixed, and keep what beats ``best``."""
    levels = levels.copy()
    N, last = traces.num_queries, len(models) - 1
    for _ in range(20):
        before = best.value
        for j in range(last):
            reach = np.ones(N, dtype=bool)
            fixed_value, fixed_score = 0.0, 0.0
            for i in range(j):
                goes = traces.codes[models[i]] < levels[i]
                fixed_value += float(traces.value[models[i]][reach].sum())
                fixed_score += float(traces.correct[models[i]][reach & ~goes].sum())
                reach &= goes
            here = np.flatnonzero(reach)
            fixed_value += float(traces.value[models[j]][here].sum())
            # what follows for those that go on, whatever the threshold here
            later_value, later_score = np.zeros(len(here)), np.zeros(len(here))
            going = np.ones(len(here), dtype=bool)
            for i in range(j + 1, last + 1):
                m = models[i]
                later_value += np.where(going, traces.value[m][here], 0.0)
                goes = going & (traces.codes[m][here] < levels[i]) if i < last else np.zeros(len(here), dtype=bool)
                later_score += np.where(going & ~goes, traces.correct[m][here], 0.0)
                going = goes
            code, size = traces.codes[models[j]][here], len(traces.thresholds[models[j]]) + 1
            own = traces.correct[models[j]][here]
            value = fixed_value + np.cumsum(np.bincount(code, weights=later_value, minlength=size))[:-1]
            gain = np.cumsum(np.bincount(code, weights=later_score - own, minlength=size))[:-1]
            score = fixed_score + float(own.sum()) + gain
            reached = np.flatnonzero(score >= traces.floor)
            if len(reached):
                levels[j] = 1 + int(reached[np.argmin(value[reached])])
                _offer(traces, models, levels, best)
        if not best.value < before:
            return


def _all(traces: Traces) -> _Pool:
    return _Pool(None, 0.0, 0.0, (0.0,) * len(traces.limits))


def _offer(traces: Traces, models: tuple[int, ...], levels: Ints, best: Best, pool: _Pool | None = None) -> bool:
    bounds = _bounds(traces, models, levels, levels, 0.0, pool or _all(traces))
    if bounds.allowed and bounds.correct >= traces.floor and bounds.value < best.value:
        best.value, best.models, best.levels = bounds.value, models, levels.copy()
        return True
    return False


def search(
    traces: Traces, choices: list[tuple[int, ...]], best: Best, gap: float, stop_at: float, lam: float
) -> tuple[float, int, bool]:
    """Improve ``best`` over ``choices``; return the proven bound, the number of boxes, and whether time was left.

    The bound covers ``choices`` alone, and is at most ``best.value``; ``lam``: a price on the score (:func:`price`).
    """
    heap: list[tuple[float, int, tuple[int, ...], Ints, Ints, _Bounds, int]] = []
    number = held = 0

    def push(models: tuple[int, ...], low: Ints, high: Ints, pool: _Pool, least: float) -> None:
        nonlocal number, held
        number += 1
        bounds = _bounds(traces, models, low, high, lam, pool)
        if bounds.allowed and bounds.correct >= traces.floor and bounds.value < best.value:
            size = bounds.pool.size(traces)
            if held + size > MOST_HELD:
                bounds, size = replace(bounds, pool=pool), 0
            held += size
            heapq.heappush(heap, (max(bounds.value, least), number, models, low, high, bounds, size))

    whole = _all(traces)
    for done, models in enumerate(choices):
        if time.perf_counter() > stop_at:  # the rest has the bound of its first model alone
            left = min(float(traces.value[models[0]].sum()) for models in choices[done:])
            return min(best.value, left, heap[0][0] if heap else math.inf), number, False
        most = np.array([len(traces.thresholds[m]) for m in models[:-1]], dtype=np.int64)
        push(models, np.ones_like(most), most, whole, 0.0)
    while heap:
        bound = heap[0][0]
        if bound >= best.value * (1 - gap):
            return min(bound, best.value), number, True
        if number > MOST_BOXES or time.perf_counter() > stop_at:
            return bound, number, number > MOST_BOXES
        _, _, models, low, high, bounds, size = heapq.heappop(heap)
        held -= size
        pool = bounds.pool
        if bounds.position < 0:  # every threshold vector of the box does the same
            if _offer(traces, models, low, best, pool):
                polish(traces, models, low, best)
            continue
        if size <= traces.num_queries * SMALL:
            middle = (low + high) // 2
            if _offer(traces, models, middle, best, pool):
                polish(traces, models, middle, best)
        j, split = bounds.position, bounds.split
        lower, upper = high.copy(), low.copy()
        lower[j], upper[j] = split, split + 1
        push(models, low, lower, pool, bound)
        push(models, upper, high, pool, bound)
    return best.value, number, True
