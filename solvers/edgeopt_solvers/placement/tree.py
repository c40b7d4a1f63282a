"""Branch and bound over yes-no decisions, best bound first; what a node is worth is the caller's business."""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array

__all__ = ["Bits", "Outcome", "branch"]

Bits = NDArray[np.bool_]

#: A relaxed decision nearer than this to 0 or 1 is taken as decided when a branch is chosen.
WHOLE = 1e-6

#: Open nodes kept before the search gives up: each holds two rows of decisions.
MOST_OPEN = 200_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """Proven lower ``bound`` (on everything not worse than the incumbent), and whether every node was closed."""

    bound: float
    finished: bool
    num_nodes: int


def branch(
    low: Bits,
    high: Bits,
    relax: Callable[[Bits, Bits], tuple[float, Array | None]],
    settle: Callable[[Bits, Bits, Array | None], float],
    decisive: int,
    gap: float,
    stop_at: float,
) -> Outcome:
    """Decide ``low <= y <= high`` at the least cost.

    Parameters
    ----------
    low, high : (n,)
        What is decided before: yes where ``low``, no where not ``high``.
    relax
        Returns a lower bound for a node (``inf``: nothing is in it) and relaxed decisions or ``None``.
    settle
        Tries plans near the relaxed decisions of a node and returns the best objective known so far. Where the
        first ``decisive`` decisions are fixed it must try exactly these.
    decisive
        A node is closed when that many first decisions are fixed.
    gap
        Relative gap at which to stop.
    stop_at
        ``time.perf_counter()`` at which to stop.
    """
    best, counter, nodes = math.inf, itertools.count(), 0
    heap: list[tuple[float, int, Bits, Bits]] = [(-math.inf, next(counter), low, high)]
    bound, finished = -math.inf, True
    while heap:
        parent = heap[0][0]
        bound = max(bound, min(parent, best))
        if parent >= best * (1 - gap) - 1e-300 or time.perf_counter() > stop_at or len(heap) > MOST_OPEN:
            finished = parent >= best * (1 - gap) - 1e-300
            return Outcome(bound, finished, nodes)
        _, _, low, high = heapq.heappop(heap)
        nodes += 1
        value, relaxed = relax(low, high)
        value = max(value, parent)
        if value == math.inf:
            continue
        best = min(best, settle(low, high, relaxed))
        free = low != high
        if value >= best or not free[:decisive].any():
            continue
        index = _chosen(free, relaxed, decisive)
        for yes in (True, False):
            left, right = low.copy(), high.copy()
            left[index] = right[index] = yes
            heapq.heappush(heap, (value, next(counter), left, right))
    return Outcome(best, True, nodes)


def _chosen(free: Bits, relaxed: Array | None, decisive: int) -> int:
    """Return the free decision that is farthest from decided; where all are, the first of the decisive ones."""
    if relaxed is not None:
        distance = np.where(free, np.minimum(relaxed, 1 - relaxed), -1.0)
        index = int(distance.argmax())
        if distance[index] > WHOLE:
            return index
        # nothing is torn: what is relaxed to yes is decided first
        leaning = np.flatnonzero(free[:decisive] & (relaxed[:decisive] > 0.5))
        if len(leaning):
            return int(leaning[0])
    return int(np.flatnonzero(free[:decisive])[0])
