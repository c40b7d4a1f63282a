"""What a period allows: prices that refute it, and the segments that plans within it can still use.

The prices of ``kernels_reach`` bound every plan within a period from below by cheapest paths, hand-overs included. A
segment whose cheapest path through it costs more than all copies together is on no plan, so close to the smallest
possible period only some hundred segments are left (reduced-cost fixing); the integer program of ``partition``
decides those.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edgeopt_solvers.chain.large import kernels_reach, labels
from edgeopt_solvers.chain.large.clock import Clock
from edgeopt_solvers.chain.large.labels import Pass
from edgeopt_solvers.chain.large.prices import Prices, plain_completions
from edgeopt_solvers.chain.large.view import Array, Ints, Path, View

__all__ = ["ROUNDING", "Relaxation", "Remaining"]

#: Slack on times that is put down to rounding.
ROUNDING = 1e-11

#: Slack on sums of prices that is put down to rounding; a refutation must exceed it.
PRICE_ROUNDING = 1e-9

#: What a subgradient step aims at, as a share of the price of all copies.
AIM = 0.01

#: Most segments that are listed.
MOST_PIECES = 200_000


@dataclass(frozen=True, slots=True)
class Remaining:
    """Segments that a plan within ``limit`` can use, cheapest path first: (N, 3) device, start, end, and that price."""

    limit: float
    rows: Ints
    through: Array


class Relaxation:
    """Device prices of one view, carried from period to period."""

    def __init__(self, view: View, clock: Clock) -> None:
        self.view, self._clock = view, clock
        self._into = np.ascontiguousarray(view.link.transpose(0, 2, 1))
        self._back = view.reversed()
        self._back_into = np.ascontiguousarray(self._back.link.transpose(0, 2, 1))
        self._copies = view.copies.astype(float)
        # a device is worth what it can carry: the inverse of its time for the whole chain
        whole = view.prefix[:, -1]
        self.price = 1.0 / np.maximum(whole, max(1e-6 * float(whole.max()), 1e-300))
        self.price /= self.price @ self._copies
        shape = (view.num_elements + 1, view.num_devices)
        self._closed, self._opened = np.empty(shape), np.empty(shape)
        self._path = np.empty((view.num_elements + 1, 2), np.int64)

    def refute(self, period: float, iterations: int) -> tuple[float, Path]:
        """Improve the prices against ``period``; return what a cheapest path exceeds all copies by, or a plan.

        A value above 0 proves that no plan keeps the period; the path is empty unless it is a plan that does.
        """
        view = self.view
        excess, length, _ = kernels_reach.balance(
            view.prefix, view.last_end, view.min_segment, view.link, self._into, view.page, view.enter, view.leave,
            view.copies, period * (1 + ROUNDING), self.price, iterations, AIM, self._closed, self._opened, self._path,
            self._clock.stop,
        )  # fmt: skip
        path = [(int(device), int(end)) for device, end in self._path[:length]]
        return (float(excess) if excess > PRICE_ROUNDING else min(float(excess), 0.0)), path

    def first_open(self, periods: Array, low: int, high: int) -> int:
        """First index from ``low`` to ``high`` of the ascending ``periods`` that the present prices do not refute."""
        view = self.view
        budget = float(self.price @ self._copies) * (1 + PRICE_ROUNDING)
        return int(
            kernels_reach.farthest(
                view.prefix, view.last_end, view.min_segment, self._into, view.page, view.enter, view.leave,
                periods * (1 + ROUNDING), low, high, self.price, budget, self._closed, self._opened,
            )
        )  # fmt: skip

    def _tables(self, view: View, into: Array, limit: float, price: Array) -> tuple[Ints, Array, Array, float]:
        reach = np.empty((view.num_devices, view.num_elements + 1), np.int64)
        kernels_reach.reach_within(view.prefix, view.last_end, limit, reach)
        closed, opened = np.empty_like(self._closed), np.empty_like(self._closed)
        queue = np.empty((view.num_devices, view.num_elements + 2), np.int32)
        value = kernels_reach.value_to_go(
            reach, view.min_segment, into, view.page, view.enter, view.leave, limit, price, closed, opened, queue
        )
        return reach, closed, opened, float(value)

    def remaining(self, period: float) -> Remaining:
        """List the segments that the present prices leave to plans within ``period``."""
        limit = period * (1 + ROUNDING)
        reach, closed, _, _ = self._tables(self.view, self._into, limit, self.price)
        _, before, _, _ = self._tables(self._back, self._back_into, limit, self.price)
        before = before[::-1].copy()
        rows, through, count = kernels_reach.pieces(
            reach, self.view.min_segment, self.price, before, closed,
            float(self.price @ self._copies) * (1 + PRICE_ROUNDING), MOST_PIECES,
        )  # fmt: skip
        if count > MOST_PIECES:
            raise OverflowError
        order = np.argsort(through, kind="stable")
        return Remaining(period, rows[order], through[order])

    def beam(self, period: float, width: int) -> Pass:
        """Search for a plan within ``period`` by labels, pruned by the prices; ``cut_off`` is ``inf``: there is none.

        Costs are prices only, scaled up so that any excess is above the search's tolerance.
        """
        allowed = _within(self.view, period)
        scale = 1.0 / PRICE_ROUNDING
        price = self.price * scale
        _, closed, opened, _ = self._tables(self.view, self._into, period * (1 + ROUNDING), price)
        prices = Prices(price, 0.0, 0.0, closed, opened, [])
        return labels.search(allowed, plain_completions(prices), self._clock, incumbent=2.0, tolerance=0.5, width=width)


def _within(view: View, period: float) -> View:
    """The view with only what takes at most ``period``, at no cost."""
    limit = period * (1 + ROUNDING)
    reach = np.empty_like(view.last_end)
    kernels_reach.reach_within(view.prefix, view.last_end, limit, reach)

    def free(cost: Array) -> Array:
        return np.where(cost <= limit, 0.0, np.inf)

    return replace(
        view, prefix=np.zeros_like(view.prefix), last_end=reach, link=free(view.link), enter=free(view.enter),
        leave=free(view.leave),
    )  # fmt: skip
