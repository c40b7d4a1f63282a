# mypy: allow-untyped-defs
"""Compiled: sorting, copying and following parents, in a form that is quick to compile and allocates nothing.

Assigning one slice to another makes the compiler build the message for shapes that differ: 3 s for the first in a
process, against nothing for a loop. ``numpy.argsort`` costs 2 s.
"""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["copy_into", "sort_pairs", "stages_of"]

SHORT = 24


@njit(cache=True, nogil=True)
def copy_into(target, source, num):
    """Copy the first ``num`` entries."""
    for i in range(num):
        target[i] = source[i]


@njit(cache=True, nogil=True)
def sort_pairs(key, item, num):
    """Sort ``key[:num]`` ascending and carry ``item`` along: quicksort down to short runs, then insertion."""
    lows = np.empty(64, np.int64)
    highs = np.empty(64, np.int64)
    lows[0], highs[0], depth = 0, num - 1, 1
    while depth > 0:
        depth -= 1
        lo, hi = lows[depth], highs[depth]
        while hi - lo >= SHORT:
            a, b, c = key[lo], key[(lo + hi) // 2], key[hi]
            pivot = max(min(a, b), min(max(a, b), c))
            i, j = lo, hi
            while i <= j:
                while key[i] < pivot:
                    i += 1
                while key[j] > pivot:
                    j -= 1
                if i <= j:
                    key[i], key[j] = key[j], key[i]
                    item[i], item[j] = item[j], item[i]
                    i += 1
                    j -= 1
            if j - lo > hi - i:  # the longer part waits, so that the stack stays short
                lows[depth], highs[depth] = lo, j
                lo = i
            else:
                lows[depth], highs[depth] = i, hi
                hi = j
            depth += 1
    for i in range(1, num):
        k, carried = key[i], item[i]
        j = i - 1
        while j >= 0 and key[j] > k:
            key[j + 1], item[j + 1] = key[j], item[j]
            j -= 1
        key[j + 1], item[j + 1] = k, carried


@njit(cache=True, nogil=True)
def stages_of(device, parent, room, last_device, last_parent, num_elements):
    """Follow labels back from the last stage: (device, end) of each, last first, and how many; none if it is -1.

    Label i ends at element ``i // room``.
    """
    stages = np.empty((num_elements + 1, 2), np.int64)
    length = 0
    if last_device >= 0:
        stages[0, 0], stages[0, 1], length = last_device, num_elements, 1
        i = last_parent
        while i >= 0:
            stages[length, 0], stages[length, 1] = device[i], i // room
            length += 1
            i = parent[i]
    return stages, length
