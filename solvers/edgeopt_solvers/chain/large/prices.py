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


#: States per element that the tables of the bound with memory may have.
MOST_STATES = 40_000


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
    path_cost: float


@dataclass(frozen=True, slots=True)
class Completions:
    """Lists of (value, devices used) per (element, device), for labels that ended or that start a segment."""

    price: Array
    closed: tuple[Ints, Array, NDArray[np.uint64]]
    opened: tuple[Ints, Array, NDArray[np.uint64]]


def raise_prices(
    view: View,
    link_into: Array,
    clock: Clock,
    *,
    start: Array | None,
    target: float,
    iterations: int,
    patience: int = 12,
) -> Prices:
    """Subgradient steps from ``start`` (default 0) towards the cost ``target`` of a known plan."""
    price = np.zeros(view.num_devices) if start is None else start.copy()
    closed = np.full((view.num_elements + 1, view.num_devices), np.inf)
    opened = np.full_like(closed, np.inf)
    bound, cost, stages, length, _ = kernels_prices.ascend(
        view.prefix, view.last_end, view.min_segment, view.link, link_into, view.page, view.enter, view.leave,
        view.copies, price, target, iterations, patience, closed, opened, clock.stop,
    )  # fmt: skip
    path = [(int(device), int(end)) for device, end in stages[:length]]
    return Prices(price, float(bound), float(price @ view.copies), closed, opened, path, float(cost))


def plain_completions(prices: Prices) -> Completions:
    """Completion bounds without memory: one entry each, no devices remembered."""
    states = np.arange(prices.closed.size + 1)
    nothing = np.zeros(prices.closed.size, np.uint64)
    return Completions(prices.price, (states, prices.closed.ravel(), nothing), (states, prices.opened.ravel(), nothing))


