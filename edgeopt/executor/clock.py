"""How far the clocks of two hosts are apart, by the exchange of a few messages.

Rank 0's clock counts. A worker notes when it asks and when the answer is there; rank 0 answers with its time. If both
ways take equally long, rank 0 answered in the middle; the round trip bounds the error whatever they take (Cristian's
algorithm). The fastest of the exchanges is used.
"""

from __future__ import annotations

import time

import torch
import torch.distributed as dist

__all__ = ["clock_offset"]

_EXCHANGES = 12


def clock_offset(group: dist.ProcessGroupGloo) -> tuple[float, float]:
    """Measure this worker's offset from rank 0; every member of the group has to call it.

    Returns
    -------
    offset_s, error_s
        Seconds to add to this host's monotonic clock to get rank 0's, and half the round trip: the offset is right
        to within that. Both 0 for rank 0.
    """
    stamp = torch.zeros(1, dtype=torch.float64)
    if group.rank() == 0:
        for peer in range(1, group.size()):
            for _ in range(_EXCHANGES):
                group.recv([stamp], peer, 0).wait()
                stamp[0] = time.monotonic()
                group.send([stamp], peer, 0).wait()
        return 0.0, 0.0
    best = (float("inf"), 0.0)
    for _ in range(_EXCHANGES):
        asked_s = time.monotonic()
        group.send([stamp], 0, 0).wait()
        group.recv([stamp], 0, 0).wait()
        answered_s = time.monotonic()
        best = min(best, (answered_s - asked_s, float(stamp[0]) - (asked_s + answered_s) / 2))
    return best[1], best[0] / 2
