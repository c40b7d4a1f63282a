"""Routing with many (class, model, device): which of them the interior point sees, at first and after each round."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array

if TYPE_CHECKING:
    from edgeopt_solvers.placement.routing_flows import Flows

__all__ = ["cheapest", "first_columns", "first_prices", "worthwhile"]

#: Columns of every class to begin with; columns added per class and per queue in a round.
FIRST, MORE, FEW_CLASSES = 12, 8, 6


def first_columns(flows: Flows) -> NDArray[np.bool_]:
    """Choose the columns that are cheap at the first prices: for every class, queue and accuracy."""
    prices = first_prices(flows)
    reduced = flows.reduced(prices)
    chosen = cheapest(flows, reduced, FIRST)
    each = (reduced - reduced.min(axis=(1, 2))[:, None, None]) / flows.part[:, None, None]
    kth = np.partition(each, min(FEW_CLASSES, len(each)) - 1, axis=0)[min(FEW_CLASSES, len(each)) - 1]
    chosen |= (each <= kth) & flows.allowed
    _spread(flows, prices[0], chosen)
    if flows.mean_floor is not None or np.isfinite(flows.class_floor).any():
        finite = each[flows.allowed]
        size = float(np.median(finite)) + 1e-300
        for push in (3.0, 10.0, 100.0):
            chosen |= cheapest(flows, each - push * size * flows.accuracy[:, :, None], MORE)
    return chosen


def worthwhile(flows: Flows, reduced: Array, least: Array) -> NDArray[np.bool_]:
    """Mark columns cheaper than the cheapest that the last point saw: the best of every class and queue."""
    saved = np.where(flows.allowed, (least[:, None, None] - reduced) / flows.part[:, None, None], -math.inf)
    cheaper = saved > 0
    k = min(FEW_CLASSES, len(saved))
    kth = -np.partition(-saved, k - 1, axis=0)[k - 1]
    marked: NDArray[np.bool_] = cheaper & (cheapest(flows, reduced, MORE) | (saved >= kth))
    return marked


def cheapest(flows: Flows, reduced: Array, count: int) -> NDArray[np.bool_]:
    """Mark the ``count`` cheapest columns of every class."""
    flat = reduced.reshape(len(reduced), -1)
    kth = np.partition(flat, min(count, flat.shape[1]) - 1, axis=1)[:, min(count, flat.shape[1]) - 1]
    marked: NDArray[np.bool_] = (flat <= kth[:, None]).reshape(reduced.shape) & flows.allowed
    return marked


def first_prices(flows: Flows) -> tuple[Array, float, Array, Array]:
    """Return the prices at which one class of all queries would be indifferent, with its mean network delay."""
    far = np.where(flows.allowed, flows.cost / flows.part[:, None, None], 0.0)
    count = np.maximum(flows.allowed.sum(axis=0), 1)
    delay = np.where(flows.allowed.any(axis=0), far.sum(axis=0) / count, math.inf) / flows.total
    rate = np.where(flows.usable & np.isfinite(delay), flows.instance.service_per_s, 0.0)
    if flows.instance.queue == "device":
        at = (rate.argmax(axis=0), np.arange(rate.shape[1]))
        rate, delay = rate[at], delay[at]
    rate, delay = rate.ravel(), np.where(np.isfinite(delay), delay, 0.0).ravel()

    def priced(level: float) -> Array:
        prices: Array = np.maximum(rate * (level - delay), 1.0)
        return prices

    low, high = 0.0, 1e8 * float((delay + 1 / np.maximum(rate, 1e-300)).min()) + float(delay.max())
    for _ in range(80):
        middle = 0.5 * (low + high)
        load = np.minimum(1 - 1 / np.sqrt(priced(middle)), flows.instance.max_load)
        if float((rate * load).sum()) >= flows.total:
            high = middle
        else:
            low = middle
    prices = np.minimum(priced(high), 1e12)
    return prices, 0.0, np.zeros(len(flows.classes)), np.zeros(len(flows.devices))


def _spread(flows: Flows, prices: Array, chosen: NDArray[np.bool_]) -> None:
    """Add columns through which all queries fit the queues as loaded at the prices, side by side."""
    rate = np.where(flows.usable, flows.instance.service_per_s, 0.0)
    if flows.instance.queue == "device":
        rate = np.where(np.arange(len(rate))[:, None] == rate.argmax(axis=0), rate, 0.0)
    load = np.minimum(1 - 1 / np.sqrt(np.maximum(prices, 1.0)), flows.instance.max_load)
    room = rate * (load.reshape(rate.shape) if flows.instance.queue == "server" else load)
    ends = np.cumsum(room.T.ravel())  # device by device
    if not ends[-1] > 0:
        return
    ends /= ends[-1]
    wanted = np.concatenate([[0.0], np.cumsum(flows.part)])
    first = np.searchsorted(ends, wanted[:-1], side="right")
    last = np.searchsorted(ends, np.minimum(wanted[1:], ends[-1]), side="left")
    M = len(rate)
    for c in range(len(flows.classes)):
        at = np.arange(first[c], min(int(last[c]), len(ends) - 1) + 1)
        chosen[c, at % M, at // M] |= flows.allowed[c, at % M, at // M]
