"""Prices on "each device at most once": the bound they give, and the same bound with memory (ng-routes).

The price of a device is paid for each of its stages and refunded once per copy, so for any prices >= 0 the cheapest
path bounds every plan from below. Memory forbids the relaxed path to come back to a device while the devices in
between remember it; which device remembers which is grown along the cycles of the relaxed optimum
(Roberti & Mingozzi 2014, doi:10.1287/trsc.2013.0474, for routing).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.large import kernels_memory, kernels_prices
from edgeopt_solvers.chain.large.clock import Clock
from edgeopt_solvers.chain.large.view import Array, Ints, Path, View, device_fields

__all__ = ["Completions", "Memory", "Prices", "plain_completions", "raise_prices"]

Masks = NDArray[np.uint64]

#: Labels that one step of the bound with memory may have.
MOST_LABELS = 4_000_000

#: Part of the gap that a step looks ahead of the best bound: less means fewer labels, but more steps that only say so.
AHEAD = 0.03

#: Elements on either side of a cycle's stage whose memory grows with it.
SPREAD = 5

#: Price steps without memory that better no bound, after which they get shorter.
PLAIN_PATIENCE = 12

#: Most stages from a device back to itself for the cycles that are remembered first; doubled whenever prices settle.
FIRST_CYCLE = 12

#: Weight of the last direction of the price steps; steps without progress before they are halved; and their limits.
MOMENTUM, PATIENCE, SMALLEST_STEP, RESTARTED_STEP = 0.8, 15, 0.03, 0.25


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices, what they prove, and the cheapest path without repeats met on the way (empty if none).

    ``closed`` and ``opened`` are (L + 1, G): cheapest way on after ending, or before starting, a segment there.
    """

    price: Array
    bound: float
    base: float
    closed: Array
    opened: Array
    path: Path


@dataclass(frozen=True, slots=True)
class Completions:
    """Lists of (value, devices used), cheapest first: entries ``start`` to ``stop`` - 1 for a state.

    ``start`` and ``stop`` are (2, L + 1, G): [0] after a segment ended, [1] before one starts.
    """

    price: Array
    start: NDArray[np.int32]
    stop: NDArray[np.int32]
    value: Array
    mask: Masks

    def packed(self) -> list[tuple[Ints, Array, Masks]]:
        """Lists after a segment ended, and before one starts, each without gaps: starts (states + 1), values, masks.

        For devices with one copy. The device about to start is not in its masks.
        """
        num_levels, num_devices = self.start.shape[1:]
        own = np.left_shift(np.uint64(1), np.tile(np.arange(num_devices, dtype=np.uint64), num_levels))
        lists = []
        for kind in (0, 1):
            first = self.start[kind].ravel().astype(np.int64)
            sizes = self.stop[kind].ravel() - first
            starts = np.concatenate([[0], np.cumsum(sizes)])
            index = np.repeat(first - starts[:-1], sizes) + np.arange(starts[-1])
            mask = self.mask[index] & ~np.repeat(own, sizes) if kind else self.mask[index]
            lists.append((starts, self.value[index], mask))
        return lists


def raise_prices(
    view: View,
    link_into: Array,
    clock: Clock,
    *,
    start: Array | None,
    target: float,
    iterations: int,
) -> Prices:
    """Subgradient steps from ``start`` (default 0) towards the cost ``target`` of a known plan."""
    price = np.zeros(view.num_devices) if start is None else start.copy()
    closed = np.full((view.num_elements + 1, view.num_devices), np.inf)
    opened = np.full_like(closed, np.inf)
    bound, _, stages, length, _ = kernels_prices.ascend(
        view.prefix, view.last_end, view.min_segment, view.link, link_into, view.page, view.enter, view.leave,
        view.copies, price, target, iterations, PLAIN_PATIENCE, closed, opened, clock.stop,
    )  # fmt: skip
    path = [(int(device), int(end)) for device, end in stages[:length]]
    return Prices(price, float(bound), float(price @ view.copies), closed, opened, path)


def plain_completions(prices: Prices) -> Completions:
    """Completion bounds without memory: one entry each, no devices remembered."""
    value = np.concatenate([prices.closed.ravel(), prices.opened.ravel()])
    start = np.arange(value.size, dtype=np.int32).reshape(2, *prices.closed.shape)
    return Completions(prices.price, start, start + np.int32(1), value, np.zeros(value.size, np.uint64))


