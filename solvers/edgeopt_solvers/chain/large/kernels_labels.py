# mypy: allow-untyped-defs
"""Compiled: label search over (element, device, devices used), pruned by completion bounds.

A label is a partial plan that ended a segment. Level by level the best ``width`` labels are carried on; what was cut
off by width, room or time keeps the smallest bound among it, so every stop yields a proven bound. Partial plans
are merged where they agree on the set of devices used: when they are about to start on the same device ("open"), and
when they ended there ("closed").

Completion bounds come as lists per state, cheapest first, of (value, devices that the completion remembers using);
states are (0, cut, d) after a segment of d ended and (1, cut, d) before one starts. The first entry whose devices are
all still free bounds the label (the device about to start may be among them). A relaxation without memory has one
entry with no devices.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from edgeopt_solvers.chain.large.kernels_arrays import sort_pairs, stages_of

__all__ = ["label_search"]

KEPT_FOR_DOMINANCE = 32


@njit(cache=True, nogil=True)
def _completion(first, last, value, mask, used):
    """Smallest completion in first..last-1 that avoids the devices used (or ``inf``), and how many were looked at."""
    for q in range(first, last):
        if mask[q] & used == np.uint64(0):
            return value[q], q - first + 1
    return np.inf, last - first


@njit(cache=True, nogil=True)
def _settle(heap, base, size, room, label, bound):
    """Put ``label`` into the heap of ``size`` labels at ``base``, in place of its root when it is full."""
    if size < room:
        place = size
        while place > 0:
            above = (place - 1) // 2
            if bound[heap[base + above]] >= bound[label]:
                break
            heap[base + place] = heap[base + above]
            place = above
    else:
        place = 0
        while True:
            below = 2 * place + 1
            if below >= room:
                break
            if below + 1 < room and bound[heap[base + below + 1]] > bound[heap[base + below]]:
                below += 1
            if bound[heap[base + below]] <= bound[label]:
                break
            heap[base + place] = heap[base + below]
            place = below
    heap[base + place] = label


@njit(cache=True, nogil=True)
def _select(ids, num, key, cost, mask, device, plural, shift, field, table, kept, width):
    """Order labels by ``key``, drop dominated ones, keep ``width``; return how many, and the smallest key cut off.

    ``ids`` and ``key`` are put in order.
    """
    sort_pairs(key, ids, num)
    size = 16
    while size < 2 * num:
        size *= 2
    table[:size] = -1
    num_devices = shift.size
    recent = np.empty((num_devices, KEPT_FOR_DOMINANCE), np.int32)
    num_recent = np.zeros(num_devices, np.int64)
    count = 0
    for rank in range(num):
        i = ids[rank]
        d, used = device[i], mask[i]
        mixed = (used * np.uint64(0x9E3779B97F4A7C15)) ^ (np.uint64(d) * np.uint64(0xC2B2AE3D27D4EB4F))
        slot = np.int64((mixed >> np.uint64(20)) & np.uint64(size - 1))
        repeated = False
        while table[slot] >= 0:
            j = table[slot]
            if device[j] == d and mask[j] == used:
                repeated = True  # same device and set: the order by bound is the order by cost
                break
            slot = (slot + 1) & (size - 1)
        if repeated:
            continue
        dominated = False
        for q in range(num_recent[d]):
            j = recent[d, q]
            if cost[j] > cost[i]:
                continue
            dominated = True
            if mask[j] & ~used != np.uint64(0) or plural:
                for e in range(num_devices):
                    if ((mask[j] >> shift[e]) & field[e]) > ((used >> shift[e]) & field[e]):
                        dominated = False
                        break
            if dominated:
                break
        if dominated:
            continue
        if count >= width:
            return count, key[rank]
        table[slot] = i
        if num_recent[d] < KEPT_FOR_DOMINANCE:
            recent[d, num_recent[d]] = i
            num_recent[d] += 1
        kept[count] = i
        count += 1
    return count, np.inf


@njit(cache=True, nogil=True)
def label_search(
    prefix, last_end, min_segment, link_from, page, enter, leave, copies, plural, price, shift, field,
    rest_start, rest_stop, rest_value, rest_mask,
    incumbent, tolerance, width, most_labels, work_limit, stop,
):  # fmt: skip
    """One pass; ``plural``: some device has several copies.

    Returns (best cost, smallest bound cut off, stages of the best plan reversed, their number, work, labels).
    """
    num_devices, num_elements = prefix.shape[0], prefix.shape[1] - 1
    room = max(1, min(4 * width + 64, most_labels // num_elements))  # labels cut * room.. end at element cut
    capacity = num_elements * room
    # a heap per element, made when the element has no room left: the largest bound first
    heap = np.empty(capacity, np.int32)
    cost = np.empty(capacity)
    bound = np.empty(capacity)
    mask = np.empty(capacity, np.uint64)
    device = np.empty(capacity, np.int32)
    parent = np.empty(capacity, np.int32)
    paid = np.empty(capacity)  # cost with the prices of the devices used
    bucket_size = np.zeros(num_elements + 1, np.int64)
    for cut in range(num_elements):
        heap[cut * room] = -1
    open_capacity = max(num_devices, min(width * num_devices, 1 << 19))
    o_cost = np.empty(open_capacity)
    o_paid = np.empty(open_capacity)
    o_bound = np.empty(open_capacity)
    o_key = np.empty(open_capacity)
    o_mask = np.empty(open_capacity, np.uint64)
    o_device = np.empty(open_capacity, np.int32)
    o_parent = np.empty(open_capacity, np.int32)
    o_ids = np.empty(open_capacity, np.int32)
    o_kept = np.empty(open_capacity, np.int32)
    table_size = 16
    while table_size < 2 * open_capacity:
        table_size *= 2
    table = np.empty(table_size, np.int32)
    ids = np.empty(1024, np.int32)
    key = np.empty(1024)
    kept = np.empty(1024, np.int32)
    base = 0.0
    one = np.uint64(1)
    for d in range(num_devices):
        base += price[d] * copies[d]
    count, work = 0, np.int64(0)
    cut_off, best = np.inf, incumbent
    last_parent, last_device = -1, -1
    halted = False
    for cut in range(num_elements):
        num_kept = 1
        if cut > 0:
            if bucket_size[cut] == 0:
                continue
            if bucket_size[cut] > ids.size:
                ids = np.empty(2 * bucket_size[cut], np.int32)
                key = np.empty(2 * bucket_size[cut])
                kept = np.empty(2 * bucket_size[cut], np.int32)
            if 4 * bucket_size[cut] > table.size:
                while table_size < 4 * bucket_size[cut]:
                    table_size *= 2
                table = np.empty(table_size, np.int32)
            num = np.int64(0)  # not a literal, which would be compiled for apart
            for i in range(cut * room, cut * room + bucket_size[cut]):
                if halted:
                    cut_off = min(cut_off, bound[i])
                elif bound[i] < best - tolerance:
                    ids[num] = i
                    key[num] = bound[i]
                    num += 1
            if num == 0:
                continue
            work += 8 * num
            num_kept, left_out = _select(ids, num, key, cost, mask, device, plural, shift, field, table, kept, width)
            cut_off = min(cut_off, left_out)
        num_open = np.int64(0)
        for q in range(num_kept + 1):
            if q < num_kept:
                # carry one label on to every device that may follow
                i = kept[q] if cut > 0 else -1
                if cut > 0 and bound[i] >= best - tolerance:
                    continue
                work += num_devices
                if halted or stop[0] != 0 or work > work_limit:
                    halted = True
                    cut_off = min(cut_off, bound[i]) if cut > 0 else -np.inf
                    continue
                for e in range(num_devices):
                    step = link_from[page[cut], device[i], e] if cut > 0 else enter[e]
                    so_far = (paid[i] if cut > 0 else 0.0) + step - base
                    first, last = rest_start[1, cut, e], rest_stop[1, cut, e]
                    if first == last or not so_far + rest_value[first] < best - tolerance:
                        continue
                    used = mask[i] if cut > 0 else np.uint64(0)
                    if np.int64((used >> shift[e]) & field[e]) >= copies[e]:
                        continue
                    rest, looked = _completion(first, last, rest_value, rest_mask, used)
                    used += one << shift[e]
                    work += looked
                    value = so_far + rest
                    if not value < best - tolerance:
                        continue
                    o_cost[num_open] = (cost[i] if cut > 0 else 0.0) + step
                    o_paid[num_open] = so_far + base + price[e]
                    o_bound[num_open] = value
                    o_mask[num_open] = used
                    o_device[num_open] = e
                    o_parent[num_open] = i
                    num_open += 1
            if num_open == 0 or (q < num_kept and num_open + num_devices <= open_capacity):
                continue
            # merge what starts at cut with the same devices used, and let it run to every end of its window
            for z in range(num_open):
                o_ids[z], o_key[z] = z, o_bound[z]
            num_merged, _ = _select(
                o_ids, num_open, o_key, o_cost, o_mask, o_device, plural, shift, field, table, o_kept, open_capacity + 1
            )
            for z in range(num_merged):
                j = o_kept[z]
                e, used = o_device[j], o_mask[j]
                if o_bound[j] >= best - tolerance:
                    break
                if halted or stop[0] != 0:
                    halted = True
                    cut_off = min(cut_off, o_bound[j])
                    break
                work += 4 + last_end[e, cut] - cut
                for end in range(cut + min_segment, last_end[e, cut] + 1):
                    first, last = rest_start[0, end, e], rest_stop[0, end, e]
                    added = prefix[e, end] - prefix[e, cut]
                    value = o_paid[j] + added - base
                    if first == last or not value + rest_value[first] < best - tolerance:
                        continue
                    if end == num_elements:
                        total = o_cost[j] + added + leave[e]
                        if total < best:
                            best, last_parent, last_device = total, o_parent[j], e
                        continue
                    rest, looked = _completion(first, last, rest_value, rest_mask, used)
                    work += looked
                    value += rest
                    if not value < best - tolerance:
                        continue
                    full = bucket_size[end] == room
                    if not full:
                        i = end * room + bucket_size[end]
                        bucket_size[end] += 1
                        count += 1
                    else:  # the largest bound leaves
                        if heap[end * room] < 0:
                            for filled in range(room):
                                _settle(heap, end * room, filled, room, end * room + filled, bound)
                        i = heap[end * room]
                        cut_off = min(cut_off, max(value, bound[i]))
                        if value >= bound[i]:
                            continue
                    cost[i] = o_cost[j] + added
                    paid[i] = o_paid[j] + added
                    bound[i] = value
                    mask[i] = used
                    device[i] = e
                    parent[i] = o_parent[j]
                    if full:
                        _settle(heap, end * room, room, room, i, bound)
            num_open = np.int64(0)
    stages, length = stages_of(device, parent, room, last_device, last_parent, num_elements)
    return best, cut_off, stages, length, work, count
