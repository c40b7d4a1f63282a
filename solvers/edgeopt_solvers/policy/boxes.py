"""Branch and bound over boxes of thresholds, for grids too large to list.

A box gives each threshold a range lo..hi. A query that reaches a model surely goes on if its code is below lo, surely
stops if it is at least hi, and is open in between. Then, for every threshold vector in the box,

    value    >= Σ_j value_j over the queries that surely reach model j         (more going on only adds)
    correct  <= the scores where they surely stop + for open ones the best score of this or a later model

A box whose bound on the score misses the floor, or whose bound on the value misses the best cascade found, is closed;
others are halved at the median code of the open queries of the model that has most of them.
"""

from __future__ import annotations

import heapq
import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.policy.traces import Traces

__all__ = ["Best", "polish", "search"]

#: Boxes looked at before what was reached is returned; some seconds for traces of 1,000 queries.
MOST_BOXES = 50_000

Ints = NDArray[np.int64]


@dataclass(slots=True)
class Best:
    """The best cascade so far: sum of the values, models, and threshold numbers."""

    value: float = math.inf
    models: tuple[int, ...] = ()
    levels: Ints | None = None


@dataclass(frozen=True, slots=True)
class _Bounds:
    """Bounds of a box; ``position``: the model with most open queries (-1: none is open), ``split`` its median code."""

    value: float
    correct: float
    allowed: bool
    position: int
    split: int


def _bounds(traces: Traces, models: tuple[int, ...], low: Ints, high: Ints) -> _Bounds:
    value = correct = 0.0
    used = [0.0] * len(traces.limits)
    best_later = np.maximum.accumulate(traces.correct[list(models)][::-1], axis=0)[::-1] if len(models) > 1 else None
    reach: NDArray[np.int64] | None = None  # all
    most_open, position, split = 0, -1, 0
    for j, m in enumerate(models):
        amount = traces.value[m] if reach is None else traces.value[m][reach]
        value += float(amount.sum())
        for number, (amounts, _) in enumerate(traces.limits):
            used[number] += float((amounts[m] if reach is None else amounts[m][reach]).sum())
        score = traces.correct[m] if reach is None else traces.correct[m][reach]
        if j == len(models) - 1:
            correct += float(score.sum())
            break
        code = traces.codes[m] if reach is None else traces.codes[m][reach]
        stops, goes = code >= high[j], code < low[j]
        correct += float(score[stops].sum())
        if low[j] < high[j]:
            is_open = ~(stops | goes)
            num_open = int(is_open.sum())
            if num_open:
                assert best_later is not None
                later = best_later[j] if reach is None else best_later[j][reach]
                correct += float(later[is_open].sum())
                if num_open > most_open:
                    codes = code[is_open]
                    most_open, position = num_open, j
                    split = int(np.partition(codes, num_open // 2)[num_open // 2])
        index = np.flatnonzero(goes)
        reach = index if reach is None else reach[index]
    allowed = all(total <= limit for total, (_, limit) in zip(used, traces.limits, strict=True))
    return _Bounds(value, correct, allowed, position, split)


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


def _offer(traces: Traces, models: tuple[int, ...], levels: Ints, best: Best) -> bool:
    bounds = _bounds(traces, models, levels, levels)
    if bounds.allowed and bounds.correct >= traces.floor and bounds.value < best.value:
        best.value, best.models, best.levels = bounds.value, models, levels.copy()
        return True
    return False


def search(
    traces: Traces, choices: list[tuple[int, ...]], best: Best, gap: float, stop_at: float
) -> tuple[float, int, bool]:
    """Improve ``best`` over ``choices``; return the proven bound, the number of boxes, and whether time was left.

    The bound covers ``choices`` alone, and is at most ``best.value``.
    """
    heap: list[tuple[float, int, tuple[int, ...], Ints, Ints, _Bounds]] = []
    number = 0

    def push(models: tuple[int, ...], low: Ints, high: Ints) -> None:
        nonlocal number
        number += 1
        bounds = _bounds(traces, models, low, high)
        if bounds.allowed and bounds.correct >= traces.floor and bounds.value < best.value:
            heapq.heappush(heap, (bounds.value, number, models, low, high, bounds))

    for done, models in enumerate(choices):
        if time.perf_counter() > stop_at:  # the rest has the bound of its first model alone
            left = min(float(traces.value[models[0]].sum()) for models in choices[done:])
            return min(best.value, left, heap[0][0] if heap else math.inf), number, False
        most = np.array([len(traces.thresholds[m]) for m in models[:-1]], dtype=np.int64)
        push(models, np.ones_like(most), most)
    while heap:
        bound = heap[0][0]
        if bound >= best.value * (1 - gap):
            return min(bound, best.value), number, True
        if number > MOST_BOXES or time.perf_counter() > stop_at:
            return bound, number, number > MOST_BOXES
        _, _, models, low, high, bounds = heapq.heappop(heap)
        if bounds.position < 0:  # every threshold vector of the box does the same
            if _offer(traces, models, low, best):
                polish(traces, models, low, best)
            continue
        middle = (low + high) // 2
        if _offer(traces, models, middle, best):
            polish(traces, models, middle, best)
        j, split = bounds.position, bounds.split
        lower, upper = high.copy(), low.copy()
        lower[j], upper[j] = split, split + 1
        push(models, low, lower)
        push(models, upper, high)
    return best.value, number, True
