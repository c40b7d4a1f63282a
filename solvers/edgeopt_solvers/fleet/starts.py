"""Prices to begin with: the use in a quick greedy plan, of all users or of a sample of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from edgeopt_solvers.fleet.instance import MEMORY_SLIP, Array, Ints
from edgeopt_solvers.fleet.model import Model, charge, slack_left

__all__ = ["greedy", "positive", "sample", "with_memory"]

#: Users in the first, coarse dual of a large fleet.
_COARSE = 400


def sample(model: Model) -> tuple[Ints, Array] | None:
    """Return a few hundred users of every cell, and for how many each of them stands; ``None`` in a small fleet."""
    per_cell = max(4, _COARSE // model.num_cells)
    rank = np.zeros(model.num_users, dtype=np.int64)
    order = np.argsort(model.cell, kind="stable")
    counts = np.bincount(model.cell, minlength=model.num_cells)
    rank[order] = np.arange(model.num_users) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.flatnonzero(rank < per_cell)
    if 2 * len(chosen) > model.num_users:
        return None
    taken = np.bincount(model.cell[chosen], minlength=model.num_cells)
    return chosen, (counts / np.maximum(taken, 1))[model.cell[chosen]]


def positive(prices: Array, num_resources: int) -> Array:
    """Lift prices of (nearly) zero: a step of the dual multiplies them."""
    lifted = prices.copy()
    for part in (slice(0, num_resources), slice(num_resources, None)):
        lifted[part] = np.maximum(prices[part], max(1e-6 * float(prices[part].max(initial=0.0)), 1e-300))
    return lifted


def with_memory(model: Model, prices: Array) -> Array:
    """Append first prices of memory: a hundredth of what all compute of a server costs on average."""
    if model.inverse_memory is None:
        return prices
    return np.append(prices, np.full(model.num_servers, 0.01 * float((prices**2).mean())))


def greedy(model: Model, out_of_time: Callable[[], bool], copies: Array | None = None) -> Array:
    """Let users choose in turn, in blocks, at the congestion they find; return the average use of the last rounds."""
    num_users, num_resources = model.num_users, model.num_resources
    ones = np.ones(num_users) if copies is None else copies
    load, average = np.zeros(num_resources), np.zeros(num_resources)
    bounds = np.linspace(0, num_users, min(num_users, 64) + 1).astype(int)
    used = [np.zeros(num_resources)] * (len(bounds) - 1)
    rounds = 3
    for number in range(rounds):
        for block, (low, high) in enumerate(pairwise(bounds)):
            load = np.maximum(load - used[block], 0.0)
            used[block] = _respond(model, int(low), int(high), load, ones)
            load = load + used[block]
            if out_of_time():
                return np.maximum(load, 1e-6 * max(float(load.max(initial=0.0)), 1e-300))
        if number:
            average += load / (rounds - 1)
    return np.maximum(average, 1e-6 * max(float(average.max(initial=0.0)), 1e-300))


def _respond(model: Model, low: int, high: int, load: Array, copies: Array) -> Array:
    """Use of every resource when users ``low`` to ``high`` each take their cheapest option at ``load``."""
    used = np.zeros(model.num_resources)
    i, j = int(model.first_pair[low]), int(model.first_pair[high])
    if i == j or not model.num_servers:
        return used
    user, a = model.pair_user[i:j], model.pair_a[i:j]
    b = model.pair_b[i:j, None] * model.inverse_root_speed
    use = b * (load[model.num_cells :] + b / 2) + (a * (load[model.cell[user]] + a / 2))[:, None]
    lin = model.pair_lin[i:j, None] + model.delay[user]
    limit = None if model.limit is None else model.limit[user][:, None]
    slack = None if limit is None else slack_left(limit, lin, a[:, None] ** 2 + b**2)
    cost = charge(lin, use, slack)
    if model.inverse_memory is not None:
        cost[model.memory_share(slice(i, j)) > 1 + MEMORY_SLIP] = math.inf
    server = cost.argmin(axis=1)
    best = cost[np.arange(j - i), server]
    order = np.lexsort((best, user))
    _, where = np.unique(user[order], return_index=True)
    row = order[where]
    row = row[best[row] < model.solo_lin[user[row]]]
    np.add.at(used, model.cell[user[row]], copies[user[row]] * a[row])
    np.add.at(used, model.num_cells + server[row], copies[user[row]] * b[row, server[row]])
    return used
