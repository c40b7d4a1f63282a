"""How sure the accuracy of a mixture is: classes of known shares, each answered right with some probability."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeopt.costs.answering import Interval

__all__ = ["mixed_interval"]

#: 97.5 % point of the normal distribution.
_BOTH_ENDS = 1.959964


def mixed_interval(
    right: NDArray[np.float64],
    shares: NDArray[np.float64],
    num_fit: Sequence[int],
    num_held_out: Sequence[int],
    requests: int,
) -> Interval:
    """Return what accuracy to expect of a run on other queries, with its 95 % interval.

    Three things vary: which queries were recorded, which others are asked, and which of those the run draws; the
    variance is Σ_c share_c² p_c (1 - p_c) (1 / fit_c + 1 / held out_c) + p (1 - p) / requests. As in
    :func:`edgeopt.costs.answering.accuracy_interval`, p_c is moved towards one half by two answers of each kind.

    Parameters
    ----------
    right, shares : (C,)
        Accuracy on the recorded queries of each class, and its part of all queries.
    num_fit, num_held_out
        Recorded and other queries of each class.
    requests
        Queries that a run draws.
    """
    fit, others = np.array(num_fit, float), np.array(num_held_out, float)
    mean = float(shares @ right)
    moved = (right * fit + 2) / (fit + 4)
    variance = float((shares**2 * moved * (1 - moved) * (1 / fit + 1 / others)).sum()) + mean * (1 - mean) / requests
    half = _BOTH_ENDS * math.sqrt(variance)
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half))
