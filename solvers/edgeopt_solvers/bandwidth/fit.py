"""The last repair: sums of shares that rounding left above a budget."""

from __future__ import annotations

import math

import numpy as np

from edgeopt_solvers.bandwidth.flows import Flows
from edgeopt_solvers.bandwidth.validate import Array

__all__ = ["fit"]


def fit(flows: Flows, shares: Array) -> Array:
    """Lower shares until each sum keeps its budget exactly (where least shares themselves do not exceed it)."""
    shares = shares.copy()
    near = flows.sums(shares) > flows.budget * (1 - 1e-9)
    for g in np.flatnonzero(near).tolist():
        span = flows.span(g)
        low, own = flows.low[span], shares[span]
        for _ in range(10):
            over = -flows.exact_rest(shares, g)
            room = own - low
            if over <= 0 or not room.any():
                break
            if over > 1e-12 * flows.budget[g]:
                own -= room * min(1.0, over / float(room.sum()))
            else:
                j = int(np.argmax(room))
                own[j] = max(low[j], min(own[j] - over, math.nextafter(own[j], 0.0)))
    return shares
