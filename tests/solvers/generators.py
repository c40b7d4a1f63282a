"""Seeded random clusters of the kind people have, in SI units.

Device types with usable memory and effective memory bandwidth (decoding is bound by it), individual scatter, sites
with fast links inside and slow ones between, or one access point. Total weights are a chosen share of total memory.
"""

from __future__ import annotations

import numpy as np

from edgeopt_solvers.chain import Chain

#: (name, usable GB, effective GB/s while decoding)
TYPES = (
    ("orin_nano", 6.0, 60.0), ("phone", 5.0, 45.0), ("orin_nx", 13.0, 95.0), ("m2_16", 11.0, 95.0),
    ("rtx4070_laptop", 7.2, 240.0), ("rtx3060", 11.0, 330.0), ("agx_orin", 54.0, 185.0), ("rtx4090", 22.5, 900.0),
)  # fmt: skip

MEGABIT = 1e6 / 8


def cluster(
    num_elements: int,
    num_devices: int,
    *,
    seed: int,
    load: float = 0.4,
    equal_layers: bool = False,
    distinct: bool = True,
    links: str = "pair",
    num_types: int = 4,
    hidden_bytes: float = 131_072.0,
    source: bool = True,
    **fields: object,
) -> Chain:
    """Draw a chain instance.

    Parameters
    ----------
    load
        Total weights over total memory: the share of the cluster that the model needs.
    equal_layers
        Whether all layers and cuts are the same (a transformer) or scattered.
    distinct
        Whether devices of a type differ; otherwise devices of a type are interchangeable.
    links
        ``pair`` (symmetric, sites), ``asymmetric`` (each direction on its own) or ``star`` (one access point).
    source
        Whether a further device owns input and result: it takes part only as sender and receiver.
    """
    rng = np.random.default_rng(seed)
    kinds = rng.choice(len(TYPES), size=min(num_types, len(TYPES)), replace=False)
    kind = np.sort(rng.integers(0, len(kinds), num_devices))
    memory = np.array([TYPES[kinds[k]][1] for k in kind]) * 1e9
    speed = np.array([TYPES[kinds[k]][2] for k in kind]) * 1e9
    if distinct:
        memory *= rng.uniform(0.6, 1.0, num_devices)
        speed *= rng.uniform(0.7, 1.15, num_devices)
    weights = np.ones(num_elements) if equal_layers else rng.lognormal(0, 0.3, num_elements)
    weights = np.minimum(weights / weights.sum() * load * memory.sum(), 0.9 * memory.max())
    scatter = np.ones(num_elements + 1) if equal_layers else rng.lognormal(0, 0.5, num_elements + 1)
    cut_bytes = hidden_bytes * scatter
    cut_bytes[-1] = 1000.0
    compute = weights[None, :] / speed[:, None] + 5e-5
    rate, latency = _links(rng, links, kind, len(kinds), distinct)
    if source:
        out = rng.lognormal(np.log(80), 0.5, len(kinds) if not distinct else num_devices) * MEGABIT
        delay = rng.uniform(1, 5, len(out)) * 1e-3
        if not distinct:
            out, delay = out[kind], delay[kind]
        rate = np.block([[rate, out[:, None]], [out[None, :], np.ones((1, 1))]])
        latency = np.block([[latency, delay[:, None]], [delay[None, :], np.zeros((1, 1))]])
        compute = np.vstack([compute, np.full(num_elements, np.inf)])
        memory = np.append(memory, 1e9)
        fields.setdefault("source", num_devices)
    return Chain(
        compute_s=compute, cut_bytes=cut_bytes, rate_bytes_per_s=rate, latency_s=latency, memory_bytes=memory,
        resident_bytes=weights, **{"source": None, **fields},
    )  # fmt: skip


