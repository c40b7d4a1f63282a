"""Additive objectives (latency, energy, their weighted sum): prices, local search, memory and labels in turn.

Effort is scheduled by work, not by time, so a seed gives the same answer on any machine; the clock only cuts off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edgeopt_solvers.chain.large import labels, local_search
from edgeopt_solvers.chain.large.clock import Clock
from edgeopt_solvers.chain.large.prices import Completions, Masks, Memory, Prices, plain_completions, raise_prices
from edgeopt_solvers.chain.large.view import Array, Path, View

__all__ = ["CLOSED", "Proof", "minimise"]

#: Relative difference below which two costs are the same: rounding of sums of some hundred terms.
ROUNDING = 1e-10

#: Relative distance between an incumbent and its bound that counts as closed.
CLOSED = 1e-9


#: Rough speeds, only to share the effort out: the schedule must not depend on a clock.
MEMORY_WORK_PER_S = 1e8
LABEL_WORK_PER_S = 3e7
SECONDS_PER_MOVE = 3e-6

#: Most steps of the bound with memory between two label passes: a pass may close the gap long before the bound does.
MOST_STEPS = 100


@dataclass(slots=True)
class Proof:
    """Best plan so far, the best proven bound, and what the next proof can start from.

    ``price`` is (G,); ``remembers`` (L + 1, G) has a bit per device with one copy (see :class:`Memory`).
    """

    cost: float = math.inf
    path: Path | None = None
    bound: float = 0.0
    labels: int = 0
    rounds: int = 0
    price: Array | None = None
    remembers: Masks | None = None

    def offer(self, cost: float, path: Path) -> bool:
        """Take a plan if it is better."""
        if cost < self.cost * (1 - ROUNDING) and path:
            self.cost, self.path = cost, path
            return True
        return False

    def raise_to(self, bound: float) -> None:
        """Take a bound if it is better."""
        self.bound = max(self.bound, min(bound, self.cost))

    def within(self, gap: float) -> bool:
        """Whether the gap is proven."""
        return math.isfinite(self.cost) and self.cost - self.bound <= max(gap, CLOSED) * self.cost


class _Search:
    def __init__(self, view: View, clock: Clock, gap: float, seed: int) -> None:
        self.view, self.clock, self.gap, self.seed = view, clock, gap, seed
        self.link_into = np.ascontiguousarray(view.link.transpose(0, 2, 1))
        self.proof = Proof()
        self.labels_s = self.anneal_s = 0.0

    @property
    def tolerance(self) -> float:
        return 0.99 * max(self.gap, CLOSED) * self.proof.cost if math.isfinite(self.proof.cost) else 0.0

    @property
    def done(self) -> bool:
        return self.proof.within(self.gap) or self.proof.bound == math.inf or self.clock.expired

    @property
    def narrow_enough(self) -> bool:
        """Whether the devices fit into the word of a label."""
        return labels.bits_needed(self.view) <= labels.MOST_BITS

    def prices(self, start: Array | None, iterations: int) -> Prices:
        target = self.proof.cost - self.tolerance if self.proof.path else math.inf
        prices = raise_prices(self.view, self.link_into, self.clock, start=start, target=target, iterations=iterations)
        if prices.path:
            self.offer(prices.path)
        self.proof.raise_to(prices.bound)
        self.proof.price = prices.price
        return prices

    def offer(self, path: Path) -> bool:
        return self.proof.offer(self.view.cost(path), path)

    def labels(self, completions: Completions, width: int, limit: float = math.inf) -> bool:
        """One pass, for plans below ``limit`` only; whether it left nothing out."""
        tolerance = self.tolerance
        limit = min(limit, self.proof.cost - tolerance)
        found = labels.search(self.view, completions, self.clock, incumbent=limit, tolerance=0.0, width=width)
        if found.path:
            self.offer(found.path)
            limit = min(limit, found.cost)
        self.proof.labels += found.num_labels
        self.labels_s += found.work / LABEL_WORK_PER_S
        self.proof.rounds += 1
        self.proof.raise_to(min(found.cut_off, limit))  # inf: there is no plan at all
        return found.cut_off == math.inf  # minus infinity: the pass was stopped

    def anneal(self, moves: int, path: Path | None = None) -> None:
        """Local search from ``path``, by default from the best plan."""
        self.seed += 1
        self.anneal_s += moves * SECONDS_PER_MOVE
        start = path or self.proof.path
        assert start is not None
        self.proof.offer(*local_search.improve(self.view, start, self.clock, moves=moves, seed=self.seed))


def minimise(
    view: View,
    clock: Clock,
    *,
    gap: float = 0.0,
    seed: int = 0,
    start: Path | None = None,
    price: Array | None = None,
    remembers: Masks | None = None,
) -> Proof:
    """Find a cheapest path of the view, or the best found with its bound when the clock runs out.

    Parameters
    ----------
    start
        A plan to be improved on.
    price : (G,)
        Prices of devices to start from, for example of an earlier proof; any that are >= 0 give a bound.
    remembers : (L + 1, G)
        Memory of an earlier proof, for example; any is valid.

    Returns
    -------
    Proof
        ``path`` is ``None`` and ``bound`` ``inf`` when there is none; ``path`` is ``None`` and ``bound`` finite when
        none was found in time.
    """
    search = _Search(view, clock, gap, seed)
    if start:
        search.offer(start)
    if remembers is not None and search.proof.path and search.narrow_enough:
        _recall(search, search.prices(price, 1), remembers)
        if search.done:
            return search.proof
    prices = search.prices(price, 80)
    if prices.bound == math.inf:
        search.proof.bound = math.inf
    elif not search.narrow_enough:
        _with_fewer_devices(search, prices)
    else:
        _prove(search, prices)
    return search.proof


def _with_fewer_devices(search: _Search, prices: Prices) -> None:
    """More devices than labels can tell apart: plan on the most promising ones, then drop what cannot do better."""
    view, proof = search.view, search.proof
    ranked = np.argsort(_through(search, prices), kind="stable")
    bits = np.cumsum([int(view.copies[d]).bit_length() for d in ranked])
    chosen = np.sort(ranked[bits <= labels.MOST_BITS])
    inner = minimise(view.keep(chosen), search.clock, gap=max(search.gap, 0.01), seed=search.seed)
    if inner.path:
        search.offer([(int(chosen[d]), end) for d, end in inner.path])
    if search.done or not proof.path:
        return
    prices = search.prices(prices.price, 300)
    useful = np.flatnonzero(_through(search, prices) < proof.cost - search.tolerance)
    reduced = view.keep(useful)
    if search.done or labels.bits_needed(reduced) > labels.MOST_BITS:
        return
    index = {int(d): i for i, d in enumerate(useful)}
    known = [(index[d], end) for d, end in proof.path] if all(d in index for d, _ in proof.path) else None
    inner = minimise(reduced, search.clock, gap=search.gap, seed=search.seed, start=known)
    if inner.path:
        search.offer([(int(useful[d]), end) for d, end in inner.path])
    proof.raise_to(min(inner.bound, proof.cost - search.tolerance))


def _through(search: _Search, prices: Prices) -> Array:
    """Lower bound on every plan that uses a device, for each device."""
    back = search.view.reversed()
    into = np.ascontiguousarray(back.link.transpose(0, 2, 1))
    before = raise_prices(back, into, search.clock, start=prices.price, target=math.inf, iterations=0)
    return np.asarray((before.opened[::-1] + prices.closed).min(axis=0) - prices.base)


def _prove(search: _Search, prices: Prices) -> None:
    """Beams until there is a plan, then a first attempt at the proof; harder instances go on to :func:`_close`."""
    width = 20
    while not search.done and search.labels(plain_completions(prices), width) is False:
        if search.proof.path:
            break
        width = min(10 * width, 1_000_000)  # nothing found yet: look wider
    if search.done:
        return
    search.anneal(1_000)
    prices = search.prices(prices.price, 200)
    if not search.done and not search.labels(plain_completions(prices), 200) and not search.done:
        _close(search, prices)


def _recall(search: _Search, prices: Prices, remembers: Masks) -> None:
    """A first attempt with the memory of an earlier proof: after a small change it often ends the search."""
    memory = Memory(search.view, prices)
    target = search.proof.cost - search.tolerance
    memory.recall(remembers, target, search.clock)
    search.proof.raise_to(memory.bound)
    limit, completions = memory.completions(target, search.clock)
    if completions is not None and not search.done:
        search.labels(completions, 100, limit)
    search.proof.remembers = memory.remembers


def _close(search: _Search, prices: Prices) -> None:
    """Memory, label passes and local search in turn; each gets its share of the work, counted in rough seconds."""
    beam = search.proof.path
    search.anneal(10_000, beam)
    prices = search.prices(prices.price, 300)
    memory = Memory(search.view, prices)
    width, moves, steps = 100, 10_000, 20
    while not search.done:
        memory.improve(search.proof.cost, search.tolerance, steps, search.clock)
        steps = min(steps + steps // 2, MOST_STEPS)
        search.proof.raise_to(memory.bound)
        search.proof.price, search.proof.remembers = memory.price, memory.remembers
        search.offer(memory.elementary[1])
        memory_s = memory.work / MEMORY_WORK_PER_S
        while not search.done and search.anneal_s < 0.3 * (memory_s + search.labels_s):
            best = search.proof.cost
            search.anneal(moves, beam if search.seed % 3 == 0 else None)
            if search.proof.cost == best:
                moves = min(2 * moves, 500_000)
        if search.done or (search.labels_s > memory_s + search.anneal_s and not memory.full):
            continue
        target = search.proof.cost - search.tolerance
        limit, completions = memory.completions(target, search.clock)
        if completions is None or (search.labels(completions, width, limit) and limit >= target):
            return
        if search.labels_s < memory_s or memory.full:
            width = min(2 * width, 1_000_000)
