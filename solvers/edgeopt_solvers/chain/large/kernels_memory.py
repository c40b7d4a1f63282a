# mypy: allow-untyped-defs
"""Compiled: the priced relaxation with memory (ng-routes, backward), pruned by what must have come before.

A label (element, device, P) is a way on to the end; P are those of its devices that it remembers, and a plan may
return to a device only where everything in between has forgotten it. Labels live in one pool, sorted by value within
each state: (0, cut, d) after a segment of d ended at cut, (1, cut, d) when d is about to start one there. Only labels
that can be part of a path below the limit are kept, so the work follows the gap and not the size of the memory.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from edgeopt_solvers.chain.large.kernels_arrays import copy_into, sort_pairs

__all__ = ["memory_to_go"]


@njit(cache=True, nogil=True)
def _settle(key, item, num, keep, add, value, mask, onward, first):
    """Append the candidates that no cheaper one with a smaller memory dominates; return where the pool ends."""
    sort_pairs(key, item, num)
    count = first
    for rank in range(num):
        remembered = (mask[item[rank]] & keep) | add
        forgotten = ~remembered
        dominated = False
        for q in range(first, count):
            if mask[q] & forgotten == np.uint64(0):
                dominated = True
                break
        if not dominated:
            if count == value.size:
                return -1
            value[count], mask[count], onward[count] = key[rank], remembered, item[rank]
            count += 1
    return count


@njit(cache=True, nogil=True)
def memory_to_go(
    prefix, last_end, min_segment, link_from, page, enter, leave, price, base, limit,
    reach_closed, reach_opened, remembers, bit, start, stop, value, mask, onward, path, halt,
):  # fmt: skip
    """Fill the pool; return (bound, number of stages of its path in ``path``, work).

    ``remembers[cut, d]`` are the devices that d, ending there, remembers. The bound is ``inf`` when nothing stays below
    ``limit`` (the limit itself is then a proven bound) and ``-inf`` when the pool or the time did not suffice.
    """
    num_devices, num_elements = prefix.shape[0], prefix.shape[1] - 1
    key = np.empty(1024)
    item = np.empty(1024, np.int32)
    active, cheapest = np.empty(num_devices, np.int64), np.empty(num_devices)
    nothing, everything = np.uint64(0), ~np.uint64(0)
    count, work = 0, np.int64(0)
    for d in range(num_devices):
        start[0, num_elements, d] = count
        if leave[d] + reach_closed[num_elements, d] - base < limit:
            value[count], mask[count], onward[count] = leave[d], np.uint64(0), -1
            count += 1
        stop[0, num_elements, d] = count
        start[1, num_elements, d] = stop[1, num_elements, d] = 0
        start[0, 0, d] = stop[0, 0, d] = 0
    for cut in range(num_elements - 1, -1, -1):
        opened_from = count
        for d in range(num_devices):
            if halt[0] != 0:
                return -np.inf, 0, work
            num = np.int64(0)  # not a literal, which would be compiled for apart
            room = limit + base - reach_opened[cut, d]
            if room > -np.inf:
                for end in range(cut + min_segment, last_end[d, cut] + 1):
                    added = price[d] + (prefix[d, end] - prefix[d, cut])
                    if num + stop[0, end, d] - start[0, end, d] > key.size:
                        size = 2 * (num + stop[0, end, d] - start[0, end, d])
                        more_key, more_item = np.empty(size), np.empty(size, np.int32)
                        copy_into(more_key, key, num)
                        copy_into(more_item, item, num)
                        key, item = more_key, more_item
                    for j in range(start[0, end, d], stop[0, end, d]):
                        if value[j] + added >= room:
                            break
                        key[num], item[num] = value[j] + added, j
                        num += 1
                        if mask[j] == nothing:  # it dominates whatever costs more
                            room = value[j] + added
                            break
            start[1, cut, d] = count
            if num > 0:
                count = _settle(key, item, num, everything, bit[d], value, mask, onward, count)
                if count < 0:
                    return -np.inf, 0, work
            stop[1, cut, d] = count
            work += num + 4
        if cut == 0:
            break
        if count - opened_from > key.size:
            key, item = np.empty(2 * (count - opened_from)), np.empty(2 * (count - opened_from), np.int32)
        matrix = link_from[page[cut]]
        num_active = 0
        for e in range(num_devices):
            if start[1, cut, e] < stop[1, cut, e]:
                active[num_active], cheapest[num_active] = e, value[start[1, cut, e]]
                num_active += 1
        for d in range(num_devices):
            if halt[0] != 0:
                return -np.inf, 0, work
            num = np.int64(0)
            room = limit + base - reach_closed[cut, d]
            if room > -np.inf:
                for a in range(num_active):
                    e = active[a]
                    step = matrix[d, e]
                    if cheapest[a] + step >= room:
                        continue
                    for j in range(start[1, cut, e], stop[1, cut, e]):
                        if value[j] + step >= room:
                            break
                        if mask[j] & bit[d] == nothing:
                            key[num], item[num] = value[j] + step, j
                            num += 1
                            if mask[j] & remembers[cut, d] == nothing:
                                room = value[j] + step
                                break
            start[0, cut, d] = count
            if num > 0:
                count = _settle(key, item, num, remembers[cut, d], np.uint64(0), value, mask, onward, count)
                if count < 0:
                    return -np.inf, 0, work
            stop[0, cut, d] = count
            work += num + num_active
    best, device, label = limit + base, -1, -1
    for d in range(num_devices):
        if start[1, 0, d] < stop[1, 0, d] and enter[d] + value[start[1, 0, d]] < best:
            label = start[1, 0, d]
            best, device = enter[d] + value[label], d
    if device < 0:
        return np.inf, 0, work
    cut, length = 0, 0
    while True:
        label = onward[label]  # closed after the segment of device
        end = cut
        while not start[0, end, device] <= label < stop[0, end, device]:
            end += 1
        path[length, 0], path[length, 1] = device, end
        length += 1
        cut = end
        if cut == num_elements:
            return best - base, length, work
        label = onward[label]
        device = 0
        while not start[1, cut, device] <= label < stop[1, cut, device]:
            device += 1
