# mypy: allow-untyped-defs
"""Compiled: annealing over the order of devices; the best cuts of an order come from a small dynamic program.

For the order d_1..d_k, ``ahead[j, cut]`` is the cheapest way to have j stages end at cut, ``behind[j, cut]`` the
cheapest way on when stage j (from 0) starts at cut. A move replaces stages i..j-1 by others, so only
those are recomputed. With ``bottleneck`` the largest term replaces the sum.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from edgeopt_solvers.chain.large.kernels_arrays import copy_into

__all__ = ["anneal"]


@njit(cache=True, nogil=True)
def _join(a, b, bottleneck):
    """Add two costs, or take the larger."""
    return max(a, b) if bottleneck else a + b


@njit(cache=True, nogil=True)
def _run_stage(before, lo, hi, sender, device, prefix, last_end, min_segment, link, page, enter, bottleneck, after):
    """Extend ``before`` (finite in lo..hi) by one stage on ``device``; return the range where ``after`` is finite."""
    num_elements = prefix.shape[1] - 1
    after[:] = np.inf
    first, last = num_elements + 1, -1
    for cut in range(lo, hi + 1):
        if before[cut] == np.inf:
            continue
        step = enter[device] if sender < 0 else link[page[cut], sender, device]
        value = _join(before[cut], step, bottleneck)
        if value == np.inf:
            continue
        end = last_end[device, cut]
        if end < cut + min_segment:
            continue
        first, last = min(first, cut + min_segment), max(last, end)
        if bottleneck:
            for e in range(cut + min_segment, end + 1):
                after[e] = min(after[e], max(value, prefix[device, e] - prefix[device, cut]))
        else:
            value -= prefix[device, cut]
            for e in range(cut + min_segment, end + 1):
                total = value + prefix[device, e]
                after[e] = total if total < after[e] else after[e]
    return first, last


@njit(cache=True, nogil=True)
def _fill_behind(order, num, j0, prefix, last_end, min_segment, link, page, leave, bottleneck, behind):
    """Recompute ``behind`` for stages j0, j0-1, .., 0."""
    num_elements = prefix.shape[1] - 1
    for j in range(j0, -1, -1):
        device = order[j]
        behind[j, :] = np.inf
        for cut in range(num_elements):
            best = np.inf
            for e in range(cut + min_segment, last_end[device, cut] + 1):
                if j == num - 1:
                    if e < num_elements:
                        continue
                    rest = leave[device]
                else:
                    rest = behind[j + 1, e]
                    if rest == np.inf:
                        continue
                    rest = _join(rest, link[page[e], device, order[j + 1]], bottleneck)
                rest = _join(rest, prefix[device, e] - prefix[device, cut], bottleneck)
                best = min(best, rest)
            behind[j, cut] = best


@njit(cache=True, nogil=True)
def anneal(
    prefix, last_end, min_segment, link, page, enter, leave, copies, bottleneck,
    order, num, moves, heat, seed, stop,
):  # fmt: skip
    """Improve ``order[:num]`` (changed in place); return (cost, stages, their number, moves made)."""
    np.random.seed(seed)
    num_devices, num_elements = prefix.shape[0], prefix.shape[1] - 1
    size = num_elements + 2
    ahead = np.full((size, num_elements + 1), np.inf)
    behind = np.full((size, num_elements + 1), np.inf)
    lows = np.zeros(size, np.int64)
    highs = np.zeros(size, np.int64)
    scratch = np.empty((2, num_elements + 1))
    used = np.zeros(num_devices, np.int64)
    middle = np.empty(size, np.int64)
    best_order = order.copy()
    best_num = num
    ahead[0, 0] = 0.0
    for j in range(num):
        used[order[j]] += 1
    changed_from, changed_to = 0, num - 1
    current = np.inf
    best = np.inf
    made = 0
    while made < moves:
        if changed_from >= 0:
            for j in range(changed_from, num):
                lows[j + 1], highs[j + 1] = _run_stage(
                    ahead[j], lows[j], highs[j], order[j - 1] if j > 0 else -1, order[j],
                    prefix, last_end, min_segment, link, page, enter, bottleneck, ahead[j + 1],
                )  # fmt: skip
            _fill_behind(order, num, changed_to, prefix, last_end, min_segment, link, page, leave, bottleneck, behind)
            if current == np.inf:
                current = _join(ahead[num, num_elements], leave[order[num - 1]], bottleneck)
                best = current
            changed_from = -1
        if stop[0] != 0:
            break
        made += 1
        temperature = best / num * heat * (1.0 - made / moves) + 1e-300
        kind = np.random.random()
        a = np.random.randint(num)
        first, last = a, a + 1  # stages first..last-1 give way to middle[:length]
        length = 0
        added, removed = -1, -1
        if kind < 0.30 or 0.55 <= kind < 0.85:
            b = a + 1 + np.random.randint(6) if np.random.random() < 0.7 else np.random.randint(num)
            if b < a:
                a, b = b, a
            if b == a or b >= num:
                continue
            first, last, length = a, b + 1, b + 1 - a
            for z in range(length):
                middle[z] = order[a + z]
            if kind < 0.30:  # swap
                middle[0], middle[length - 1] = order[b], order[a]
            elif kind < 0.65:  # move a behind b
                for z in range(length - 1):
                    middle[z] = order[a + z + 1]
                middle[length - 1] = order[a]
            elif kind < 0.75:  # move b before a
                for z in range(length - 1):
                    middle[z + 1] = order[a + z]
                middle[0] = order[b]
            else:  # reverse
                for z in range(length):
                    middle[z] = order[b - z]
        elif kind < 0.93 and kind >= 0.55:  # drop
            if num == 1:
                continue
            removed = order[a]
        else:
            added = np.random.randint(num_devices)
            if used[added] >= copies[added]:
                continue
            middle[0], length = added, 1
            if kind >= 0.93:  # insert
                if num >= num_elements:
                    continue
                if np.random.random() < 1.0 / (num + 1):
                    first = num
                last = first
            else:  # replace
                removed = order[a]
        sender = order[first - 1] if first > 0 else -1
        row, lo, hi = ahead[first], lows[first], highs[first]
        for z in range(length):
            after = scratch[z & 1]
            lo, hi = _run_stage(
                row, lo, hi, sender, middle[z], prefix, last_end, min_segment, link, page, enter, bottleneck, after
            )
            row, sender = after, middle[z]
            if hi < 0:
                break
        value = np.inf
        if last == num:
            if hi >= num_elements and sender >= 0:
                value = _join(row[num_elements], leave[sender], bottleneck)
        else:
            receiver = order[last]
            for cut in range(lo, min(hi, num_elements) + 1):
                if row[cut] < np.inf and behind[last, cut] < np.inf:
                    step = enter[receiver] if sender < 0 else link[page[cut], sender, receiver]
                    value = min(value, _join(_join(row[cut], step, bottleneck), behind[last, cut], bottleneck))
        if value == np.inf:
            continue
        if value >= current and np.random.random() >= np.exp((current - value) / temperature):
            continue
        current = value
        if added >= 0:
            used[added] += 1
        if removed >= 0:
            used[removed] -= 1
        shift = length - (last - first)
        if shift > 0:
            for z in range(num - 1, last - 1, -1):
                order[z + shift] = order[z]
                copy_into(behind[z + shift], behind[z], num_elements + 1)
        elif shift < 0:
            for z in range(last, num):
                order[z + shift] = order[z]
                copy_into(behind[z + shift], behind[z], num_elements + 1)
        for z in range(length):
            order[first + z] = middle[z]
        num += shift
        changed_from, changed_to = first, min(last + shift, num) - 1
        if value < best * (1.0 - 1e-12):
            best = value
            best_num = num
            copy_into(best_order, order, num)
    # cuts of the best order
    stages = np.empty((best_num, 2), np.int64)
    for j in range(best_num):
        lows[j + 1], highs[j + 1] = _run_stage(
            ahead[j], lows[j], highs[j], best_order[j - 1] if j > 0 else -1, best_order[j],
            prefix, last_end, min_segment, link, page, enter, bottleneck, ahead[j + 1],
        )  # fmt: skip
    best = _join(ahead[best_num, num_elements], leave[best_order[best_num - 1]], bottleneck)
    end = num_elements
    for j in range(best_num, 0, -1):
        d = best_order[j - 1]
        stages[j - 1, 0], stages[j - 1, 1] = d, end
        cheapest, chosen = np.inf, 0
        for cut in range(end):
            if ahead[j - 1, cut] == np.inf or last_end[d, cut] < end or cut + min_segment > end:
                continue
            step = enter[d] if j == 1 else link[page[cut], best_order[j - 2], d]
            value = _join(_join(ahead[j - 1, cut], step, bottleneck), prefix[d, end] - prefix[d, cut], bottleneck)
            if value < cheapest:
                cheapest, chosen = value, cut
        end = chosen
    copy_into(order, best_order, best_num)
    return best, stages, best_num, made
