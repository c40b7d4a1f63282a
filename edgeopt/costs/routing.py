"""What routing costs beside the answers: looking at a query; and how sure the accuracy of a mixture of classes is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeopt.costs.answering import Interval
from edgeopt.costs.roofline import Work, roofline
from edgeopt.costs.timings import interpolate_s, matching
from edgeopt.profiles.device import Device
from edgeopt.profiles.model import CausalLM, Router

__all__ = ["mixed_interval", "score_s"]

#: 97.5 % point of the normal distribution.
_BOTH_ENDS = 1.959964
#: Calls that scoring a query makes: its tokens as text, the features, the product, the chances, the bin.
_KERNELS = 5
#: Bytes of a token in the text that runs are looked for in, and of a weight.
_TEXT_BYTES, _WEIGHT_BYTES = 1, 8


def score_s(
    model: CausalLM, router: Router, device: Device, prompt_tokens: NDArray[np.int64]
) -> tuple[NDArray[np.float64], bool]:
    """Seconds that a device takes to score each query, (N,), and whether that was measured (phase ``score``).

    Every feature may read the whole query; the regressions are a product with the features. Launches outweigh both.
    """
    measured = interpolate_s(matching(device, model.name, "score", model.dtype), 1, "tokens", prompt_tokens)
    if measured is not None:
        return measured[:, 0], True
    num_weights = len(router.weights) * (len(router.features) + 1)
    work = Work(
        flop=2.0 * num_weights,
        weights=_WEIGHT_BYTES * num_weights,
        activations=_TEXT_BYTES * len(router.features) * prompt_tokens.astype(float),
        kernels=_KERNELS,
    )
    return roofline(device, model.dtype, work).total, False


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
