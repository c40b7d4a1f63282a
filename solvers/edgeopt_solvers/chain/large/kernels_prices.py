# mypy: allow-untyped-defs
"""Compiled: cost-to-go of the priced relaxation, and subgradient steps on the prices.

The relaxation lets a device hold any number of stages and charges ``price[d]`` for each. ``closed[cut, d]`` is the
cheapest way on after a segment of d ended at cut; ``opened[cut, d]`` the cheapest way on when d is about to start a
segment at cut, its price included. Only values are kept; the path is found again by looking along it.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from edgeopt_solvers.chain.large.kernels_arrays import copy_into

__all__ = ["ascend", "cost_to_go"]


@njit(cache=True, nogil=True)
def cost_to_go(prefix, last_end, min_segment, link_into, page, leave, price, closed, opened, queue, head, tail):
    """Fill ``closed`` and ``opened``; the cheapest end of a window comes from one monotone queue per device."""
    num_devices, num_elements = prefix.shape[0], prefix.shape[1] - 1
    for d in range(num_devices):
        closed[num_elements, d] = leave[d]
        opened[num_elements, d] = np.inf
        head[d] = 0
        tail[d] = 0
    for cut in range(num_elements - 1, -1, -1):
        newest = cut + min_segment
        for d in range(num_devices):
            if newest <= num_elements and closed[newest, d] < np.inf:
                value = prefix[d, newest] + closed[newest, d]
                t = tail[d]
                while t > head[d]:
                    back = queue[d, t - 1]
                    if prefix[d, back] + closed[back, d] < value:
                        break
                    t -= 1
                queue[d, t] = newest
                tail[d] = t + 1
            while head[d] < tail[d] and queue[d, head[d]] > last_end[d, cut]:
                head[d] += 1
            if head[d] < tail[d]:
                end = queue[d, head[d]]
                opened[cut, d] = price[d] + prefix[d, end] + closed[end, d] - prefix[d, cut]
            else:
                opened[cut, d] = np.inf
        for d in range(num_devices):
            closed[cut, d] = np.inf
        if cut == 0:
            break
        matrix = link_into[page[cut]]
        row = closed[cut]
        for e in range(num_devices):
            onward = opened[cut, e]
            if onward < np.inf:
                into = matrix[e]
                for d in range(num_devices):  # element-wise minimum: vectorised
                    value = into[d] + onward
                    row[d] = value if value < row[d] else row[d]


@njit(cache=True, nogil=True)
def ascend(
    prefix, last_end, min_segment, link_from, link_into, page, enter, leave, copies,
    price, target, iterations, patience, closed, opened, stop,
):  # fmt: skip
    """Raise the bound by subgradient steps towards ``target``.

    ``price`` ends as the best prices, ``closed`` and ``opened`` as their tables. Returns the bound (``inf``: there is
    no path at all), the cheapest path met that uses no device too often (its cost, its stages, how many), and the
    number of steps.
    """
    num_devices, num_elements = prefix.shape[0], prefix.shape[1] - 1
    queue = np.empty((num_devices, num_elements + 2), np.int32)
    head = np.empty(num_devices, np.int64)
    tail = np.empty(num_devices, np.int64)
    visits = np.zeros(num_devices, np.int64)
    best_price = price.copy()
    direction = np.zeros(num_devices)
    path = np.empty((num_elements + 1, 2), np.int64)
    found = np.empty((num_elements + 1, 2), np.int64)
    found_cost, found_len = np.inf, 0
    best, step, stalled, steps = -np.inf, 1.0, 0, 0
    while steps < iterations and stop[0] == 0:
        steps += 1
        cost_to_go(prefix, last_end, min_segment, link_into, page, leave, price, closed, opened, queue, head, tail)
        value, device = np.inf, -1
        for e in range(num_devices):
            if enter[e] + opened[0, e] < value:
                value = enter[e] + opened[0, e]
                device = e
        if device < 0:
            return np.inf, np.inf, found, 0, steps
        visits[:] = 0
        cut, length, paid = 0, 0, 0.0
        while True:
            visits[device] += 1
            paid += price[device]
            end, cheapest = -1, np.inf
            for e in range(cut + min_segment, last_end[device, cut] + 1):
                if prefix[device, e] + closed[e, device] < cheapest:
                    cheapest = prefix[device, e] + closed[e, device]
                    end = e
            path[length, 0] = device
            path[length, 1] = end
            length += 1
            cut = end
            if cut == num_elements:
                break
            cheapest = np.inf
            row = link_from[page[cut], device]
            for e in range(num_devices):
                if row[e] + opened[cut, e] < cheapest:
                    cheapest = row[e] + opened[cut, e]
                    device = e
        unpriced = value - paid
        distance, feasible, tight = 0.0, True, True
        for d in range(num_devices):
            value -= price[d] * copies[d]
            excess = visits[d] - copies[d]
            feasible = feasible and excess <= 0
            tight = tight and (excess == 0 or price[d] == 0.0)
            slope = 0.0 if price[d] <= 0.0 and excess < 0 else float(excess)
            direction[d] = slope + 0.3 * direction[d]
            if price[d] <= 0.0 and direction[d] < 0.0:
                direction[d] = 0.0
            distance += direction[d] * direction[d]
        if feasible and unpriced < found_cost:
            found_cost, found_len = unpriced, length
            for k in range(length):
                found[k, 0], found[k, 1] = path[k, 0], path[k, 1]
        if value > best + 1e-9 * abs(best) or best == -np.inf:
            best, stalled = value, 0
            copy_into(best_price, price, num_devices)
        else:
            stalled += 1
        if (feasible and tight) or distance == 0.0 or best >= target:
            break
        if stalled >= patience:
            step *= 0.6
            stalled = 0
            copy_into(price, best_price, num_devices)
            direction[:] = 0.0
            if step < 1e-4:
                break
            continue
        aim = target if target < np.inf else best * 1.05
        length_of_step = step * max(aim - value, 1e-3 * abs(value)) / distance
        for d in range(num_devices):
            price[d] = max(0.0, price[d] + length_of_step * direction[d])
    copy_into(price, best_price, num_devices)
    cost_to_go(prefix, last_end, min_segment, link_into, page, leave, price, closed, opened, queue, head, tail)
    return best, found_cost, found, found_len, steps
