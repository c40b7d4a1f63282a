"""Whether loads between limits add up to all units on few devices, and such loads.

Devices are added one by one; best[t] is the fewest devices whose loads can add up to exactly t. Adding a device with
loads least..most gives best'[t] = min(best[t], 1 + min best[t − most .. t − least]): a minimum over a sliding window.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["few_devices"]

Ints = NDArray[np.int64]


def few_devices(least: Ints, most: Ints, num_units: int, most_devices: int) -> Ints | None:
    """Return loads (D,) on as few devices as possible; ``None`` if more than ``most_devices`` are needed."""
    loads = np.zeros(len(least), dtype=np.int64)
    usable = np.flatnonzero(most >= least)
    if not len(usable):
        return None
    order = usable[np.argsort(-most[usable], kind="stable")]
    if (least[order] <= 1).all():  # the largest first
        filled = np.cumsum(most[order])
        needed = int(np.searchsorted(filled, num_units)) + 1
        if needed > min(len(order), most_devices):
            return None
        chosen = order[:needed]
        loads[chosen] = most[chosen]
        loads[chosen[-1]] -= filled[needed - 1] - num_units
        return loads
    never = len(least) + 1
    table = [np.append(np.zeros(1, dtype=np.int64), np.full(num_units, never, dtype=np.int64))]
    for d in order.tolist():
        lo, hi = int(least[d]), int(min(most[d], num_units))
        reached = np.full(num_units + 1, never, dtype=np.int64)
        if lo <= num_units:
            reached[lo:] = _window_min(table[-1][: num_units + 1 - lo], hi - lo + 1, never) + 1
        table.append(np.minimum(table[-1], reached))
    if table[-1][num_units] > most_devices or table[-1][num_units] >= never:
        return None
    rest = num_units
    for d, before, after in zip(reversed(order.tolist()), reversed(table[:-1]), reversed(table[1:]), strict=True):
        if after[rest] == before[rest]:
            continue
        lo, hi = int(least[d]), int(min(most[d], rest))
        back = before[rest - hi : rest - lo + 1][::-1]  # load lo, lo + 1, ...
        loads[d] = lo + int(np.argmax(back == after[rest] - 1))
        rest -= int(loads[d])
    return loads


def _window_min(values: Ints, width: int, outside: int) -> Ints:
    """Return min(values[t − width + 1 .. t]) for every t, by doubling the window."""
    result, reach = values, 1
    while reach < width:
        shift = min(reach, width - reach)
        moved = np.full_like(result, outside)
        moved[shift:] = result[: len(result) - shift]
        result, reach = np.minimum(result, moved), reach + shift
    return result
