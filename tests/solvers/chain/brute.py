"""Every plan of a small chain, costed by our own few lines of numpy: the oracle of the other tests.

A plan is a sequence of states (device, variant), one per element; all of them are laid out as rows.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

TOLERANCE = 1e-9


def all_plans(chain):
    """Return devices and variants of every plan, each (num_plans, L)."""
    states = list(itertools.product(range(chain.num_devices), range(chain.num_variants)))
    index = np.indices((len(states),) * chain.num_elements).reshape(chain.num_elements, -1).T
    table = np.array(states)
    return table[index, 0], table[index, 1]


def link_seconds(chain, sender, receiver, num_bytes, messages):
    """Seconds of one transfer for arrays of senders and receivers."""
    sender, receiver = np.broadcast_arrays(sender, receiver)
    if num_bytes == 0 and messages == 0:
        return np.zeros(sender.shape)
    rate = chain.rate_bytes_per_s[sender, receiver]
    with np.errstate(divide="ignore", invalid="ignore"):
        seconds = messages * chain.latency_s[sender, receiver] + np.where(rate > 0, num_bytes / rate, math.inf)
    return np.where(sender == receiver, 0.0, seconds)


def metrics_of(chain, dev, var):
    """Return metrics of every plan as a dict of vectors, and which plans keep every rule."""
    D, L, n = chain.num_devices, chain.num_elements, len(dev)
    element = np.arange(L)
    compute = chain.compute_s[dev, var, element]
    begins = np.ones((n, L), dtype=bool)
    begins[:, 1:] = (dev[:, 1:] != dev[:, :-1]) | (var[:, 1:] != var[:, :-1])

    links = np.zeros((n, D, D))
    rows = np.arange(n)

    def carry(sender, receiver, num_bytes, messages, where=True):
        seconds = np.where(where, link_seconds(chain, sender, receiver, num_bytes, messages), 0.0)
        np.add.at(links, (rows, sender, receiver), seconds)

    for cut in range(1, L):
        carry(dev[:, cut - 1], dev[:, cut], chain.cut_bytes[cut], chain.cut_messages[cut], begins[:, cut])
    if chain.source is not None:
        source = np.full(n, chain.source)
        carry(source, dev[:, 0], chain.cut_bytes[0], chain.cut_messages[0])
        carry(dev[:, -1], source, chain.cut_bytes[L], chain.cut_messages[L])
    carry(dev[:, -1], dev[:, 0], chain.loop_bytes, chain.loop_messages)

    busy = np.zeros((n, D))
    memory = np.zeros((n, D))
    stages_on = np.zeros((n, D), dtype=int)
    for d in range(D):
        on = dev == d
        busy[:, d] = np.where(on, compute, 0.0).sum(axis=1)
        memory[:, d] = np.where(on, chain.resident_bytes[var, element], 0.0).sum(axis=1)
        memory[:, d] += np.where(on, chain.transient_bytes[var, element], 0.0).max(axis=1)
        for v in range(chain.num_variants):
            memory[:, d] += (on & (var == v)).any(axis=1) * chain.shared_bytes[v]
        stages_on[:, d] = (on & begins).sum(axis=1)

    loss = chain.quality_loss[var, element].sum(axis=1)
    for cut in range(1, L):
        handoff = chain.handoff_loss[var[:, cut - 1], var[:, cut], cut]
        loss = loss + np.where(begins[:, cut], handoff, 0.0)

    num_stages = begins.sum(axis=1)
    channels = [links[:, i, j] for i, j in np.argwhere(chain.medium < 0)]
    for g, mode in enumerate(chain.media):
        mine = links[:, chain.medium == g]
        channels += [mine.sum(axis=1)] if mode == "time_shared" else list(mine.T)
    busiest = np.max(channels, axis=0)
    with np.errstate(invalid="ignore"):
        metrics = {
            "latency": compute.sum(axis=1) + links.sum(axis=(1, 2)),
            "throughput": np.maximum(busy.max(axis=1), busiest),
            "quality": loss,
            "energy": np.zeros(n),
        }
        if chain.power_w is not None:
            watts = chain.send_power_w[:, None] + chain.receive_power_w[None, :]
            metrics["energy"] = np.nansum(busy * chain.power_w, axis=1) + np.nansum(links * watts, axis=(1, 2))

    metrics["movement"] = _movement(chain, dev, var)
    ok = np.isfinite(metrics["latency"]) & np.isfinite(loss)
    ok &= (memory <= chain.memory_bytes * (1 + TOLERANCE)).all(axis=1)
    if chain.reuse == "once":
        ok &= (stages_on <= 1).all(axis=1)
    if chain.max_stages is not None:
        ok &= num_stages <= chain.max_stages
    length = np.zeros(n, dtype=int)
    for k in range(L):
        if k:
            ok &= ~begins[:, k] | ((length >= chain.min_segment) & chain.cut_legal[k])
        length = np.where(begins[:, k], 1, length + 1)
    ok &= length >= chain.min_segment
    for pinned, device in chain.pins.items():
        ok &= dev[:, pinned] == device
    for name, limit in (
        ("latency", chain.max_latency_s),
        ("throughput", chain.max_period_s),
        ("energy", chain.max_energy_j),
        ("quality", chain.max_quality_loss),
    ):
        if limit is not None:
            scale = chain.quality_scale if name == "quality" else 0.0
            ok &= metrics[name] <= limit + TOLERANCE * max(abs(limit), scale)
    return metrics, ok


def brute_force(chain):
    """Return the optimal value, or ``inf`` when no plan exists."""
    metrics, ok = metrics_of(chain, *all_plans(chain))
    if not ok.any():
        return math.inf
    value = sum(weight * metrics[name][ok] for name, weight in chain.weights.items())
    return float((value + metrics["movement"][ok]).min())


def _movement(chain, dev, var):
    """Cost of what each plan must load newly."""
    held = np.zeros(chain.compute_s.shape, dtype=bool) if chain.held is None else chain.held
    cost = np.zeros(len(dev))
    for d, v in itertools.product(range(chain.num_devices), range(chain.num_variants)):
        runs = (dev == d) & (var == v)
        num_bytes = (runs * (chain.resident_bytes[v] * ~held[d, v])).sum(axis=1)
        if not held[d, v].any():
            num_bytes = num_bytes + runs.any(axis=1) * chain.shared_bytes[v]
        cost += chain.load_cost[d] * num_bytes
    return cost
