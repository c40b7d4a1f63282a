"""Divisible loads drawn by hypothesis, and the best division of a small one found by trying all."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import strategies as st

from edgeopt_solvers.divisible import Divisible, Solution, evaluate

EXTRAS = (
    "fixed_s", "transfer", "latency", "shared", "mixed", "overlapped", "memory", "min_units", "steps", "max_makespan",
    "max_energy", "max_devices", "broken", "lead", "pairwise",
)  # fmt: skip


@st.composite
def problems(draw, most_devices=4, most_units=7, wild=False, extras=EXTRAS, objectives=None):
    """Draw an instance; ``wild`` draws magnitudes from 1e-12 to 1e18, zeros, and devices that cannot compute."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    D, H = draw(st.integers(1, most_devices)), draw(st.integers(1, most_units))
    used = draw(st.sets(st.sampled_from(extras)))

    def numbers(centre, spread=0.7):
        if not wild:
            return centre * rng.lognormal(0, spread, D)
        return np.where(rng.random(D) < 0.1, 0.0, 10.0 ** rng.uniform(-12, 18, D))

    fields = {"num_units": H, "unit_s": numbers(1.0)}
    objective = draw(st.sampled_from(objectives or ("makespan", "energy", "weighted")))
    fields["objective"] = {"makespan": 1.0, "energy": 0.3} if objective == "weighted" else objective
    if objective != "makespan" or "max_energy" in used:
        fields |= {"power_w": numbers(1.0), "byte_j": numbers(0.3)}
    if "fixed_s" in used:
        fields["fixed_s"] = numbers(1.0)
    if {"transfer", "shared", "mixed"} & used:
        fields |= {"fixed_bytes": numbers(1.0), "unit_bytes": numbers(0.3), "rate_bytes_per_s": numbers(3.0)}
        fields["shared"] = rng.random(D) < 0.5 if "mixed" in used else "shared" in used
    if "latency" in used:
        fields["latency_s"] = numbers(0.3)
    if "overlapped" in used:
        fields["exchange"] = "overlapped"
    if "memory" in used:
        fields |= {
            "memory_bytes": numbers(1.2 * H),
            "fixed_memory_bytes": numbers(0.5),
            "unit_memory_bytes": numbers(1),
        }
    if "min_units" in used:
        fields["min_units"] = rng.integers(1, 3, D)
    if "steps" in used:
        fields["num_steps"] = rng.integers(1, 4, D)
    if "max_makespan" in used:
        fields["max_makespan_s"] = float(numbers(1.5 * H / D + 2)[0])
    if "max_energy" in used:
        fields["max_energy_j"] = float(numbers(3.0 * H)[0])
    if "max_devices" in used:
        fields["max_devices"] = int(rng.integers(1, D + 1))
    if "broken" in used:
        fields["unit_s"] = np.where(rng.random(D) < 0.3, math.inf, fields["unit_s"])
    if "lead" in used and objective == "makespan" and not {"shared", "mixed", "max_energy"} & used:
        fields |= {"lead_s": numbers(0.5), "lead_unit_s": numbers(0.5)}
    elif "pairwise" in used and objective == "makespan" and not {"shared", "mixed", "max_energy"} & used:
        fields["exchange"] = "pairwise"
    return Divisible(**fields)


def best_shares(instance, loads):
    """Shares that end soonest for fixed loads, by bisection on the level: apart from the solvers' own method."""
    D = instance.num_devices
    offset, seconds = np.zeros(D), np.zeros(D)
    for d in range(D):
        steps = float(instance.num_steps[d])
        num_bytes = steps * (instance.fixed_bytes[d] + instance.unit_bytes[d] * loads[d])
        if not loads[d] or not instance.shared[d] or num_bytes == 0:
            continue
        rate = instance.rate_bytes_per_s[d]
        seconds[d] = num_bytes / rate if rate > 0 else math.inf
        offset[d] = steps * instance.latency_s[d]
        if instance.exchange == "synchronous":
            offset[d] += steps * (instance.fixed_s[d] + instance.unit_s[d] * loads[d])
    shares = np.where((np.array(loads) > 0) & ~instance.shared, 1.0, 0.0)
    sends = seconds > 0
    if not sends.any() or not np.isfinite(seconds + offset).all():
        return shares
    low, high = float(offset[sends].max()), float(offset[sends].max() + seconds.sum())
    for _ in range(200):
        middle = 0.5 * (low + high)
        if middle > low and (seconds[sends] / (middle - offset[sends])).sum() > 1:
            low = middle
        else:
            high = middle
    share = seconds[sends] / (high - offset[sends])
    shares[sends] = share / share.sum()
    return shares


def brute_force(instance):
    """Return the least objective over all divisions, ``inf`` if none is allowed."""
    best = math.inf
    H = instance.num_units
    for loads in itertools.product(range(H + 1), repeat=instance.num_devices):
        if sum(loads) != H:
            continue
        evaluation = evaluate(instance, Solution(loads, tuple(best_shares(instance, loads))))
        if not evaluation.violations:
            best = min(best, evaluation.objective)
    return best