def _links(rng: np.random.Generator, links: str, kind: np.ndarray, num_kinds: int, distinct: bool):
    num_devices = len(kind)
    if links == "star":
        num = num_devices if distinct else num_kinds
        up, down = rng.lognormal(np.log(60), 0.6, num) * MEGABIT, rng.lognormal(np.log(120), 0.6, num) * MEGABIT
        delay = rng.uniform(0.5, 3, num) * 1e-3
        if not distinct:
            up, down, delay = up[kind], down[kind], delay[kind]
        return 1 / (1 / up[:, None] + 1 / down[None, :]), delay[:, None] + delay[None, :]
    if not distinct:
        rate, delay = rng.lognormal(np.log(200), 0.8, (num_kinds,) * 2), rng.uniform(0.5, 5, (num_kinds,) * 2)
        rate, delay = (rate + rate.T) / 2 * MEGABIT, (delay + delay.T) / 2 * 1e-3
        return rate[np.ix_(kind, kind)], delay[np.ix_(kind, kind)]
    site = rng.integers(0, max(2, num_devices // 6), num_devices)
    same = site[:, None] == site[None, :]
    shape = (num_devices, num_devices)
    rate = np.where(same, rng.lognormal(np.log(800), 0.5, shape), rng.lognormal(np.log(100), 0.7, shape)) * MEGABIT
    delay = np.where(same, rng.uniform(0.3, 1, shape), rng.uniform(1.5, 8, shape)) * 1e-3
    if links == "pair":
        rate, delay = np.triu(rate, 1), np.triu(delay, 1)
        rate, delay = rate + rate.T, delay + delay.T
    np.fill_diagonal(rate, 1.0)
    np.fill_diagonal(delay, 0.0)
    return rate, delay


def tiny(seed: int, **fields: object) -> Chain:
    """Draw a small instance with every feature of the large engines switched on or off at random."""
    rng = np.random.default_rng(seed)
    num_devices, num_elements = int(rng.integers(1, 6)), int(rng.integers(1, 8))
    compute = rng.uniform(0.1, 3.0, (num_devices, num_elements))
    if rng.random() < 0.3:
        compute[rng.random(compute.shape) < 0.1] = np.inf
    if rng.random() < 0.3 and num_devices > 2:
        compute[2] = compute[1]
    rate = rng.uniform(0.5, 20.0, (num_devices, num_devices))
    if rng.random() < 0.3:
        rate[rng.random(rate.shape) < 0.2] = 0.0
    latency = rng.uniform(0.0, 0.3, (num_devices, num_devices))
    drawn: dict[str, object] = {"source": int(rng.integers(num_devices)) if rng.random() < 0.7 else None}
    if rng.random() < 0.8:
        resident = rng.uniform(0.5, 1.5, num_elements)
        drawn["resident_bytes"] = resident
        drawn["memory_bytes"] = rng.uniform(0.1, 0.9, num_devices) * resident.sum()
        if rng.random() < 0.3:
            drawn["shared_bytes"] = [0.3]
        if rng.random() < 0.3:
            drawn["transient_bytes"] = rng.uniform(0.0, 0.5, num_elements)
    if rng.random() < 0.2:
        drawn["min_segment"] = 2
    if rng.random() < 0.2:
        drawn["cut_legal"] = rng.random(num_elements + 1) < 0.7
    if rng.random() < 0.2:
        drawn["pins"] = {int(rng.integers(num_elements)): int(rng.integers(num_devices))}
    if rng.random() < 0.3:
        drawn["cut_messages"] = rng.integers(1, 5, num_elements + 1)
    if rng.random() < 0.3:
        power = rng.uniform(0.0, 4.0, (3, num_devices))
        drawn.update(power_w=power[0], send_power_w=power[1], receive_power_w=power[2])
        drawn["objective"] = [{"latency": 0.5, "energy": 0.2}, "energy", "latency"][int(rng.integers(3))]
    return Chain(
        compute_s=compute, cut_bytes=rng.uniform(0.0, 3.0, num_elements + 1) * (rng.random(num_elements + 1) < 0.9),
        rate_bytes_per_s=rate, latency_s=latency, **{**drawn, **fields},
    )  # fmt: skip