class Memory:
    """Bound with memory, raised by alternating price steps and growth of what devices remember."""

    def __init__(self, view: View, link_into: Array, prices: Prices, most_remembered: int = 14) -> None:
        self._view = view
        self._link_into = link_into
        self._first_start = view.first_start()
        self._backwards = view.reversed()
        self._backwards_into = np.ascontiguousarray(self._backwards.link.transpose(0, 2, 1))
        self._most = most_remembered
        self._single = view.copies == 1
        shifts, _, _ = device_fields(view)
        self._bit = np.left_shift(np.uint64(1), shifts)
        self.price = prices.price.copy()
        self.bound = -math.inf
        self.remembers: list[list[int]] = [[] for _ in range(view.num_devices)]
        self.elementary: tuple[float, Path] = (math.inf, [])
        self._step = 1.0
        self.work = 0
        self._build()

    # ── states ───────────────────────────────────────────────────────────────────────────────────────────────

    def _build(self) -> None:
        """Number the states and tabulate which state of d follows which state, for the present memory."""
        num_devices = self._view.num_devices
        sizes = np.array([1 << len(devices) for devices in self.remembers])
        self._offset = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        num_states = int(self._offset[-1])
        self._owner = np.repeat(np.arange(num_devices), sizes)
        subset = np.arange(num_states) - self._offset[self._owner]
        has = np.zeros((num_devices, num_states), bool)  # has[x, s]: state s remembers device x
        for device, devices in enumerate(self.remembers):
            states = slice(self._offset[device], self._offset[device + 1])
            for bit, other in enumerate(devices):
                has[other, states] = (subset[states] >> bit) & 1
        self._mask = (has * self._bit[:, None]).sum(axis=0, dtype=np.uint64)
        update = np.empty((num_states, num_devices), np.int32)
        for device, devices in enumerate(self.remembers):
            after = np.zeros(num_states, np.int64)
            for bit, other in enumerate(devices):
                after |= (has[other] | (self._owner == other)).astype(np.int64) << bit
            update[:, device] = np.where(has[device], -1, self._offset[device] + after)
        self._update = update
        shape = (self._view.num_elements + 1, num_states)
        self._closed, self._opened = np.empty(shape), np.empty(shape)
        self._next_state, self._next_end = np.zeros(shape, np.int32), np.zeros(shape, np.int32)

    def _grow(self, cycles: NDArray[np.int64], per_device: int = 3) -> bool:
        """Let devices remember the repeats that ran over them most often, as far as the tables allow."""
        grown = False
        num_states = int(self._offset[-1])
        for device in np.argsort(-cycles.max(axis=1), kind="stable").tolist():
            for other in np.argsort(-cycles[device], kind="stable")[:per_device].tolist():
                devices = self.remembers[device]
                if not cycles[device, other] or other in devices or len(devices) >= self._most:
                    continue
                if num_states + (1 << len(devices)) > MOST_STATES:
                    return grown
                num_states += 1 << len(devices)
                devices.append(other)
                grown = True
        return grown

    # ── bound ────────────────────────────────────────────────────────────────────────────────────────────────

    def _evaluate(self, price: Array, limit: float, clock: Clock) -> tuple[float, Path]:
        view = self._view
        nowhere = np.full((view.num_elements + 1, view.num_devices), np.inf)
        back_closed, back_opened = nowhere, nowhere.copy()
        back = self._backwards
        kernels_prices.ascend(
            back.prefix, back.last_end, back.min_segment, back.link, self._backwards_into, back.page, back.enter,
            back.leave, view.copies, price.copy(), np.inf, 0, 1, back_closed, back_opened, clock.stop,
        )  # fmt: skip
        path = np.empty((view.num_elements + 1, 2), np.int64)
        bound, length, work = kernels_memory.memory_to_go(
            view.prefix, self._first_start, view.min_segment, self._link_into, view.page, view.enter, view.leave,
            price, float(price @ view.copies), limit, back_closed[::-1], back_opened[::-1],
            self._offset, self._owner, self._update, self._closed, self._opened, self._next_state, self._next_end,
            path, clock.stop,
        )  # fmt: skip
        self.work += int(work)
        return float(bound), [(int(device), int(end)) for device, end in path[:length]]

    def improve(self, incumbent: float, tolerance: float, rounds: int, steps: int, clock: Clock) -> None:
        """Alternate ``steps`` price steps and one growth of the memory, ``rounds`` times at most."""
        limit = incumbent - tolerance
        copies = self._view.copies
        for _ in range(rounds):
            price, round_best, stalled = self.price.copy(), -math.inf, 0
            cycles = np.zeros((self._view.num_devices, self._view.num_devices), np.int64)
            for _ in range(steps):
                value, path = self._evaluate(price, limit, clock)
                if clock.expired:
                    return
                if math.isinf(value):  # nothing below the limit is left: the limit is proven
                    self.bound, self.price = limit, price
                    return
                visits = np.bincount([device for device, _ in path], minlength=self._view.num_devices)
                _count_cycles(path, cycles)
                cycles[:, ~self._single] = 0  # only a device with one copy can be remembered by one bit
                if (visits <= copies).all():
                    self._note(path)
                if value > self.bound:
                    self.bound, self.price = value, price.copy()
                if value > round_best + 1e-5 * (incumbent - value):
                    round_best, stalled = value, 0
                else:
                    stalled += 1
                    if stalled >= 3:
                        self._step, stalled = self._step * 0.6, 0
                slope = (visits - copies).astype(float)
                slope[(price <= 0) & (slope < 0)] = 0.0
                distance = float(slope @ slope)
                if distance == 0:
                    break
                price = np.maximum(
                    0.0, price + self._step * max(incumbent - value, 1e-9 * incumbent) / distance * slope
                )
            self._step = max(self._step, 0.05)
            if self.bound >= limit:
                return
            if self._grow(cycles):
                self._build()

    def _note(self, path: Path) -> None:
        cost = self._view.cost(path)
        if cost < self.elementary[0]:
            self.elementary = (cost, path)

    def completions(self, incumbent: float, tolerance: float, clock: Clock) -> Completions | None:
        """Lists for the label search at the best prices; ``None`` when the time ran out."""
        self._evaluate(self.price, incumbent - tolerance, clock)
        if clock.expired:
            return None
        self._closed[0] = np.inf
        lists = [
            kernels_memory.completion_lists(table, self._offset, self._mask) for table in (self._closed, self._opened)
        ]
        return Completions(self.price, lists[0], lists[1])


def _count_cycles(path: Path, cycles: NDArray[np.int64]) -> None:
    """For each return to a device, count it on every device in between."""
    last: dict[int, int] = {}
    for place, (device, _) in enumerate(path):
        if device in last:
            for between, _ in path[last[device] + 1 : place]:
                cycles[between, device] += 1
        last[device] = place
