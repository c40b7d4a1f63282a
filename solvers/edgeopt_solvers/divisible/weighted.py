"""The weighted sum w τ + v E: a branch and bound over intervals of the makespan τ.

*Links of one's own.* G(τ), the least energy within τ, falls in τ, so that the objective on [τ1, τ2] is at least
w τ1 + v G(τ2). Loads found at τ2 settle [their own level, τ2] at once.

*Shared medium.* That bound loses w (τ2 − τ1), and τ matters to every share. With a price ν >= 0 on the medium, loads h
that need all of it at τ cost

    w τ + v E(h) + ν (Σ_d s_dh(τ) − 1),     s_dh(τ) = a_dh / (τ − o_dh)

s is convex in τ; with its tangent at a point of the interval in its place this is linear in τ for given loads, so that

    min over h, τ1 <= τ <= τ2   >=   min over i = 1, 2 of   w τi − ν + min over h of v E(h) + ν Σ_d tangent_dh(τi)

loses only O((τ2 − τ1)²), and at the best ν its slope in τ vanishes near the optimum. Loads that need more than the
medium at τ2 are left out. The inner minimum over loads is bounded by prices while that closes intervals, and solved
exactly (``choice.py``) where the interval is so narrow that the prices, not its width, keep it open. Loads that leave
some of the medium over at τ1 may still cost less here than they are worth at their own, smaller level; the first bound,
w τ1 + v G(τ2), has no part in that and closes what is left.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgeopt_solvers.bandwidth.validate import Array
from edgeopt_solvers.divisible.choice import Task, cheapest, priced, quick

if TYPE_CHECKING:
    from edgeopt_solvers.divisible.exact import Search

__all__ = ["weigh"]

#: Part of the gap that the width of an interval may cost before loads decide instead of prices.
WIDTH = 0.5

#: Intervals at whose middle good loads are looked for.
QUICK = 24

#: Part of the gap asked for at which intervals are closed, so that rounding does not reopen them.
CLOSED = 0.9

#: Slack below the least makespan: it is known to this.
BELOW = 2e-9


def weigh(search: Search, fastest_s: float) -> None:
    """Minimise the weighted sum; ``fastest_s``: the least makespan."""
    least = search.least_energy(search.max_s, search.max_j)
    assert least is not None, "the fastest loads keep every limit"
    search.offer(least)
    energy = search.table.energy_j(least)
    low, high = fastest_s * (1 - BELOW), min(search.table.level_s(least), search.max_s)
    if search.table.has_medium:
        _over_the_medium(search, low, high, energy)
    else:
        _over_links(search, low, high, energy)


def _over_links(search: Search, low: float, high: float, energy: float) -> None:
    """Halve intervals (bound, left, right, energy): plans that end within left..right need ``energy`` or more."""
    w, v = search.weight, search.energy_weight
    heap = [(w * low + v * energy, low, high, energy)] if high > low else []
    cut = max(search.proven, search.gap)
    settled = math.inf
    while heap and min(heap[0][0], settled) < search.objective * (1 - cut):
        search.bound = max(search.bound, min(heap[0][0], settled))
        bound, left, right, energy = heapq.heappop(heap)
        middle = 0.5 * (left + right)
        if not left < middle < right:
            settled = min(settled, bound)
            continue
        heapq.heappush(heap, (w * middle + v * energy, middle, right, energy))
        ceiling = min(search.max_j, (search.objective - w * left) / v * (1 + 1e-9))
        loads = search.least_energy(middle, ceiling)
        if loads is None:  # nothing better ends within the interval
            continue
        search.offer(loads)
        energy = max(energy, search.table.energy_j(loads))
        right = min(middle, search.table.level_s(loads)) * (1 - 1e-12)
        if right > left:
            heapq.heappush(heap, (w * left + v * energy, left, right, energy))
    search.bound = max(search.bound, min(heap[0][0] if heap else search.objective, settled, search.objective))


@dataclass(frozen=True, slots=True)
class _Piece:
    """An interval with its price ν (J per medium), and the costs of all loads at both ends: v E + ν · tangent."""

    ends: tuple[float, float]
    nu: float
    costs: tuple[Array, Array]
    second: Array

    def tasks(self, search: Search, *, medium: bool) -> list[tuple[float, Task]]:
        """Return for each end what adds to the cost of loads, and the choice of loads."""
        H, K = search.instance.num_units, search.most_devices
        second = self.second if medium else None
        return [
            (search.weight * end - self.nu, Task(cost, H, K, second, 1.0))
            for end, cost in zip(self.ends, self.costs, strict=True)
        ]


def _piece(search: Search, left: float, right: float, nu: float) -> _Piece:
    table, v = search.table, search.energy_weight
    share = table.shares_at(right)
    possible = np.isfinite(share)
    sends = possible & (table.seconds > 0)
    # where the tangent touches: in the middle, but where the share is at most 1, and not far below the right end
    touch = np.maximum(0.5 * (left + right), table.offset + table.seconds)
    touch = np.minimum(np.maximum(touch, 0.5 * (table.offset + right)), right)
    with np.errstate(divide="ignore", invalid="ignore"):
        at = np.where(sends, table.seconds / (touch - table.offset), 0.0)
        slope = np.where(sends, at / (touch - table.offset), 0.0)
    base = np.where(possible, v * table.joules, math.inf)
    first, last = (base + nu * (at - slope * (end - touch)) for end in (left, right))
    return _Piece((left, right), nu, (first, last), np.where(possible, share, 0.0))


def _over_the_medium(search: Search, low: float, high: float, energy: float) -> None:
    """Halve intervals (bound, left, right, deep): ``deep``: prices cannot close them."""
    w, v, cut = search.weight, search.energy_weight, CLOSED * max(search.proven, search.gap)
    heap = [(w * low + v * energy, low, high, False)] if high > low else []
    settled, looked = math.inf, 0
    while heap and min(heap[0][0], settled) < search.objective * (1 - cut):
        search.bound = max(search.bound, min(heap[0][0], settled))
        bound, left, right, deep = heapq.heappop(heap)
        middle = 0.5 * (left + right)
        if not left < middle < right:
            settled = min(settled, bound)
            continue
        if looked < QUICK:
            looked += 1
            _, choice = quick(search.energy_task(middle), search.max_j, search.stop_at)
            if choice is not None:
                search.offer(choice.loads)
        search.num_bounds += 1
        middle_j, nu = priced(search.energy_task(middle), search.stop_at)
        if not math.isfinite(middle_j):
            middle_j, nu = priced(search.energy_task(right), search.stop_at)
        if not math.isfinite(middle_j):
            continue  # nothing ends by the right end
        piece = _piece(search, left, right, v * nu)
        target = search.objective * (1 - cut)
        if not deep:
            lower = min(plus + priced(task, search.stop_at)[0] for plus, task in piece.tasks(search, medium=False))
            bound = max(bound, lower)
            center = w * middle + v * middle_j
            deep = center < target and center - bound <= WIDTH * (search.objective - center)
        if deep and bound < target:
            bound = max(bound, _exactly(search, piece, target))
        if deep and bound < target:
            loads = search.least_energy(right, min(search.max_j, (target - w * left) / v))
            if loads is None:
                bound = max(bound, target)
            else:
                search.offer(loads)
                bound = max(bound, w * left + v * search.table.energy_j(loads))
                right = min(right, search.table.level_s(loads) * (1 - 1e-12))
        if bound >= target or right <= left:
            settled = min(settled, bound)
            continue
        middle = 0.5 * (left + right)
        for part in ((left, middle), (middle, right)):
            heapq.heappush(heap, (bound, *part, deep))
    search.bound = max(search.bound, min(heap[0][0] if heap else search.objective, settled, search.objective))


def _exactly(search: Search, piece: _Piece, target: float) -> float:
    """Return a bound on the interval from the best loads at both ends of it, at least ``target`` if there are none."""
    bound = math.inf
    for plus, task in piece.tasks(search, medium=True):
        search.num_choices += 1
        choice = cheapest(task, target - plus, search.stop_at)
        if choice is None:
            bound = min(bound, target)
            continue
        search.offer(choice.loads)
        bound = min(bound, plus + choice.cost)
    return bound
