"""Local search over kept variants: at a price on quality, every request takes its cheapest way on its own.

A move clears at most two variants off a node for one that then fits. The price is the least at which the requests,
each on its own, keep the floor; it is found anew whenever no move helps any more.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.placement.deployment import Deployment
from edgeopt_solvers.placement.deployment_ways import Ways, cheapest
from edgeopt_solvers.placement.tree import Bits

__all__ = ["Neighbourhood"]

#: Steps that narrow the price of quality, and how often it is found anew for one plan.
HALVINGS, ROUNDS = 40, 4

#: Decisions that a kick turns over.
KICKED = 3


class Neighbourhood:
    """Kept variants of one instance, (J, N), and what they are worth."""

    def __init__(self, instance: Deployment, ways: Ways, at: NDArray[np.int64], limit: Array, seed: int) -> None:
        self.instance, self.ways, self.limit = instance, ways, limit
        self._needs, self._at = at >= 0, np.maximum(at, 0)
        self._starts = np.flatnonzero(np.r_[True, np.diff(ways.demand) > 0])
        self._rng = np.random.default_rng(seed)
        useful = np.zeros(instance.num_variants * instance.num_nodes, bool)
        useful[at[at >= 0]] = True
        self._useful = useful.reshape(instance.num_variants, instance.num_nodes)

    def value(self, kept: Bits) -> float:
        """Mean seconds of the best use of what is kept; ``inf``: it cannot serve all, or misses the floor."""
        found = cheapest(self.ways, self._usable(kept), self.instance.min_quality)
        return math.inf if found is None else found[0]

    def improve(self, kept: Bits, stop_at: float) -> Bits:
        """Make moves while they help, and end at the best use met."""
        best, best_value = kept, self.value(kept)
        now = kept.copy()
        for _ in range(ROUNDS):
            price = self._price(now)
            moved = self._descend(now, price, stop_at)
            value = self.value(now)
            if value < best_value:
                best, best_value = now.copy(), value
            elif not moved:
                break
            if self.instance.min_quality is None or time.perf_counter() > stop_at:
                break
        return best

    def kicked(self, kept: Bits) -> Bits:
        """Return another plan near by: some decisions turned over, as far as memory allows."""
        other = kept.copy()
        choices = np.argwhere(self._useful)
        for j, n in choices[self._rng.integers(len(choices), size=KICKED)].tolist():
            other[j, n] = False
            held = np.flatnonzero(other[:, n])
            if not kept[j, n]:
                self._rng.shuffle(held)
                other[j, n] = True
                for gone in held.tolist():
                    if self._room(other, n) >= 0:
                        break
                    other[gone, n] = False
                if self._room(other, n) < 0:
                    other[j, n] = False
        return other

    def _usable(self, kept: Bits) -> Bits:
        return np.where(self._needs, kept.ravel()[self._at], True)

    def _room(self, kept: Bits, n: int) -> float:
        return float(self.limit[n] - self.instance.variant_bytes[kept[:, n]].sum())

    def _cost(self, reduced: Array, kept: Bits) -> float:
        least = np.minimum.reduceat(np.where(self._usable(kept), reduced, np.inf), self._starts)
        return float(least @ self.ways.weight) if len(least) == self.ways.num_demands else math.inf

    def _price(self, kept: Bits) -> float:
        """Seconds per unit of quality from which on the floor is kept; without a floor 0."""
        floor = self.instance.min_quality
        if floor is None:
            return 0.0
        usable, ways = self._usable(kept), self.ways
        spread = float(np.ptp(ways.seconds)) / max(float(np.ptp(ways.quality)), 1e-12)

        def quality(price: float) -> float:
            reduced = np.where(usable, ways.seconds - price * ways.quality, np.inf)
            order = np.lexsort((-ways.quality, reduced, ways.demand))
            return float(ways.weight @ ways.quality[order[self._starts]])

        low, high = 0.0, spread
        if quality(0.0) >= floor:
            return 0.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if quality(middle) >= floor else (middle, high)
        return high

    def _descend(self, kept: Bits, price: float, stop_at: float) -> bool:
        """First improvement, node after node, in place; whether anything moved."""
        reduced = self.ways.seconds - price * self.ways.quality
        value, any_moved, since = self._cost(reduced, kept), False, 0
        for n in itertools.cycle(range(self.instance.num_nodes)):
            column, moved = kept[:, n].copy(), False
            for gone, new in self._moves(kept, n):
                kept[gone, n], kept[new, n] = False, True
                trial = self._cost(reduced, kept)
                if trial < value and (value == math.inf or value - trial > 1e-12 * abs(value)):  # it may be negative
                    value, moved = trial, True
                    break
                kept[:, n] = column
            since = 0 if moved else since + 1
            any_moved |= moved
            if since >= self.instance.num_nodes or time.perf_counter() > stop_at:
                return any_moved
        return any_moved

    def _moves(self, kept: Bits, n: int) -> Iterator[tuple[list[int], int]]:
        """Variants to clear off a node, and one to keep instead."""
        size = self.instance.variant_bytes
        held, new = np.flatnonzero(kept[:, n]).tolist(), np.flatnonzero(self._useful[:, n] & ~kept[:, n]).tolist()
        room = self._room(kept, n)
        for count in range(3):
            for gone in itertools.combinations(held, count):
                free = room + float(size[list(gone)].sum())
                less = free - (float(size[list(gone)].min()) if gone else 0.0)
                for j in new:
                    if size[j] <= free and (not gone or size[j] > less):  # clearing fewer would not do
                        yield list(gone), j
