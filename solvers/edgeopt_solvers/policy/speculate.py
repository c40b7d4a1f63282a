"""Speculative decoding by evaluating every candidate, in arrays over (draft device, target device, length).

For each pair of draft a and target b, over devices d, e and lengths γ >= 1:

    round = draft_round_s[a, d] + γ draft_s[a, d] + up[d, e, γ] + verify_s[b, e, γ + 1] + down[e, d]
    tokens = 1 + Σ_{i<=γ} Π_{j<=i} α_j        objective = round / tokens + start_s, or joules or price / tokens

and, once per target, the lone decoding of γ = 0. Nothing is approximated, so the least value is the optimum.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.policy.instance import LIMIT_TOLERANCE, Speculative, SpeculativeSolution
from edgeopt_solvers.result import Result, Status
from edgeopt_solvers.solve import Options

__all__ = ["solve_speculative"]

KEEP = 1 + 0.5 * LIMIT_TOLERANCE


@dataclass(frozen=True, slots=True)
class _Links:
    """Seconds and joules of the transfers of a round, (D, D, G); ``inf`` seconds: no link."""

    seconds: Array
    joules: Array


def solve_speculative(instance: Speculative, options: Options) -> Result:
    """Evaluate every candidate that fits the memories and budgets; the first of equally good ones is returned."""
    stop_at = math.inf if options.time_limit_s is None else time.perf_counter() + options.time_limit_s
    links = _links(instance)
    best, choice, finished = math.inf, None, True
    for b in range(instance.num_targets):
        fits = instance.target_bytes[b] <= instance.memory_bytes * KEEP
        verify_s = np.where(fits[:, None], instance.verify_s[b], math.inf)  # (D, G + 1)
        if instance.min_length == 0:
            alone = verify_s[:, 0]
            value = _value(
                instance,
                alone + instance.alone_start_s[b],
                instance.power_w * _finite(alone),
                instance.price_per_s * _finite(alone),
            )
            e = int(np.argmin(value))
            if value[e] < best:
                best, choice = float(value[e]), SpeculativeSolution(-1, -1, b, e, 0)
        for a in range(instance.num_drafts):
            if time.perf_counter() > stop_at:
                finished = False
                break
            value = _drafted(instance, links, a, b, verify_s[:, 1:])
            index = int(np.argmin(value))
            if value.flat[index] < best:
                d, e, k = (int(i) for i in np.unravel_index(index, value.shape))
                best = float(value.flat[index])
                choice = SpeculativeSolution(a, d, b, e, k + max(1, instance.min_length))
    reason = "optimal" if finished else "time_limit"
    statistics = {"num_candidates": float(_count(instance))}
    if choice is None:
        status = Status("infeasible" if finished else "time_limit", False)
        return Result(status, math.inf, math.inf if finished else 0.0, None, "exact", 0.0, statistics=statistics)
    status = Status("optimal" if reason == "optimal" else "time_limit", True)
    return Result(status, best, best if finished else 0.0, choice, "exact", 0.0, statistics=statistics)


def _count(instance: Speculative) -> int:
    lengths = instance.max_length - max(1, instance.min_length) + 1
    pairs = instance.num_drafts * instance.num_targets * instance.num_devices**2 * lengths
    return pairs + (instance.num_targets * instance.num_devices if instance.min_length == 0 else 0)


def _links(instance: Speculative) -> _Links:
    D = instance.num_devices
    length = np.arange(max(1, instance.min_length), instance.max_length + 1)
    up_bytes = instance.round_bytes + instance.token_bytes * length
    with np.errstate(divide="ignore", invalid="ignore"):
        up = instance.latency_s[:, :, None] + up_bytes / instance.rate_bytes_per_s[:, :, None]
        down = (instance.latency_s + instance.reply_bytes / instance.rate_bytes_per_s).T
    up[instance.rate_bytes_per_s == 0] = math.inf
    down[instance.rate_bytes_per_s.T == 0] = math.inf
    seconds = up + down[:, :, None]
    joules = instance.byte_j[:, None, None] * up_bytes + (instance.byte_j * instance.reply_bytes)[None, :, None]
    same = np.arange(D)
    seconds[same, same] = 0.0
    joules = np.broadcast_to(joules, seconds.shape).copy()
    joules[same, same] = 0.0
    return _Links(seconds, joules)


def _drafted(instance: Speculative, links: _Links, a: int, b: int, verify_s: Array) -> Array:
    """Return the objective of every (draft device, target device, length), ``inf`` where a limit is broken."""
    first = max(1, instance.min_length)
    length = np.arange(first, instance.max_length + 1)
    tokens = (1.0 + np.cumsum(np.cumprod(instance.acceptance[a, b])))[first - 1 :]
    draft_bytes, target_bytes = instance.draft_bytes[a], instance.target_bytes[b]
    fits = draft_bytes <= instance.memory_bytes * KEEP
    draft_s: Array = np.where(fits, instance.draft_s[a], math.inf)[:, None] * length.astype(np.float64)  # (D, G)
    draft_s += instance.draft_round_s[a][:, None]
    verify = verify_s[:, first - 1 :]
    seconds = draft_s[:, None, :] + (links.seconds + verify[None, :, :])
    both = np.flatnonzero(draft_bytes + target_bytes > instance.memory_bytes * KEEP)
    seconds[both, both] = math.inf
    seconds /= tokens
    seconds += instance.start_s[a, :, b, :, None]
    asked = set(instance.weights) - {"time"}
    if not asked and instance.max_energy_per_token_j is None and instance.max_cost_per_token is None:
        return _value(instance, seconds, seconds, seconds)
    draft_s, verify = _finite(draft_s)[:, None, :], _finite(verify)[None, :, :]
    joules = instance.power_w[:, None, None] * draft_s + instance.power_w[:, None] * verify + links.joules
    price = instance.price_per_s[:, None, None] * draft_s + instance.price_per_s[:, None] * verify
    return _value(instance, seconds, joules / tokens, price / tokens)


def _finite(seconds: Array) -> Array:
    return np.where(np.isfinite(seconds), seconds, 0.0)


def _value(instance: Speculative, seconds: Array, joules: Array, price: Array) -> Array:
    """Return the objective from amounts per token, ``inf`` where a budget is broken or a round never ends."""
    weights = instance.weights
    metrics = (
        ("time", seconds, instance.max_time_per_token_s),
        ("energy", joules, instance.max_energy_per_token_j),
        ("cost", price, instance.max_cost_per_token),
    )
    if weights == {"time": 1.0}:
        value = seconds.copy()
    else:
        value = np.zeros_like(seconds)
        for name, amount, _ in metrics:
            if name in weights:
                value += weights[name] * amount
        value[np.isinf(seconds)] = math.inf
    for _, amount, limit in metrics:
        if limit is not None:
            value[amount > limit * KEEP] = math.inf
    return value
