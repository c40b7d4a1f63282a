"""Fleets to test with: small random ones with every feature, and the seeded population of the benchmark."""

from __future__ import annotations

import numpy as np

from edgeopt_solvers.fleet import Fleet


def small(
    seed: int,
    *,
    deadlines: bool = False,
    refusal: bool = False,
    memory: bool = False,
    objective: str = "sum",
    most_users: int = 4,
) -> Fleet:
    """Draw up to ``most_users`` users, 3 cuts, 2 servers and 2 cells; some options missing, some ties."""
    rng = np.random.default_rng(seed)
    num_users, num_cuts = int(rng.integers(1, most_users + 1)), int(rng.integers(1, 4))
    num_servers = int(rng.integers(0, 3))
    whole = rng.uniform(0.5, 4, num_users)
    part = np.sort(rng.random((num_users, num_cuts)), axis=1)
    local_s = whole[:, None] * part
    sent = rng.lognormal(0, 1, (num_users, num_cuts)) * (rng.random((num_users, num_cuts)) < 0.9)
    work = (1 - part) * rng.uniform(0.5, 3, (num_users, 1))
    if rng.random() < 0.7 or num_servers == 0:
        # The last cut runs alone.
        local_s[:, -1], sent[:, -1], work[:, -1] = whole, 0, 0
    local_s[rng.random(local_s.shape) < 0.1] = np.inf
    latency_s = rng.uniform(0, 0.5, (num_users, num_servers))
    latency_s[rng.random(latency_s.shape) < 0.1] = np.inf
    rate, speed = rng.lognormal(1.5, 0.5, num_users), rng.lognormal(1.5, 0.5, num_servers)
    cell, weight = rng.integers(0, 2, num_users), rng.uniform(0.5, 2, num_users)
    sooner = np.where(rng.random(num_users) < 0.8, rng.uniform(0.8, 4, num_users), np.inf) if deadlines else None
    cost = np.where(rng.random(num_users) < 0.8, rng.uniform(0.5, 8, num_users), np.inf) if refusal else None
    extra = {}
    if memory:
        # Whole numbers, so that servers are often filled to the last byte.
        extra["resident_bytes"] = rng.integers(0, 5, (num_users, num_cuts)) * 1e9
        extra["memory_bytes"] = np.where(rng.random(num_servers) < 0.8, rng.integers(0, 9, num_servers) * 1e9, np.inf)
    if objective == "admitted":
        sooner = rng.uniform(0.5, 2.5, num_users)
        cost = rng.integers(1, 4, num_users) * 2.0 if rng.random() < 0.5 else cost
    return Fleet(
        local_s, sent, work, rate, speed, latency_s, cell=cell, weight=weight, deadline_s=sooner, refusal_cost=cost,
        objective=objective, **extra,
    )  # fmt: skip


def population(num_users: int, num_servers: int, num_cells: int, seed: int, radio: float = 1.0, **fields) -> Fleet:
    """Draw phones with a model of 32 layers, unequal servers, log-normal radio rates (``radio`` scales them)."""
    rng = np.random.default_rng(seed)
    num_layers = 32
    weight = rng.uniform(0.5, 2, num_users)
    layers = rng.lognormal(0, 0.3, (num_users, num_layers)) * rng.uniform(0.6, 1.6, (num_users, 1))
    device = rng.lognormal(np.log(8e-3), 0.4, num_users)
    server = rng.lognormal(np.log(0.25e-3), 0.5, num_servers)
    sent = rng.lognormal(np.log(0.25e6), 0.7, (num_users, num_layers + 1))
    sent[:, 0] *= 2
    sent[:, -1] = 0
    sent[:, 1:-1] *= np.linspace(2.0, 0.5, num_layers - 1)
    rate = rng.lognormal(np.log(40e6), 0.7, num_users) * radio * 20 / 8
    cell = rng.integers(0, num_cells, num_users)
    backhaul = rng.uniform(0.5e-3, 6e-3, (num_cells, num_servers))
    done = np.concatenate([np.zeros((num_users, 1)), np.cumsum(layers, axis=1)], axis=1)
    left = done[:, -1:] - done
    left[:, -1] = 0
    return Fleet(
        device[:, None] * done, sent, left, rate, 1 / server, backhaul[cell], cell=cell, weight=weight, **fields
    )
