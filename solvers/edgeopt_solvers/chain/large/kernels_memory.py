# mypy: allow-untyped-defs
"""Compiled: the priced relaxation with memory (ng-routes, backward), pruned by what must have come before.

State (element, device, P): P are the devices, among those that this device remembers, that the rest of the plan uses;
a plan may return to a device only where everything in between has forgotten it. A state survives only when
its cost and the cheapest way to reach it stay below the incumbent.
"""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["completion_lists", "memory_to_go"]


@njit(cache=True, nogil=True)
def memory_to_go(
    prefix, first_start, min_segment, link_into, page, enter, leave, price, base, limit,
    before_closed, before_opened, offset, owner, update, closed, opened, next_state, next_end, path, stop,
):  # fmt: skip
    """Fill ``closed`` and ``opened`` (element, state); return (bound, number of stages of its path in ``path``, work).

    ``update[s, d]`` is the state of device d when state s follows it, -1 where s remembers d. The bound is ``inf``
    when nothing stays below ``limit``: the limit itself is then a proven bound.
    """
    num_devices, num_elements = prefix.shape[0], prefix.shape[1] - 1
    num_states = owner.size
    opened[:] = np.inf
    work = 0
    for cut in range(num_elements, 0, -1):
        if stop[0] != 0:
            return -np.inf, 0, work
        work += num_states // 4
        row = closed[cut]
        row[:] = np.inf
        if cut == num_elements:
            for d in range(num_devices):
                row[offset[d]] = leave[d]
        else:
            matrix = link_into[page[cut]]
            for s in range(num_states):
                onward = opened[cut, s]
                if onward == np.inf:
                    continue
                e = owner[s]
                if onward + before_closed[cut, e] - base >= limit:
                    opened[cut, s] = np.inf
                    continue
                subset = s - offset[e]
                dominated = subset > 0 and opened[cut, offset[e]] <= onward
                bit = 1
                while bit <= subset and not dominated:
                    dominated = subset & bit != 0 and opened[cut, s - bit] <= onward
                    bit <<= 1
                if dominated:  # remembers more and costs no less
                    opened[cut, s] = np.inf
                    continue
                work += num_devices
                for d in range(num_devices):
                    value = onward + matrix[e, d]
                    if value + before_opened[cut, d] - base >= limit:
                        continue
                    target = update[s, d]
                    if target >= 0 and value < row[target]:
                        row[target] = value
                        next_state[cut, target] = s
        for d in range(num_devices):
            first, last = first_start[d, cut], cut - min_segment
            for s in range(offset[d], offset[d + 1]):
                if row[s] == np.inf:
                    continue
                value = row[s] + prefix[d, cut] + price[d]
                for start in range(first, last + 1):
                    if value - prefix[d, start] < opened[start, s]:
                        opened[start, s] = value - prefix[d, start]
                        next_end[start, s] = cut
    best, state = limit + base, -1
    for s in range(num_states):
        if enter[owner[s]] + opened[0, s] >= limit + base:
            opened[0, s] = np.inf
        if enter[owner[s]] + opened[0, s] < best:
            best = enter[owner[s]] + opened[0, s]
            state = s
    if state < 0:
        return np.inf, 0, work
    cut, length = 0, 0
    while True:
        cut = next_end[cut, state]
        path[length, 0], path[length, 1] = owner[state], cut
        length += 1
        if cut == num_elements:
            return best - base, length, work
        state = next_state[cut, state]


@njit(cache=True, nogil=True)
def completion_lists(table, offset, remembers):
    """Turn a table (element, state) into lists per (element, device), cheapest first, without dominated entries."""
    num_levels, num_devices = table.shape[0], offset.size - 1
    start = np.zeros(num_levels * num_devices + 1, np.int64)
    total = 0
    for cut in range(num_levels):
        for s in range(table.shape[1]):
            if table[cut, s] < np.inf:
                total += 1
    value = np.empty(total)
    mask = np.empty(total, np.uint64)
    most = 0
    for d in range(num_devices):
        most = max(most, offset[d + 1] - offset[d])
    ids = np.empty(most, np.int64)
    key = np.empty(most)
    count = 0
    for cut in range(num_levels):
        for d in range(num_devices):
            first, num = count, 0
            for s in range(offset[d], offset[d + 1]):
                if table[cut, s] < np.inf:
                    ids[num], key[num] = s, table[cut, s]
                    num += 1
            if num > 0:
                order = np.argsort(key[:num])
                for rank in range(num):
                    i = order[rank]
                    used = remembers[ids[i]]
                    dominated = False
                    for q in range(first, count):
                        if mask[q] & ~used == np.uint64(0):
                            dominated = True
                            break
                    if not dominated:
                        value[count], mask[count] = key[i], used
                        count += 1
            start[cut * num_devices + d + 1] = count
    return start, value[:count].copy(), mask[:count].copy()
