"""Policies drawn by hypothesis, and the best of small ones found by trying all."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import strategies as st

from edgeopt_solvers.policy import Cascade, CascadeSolution, Speculative, SpeculativeSolution, evaluate


@st.composite
def speculatives(draw, wild=False):
    """Draw an instance; ``wild`` draws magnitudes from 1e-12 to 1e18, zeros, and models that cannot run."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    A, B, D, G = (draw(st.integers(1, n)) for n in (3, 3, 3, 5))
    used = draw(st.sets(st.sampled_from(
        ["curve", "position", "links", "broken", "memory", "min_length", "start", "round", "time", "energy", "cost"]
    )))  # fmt: skip

    def numbers(centre, size):
        if not wild:
            return centre * rng.lognormal(0, 0.7, size)
        return np.where(rng.random(size) < 0.1, 0.0, 10.0 ** rng.uniform(-12, 18, size))

    fields = {
        "draft_s": numbers(0.2, (A, D)), "verify_s": numbers(1.0, (B, D)), "acceptance": rng.random((A, B)),
        "max_length": G,
        "power_w": numbers(1.0, D), "byte_j": numbers(0.1, D), "price_per_s": numbers(1.0, D),
    }  # fmt: skip
    objective = draw(st.sampled_from(["time", "energy", "cost", "weighted"]))
    fields["objective"] = {"time": 1.0, "energy": 0.5, "cost": 0.0} if objective == "weighted" else objective
    if "curve" in used:
        fields["verify_s"] = numbers(1.0, (B, D, G + 1))
    if "position" in used:
        fields["acceptance"] = rng.choice([0.0, 1.0, 0.3, 0.9], (A, B, G))
    if "links" in used:
        rate = np.where(rng.random((D, D)) < 0.3, 0.0, numbers(5.0, (D, D)))
        fields |= {"rate_bytes_per_s": rate, "latency_s": numbers(0.1, (D, D)), "round_bytes": 1.0}
        fields |= {"token_bytes": 0.5, "reply_bytes": 2.0}
    if "broken" in used:
        fields["draft_s"] = np.where(rng.random((A, D)) < 0.4, math.inf, fields["draft_s"])
        fields["verify_s"] = np.where(rng.random(fields["verify_s"].shape) < 0.2, math.inf, fields["verify_s"])
    if "memory" in used:
        fields |= {"memory_bytes": numbers(2.0, D), "draft_bytes": numbers(0.5, A), "target_bytes": numbers(1.2, B)}
    if "start" in used:
        fields |= {"start_s": numbers(0.5, (A, D, B, D)), "alone_start_s": numbers(0.5, (B, D))}
    if "round" in used:
        fields["draft_round_s"] = numbers(0.2, (A, D))
    if "min_length" in used:
        fields["min_length"] = int(rng.integers(0, G + 1))
    for name in ("time", "energy", "cost"):
        if name in used:
            unit = {"time": "_s", "energy": "_j", "cost": ""}[name]
            fields[f"max_{name}_per_token{unit}"] = float(numbers(0.8, 1)[0])
    return Speculative(**fields)


def brute_force_speculative(instance):
    """Return the least objective over all candidates, through the checker; ``inf`` if none is allowed."""
    best = math.inf
    A, B, D, G = instance.num_drafts, instance.num_targets, instance.num_devices, instance.max_length
    candidates = [SpeculativeSolution(-1, -1, b, e, 0) for b in range(B) for e in range(D)]
    candidates += [
        SpeculativeSolution(a, d, b, e, length)
        for a in range(A) for d in range(D) for b in range(B) for e in range(D) for length in range(1, G + 1)
    ]  # fmt: skip
    for candidate in candidates:
        evaluation = evaluate(instance, candidate)
        if not evaluation.violations:
            best = min(best, evaluation.objective)
    return best


@st.composite
def cascades(draw, wild=False, most_queries=10, most_models=4):
    """Draw an instance whose trace has ties, constant columns and, with ``wild``, amounts of any magnitude."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    N, M = draw(st.integers(1, most_queries)), draw(st.integers(1, most_models))
    used = draw(st.sets(st.sampled_from(
        ["ties", "graded", "per_query", "floor", "latency", "cost", "models", "levels", "grid", "busy",
         "conflicts"]
    )))  # fmt: skip

    def numbers(centre, size):
        if not wild:
            return centre * rng.lognormal(0, 0.7, size)
        return np.where(rng.random(size) < 0.1, 0.0, 10.0 ** rng.uniform(-12, 18, size))

    confidence = rng.choice([0.0, 0.3, 0.6, 1.0], (N, M)) if "ties" in used else rng.random((N, M))
    shape = (N, M) if "per_query" in used else M
    fields = {
        "confidence": confidence,
        "correct": rng.random((N, M)) if "graded" in used else rng.random((N, M)) < np.linspace(0.4, 0.95, M),
        "seconds": np.sort(numbers(1.0, shape), axis=-1),
        "cost": numbers(1.0, shape),
        "num_levels": None,
    }
    objective = draw(st.sampled_from(["latency", "cost", "weighted"]))
    fields["objective"] = {"latency": 1.0, "cost": 0.3} if objective == "weighted" else objective
    if "floor" in used:
        fields["min_accuracy"] = float(rng.choice([0.5, 0.7, 0.8, 0.9]))
    if "latency" in used:
        fields["max_latency_s"] = float(numbers(1.5, 1)[0])
    if "cost" in used:
        fields["max_cost"] = float(numbers(1.5, 1)[0])
    if "models" in used:
        fields["max_models"] = int(rng.integers(1, M + 1))
    if "busy" in used:
        fields |= {"device": rng.integers(0, 2, M), "max_busy_s": float(numbers(1.0, 1)[0])}
        if rng.random() < 0.5:
            fields["busy_s"] = numbers(0.7, shape)
    if "conflicts" in used and M > 1:
        sizes = rng.integers(2, M + 1, 2)
        fields["conflicts"] = [sorted(rng.choice(M, size, replace=False).tolist()) for size in sizes]
    if "levels" in used:
        fields["num_levels"] = int(rng.integers(2, 6))
    if "grid" in used:
        fields["grid"] = [np.unique(rng.choice([0.1, 0.3, 0.5, 1.0], rng.integers(0, 4))).tolist() for _ in range(M)]
    return Cascade(**fields)


def thresholds(instance, model):
    """The thresholds that ``model`` may have, from the definition."""
    confidence = instance.confidence[:, model]
    if instance.grid is not None:
        return sorted(instance.grid[model])
    if instance.num_levels is None or instance.num_levels >= len(confidence):
        return sorted(set(confidence.tolist()))
    rising = sorted(confidence.tolist())
    return sorted({rising[k * len(rising) // instance.num_levels] for k in range(1, instance.num_levels)})


def all_cascades(instance):
    """Yield every cascade that an instance allows."""
    M = instance.num_models
    for size in range(1, (instance.max_models or M) + 1):
        for models in itertools.combinations(range(M), size):
            for chosen in itertools.product(*(thresholds(instance, m) for m in models[:-1])):
                yield CascadeSolution(models, chosen)


def brute_force_cascade(instance):
    """Return the least objective over all cascades, through the checker; ``inf`` if none is allowed."""
    evaluations = (evaluate(instance, solution) for solution in all_cascades(instance))
    return min((e.objective for e in evaluations if not e.violations), default=math.inf)
