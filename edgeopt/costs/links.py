"""Links between devices as matrices of rate and latency."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeopt.profiles.network import Network

__all__ = ["link_matrices"]


def link_matrices(network: Network, devices: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (rate_bytes_per_s, latency_s), each (D, D): listed links first, the default elsewhere, rate 0 for none."""
    count = len(devices)
    rate, latency = np.zeros((count, count)), np.zeros((count, count))
    if network.default is not None:
        rate[:], latency[:] = network.default.rate, network.default.latency
    index = {name: i for i, name in enumerate(devices)}
    for link in network.links:
        ends = link.between or (link.from_, link.to)
        i, j = (index[name] for name in ends)
        for a, b in [(i, j), (j, i)] if link.between else [(i, j)]:
            rate[a, b], latency[a, b] = link.rate, link.latency
    np.fill_diagonal(rate, 0.0)
    np.fill_diagonal(latency, 0.0)
    return rate, latency
