# mypy: allow-untyped-defs
"""Compiled: label search with two sums, C (additive cost) and S (roots of what reserved transfers take), for C + S².

A label is a partial plan that ended a segment. For each of K slopes μ it carries C + 2 μ S − μ² with prices of that
slope. With a completion bound added this is t_k, and every plan made of the label, S its whole root, costs at least
t_k + (S − μ_k)²; the largest of these parabolas, at its lowest over the S that are possible, is the label's bound.
Completions come as lists per slope and (element, device), as in ``kernels_labels.py``.

Of two labels on the same device, i is dropped for j when j uses no other devices and, with R still to come,
C_j − C_i + S_j² − S_i² + 2 (S_j − S_i) R <= 0. That is linear in R: it is tested at the ends of what R can be where i
beats the incumbent.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from edgeopt_solvers.chain.large.kernels_arrays import stages_of
from edgeopt_solvers.chain.large.kernels_labels import _settle

__all__ = ["envelope", "joint_search"]

KEPT_FOR_DOMINANCE = 32


@njit(cache=True, nogil=True)
def envelope(value, mu, low, high):
    """Least over low <= S <= high of the largest value[k] + (S − mu[k])²; a lower bound on it where K > 2."""
    best = np.inf if low > high else -np.inf
    for k in range(mu.size):
        off = max(low - mu[k], mu[k] - high, 0.0)
        best = max(best, value[k] + off * off)
    if best == np.inf:
        return best
    for k in range(mu.size - 1):  # where two neighbours cross is the lowest point of the larger of them
        cross = 0.5 * (mu[k] + mu[k + 1] + (value[k + 1] - value[k]) / (mu[k + 1] - mu[k]))
        at = min(max(cross, mu[k], low), max(mu[k + 1], low), high)
        best = max(best, value[k] + (at - mu[k]) ** 2, value[k + 1] + (at - mu[k + 1]) ** 2)
    return best


@njit(cache=True, nogil=True)
def _worse(cost, root, i, j, least, low, high):
    """Whether label i never beats label j, for every R with which i could beat the incumbent."""
    d_cost = cost[j] - cost[i] + root[j] * root[j] - root[i] * root[i]
    d_root = 2 * (root[j] - root[i])
    near = max(least, low - root[i])
    far = max(near, high - root[i])
    slack = 1e-13 * (abs(cost[i]) + root[i] * root[i])
    return d_cost + d_root * near <= slack and d_cost + d_root * far <= slack


@njit(cache=True, nogil=True)
def _select(ids, num, key, cost, root, mask, device, least, low, high, table, chained, kept, width, num_devices):
    """Order labels by ``key``, drop dominated ones, keep ``width``; return how many, and the smallest key cut off."""
    order = np.argsort(key[:num])
    size = 16
    while size < 2 * num:
        size *= 2
    table[:size] = -1  # device and set of devices -> the labels with just these, chained
    recent = np.empty((num_devices, KEPT_FOR_DOMINANCE), np.int32)
    num_recent = np.zeros(num_devices, np.int64)
    count = 0
    for rank in range(num):
        i = ids[order[rank]]
        d, used = device[i], mask[i]
        mixed = (used * np.uint64(0x9E3779B97F4A7C15)) ^ (np.uint64(d) * np.uint64(0xC2B2AE3D27D4EB4F))
        slot = np.int64((mixed >> np.uint64(20)) & np.uint64(size - 1))
        dominated = False
        while table[slot] >= 0:
            j = kept[table[slot]]
            if device[j] == d and mask[j] == used:
                q = table[slot]
                while q >= 0 and not dominated:
                    dominated = _worse(cost, root, i, kept[q], least[d], low, high)
                    q = chained[q]
                break
            slot = (slot + 1) & (size - 1)
        for q in range(num_recent[d]):
            if dominated:
                break
            j = recent[d, q]
            if mask[j] & ~used == np.uint64(0):
                dominated = _worse(cost, root, i, j, least[d], low, high)
        if dominated:
            continue
        if count >= width:
            return count, key[order[rank]]
        kept[count] = i
        chained[count] = table[slot]
        table[slot] = count
        if num_recent[d] < KEPT_FOR_DOMINANCE:
            recent[d, num_recent[d]] = i
            num_recent[d] += 1
        count += 1
    return count, np.inf


@njit(cache=True, nogil=True)
def _tangents(so_far, added, mu, start, value, mask, state, used, full, out):
    """Fill ``out`` with value so far + added + completion, per slope; the first entry of each list unless ``full``."""
    for k in range(mu.size):
        first, last = start[k, state], start[k, state + 1]
        rest = np.inf
        for q in range(first, last):
            if not full or mask[q] & used == np.uint64(0):
                rest = value[q]
                break
        out[k] = so_far[k] + added + rest


@njit(cache=True, nogil=True)
def joint_search(
    prefix, last_end, min_segment, link, root_link, page, enter, root_enter, leave, root_leave,
    mu, price, base, closed_start, closed_value, closed_mask, open_start, open_value, open_mask,
    least, low, high, incumbent, tolerance, width, most_labels, stop,
):  # fmt: skip
    """One pass; returns (best cost, least bound cut off, stages of the best plan reversed, their number, labels, work).

    Plans that beat ``incumbent`` have S between ``low`` and ``high``; ``least`` (L + 1, G) is the least S to come.
    """
    num_devices, num_elements, num_mu = prefix.shape[0], prefix.shape[1] - 1, mu.size
    room = max(1, min(4 * width + 64, most_labels // num_elements))  # labels cut * room.. end at element cut
    capacity = num_elements * room
    heap = np.empty(capacity, np.int32)  # made when an element has no room left: the largest bound first
    cost, root, bound = np.empty(capacity), np.empty(capacity), np.empty(capacity)
    tangent = np.empty((capacity, num_mu))
    mask = np.empty(capacity, np.uint64)
    device, parent = np.empty(capacity, np.int32), np.empty(capacity, np.int32)
    bucket_size = np.zeros(num_elements + 1, np.int64)
    for cut in range(num_elements):
        heap[cut * room] = -1
    open_capacity = max(num_devices, min(width * num_devices, 1 << 18))
    o_cost, o_root, o_bound = np.empty(open_capacity), np.empty(open_capacity), np.empty(open_capacity)
    o_tangent = np.empty((open_capacity, num_mu))
    o_mask = np.empty(open_capacity, np.uint64)
    o_device, o_parent = np.empty(open_capacity, np.int32), np.empty(open_capacity, np.int32)
    o_kept = np.empty(open_capacity, np.int32)
    o_ids = np.arange(open_capacity).astype(np.int32)
    o_least = np.empty(num_devices)
    table_size = 16
    while table_size < 2 * open_capacity:
        table_size *= 2
    table = np.empty(table_size, np.int32)
    chained = np.empty(open_capacity, np.int32)
    ids, key, kept = np.empty(1024, np.int32), np.empty(1024), np.empty(1024, np.int32)
    origin, moved, total = np.empty(num_mu), np.empty(num_mu), np.empty(num_mu)
    for k in range(num_mu):
        origin[k] = -base[k] - mu[k] * mu[k]
    one = np.uint64(1)
    count, work = 0, 0
    cut_off, best = np.inf, incumbent
    last_parent, last_device = -1, -1
    halted = False
    for cut in range(num_elements):
        num_kept = 1
        if cut > 0:
            held = bucket_size[cut]
            if held == 0:
                continue
            if held > ids.size:
                ids, key, kept = np.empty(2 * held, np.int32), np.empty(2 * held), np.empty(2 * held, np.int32)
            if held > chained.size:
                chained = np.empty(2 * held, np.int32)
            while table_size < 2 * chained.size:
                table_size *= 2
            if table_size > table.size:
                table = np.empty(table_size, np.int32)
            num = 0
            for i in range(cut * room, cut * room + held):
                if halted:
                    cut_off = min(cut_off, bound[i])
                elif bound[i] < best - tolerance:
                    ids[num], key[num] = i, bound[i]
                    num += 1
            if num == 0:
                continue
            work += 8 * num
            num_kept, left_out = _select(
                ids, num, key, cost, root, mask, device, least[cut], low, high, table, chained, kept, width, num_devices
            )
            cut_off = min(cut_off, left_out)
        for e in range(num_devices):  # least S after whatever end a segment that starts here has
            o_least[e] = np.inf
            for end in range(cut + min_segment, last_end[e, cut] + 1):
                o_least[e] = min(o_least[e], least[end, e])
        num_open = 0
        for q in range(num_kept + 1):
            if q < num_kept:
                i = kept[q] if cut > 0 else -1
                if cut > 0 and bound[i] >= best - tolerance:
                    continue
                if halted or stop[0] != 0:
                    halted = True
                    cut_off = min(cut_off, bound[i]) if cut > 0 else -np.inf
                    continue
                work += num_devices
                used_before = mask[i] if cut > 0 else np.uint64(0)
                for e in range(num_devices):
                    bit = one << np.uint64(e)
                    if used_before & bit != np.uint64(0):
                        continue
                    state = cut * num_devices + e
                    if open_start[0, state] == open_start[0, state + 1]:
                        continue
                    d_cost = link[page[cut], device[i], e] if cut > 0 else enter[e]
                    if d_cost == np.inf:
                        continue
                    d_root = root_link[page[cut], device[i], e] if cut > 0 else root_enter[e]
                    s = (root[i] if cut > 0 else 0.0) + d_root
                    for k in range(num_mu):
                        moved[k] = (tangent[i, k] if cut > 0 else origin[k]) + d_cost + 2 * mu[k] * d_root
                    floor = max(low, s + o_least[e])
                    _tangents(moved, 0.0, mu, open_start, open_value, open_mask, state, used_before, False, total)
                    if not envelope(total, mu, floor, high) < best - tolerance:
                        continue
                    used = used_before | bit
                    _tangents(moved, 0.0, mu, open_start, open_value, open_mask, state, used, True, total)
                    work += 4 * num_mu
                    value = envelope(total, mu, floor, high)
                    if not value < best - tolerance:
                        continue
                    o_cost[num_open] = (cost[i] if cut > 0 else 0.0) + d_cost
                    o_root[num_open], o_bound[num_open], o_mask[num_open] = s, value, used
                    o_device[num_open], o_parent[num_open] = e, i
                    for k in range(num_mu):
                        o_tangent[num_open, k] = moved[k] + price[k, e]
                    num_open += 1
            if num_open == 0 or (q < num_kept and num_open + num_devices <= open_capacity):
                continue
            # drop what starts at cut on the same device and is no better; let the rest run to every end of its window
            num_merged, _ = _select(
                o_ids, num_open, o_bound, o_cost, o_root, o_mask, o_device, o_least, low, high, table, chained, o_kept,
                open_capacity + 1, num_devices,
            )  # fmt: skip
            for z in range(num_merged):
                j = o_kept[z]
                e, used = o_device[j], o_mask[j]
                if o_bound[j] >= best - tolerance:
                    break
                if halted or stop[0] != 0:
                    halted = True
                    cut_off = min(cut_off, o_bound[j])
                    break
                work += 4 + num_mu * (last_end[e, cut] - cut)
                for end in range(cut + min_segment, last_end[e, cut] + 1):
                    added = prefix[e, end] - prefix[e, cut]
                    if end == num_elements:
                        s = o_root[j] + root_leave[e]
                        whole = o_cost[j] + added + leave[e] + s * s
                        if whole < best:
                            best, last_parent, last_device = whole, o_parent[j], e
                        continue
                    state = end * num_devices + e
                    if closed_start[0, state] == closed_start[0, state + 1]:
                        continue
                    floor = max(low, o_root[j] + least[end, e])
                    for k in range(num_mu):
                        moved[k] = o_tangent[j, k] + added
                    _tangents(moved, 0.0, mu, closed_start, closed_value, closed_mask, state, used, False, total)
                    if not envelope(total, mu, floor, high) < best - tolerance:
                        continue
                    _tangents(moved, 0.0, mu, closed_start, closed_value, closed_mask, state, used, True, total)
                    work += 4 * num_mu
                    value = envelope(total, mu, floor, high)
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
                    cost[i], root[i] = o_cost[j] + added, o_root[j]
                    for k in range(num_mu):
                        tangent[i, k] = moved[k]
                    bound[i], mask[i] = value, used
                    device[i], parent[i] = e, o_parent[j]
                    if full:
                        _settle(heap, end * room, room, room, i, bound)
            num_open = 0
    stages, length = stages_of(device, parent, room, last_device, last_parent, num_elements)
    return best, cut_off, stages, length, count, work