class Memory:
    """Bound with memory, raised by price steps; each step also lets devices remember the cycles just met.

    Which devices are remembered depends on the element: memory grows only around the places where a cycle ran, and
    short cycles come first. Steps look for paths just above the best bound only, so labels beyond it cost nothing.

    Attributes
    ----------
    bound, price
        Best bound and its prices.
    elementary
        Cheapest path without repeats met on the way, and its cost.
    remembers : (L + 1, G)
        Which devices a path at a cut and device still knows it was on, a bit each.
    full
        Whether the labels of a step no longer fit.
    work
        Candidates looked at so far.
    """

    def __init__(self, view: View, prices: Prices, most_labels: int = MOST_LABELS) -> None:
        self._view = view
        self._backwards = view.reversed()
        self._backwards_into = np.ascontiguousarray(self._backwards.link.transpose(0, 2, 1))
        self._copies = view.copies
        shifts, _, _ = device_fields(view)
        # only a device with one copy can be remembered by one bit
        self._bit = np.where(self._copies == 1, np.left_shift(np.uint64(1), shifts), np.uint64(0))
        shape = (view.num_elements + 1, view.num_devices)
        self.remembers = np.zeros(shape, np.uint64)
        self._start, self._stop = np.zeros((2, *shape), np.int32), np.zeros((2, *shape), np.int32)
        self._value, self._mask = np.empty(most_labels), np.empty(most_labels, np.uint64)
        self._onward = np.empty(most_labels, np.int32)
        self.price, self.bound = prices.price.copy(), prices.bound
        self.elementary: tuple[float, Path] = (math.inf, [])
        self.full = False
        self.work = 0
        self._trial, self._direction = self.price.copy(), np.zeros(view.num_devices)
        self._step, self._stalled, self._longest = 1.0, 0, FIRST_CYCLE

    def _evaluate(self, price: Array, limit: float, clock: Clock) -> tuple[float, Path]:
        """Bound at ``price`` and its path; ``inf``: not below ``limit``, ``-inf``: labels do not fit."""
        view, back = self._view, self._backwards
        reach_opened = np.full(self.remembers.shape, np.inf)
        reach_closed = reach_opened.copy()
        kernels_prices.ascend(
            back.prefix, back.last_end, back.min_segment, back.link, self._backwards_into, back.page, back.enter,
            back.leave, self._copies, price.copy(), np.inf, 0, 1, reach_opened, reach_closed, clock.stop,
        )  # fmt: skip
        path = np.empty((view.num_elements + 1, 2), np.int64)
        bound, length, work = kernels_memory.memory_to_go(
            view.prefix, view.last_end, view.min_segment, view.link, view.page, view.enter, view.leave,
            price, float(price @ self._copies), limit, reach_closed[::-1], reach_opened[::-1],
            self.remembers, self._bit, self._start, self._stop, self._value, self._mask, self._onward,
            path, clock.stop,
        )  # fmt: skip
        self.work += int(work)
        return float(bound), [(int(device), int(end)) for device, end in path[:length]]

    def recall(self, remembers: Masks, limit: float, clock: Clock) -> None:
        """Take the memory of an earlier proof, as far as it fits, and the bound it gives at the present prices."""
        self.remembers = np.ascontiguousarray(remembers & np.bitwise_or.reduce(self._bit))
        value, _ = self._evaluate(self.price, limit, clock)
        if value == -math.inf:
            self.remembers[:] = 0
        elif not clock.expired:
            self.bound = max(self.bound, min(value, limit))

    def improve(self, incumbent: float, tolerance: float, steps: int, clock: Clock) -> None:
        """Make ``steps`` steps, fewer when the incumbent is proven, nothing fits any more, or the time is up."""
        target = incumbent - tolerance
        for _ in range(0 if self.full else steps):
            ahead = AHEAD * (incumbent - self.bound)
            limit = target if self.bound + 1.2 * ahead >= target or math.isinf(ahead) else self.bound + ahead
            value, path = self._evaluate(self._trial, limit, clock)
            if clock.expired:
                return
            if math.isinf(value):
                self.full = value < 0
                if value > 0:  # nothing below the limit is left: the limit is proven
                    self.bound, self.price, self._stalled = limit, self._trial.copy(), 0
                if self.full or limit >= target:
                    return
                continue
            if self._move(value, path, incumbent):
                return

    def _move(self, value: float, path: Path, incumbent: float) -> bool:
        """Remember the cycles of a relaxed optimum and step along its subgradient; whether there is none."""
        visits = np.bincount([device for device, _ in path], minlength=self._view.num_devices)
        excess = (visits - self._copies).astype(float)
        if (excess <= 0).all():
            cost = self._view.cost(path)
            if cost < self.elementary[0]:
                self.elementary = (cost, path)
        if value > self.bound + 1e-4 * max(incumbent - self.bound, 0.0) or math.isinf(self.bound):
            self._stalled = 0
        else:
            self._stalled += 1
        if value > self.bound:
            self.bound, self.price = value, self._trial.copy()
        self._remember(path)
        if self._stalled >= PATIENCE:
            self._step, self._stalled = 0.5 * self._step, 0
        if self._step < SMALLEST_STEP:  # prices are settled for this memory: go on to longer cycles
            self._step, self._longest = RESTARTED_STEP, 2 * self._longest
            self._trial, self._direction = self.price.copy(), np.zeros_like(self.price)
            return False
        floor = self._trial <= 0
        excess[floor & (excess < 0)] = 0.0
        if not excess.any():
            return True
        self._direction = excess + MOMENTUM * self._direction
        self._direction[floor & (self._direction < 0)] = 0.0
        if not self._direction.any():  # the last direction cancels the subgradient
            self._direction = excess
        length = self._step * max(incumbent - value, 1e-9 * incumbent) / float(self._direction @ self._direction)
        self._trial = np.maximum(0.0, self._trial + length * self._direction)
        return False

    def _remember(self, path: Path) -> None:
        """Let what lies between two stages of a device remember it, around the elements where it lies."""
        last: dict[int, int] = {}
        for place, (device, _) in enumerate(path):
            if device in last and place - last[device] <= self._longest:
                for between, end in path[last[device] + 1 : place]:
                    self.remembers[max(0, end - SPREAD) : end + SPREAD + 1, between] |= self._bit[device]
            last[device] = place

    def completions(self, limit: float, clock: Clock) -> tuple[float, Completions | None]:
        """Lists at the best prices for labels below a limit, and that limit: lower than asked where labels do not fit.

        They are valid until the next step. ``None``: the time ran out.
        """
        while not clock.expired:
            value, _ = self._evaluate(self.price, limit, clock)
            if value > -math.inf:
                return limit, Completions(self.price, self._start, self._stop, self._value, self._mask)
            limit = self.bound + (limit - self.bound) / 2
        return limit, None
