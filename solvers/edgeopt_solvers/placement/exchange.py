"""Experts that exchange tokens: costs, plans from routes, and the relaxation that bounds and splits.

q_gef is the part of the tokens of expert f in layer g + 1 that come from expert e in layer g. With v_ged the part of
expert e's load on device d, Σ_e q_gef v_gei of the tokens for f stand on device i after layer g; m_gfij of them go to
the copy on j:

    (1) Σ_d v_ged = 1,                            (2) Σ_j m_gfij = Σ_e q_gef v_gei,     (3) v_(g+1)fj = Σ_i m_gfij
    (4) Σ_e w_gd load_ge v_ged + f_gd + Σ_{i≠d} (c_gid Σ_f load_gf m_(g-1)fid + ℓ_id b_gid) <= T_g
    (5) Σ_ge bytes_ge v_ged <= room_d,            (6) m_gfij <= b_gij (where ℓ_ij > 0)

c_gid is exchange_bytes / rate. For given copies and used links this is exact, and linear: senders may be added up
(over e) because the cost of a token depends on the two devices alone. Otherwise it relaxes: a copy that is not decided
takes memory in proportion to what it serves. The bound is evaluated at the prices π of (1)-(3) and λ >= 0 of the
others, over the box of the variables: it needs no trust in the solver.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.chain.segments import unit_of
from edgeopt_solvers.placement.expert_bounds import Node
from edgeopt_solvers.placement.experts import Experts, ExpertsSolution

__all__ = ["TRACE", "Exchange", "Split", "exchange_of", "forward", "num_columns", "solve_node"]

#: A part of the tokens smaller than this is rounding, not a route.
TRACE = 1e-11


@dataclass(frozen=True, slots=True)
class Exchange:
    """``origin`` q (G-1, E, E); ``pace_s`` c (G-1, D, D), inf: no link, diagonal 0; ``latency_s`` ℓ (G-1, D, D)."""

    origin: Array
    pace_s: Array
    latency_s: Array


@dataclass(frozen=True, slots=True)
class Split:
    """``bound``; parts ``value`` v (G, E, D), ``moved`` m (G-1, E, D, D), ``links`` b (G-1, D, D); None: not found."""

    bound: float
    value: Array | None = None
    moved: Array | None = None
    links: Array | None = None


def exchange_of(instance: Experts) -> Exchange:
    """Fold traffic and links into parts and seconds per token."""
    assert instance.traffic is not None
    assert instance.exchange_bytes is not None
    came = instance.traffic.sum(axis=1, keepdims=True)
    origin = np.where(came > 0, instance.traffic / np.where(came > 0, came, 1.0), 0.0)
    apart = ~np.eye(instance.num_devices, dtype=np.bool_)
    each = instance.exchange_bytes[:, None, None]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        pace = np.where(apart & (each > 0), each / instance.rate_bytes_per_s, 0.0)
    return Exchange(origin, pace, np.where(apart & (each > 0), instance.latency_s, 0.0))


def num_columns(instance: Experts) -> int:
    """Return how many variables the relaxation has."""
    G, E, D = instance.num_layers, instance.num_experts, instance.num_devices
    return G * E * D + (G - 1) * (E + 1) * D * D


def forward(
    instance: Experts, exchange: Exchange, held: NDArray[np.bool_], parts: Array, wish: Array | None
) -> ExpertsSolution:
    """Return the solution with the shares ``parts`` (G, E, D) in layer 0 and routes in proportion to ``wish``.

    Where nothing is wished for, or no copy can be reached that way, tokens take the quickest way to a copy. Experts
    without load have no routes to them, but a place: that of ``parts``.
    """
    G, E, D = held.shape
    share, route = np.zeros((G, E, D)), np.zeros((G - 1, E, D, D))
    able = held & np.isfinite(instance.unit_s)[:, None, :]
    start = np.where(able & (parts > TRACE), parts, 0.0)
    lost = np.nonzero(start.sum(axis=2) <= 0)
    start[(*lost, np.where(able[lost], 1.0, np.where(held[lost], 0.5, 0.0)).argmax(axis=1))] = 1.0
    start /= start.sum(axis=2, keepdims=True)
    share[0] = start[0]
    for g in range(G - 1):
        stand = exchange.origin[g].T @ share[g]
        usable = able[g + 1][:, None, :] & np.isfinite(exchange.pace_s[g])
        want = np.zeros((E, D, D)) if wish is None else np.where(usable & (wish[g] > TRACE), wish[g], 0.0)
        unit = instance.unit_s[g + 1]
        way_s = np.where(held[g + 1][:, None, :], exchange.pace_s[g] + np.where(np.isfinite(unit), unit, 1e300), np.inf)
        rows, columns = np.nonzero(want.sum(axis=2) <= TRACE * stand)
        want[rows, columns] = 0.0
        want[rows, columns, way_s.argmin(axis=2)[rows, columns]] = 1.0
        route[g] = want / want.sum(axis=2, keepdims=True)
        share[g + 1] = (stand[:, :, None] * route[g]).sum(axis=1)
        idle = instance.load[g + 1] <= 0
        share[g + 1, idle] = start[g + 1, idle]
    return ExpertsSolution(held, share, route)


@dataclass
class _Rows:
    """Rows of one kind, collected as triples."""

    data: list[Array]
    row: list[NDArray[np.int64]]
    column: list[NDArray[np.int64]]
    right: list[Array]
    count: int = 0

    def add(self, right: Array, *entries: tuple[Any, Any, Any]) -> None:
        """Add ``len(right)`` rows; entries are (row within them, column, value)."""
        for row, column, value in entries:
            row, column, value = np.broadcast_arrays(row, column, value)
            self.row.append(row.ravel().astype(np.int64) + self.count)
            self.column.append(column.ravel().astype(np.int64))
            self.data.append(value.ravel().astype(np.float64))
        self.right.append(np.asarray(right, dtype=np.float64))
        self.count += len(right)

    def matrix(self, num_columns: int) -> tuple[Any, Array]:
        """Return the matrix, each row divided by its largest coefficient, and the right side."""
        import scipy.sparse as sp

        data, row = np.concatenate(self.data), np.concatenate(self.row)
        size = np.zeros(self.count)
        np.maximum.at(size, row, np.abs(data))
        size = np.where(size > 0, size, 1.0)
        shape = (self.count, num_columns)
        matrix = sp.csr_matrix((data / size[row], (row, np.concatenate(self.column))), shape=shape)
        return matrix, np.concatenate(self.right) / size


def solve_node(
    instance: Experts, exchange: Exchange, node: Node, low_link: NDArray[np.bool_], high_link: NDArray[np.bool_],
    time_limit_s: float,
) -> Split:  # fmt: skip
    """Solve the relaxation of a node whose links (G-1, D, D) are used where ``low_link``, not where not ``high_link``.

    ``node`` says what copies cost and where they may be (``expert_bounds.py``).
    """
    from scipy.optimize import linprog

    G, E, D = node.seconds.shape
    simple = math.fsum(node.lo.tolist())
    may = np.isfinite(node.seconds)
    if not may.any(axis=2).all() or (node.room == -math.inf).any():
        return Split(math.inf)
    unit = unit_of(node.lo.tolist())
    num_v, num_m = G * E * D, (G - 1) * E * D * D
    v = np.arange(num_v).reshape(G, E, D)
    m = num_v + np.arange(num_m).reshape(G - 1, E, D, D)
    b = num_v + num_m + np.arange((G - 1) * D * D).reshape(G - 1, D, D)
    T = num_v + num_m + b.size + np.arange(G)
    n = int(T[-1]) + 1
    high = np.ones(n)
    high[v[~may]] = 0.0
    high[m] = (np.isfinite(exchange.pace_s)[:, None] & high_link[:, None] & may[1:, :, None, :]).astype(float)
    high[m[instance.load[1:] <= 0]] = 0.0
    low = np.zeros(n)
    low[b], high[b] = low_link, high_link
    low[T], high[T] = node.lo / unit, math.inf
    equal = _Rows([], [], [], [])
    at = np.arange(G * E)
    equal.add(np.ones(G * E), (np.repeat(at, D), v.ravel(), 1.0))
    busy = np.argwhere(instance.load[1:] > 0)
    g, f = busy[:, 0], busy[:, 1]
    at = np.arange(len(busy) * D).reshape(-1, D)
    if len(busy):
        sends = at[:, None, :] + np.zeros((1, E, 1), dtype=np.int64), v[g], -exchange.origin[g, :, f][:, :, None]
        equal.add(np.zeros(at.size), (at[:, :, None], m[g, f], 1.0), sends)
        equal.add(np.zeros(at.size), (at, v[g + 1, f], -1.0), (at[:, None, :], m[g, f], 1.0))
    below = _Rows([], [], [], [])
    seconds = np.where(may, node.seconds, 0.0) / unit
    pace = np.where(np.isfinite(exchange.pace_s), exchange.pace_s, 0.0)[:, None] * instance.load[1:, :, None, None]
    at = np.arange(G * D).reshape(G, D)
    below.add(
        -node.fixed_s.ravel() / unit, (at[:, None, :], v, seconds), (at, T[:, None], -1.0),
        (at[1:, None, None, :], m, pace / unit), (at[1:, None, :], b, exchange.latency_s / unit),
    )  # fmt: skip
    limited = np.flatnonzero(np.isfinite(node.room))
    if len(limited):
        row = np.arange(len(limited))
        below.add(node.room[limited], (row, v[:, :, limited], node.bytes[:, :, limited]))
    torn = np.argwhere((exchange.latency_s > 0) & ~low_link & high_link)
    if len(torn):
        g, i, j = torn.T
        rows = np.arange(len(torn) * E).reshape(-1, E)
        below.add(np.zeros(rows.size), (rows, m[g, :, i, j], 1.0), (rows, b[g, i, j][:, None], -1.0))
    (A_ub, b_ub), (A_eq, b_eq) = below.matrix(n), equal.matrix(n)
    cost = np.zeros(n)
    cost[T] = 1.0
    answer = linprog(
        cost, A_ub, b_ub, A_eq, b_eq, np.column_stack([low, high]), method="highs-ds",
        options={"time_limit": max(0.01, time_limit_s)} if math.isfinite(time_limit_s) else {},
    )  # fmt: skip
    if answer.status == 2:
        return Split(math.inf)
    if answer.x is None or answer.status != 0:
        return Split(simple)
    price = np.maximum(-np.asarray(answer.ineqlin.marginals), 0.0)
    per_layer = -(A_ub[: G * D].T @ price[: G * D])[T]
    price[: G * D] /= np.repeat(np.maximum(per_layer, 1.0), D)
    bound = _box_bound(cost, (A_ub, b_ub, price), (A_eq, b_eq, np.asarray(answer.eqlin.marginals)), low, high, T)
    x = answer.x
    return Split(max(simple, bound * unit), np.clip(x[v], 0, 1), np.clip(x[m], 0, 1), np.clip(x[b], 0, 1))


def _box_bound(
    cost: Array, below: tuple[Any, Array, Array], equal: tuple[Any, Array, Array], low: Array, high: Array,
    level: NDArray[np.int64],
) -> float:  # fmt: skip
    """Return the least of the Lagrangian over the box; at most one unit of price per layer leaves T no way down."""
    reduced = cost + below[0].T @ below[2] - equal[0].T @ equal[2]
    reduced[level] = np.maximum(reduced[level], 0.0)  # what is below zero here is rounding of the division above
    least = np.where(reduced >= 0, reduced * low, reduced * np.where(np.isfinite(high), high, 0.0))
    value = math.fsum([*least.tolist(), *(-below[1] * below[2]).tolist(), *(equal[1] * equal[2]).tolist()])
    return value if math.isfinite(value) else -math.inf
