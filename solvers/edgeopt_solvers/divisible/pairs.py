"""The least makespan where every step waits for what the others computed in it.

Let C be a device's compute and E its compute and exchange. With device k, h units on it, the one of the largest E, the
makespan is the larger of C_k and (E_k + μ) / 2, μ the next largest: no other C counts, as C <= E <= μ <= (E_k + μ) / 2.
For every (k, h) the least μ of the other devices is found by halving, where that could be better than the best so far.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.divisible.choice import OutOfTimeError
from edgeopt_solvers.divisible.feasible import few_devices
from edgeopt_solvers.divisible.table import Table

__all__ = ["largest_and_next"]

Loads = NDArray[np.int64]


def largest_and_next(table: Table, most_devices: int, stop_at: float) -> Iterator[Loads]:
    """Yield loads, the best ones of all last.

    Parameters
    ----------
    most_devices
        That may be used.
    stop_at
        On the clock of ``time.perf_counter``.

    Raises
    ------
    OutOfTimeError
        It is past ``stop_at``.
    """
    used, total, best_s = table.used, table.instance.num_units, np.inf
    levels = np.unique(table.end[used])
    least = np.maximum(table.compute, table.end / 2)
    order = sorted((float(least[k, h]), int(k), int(h)) for k, h in zip(*np.nonzero(used), strict=True))
    for least_s, k, h in order:
        if least_s >= best_s:
            return
        if time.perf_counter() > stop_at:
            raise OutOfTimeError
        loads: Loads | None = np.where(table.rows == k, h, 0)
        if h < total:
            loads = _with(table, used, (k, h), levels, 2 * best_s - table.end[k, h], most_devices)
        if loads is not None and table.level_s(loads) < best_s:
            best_s = table.level_s(loads)
            yield loads


def _with(
    table: Table, used: NDArray[np.bool_], largest: tuple[int, int], levels: NDArray[np.float64], below_s: float,
    most_devices: int,
) -> Loads | None:  # fmt: skip
    """Return loads of the least next largest end beside the largest one; ``None``: it is not below ``below_s``."""
    k, h = largest

    def within(level_s: float) -> Loads | None:
        most = table.most_of(used & (table.end <= level_s))
        most[k] = 0  # below its least: it is not one of the others
        loads = few_devices(table.least, most, table.instance.num_units - h, most_devices - 1)
        if loads is not None:
            loads[k] = h
        return loads

    low, high = 0, int(np.searchsorted(levels, table.end[k, h], side="right"))
    high = min(high, int(np.searchsorted(levels, below_s)))
    found = within(levels[high - 1]) if high else None
    if found is None:
        return None
    while low < high - 1:  # levels[high - 1] is reached, those before low are not
        middle = (low + high) // 2
        loads = within(levels[middle - 1])
        if loads is None:
            low = middle
        else:
            found, high = loads, middle
    return found
