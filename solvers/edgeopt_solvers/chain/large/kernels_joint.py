# mypy: allow-untyped-defs
"""Compiled: label search with two sums, C (additive cost) and S (roots of what reserved transfers take), for C + f S².

A label is a partial plan that ended a segment. It is pruned by completion bounds at several μ, each with prices of its
own: C + f (2 μ S − μ²) never exceeds C + f S². Of two labels on the same device, i is dropped for j when j uses no
other devices and, with R still to come, C_j − C_i + f (S_j² − S_i²) + 2 f (S_j − S_i) R <= 0; that is linear in R, so
it is tested at the least R of any completion and at the largest with which i could still beat the incumbent.
"""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["joint_search"]

KEPT_FOR_DOMINANCE = 32


@njit(cache=True, nogil=True)
def _worse(cost, root, i, j, factor, least, most):
    """Whether label i never beats label j, for every rest R between its least and what the incumbent allows."""
    d_cost = cost[j] - cost[i] + factor * (root[j] * root[j] - root[i] * root[i])
    d_root = 2 * factor * (root[j] - root[i])
    slack = 1e-13 * (abs(cost[i]) + factor * root[i] * root[i])
    far = max(least, most - min(root[i], root[j]))
    return d_cost + d_root * least <= slack and d_cost + d_root * far <= slack


@njit(cache=True, nogil=True)
def _bound_of(cost, root, paid, rest, mu, base, factor):
    """Best of the bounds at all μ: ``rest`` (K,) are completions, ``paid`` (K,) prices so far."""
    best = -np.inf
    for k in range(mu.size):
        best = max(best, cost + factor * mu[k] * (2 * root - mu[k]) + paid[k] + rest[k] - base[k])
    return best


@njit(cache=True, nogil=True)
def joint_search(
    prefix, last_end, min_segment, link, link_root, page, enter, enter_root, leave, leave_root, factor,
    mu, price, base, closed, opened, least, incumbent, tolerance, width, capacity, stop,
):  # fmt: skip
    """One pass; returns (best cost, smallest bound cut off, stages of the best plan reversed, their number, labels)."""
    num_devices, num_elements, num_mu = prefix.shape[0], prefix.shape[1] - 1, mu.size
    cost, root = np.empty(capacity), np.empty(capacity)
    mask = np.empty(capacity, np.uint64)
    device, parent = np.empty(capacity, np.int32), np.empty(capacity, np.int32)
    position, following = np.empty(capacity, np.int32), np.empty(capacity, np.int32)
    paid = np.empty((capacity, num_mu))
    head = np.full(num_elements + 1, -1, np.int32)
    count, one = 0, np.uint64(1)
    best, cut_off = incumbent, np.inf
    last_parent, last_device = -1, -1
    nothing = np.zeros(num_mu)
    new_paid = np.empty(num_mu)
    for cut in range(num_elements):
        num_kept = 1
        kept = np.zeros(1, np.int32)
        if cut > 0:
            num = 0
            i = head[cut]
            while i >= 0:
                num += 1
                i = following[i]
            if num == 0:
                continue
            ids, key = np.empty(num, np.int32), np.empty(num)
            num = 0
            i = head[cut]
            while i >= 0:
                value = _bound_of(cost[i], root[i], paid[i], closed[:, cut, device[i]], mu, base, factor)
                if value < best - tolerance:
                    ids[num], key[num] = i, value
                    num += 1
                i = following[i]
            if num == 0:
                continue
            if stop[0] != 0:
                cut_off = min(cut_off, key[:num].min())
                continue
            order = np.argsort(key[:num])
            size = 16
            while size < 2 * num:
                size *= 2
            table = np.full(size, -1, np.int32)  # device and set of devices -> the labels with just these
            chained = np.empty(num, np.int32)
            kept = np.empty(num, np.int32)
            recent = np.empty((num_devices, KEPT_FOR_DOMINANCE), np.int32)
            num_recent = np.zeros(num_devices, np.int64)
            most = np.sqrt(best / factor) if best < np.inf else 1e150
            num_kept = 0
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
                            dominated = _worse(cost, root, i, kept[q], factor, least[cut, d], most)
                            q = chained[q]
                        break
                    slot = (slot + 1) & (size - 1)
                for q in range(num_recent[d]):
                    if dominated:
                        break
                    j = recent[d, q]
                    if mask[j] & ~used == np.uint64(0):
                        dominated = _worse(cost, root, i, j, factor, least[cut, d], most)
                if dominated:
                    continue
                if num_kept >= width:
                    cut_off = min(cut_off, key[order[rank]])
                    break
                kept[num_kept] = i
                chained[num_kept] = table[slot]
                table[slot] = num_kept
                if num_recent[d] < KEPT_FOR_DOMINANCE:
                    recent[d, num_recent[d]] = i
                    num_recent[d] += 1
                num_kept += 1
        for q in range(num_kept):
            i = kept[q] if cut > 0 else -1
            if stop[0] != 0:
                if cut == 0:
                    cut_off = -np.inf
                else:
                    value = _bound_of(cost[i], root[i], paid[i], closed[:, cut, device[i]], mu, base, factor)
                    cut_off = min(cut_off, value)
                continue
            used = mask[i] if cut > 0 else np.uint64(0)
            before = paid[i] if cut > 0 else nothing
            for e in range(num_devices):
                bit = one << np.uint64(e)
                if used & bit != np.uint64(0):
                    continue
                if cut > 0:
                    c0 = cost[i] + link[page[cut], device[i], e]
                    s0 = root[i] + link_root[page[cut], device[i], e]
                else:
                    c0, s0 = enter[e], enter_root[e]
                if not _bound_of(c0, s0, before, opened[:, cut, e], mu, base, factor) < best - tolerance:
                    continue
                for k in range(num_mu):
                    new_paid[k] = before[k] + price[k, e]
                for end in range(cut + min_segment, last_end[e, cut] + 1):
                    c = c0 + prefix[e, end] - prefix[e, cut]
                    if end == num_elements:
                        s = s0 + leave_root[e]
                        total = c + leave[e] + factor * s * s
                        if total < best:
                            best, last_parent, last_device = total, i, e
                        continue
                    value = _bound_of(c, s0, new_paid, closed[:, end, e], mu, base, factor)
                    if not value < best - tolerance:
                        continue
                    if count >= capacity:
                        cut_off = min(cut_off, value)
                        continue
                    cost[count], root[count], mask[count] = c, s0, used | bit
                    device[count], parent[count], position[count] = e, i, end
                    for k in range(num_mu):
                        paid[count, k] = new_paid[k]
                    following[count] = head[end]
                    head[end] = count
                    count += 1
    stages = np.empty((num_elements + 1, 2), np.int64)
    length = 0
    if last_device >= 0:
        stages[0, 0], stages[0, 1], length = last_device, num_elements, 1
        i = last_parent
        while i >= 0:
            stages[length, 0], stages[length, 1] = device[i], position[i]
            length += 1
            i = parent[i]
    return best, cut_off, stages, length, count
