"""Experts: a lower bound for any placement by prices of memory and of time.

With a price λ_d >= 0 per byte of device d, and weights μ_gd >= 0 with Σ_d μ_gd = θ_g <= 1 on the devices of layer g,

    Σ_g T_g >= Σ_g (1 − θ_g) lo_g + Σ_gd μ_gd f_gd + Σ_ge min_d (μ_gd w_gd load_ge + λ_d bytes_ge) − Σ_d λ_d room_d

for every placement: T_g is at least lo_g and at least every device's seconds, memory is kept, and an expert is at
least one copy spread over its devices. Whatever the prices, the right side holds; HiGHS is asked for the best ones,
those of the relaxation

    min Σ_g T_g,   Σ_d v_ged = 1,   Σ_e w_gd load_ge v_ged + f_gd <= T_g,   Σ_ge bytes_ge v_ged <= room_d.

f_gd counts in full where the layer cannot end before it (lo_g >= f_gd: then it changes nothing for an idle
device), or where a branch says that the device serves; otherwise in proportion to the part of the layer's tokens that
the device serves. Replicas that a branch has decided pay their memory whole, and cost nothing more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.chain.segments import unit_of
from edgeopt_solvers.placement.experts import Experts
from edgeopt_solvers.placement.instance import LIMIT_TOLERANCE
from edgeopt_solvers.placement.levels import Table

__all__ = ["Node", "Relaxation", "relax", "root"]


@dataclass(frozen=True, slots=True)
class Node:
    """Costs of the relaxation after some decisions.

    Attributes
    ----------
    seconds : (G, E, D)
        Seconds of device d if it serves all of an expert; inf: it may not.
    fixed_s : (G, D)
        Seconds that count whatever it serves.
    bytes : (G, E, D)
        Memory of an expert's copy that is not paid yet.
    room : (D,)
        Memory left.
    lo : (G,)
        Least makespan of each layer.
    """

    seconds: Array
    fixed_s: Array
    bytes: Array
    room: Array
    lo: Array


@dataclass(frozen=True, slots=True)
class Relaxation:
    """``bound`` on the objective, parts ``value`` (G, E, D) of the relaxed optimum (None: not found), ``level_s``
    (G,).
    """

    bound: float
    value: Array | None
    level_s: Array


def root(
    instance: Experts,
    table: Table,
    lo: Array,
    low: NDArray[np.bool_] | None = None,
    high: NDArray[np.bool_] | None = None,
    serves: NDArray[np.bool_] | None = None,
    idle: NDArray[np.bool_] | None = None,
) -> Node:
    """Return the node where ``low`` (G, E, D) are held, others than ``high`` are not, ``serves`` and ``idle`` (G,
    D).
    """
    able = np.isfinite(table.unit_s)
    if serves is not None:
        lo = np.maximum(lo, np.where(serves & able, table.fixed_s, 0.0).max(axis=1))
    full = table.fixed_s <= lo[:, None]
    unit = np.where(able, table.unit_s, math.inf)
    total = instance.load.sum(axis=1)
    part = np.where(full, 0.0, table.fixed_s) / np.where(total > 0, total, 1.0)[:, None]
    shape = (*instance.load.shape, instance.num_devices)
    seconds = np.where(
        able[:, None, :], instance.load[:, :, None] * np.where(able, unit + part, 0.0)[:, None, :], math.inf
    )
    sizes = np.broadcast_to(instance.expert_bytes[:, :, None], shape)
    room = instance.memory_bytes - instance.reserved_bytes
    if idle is not None:
        seconds[idle[:, None, :] & (instance.load > 0)[:, :, None]] = math.inf
    if low is not None and high is not None:
        seconds[~high] = math.inf
        paid = np.where(low, sizes, 0.0).sum(axis=(0, 1))
        # a limit counts as kept up to its tolerance, which HiGHS would round away
        room = np.maximum(room - paid, np.where(paid <= room + LIMIT_TOLERANCE * instance.memory_bytes, 0.0, -math.inf))
        sizes = np.where(low, 0.0, sizes)
        if instance.max_replicas is not None:
            complete = low.sum(axis=2) >= instance.max_replicas
            seconds[complete[:, :, None] & ~low] = math.inf
    return Node(seconds, np.where(full & able, table.fixed_s, 0.0), sizes, room, lo)


def _price_bound(node: Node, memory: Array, weight: Array) -> float:
    """Return the bound of the module docstring for λ = ``memory`` (D,) and μ = ``weight`` (G, D)."""
    price = np.where(np.isfinite(node.room), np.maximum(memory, 0.0), 0.0)
    mu = np.maximum(weight, 0.0)
    total = mu.sum(axis=1)
    mu = mu / np.maximum(total, 1.0)[:, None]
    banned = np.isinf(node.seconds)
    cost = np.where(banned, 0.0, node.seconds) * mu[:, None, :] + node.bytes * price
    cost[banned] = math.inf
    parts = [(1 - np.minimum(total, 1.0)) * node.lo, (mu * node.fixed_s).sum(axis=1), cost.min(axis=2).ravel()]
    counts = price > 0
    return math.fsum(np.concatenate([*parts, -price[counts] * node.room[counts]]).tolist())


def relax(node: Node, time_limit_s: float) -> Relaxation:
    """Solve the relaxation; its bound is evaluated anew at the prices, so that it needs no trust in the solver."""
    import scipy.sparse as sp
    from scipy.optimize import linprog

    G, E, D = node.seconds.shape
    simple = math.fsum(node.lo.tolist())
    columns = np.flatnonzero(np.isfinite(node.seconds))
    if not np.isfinite(node.seconds).any(axis=2).all():
        return Relaxation(math.inf, None, node.lo)
    if (node.room == -math.inf).any():
        return Relaxation(math.inf, None, node.lo)
    g, e, d = np.unravel_index(columns, (G, E, D))
    n = len(columns)
    unit = unit_of(node.lo.tolist())
    limited = np.flatnonzero(np.isfinite(node.room))
    seconds = node.seconds.ravel()[columns] / unit
    at = np.arange(n)
    one = sp.csr_matrix((np.ones(n), (g * E + e, at)), shape=(G * E, n + G))
    # every row is divided by its largest coefficient: HiGHS works with absolute tolerances
    size = np.ones(G * D)
    np.maximum.at(size, g * D + d, seconds)
    load = sp.csr_matrix(
        (
            np.concatenate([seconds / size[g * D + d], -1 / size]),
            (np.concatenate([g * D + d, np.arange(G * D)]), np.concatenate([at, n + np.repeat(np.arange(G), D)])),
        ),
        shape=(G * D, n + G),
    )
    rows, below = [load], [-node.fixed_s.ravel() / unit / size]
    scale = np.ones(D)
    if len(limited):
        num_bytes = node.bytes.ravel()[columns]
        np.maximum.at(scale, d, num_bytes)
        rows.append(sp.csr_matrix((num_bytes / scale[d], (d, at)), shape=(D, n + G))[limited])
        below.append((node.room / scale)[limited])
    cost = np.concatenate([np.zeros(n), np.ones(G)])
    low = np.concatenate([np.zeros(n), node.lo / unit])
    high = np.concatenate([np.ones(n), np.full(G, math.inf)])
    answer = linprog(
        cost, sp.vstack(rows, format="csr"), np.concatenate(below), one, np.ones(G * E),
        np.column_stack([low, high]), method="highs-ds",
        options={"time_limit": max(0.01, time_limit_s)} if math.isfinite(time_limit_s) else {},
    )  # fmt: skip
    if answer.status == 2:
        return Relaxation(math.inf, None, node.lo)
    if answer.x is None or answer.status != 0:
        return Relaxation(simple, None, node.lo)
    duals = -np.asarray(answer.ineqlin.marginals)
    prices = np.zeros(D)
    prices[limited] = duals[G * D :] * unit / scale[limited]
    bound = _price_bound(node, prices, (duals[: G * D] / size).reshape(G, D))
    value = np.zeros(G * E * D)
    value[columns] = np.clip(answer.x[:n], 0.0, 1.0)
    return Relaxation(max(bound, simple), value.reshape(G, E, D), np.asarray(answer.x[n:]) * unit)
