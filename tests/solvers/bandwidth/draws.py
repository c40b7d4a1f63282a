"""Bandwidth problems drawn by hypothesis: every feature alone and together, at ordinary and at wild magnitudes."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st

from edgeopt_solvers.bandwidth import Bandwidth


@st.composite
def problems(draw, most_flows=8, wild=False, objectives=("sum", "max"), limits=True):
    """Draw an instance; ``wild`` draws magnitudes from 1e-12 to 1e18, zeros, and links that do not exist."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_flows, num_media = draw(st.integers(1, most_flows)), draw(st.integers(1, 3))
    kind = draw(st.sampled_from(["fixed", "radio", "mixed"]))
    used = draw(st.sets(st.sampled_from(["weight", "fixed_s", "budget", "idle", "low", "high", "deadline"])))

    def numbers(centre, size=num_flows, spread=1.0):
        if not wild:
            return centre * rng.lognormal(0, spread, size)
        values = 10.0 ** rng.uniform(-12, 18, size)
        return np.where(rng.random(size) < 0.1, 0.0, values)

    size = numbers(1e6)
    if "idle" in used:
        size = np.where(rng.random(num_flows) < 0.3, 0.0, size)
    band = {"fixed": np.zeros(num_media), "radio": np.full(num_media, 2e7)}.get(kind)
    if band is None:
        band = np.where(np.arange(num_media) % 2 == 0, 2e7, 0.0)
    fields = {
        "size_bytes": size,
        "medium": rng.integers(0, num_media, num_flows),
        "band_hz": band,
        "rate_bytes_per_s": numbers(1e7),
        "snr": numbers(3.0, spread=1.5),
        "objective": draw(st.sampled_from(objectives)),
    }
    if "weight" in used:
        fields["weight"] = np.where(rng.random(num_flows) < 0.2, 0.0, numbers(1.0))
    if "fixed_s" in used:
        fields["fixed_s"] = numbers(0.2)
    if "budget" in used:
        fields["budget"] = rng.uniform(0.3, 1.0, num_media)
    if limits and "low" in used:
        fields["min_share"] = np.where(rng.random(num_flows) < 0.5, rng.uniform(0, 0.9 / num_flows, num_flows), 0.0)
    if limits and "high" in used:
        fields["max_share"] = np.where(rng.random(num_flows) < 0.5, rng.uniform(1 / num_flows, 1, num_flows), math.inf)
    if limits and "deadline" in used:
        deadline = numbers(20.0 if kind == "radio" else 2.0)
        fields["deadline_s"] = np.where(rng.random(num_flows) < 0.5, deadline, math.inf)
    return Bandwidth(**fields)
