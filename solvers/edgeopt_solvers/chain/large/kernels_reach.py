# mypy: allow-untyped-defs
"""Compiled: the relaxation of a period, priced per device.

Within a period tau every segment and every hand-over is either possible or not, so a plan is a path of possible ones,
and the only other rule is that each device is used once per copy. With prices >= 0 on the devices, a cheapest
path (repeats allowed) that costs more than all copies together proves that no plan keeps tau. Each evaluation takes
O(L G^2) steps: ``opened[cut, d]`` is the cheapest way on when d is about to start a segment at cut, its price
included, and ``closed[cut, d]`` the cheapest way on after d ended one there.
"""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["balance", "farthest", "pieces", "reach_within", "value_to_go"]


@njit(cache=True, nogil=True)
def reach_within(prefix, last_end, limit, reach):
    """Fill ``reach[d, cut]``: the farthest end of a segment of d that starts at cut and takes at most ``limit``."""
    num_devices, num_cuts = prefix.shape
    for d in range(num_devices):
        end = 0
        for cut in range(num_cuts):
            end = max(end, cut)
            while end < last_end[d, cut] and prefix[d, end + 1] - prefix[d, cut] <= limit:
                end += 1
            reach[d, cut] = end


@njit(cache=True, nogil=True)
def value_to_go(reach, min_segment, link_into, page, enter, leave, limit, price, closed, opened, queue):
    """Fill ``closed`` and ``opened`` (L + 1, G); return the price of the cheapest path."""
    num_devices, num_elements = reach.shape[0], reach.shape[1] - 1
    head = np.zeros(num_devices, np.int64)
    tail = np.zeros(num_devices, np.int64)
    for d in range(num_devices):
        closed[num_elements, d] = 0.0 if leave[d] <= limit else np.inf
        opened[num_elements, d] = np.inf
    for cut in range(num_elements - 1, -1, -1):
        newest = cut + min_segment
        row = closed[cut]
        for d in range(num_devices):
            row[d] = np.inf
            if newest <= num_elements and closed[newest, d] < np.inf:
                value, t = closed[newest, d], tail[d]
                while t > head[d] and closed[queue[d, t - 1], d] > value:
                    t -= 1
                queue[d, t] = newest
                tail[d] = t + 1
            while head[d] < tail[d] and queue[d, head[d]] > reach[d, cut]:
                head[d] += 1
            opened[cut, d] = price[d] + closed[queue[d, head[d]], d] if head[d] < tail[d] else np.inf
        if cut == 0:
            break
        matrix = link_into[page[cut]]
        for e in range(num_devices):
            onward = opened[cut, e]
            if onward < np.inf:
                into = matrix[e]
                for d in range(num_devices):  # element-wise minimum: vectorised
                    value = onward if into[d] <= limit else np.inf
                    row[d] = value if value < row[d] else row[d]
    best = np.inf
    for d in range(num_devices):
        if enter[d] <= limit and opened[0, d] < best:
            best = opened[0, d]
    return best


@njit(cache=True, nogil=True)
def _cheapest_path(reach, min_segment, link_from, page, enter, limit, closed, opened, path):
    """Follow the tables; among equal ends the farthest is taken. Return the number of stages in ``path``."""
    num_devices, num_elements = reach.shape[0], reach.shape[1] - 1
    device, cheapest = -1, np.inf
    for d in range(num_devices):
        if enter[d] <= limit and opened[0, d] < cheapest:
            cheapest, device = opened[0, d], d
    cut, length = 0, 0
    while True:
        cheapest, end = np.inf, -1
        for e in range(cut + min_segment, reach[device, cut] + 1):
            if closed[e, device] <= cheapest:
                cheapest, end = closed[e, device], e
        path[length, 0], path[length, 1] = device, end
        length += 1
        cut = end
        if cut == num_elements:
            return length
        cheapest = np.inf
        row = link_from[page[cut], device]
        for e in range(num_devices):
            if row[e] <= limit and opened[cut, e] < cheapest:
                cheapest, device = opened[cut, e], e


