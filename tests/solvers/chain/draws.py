"""Hypothesis strategies for chains over every feature, with round numbers so that limits are met exactly.

Hypothesis draws the shape and the features (and shrinks them); a drawn seed fills the arrays, which keeps examples
varied and fast.
"""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st

from edgeopt_solvers.chain import Chain

SIZES = [(6, 4, 1), (6, 3, 1), (5, 4, 1), (5, 3, 2), (4, 4, 2), (6, 2, 2), (4, 3, 3), (3, 4, 3), (2, 4, 2), (1, 4, 2)]


@st.composite
def chains(draw, max_plans: int = 33_000) -> Chain:
    """Draw a chain of up to 6 elements and 4 devices that may use any feature."""
    sizes = [(L, D, V) for L, D, V in SIZES if max_plans >= (D * V) ** L]
    L, D, V = draw(st.sampled_from(sizes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    used = draw(st.sets(st.sampled_from(FEATURES), max_size=8))

    def fill(values, *shape):
        return rng.choice(np.array(values, dtype=float), size=shape)

    amount = [0.0, 1.0, 2.0, 4.0, 10.0]
    rates = [1.0, 2.0, 2.0, 4.0, 8.0] + ([0.0, 0.0, math.inf] if "no_link" in used else [])
    compute = fill([0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0], D, V, L)
    if "cannot_run" in used:
        compute[rng.random(compute.shape) < 0.2] = math.inf
    options = {
        "compute_s": compute,
        "cut_bytes": fill(amount, L + 1),
        "rate_bytes_per_s": fill(rates, D, D),
        "latency_s": fill([0.0, 0.0, 0.125, 0.5], D, D),
        "source": None if "free_ends" in used else int(rng.integers(D)),
        "reuse": draw(st.sampled_from(["once", "many"])),
    }
    if "messages" in used:
        options["cut_messages"] = fill([0.0, 1.0, 3.0], L + 1)
    if "max_stages" in used:
        options["max_stages"] = int(rng.integers(1, 4))
    if "min_segment" in used:
        options["min_segment"] = 2
    if "pins" in used:
        options["pins"] = {int(rng.integers(L)): int(rng.integers(D))}
    if "cut_legal" in used:
        options["cut_legal"] = fill([0, 1, 1], L + 1).astype(bool)
    if "loop" in used:
        options["loop_bytes"] = float(rng.choice(amount))
        options["loop_messages"] = float(rng.choice([0.0, 2.0]))
    if "memory" in used:
        block = [0.0, 1.0, 1.0, 2.0, 3.0]
        options["resident_bytes"] = fill(block, V, L)
        # sums of the sizes above, so that a device is often exactly full
        options["memory_bytes"] = fill([2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, math.inf], D)
        if "shared" in used:
            options["shared_bytes"] = fill([0.0, 1.0, 2.0], V)
        if "transient" in used:
            options["transient_bytes"] = fill(block, V, L)
    if "movement" in used:
        options.setdefault("resident_bytes", fill([0.0, 1.0, 2.0], V, L))
        options.setdefault("shared_bytes", fill([0.0, 1.0, 3.0], V))
        options["load_cost"] = fill([0.0, 0.25, 1.0, 2.0], D)
        if rng.random() < 0.8:
            options["held"] = rng.random((D, V, L)) < 0.4
    names = ["latency", "throughput"]
    if "energy" in used:
        names.append("energy")
        for field in ("power_w", "send_power_w", "receive_power_w"):
            options[field] = fill([0.0, 1.0, 2.0, 5.0], D)
        if rng.random() < 0.5:
            options["max_energy_j"] = float(rng.choice([5.0, 10.0, 20.0, 40.0]))
    if "quality" in used:
        names.append("quality")
        options["quality_loss"] = fill([-1.0, 0.0, 0.5, 1.0, 2.0], V, L)
        if rng.random() < 0.5:
            options["handoff_loss"] = fill([0.0, 0.0, -0.5, 1.0, math.inf], V, V, L + 1)
        if rng.random() < 0.6:
            options["max_quality_loss"] = float(rng.choice([-1.0, 0.0, 1.0, 2.5, 4.0]))
    if "max_latency" in used:
        options["max_latency_s"] = float(rng.choice([5.0, 8.0, 12.0, 20.0]))
    if "max_period" in used:
        options["max_period_s"] = float(rng.choice([2.0, 4.0, 8.0]))
    if "weighted" in used:
        options["objective"] = {name: float(rng.choice([0.0, 0.5, 1.0, 3.0])) for name in names} | {names[-1]: 2.0}
    else:
        options["objective"] = draw(st.sampled_from(names))
    return Chain(**options)


FEATURES = [
    "no_link", "cannot_run", "free_ends", "messages", "max_stages", "min_segment", "pins", "cut_legal", "loop",
    "memory", "memory", "shared", "transient", "energy", "quality", "quality", "max_latency", "max_period", "weighted",
    "movement", "movement",
]  # fmt: skip
