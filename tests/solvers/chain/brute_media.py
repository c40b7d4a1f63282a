"""Every plan of a small chain with reserved media, each with its best shares: the oracle of the media tests.

Plans are costed with transfers that take no time but their messages' latency; what the bytes take is added per medium,
for all plans at once, by bisections that know nothing but the definition of the rates.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from tests.solvers.chain.brute import TOLERANCE, all_plans, metrics_of


def brute_force_with_media(chain):
    """Return the optimal value, or ``inf`` when no plan exists."""
    reserved = chain.links_of("reserved")
    period = "throughput" in chain.weights or chain.max_period_s is not None
    bare = replace(
        chain, medium=np.where(reserved, -1, chain.medium),
        rate_bytes_per_s=np.where(reserved & (chain.rate_bytes_per_s > 0), math.inf, chain.rate_bytes_per_s),
        max_latency_s=None, max_period_s=None, max_energy_j=None,
    )  # fmt: skip
    dev, var = all_plans(chain)
    metrics, ok = metrics_of(bare, dev, var)
    if period:  # the channel of a transfer is its own
        silent = replace(bare, latency_s=np.where(reserved, 0.0, bare.latency_s))
        metrics["throughput"] = metrics_of(silent, dev, var)[0]["throughput"]
    dev = dev[ok]
    metrics = {name: values[ok] for name, values in metrics.items()}
    if not len(dev):
        return math.inf
    moves = _moves(chain, dev)
    if period:
        metrics["throughput"] = np.maximum(metrics["throughput"], _least_largest(chain, moves))
    watts = np.zeros((chain.num_devices,) * 2)
    if chain.send_power_w is not None:
        watts = chain.send_power_w[:, None] + chain.receive_power_w[None, :]
    weights = chain.weights
    latency, energy = weights.get("latency", 0.0), weights.get("energy", 0.0)
    value = metrics["movement"] + sum(weight * metrics[name] for name, weight in weights.items())
    if latency or energy:
        value = value + _least_sum(chain, moves, latency + energy * watts)
    keep = np.ones(len(dev), dtype=bool)
    for name, limit, weight in (
        ("latency", chain.max_latency_s, np.ones_like(watts)),
        ("energy", chain.max_energy_j, watts),
    ):
        if limit is not None:
            keep &= metrics[name] + _least_sum(chain, moves, weight) <= limit * (1 + TOLERANCE)
    if chain.max_period_s is not None:
        keep &= metrics["throughput"] <= chain.max_period_s * (1 + TOLERANCE)
    return float(value[keep].min()) if keep.any() else math.inf


def _moves(chain, dev):
    """List, for all plans at once, (sender, receiver, bytes, messages) of everything that may move."""
    L, source = chain.num_elements, chain.source
    moves = [(dev[:, c - 1], dev[:, c], chain.cut_bytes[c], chain.cut_messages[c]) for c in range(1, L)]
    if source is not None:
        home = np.full(len(dev), source)
        moves.append((home, dev[:, 0], chain.cut_bytes[0], chain.cut_messages[0]))
        moves.append((dev[:, -1], home, chain.cut_bytes[L], chain.cut_messages[L]))
    moves.append((dev[:, -1], dev[:, 0], chain.loop_bytes, chain.loop_messages))
    return moves


def _on(chain, moves, medium):
    """Bytes, rate with the whole medium, SNR and delay, each (plans, moves); bytes 0 where it is not the medium's."""
    sender = np.stack([m[0] for m in moves], axis=1)
    receiver = np.stack([m[1] for m in moves], axis=1)
    size = np.array([m[2] for m in moves])[None, :] * (chain.medium[sender, receiver] == medium)
    delay = np.array([m[3] for m in moves])[None, :] * chain.latency_s[sender, receiver]
    delay = np.where(chain.medium[sender, receiver] == medium, delay, 0.0)
    return sender, receiver, size, delay


def _seconds(chain, medium, sender, receiver, size, share):
    """Seconds of ``size`` bytes with ``share``, from the definition of the rate."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if chain.band_hz[medium] > 0:
            rate = share * chain.band_hz[medium] * np.log2(1 + chain.snr[sender, receiver] / share) / 8
        else:
            rate = share * chain.rate_bytes_per_s[sender, receiver]
        return np.where(size > 0, size / rate, 0.0)


def _least_sum(chain, moves, weight):
    """Least Σ weight · seconds over Σ shares <= 1, summed over the reserved media."""
    total = 0.0
    for g, mode in enumerate(chain.media):
        if mode != "reserved":
            continue
        sender, receiver, size, _ = _on(chain, moves, g)
        amount = np.where(np.isinf(chain.rate_bytes_per_s[sender, receiver]), 0.0, size) * weight[sender, receiver]
        if chain.band_hz[g] == 0:
            rate = np.where(amount > 0, chain.rate_bytes_per_s[sender, receiver], 1.0)
            total = total + np.sqrt(amount / rate).sum(axis=1) ** 2
            continue
        # marginal saving equal to a common price: bisect the price, and the share at each price
        low, high = np.full(len(size), -60.0), np.full(len(size), 60.0)
        for _ in range(90):
            price = 0.5 * (low + high)
            share = _share_at(chain, g, sender, receiver, amount, np.exp(price)[:, None])
            over = share.sum(axis=1) > 1
            low, high = np.where(over, price, low), np.where(over, high, price)
        total = total + _seconds(chain, g, sender, receiver, amount, np.where(amount > 0, share, 1.0)).sum(axis=1)
    return total


def _share_at(chain, g, sender, receiver, amount, price):
    low, high = np.full(amount.shape, -40.0), np.zeros(amount.shape)
    step = 1e-5
    for _ in range(60):
        middle = 0.5 * (low + high)
        ahead, behind = (_seconds(chain, g, sender, receiver, amount, np.exp(middle + side * step)) for side in (1, -1))
        gains = (behind - ahead) / (2 * step) > price * np.exp(middle)
        low, high = np.where(gains, middle, low), np.where(gains, high, middle)
    return np.where(amount > 0, np.exp(high), 0.0)


def _least_largest(chain, moves):
    """Least level at which every reserved transfer can be over, over all reserved media."""
    level = np.zeros(len(moves[0][0]))
    for g, mode in enumerate(chain.media):
        if mode != "reserved":
            continue
        sender, receiver, size, delay = _on(chain, moves, g)
        free = np.isinf(chain.rate_bytes_per_s[sender, receiver])
        size = np.where(free, 0.0, size)
        largest = delay.max(axis=1)
        low, high = np.full(len(level), -40.0), np.full(len(level), 40.0)  # ln of what comes on top of the delay
        for _ in range(90):
            extra = 0.5 * (low + high)
            left = (largest + np.exp(extra))[:, None] - delay
            fits = _needed(chain, g, sender, receiver, size, left).sum(axis=1) <= 1
            low, high = np.where(fits, low, extra), np.where(fits, extra, high)
        here = largest + np.where((size > 0).any(axis=1), np.exp(high), 0.0)
        level = np.maximum(level, here)
    return level


def _needed(chain, g, sender, receiver, size, left):
    low, high = np.full(size.shape, -60.0), np.zeros(size.shape)
    possible = _seconds(chain, g, sender, receiver, size, np.ones(size.shape)) <= left
    for _ in range(70):
        middle = 0.5 * (low + high)
        late = _seconds(chain, g, sender, receiver, size, np.exp(middle)) > left
        low, high = np.where(late, middle, low), np.where(late, high, middle)
    return np.where(size > 0, np.where(possible, np.exp(high), 2.0), 0.0)
