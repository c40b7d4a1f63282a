"""The least makespan where all devices wait for each other after a first part.

Levels (A, B) are possible if some loads end their first part by A and the rest by B. The larger A, the smaller the
least B, so that one walks up over the seconds that a first part can take while the other walks down.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.divisible.choice import OutOfTimeError
from edgeopt_solvers.divisible.feasible import few_devices
from edgeopt_solvers.divisible.table import Table

__all__ = ["pairs_of_levels"]


def pairs_of_levels(table: Table, most_devices: int, stop_at: float) -> Iterator[NDArray[np.int64]]:
    """Yield loads, the best ones of all among them.

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
    used = table.used
    rests = np.unique(table.end[used])
    below = len(rests)  # of these the last has not been tried
    for first in np.unique(table.lead[used]):
        early = used & (table.lead <= first)
        while below:
            if time.perf_counter() > stop_at:
                raise OutOfTimeError
            most = table.most_of(early & (table.end <= rests[below - 1]))
            loads = few_devices(table.least, most, table.instance.num_units, most_devices)
            if loads is None:
                break
            yield loads
            below = int(np.searchsorted(rests, table.end[table.rows, loads][loads > 0].max()))
