"""Routing: the least load of the fullest queue, by a linear program: whether any routing exists, or by how much
none does.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np

from edgeopt_solvers.chain.arrays import Array

if TYPE_CHECKING:
    from edgeopt_solvers.placement.routing_flows import Flows

__all__ = ["least_load"]


def least_load(flows: Flows, stop_at: float) -> tuple[float, Array | None] | None:
    """Return the least possible largest load and fractions (C', M, V) that reach it; ``None`` if HiGHS cannot say.

    min θ,   Σ_mv x_cmv = 1,   Σ_{c,(m,v) at s} weight_cmv x_cmv <= θ for every queue s,   floors, memory as in the
    program.

    The load is ``inf`` where floors or memory alone leave nothing, and only a bound where that is above the limit;
    then there are no fractions.
    """
    import scipy.sparse as sp
    from scipy.optimize import linprog

    columns = np.flatnonzero(flows.allowed)
    c, m, v = np.unravel_index(columns, flows.allowed.shape)
    n, C = len(columns), len(flows.classes)
    at = np.arange(n)
    queue, weight = flows.queue[c, m, v], flows.weight[c, m, v]
    # θ is counted in units of what it is at least: each class alone, all queries over all queues
    alone = np.bincount(c, 1 / np.maximum(weight, 1e-300), minlength=C)
    rate = np.where(flows.allowed.any(axis=0), flows.instance.service_per_s, 0.0)
    capacity = rate.sum() if flows.instance.queue == "server" else rate.max(axis=0).sum()
    unit = max(float((1 / alone).max()), flows.total / float(capacity))
    if unit > flows.instance.max_load * (1 + 1e-9) or unit >= 1:
        return unit, None
    weight = weight / unit
    size = np.ones(flows.num_queues)
    np.maximum.at(size, queue, weight)
    data = np.concatenate([weight / size[queue], -1 / size])
    where = (np.concatenate([queue, np.arange(flows.num_queues)]), np.concatenate([at, np.full(flows.num_queues, n)]))
    rows, below = [sp.csr_matrix((data, where), shape=(flows.num_queues, n + 1))], [np.zeros(flows.num_queues)]
    if flows.mean_floor is not None:
        right = flows.part[c] * flows.accuracy[c, m]
        rows.append(sp.csr_matrix((-right, (np.zeros(n, dtype=int), at)), shape=(1, n + 1)))
        below.append(np.array([-flows.mean_floor]))
    floors = np.isfinite(flows.class_floor)
    if floors.any():
        rows.append(sp.csr_matrix((-flows.accuracy[c, m], (c, at)), shape=(C, n + 1))[floors])
        below.append(-flows.class_floor[floors])
    if len(flows.devices):
        rows.append(sp.csr_matrix((flows.taken[c, m, v], (v, at)), shape=(flows.usable.shape[1], n + 1))[flows.devices])
        below.append(flows.room[flows.devices])
    one = sp.csr_matrix((np.ones(n), (c, at)), shape=(C, n + 1))
    cost = np.zeros(n + 1)
    cost[n] = 1.0
    left = stop_at - time.perf_counter()
    answer = linprog(
        cost, sp.vstack(rows, format="csr"), np.concatenate(below), one, np.ones(C), (0, None), method="highs-ds",
        options={"time_limit": max(0.01, left)} if math.isfinite(left) else {},
    )  # fmt: skip
    if answer.status == 2:
        return math.inf, None
    if answer.status != 0 or answer.x is None:
        return None
    x = np.zeros(flows.allowed.size)
    x[columns] = np.maximum(answer.x[:n], 0.0)
    return float(answer.x[n]) * unit, x.reshape(flows.allowed.shape)