@njit(cache=True, nogil=True)
def balance(
    prefix, last_end, min_segment, link_from, link_into, page, enter, leave, copies, limit,
    price, iterations, aim, closed, opened, path, stop,
):  # fmt: skip
    """Subgradient steps on the excess of the cheapest path over all copies, prices kept at a sum of 1 over copies.

    ``price`` ends as the best prices. Returns (excess, stages of a path that is a plan or 0, steps); an excess above 0
    proves that no plan keeps ``limit`` (``inf``: there is no path at all).
    """
    num_devices, num_elements = prefix.shape[0], prefix.shape[1] - 1
    reach = np.empty((num_devices, num_elements + 1), np.int64)
    queue = np.empty((num_devices, num_elements + 2), np.int32)
    reach_within(prefix, last_end, limit, reach)
    best_price = price.copy()
    direction = np.zeros(num_devices)
    visits = np.zeros(num_devices, np.int64)
    best, step, stalled, steps = -np.inf, 1.0, 0, 0
    while steps < iterations and stop[0] == 0:
        steps += 1
        total = 0.0
        for d in range(num_devices):
            total += price[d] * copies[d]
        for d in range(num_devices):
            price[d] /= total
        value = value_to_go(reach, min_segment, link_into, page, enter, leave, limit, price, closed, opened, queue)
        if value == np.inf:
            return np.inf, 0, steps
        value -= 1.0
        length = _cheapest_path(reach, min_segment, link_from, page, enter, limit, closed, opened, path)
        visits[:] = 0
        for z in range(length):
            visits[path[z, 0]] += 1
        repeated = False
        for d in range(num_devices):
            repeated = repeated or visits[d] > copies[d]
        if value > best + 1e-6 or best == -np.inf:
            best, stalled = value, 0
            best_price[:] = price
        else:
            stalled += 1
        if not repeated:
            price[:] = best_price
            return best, length, steps
        if best > 1e-9:
            break
        if stalled >= 12:
            step *= 0.6
            stalled = 0
            price[:] = best_price
            direction[:] = 0.0
            if step < 1e-3:
                break
            continue
        distance = 0.0
        for d in range(num_devices):
            slope = float(visits[d] - copies[d])
            if price[d] <= 0.0 and slope < 0:
                slope = 0.0
            direction[d] = slope + 0.3 * direction[d]
            if price[d] <= 0.0 and direction[d] < 0.0:
                direction[d] = 0.0
            distance += direction[d] * direction[d]
        if distance == 0.0:
            break
        for d in range(num_devices):
            price[d] = max(0.0, price[d] + step * (aim - value) / distance * direction[d])
    price[:] = best_price
    return best, 0, steps


@njit(cache=True, nogil=True)
def farthest(
    prefix, last_end, min_segment, link_into, page, enter, leave, limits, low, high, price, budget, closed, opened
):
    """First index from ``low`` to ``high`` whose limit the prices do not disprove (disproof is monotone)."""
    num_devices, num_elements = prefix.shape[0], prefix.shape[1] - 1
    reach = np.empty((num_devices, num_elements + 1), np.int64)
    queue = np.empty((num_devices, num_elements + 2), np.int32)
    while low < high:
        middle = (low + high) // 2
        limit = limits[middle]
        reach_within(prefix, last_end, limit, reach)
        value = value_to_go(reach, min_segment, link_into, page, enter, leave, limit, price, closed, opened, queue)
        if value > budget:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True, nogil=True)
def pieces(reach, min_segment, price, before, closed, budget, most):
    """Segments on paths that cost at most ``budget``: rows (device, start, end), their paths' prices, and how many.

    ``before[cut, d]`` is the cheapest way to reach cut with d about to start. The count may exceed ``most``, the rows
    do not.
    """
    num_devices, num_elements = reach.shape[0], reach.shape[1] - 1
    rows = np.empty((most, 3), np.int64)
    through = np.empty(most)
    count = 0
    for d in range(num_devices):
        for cut in range(num_elements):
            paid = before[cut, d] + price[d]
            if not paid <= budget:
                continue
            for end in range(cut + min_segment, reach[d, cut] + 1):
                if paid + closed[end, d] <= budget:
                    if count < most:
                        rows[count, 0], rows[count, 1], rows[count, 2] = d, cut, end
                        through[count] = paid + closed[end, d]
                    count += 1
    return rows[: min(count, most)], through[: min(count, most)], count
