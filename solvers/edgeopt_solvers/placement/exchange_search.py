"""Experts that exchange tokens: good placements at any size.

One copy each at first: moves and exchanges within a layer, judged by what they change in that layer and in the next,
on a smooth stand-in for the makespan, (Σ_d level_gd^p)^(1/p). Then memory that is left takes replicas of what the
slowest devices serve, and every layer's senders choose among the copies by a small linear program, front to back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.placement.exchange import Exchange, forward
from edgeopt_solvers.placement.experts import Experts, ExpertsSolution
from edgeopt_solvers.placement.levels import Table, layer_split

__all__ = ["climb", "levels_of", "replicate", "sweep"]

Homes = NDArray[np.int64]
Bits = NDArray[np.bool_]

#: Powers p of the stand-in, one after the other.
POWERS = (6.0, 24.0)

#: A change must gain this part of the two layers that it touches.
GAIN = 1e-7

#: A link that is missing counts as so many times slower than the slowest.
MISSING = 1e6

#: Rounds of replicas without any gain before the search ends.
MOST_IDLE = 6


def _paces(exchange: Exchange) -> Array:
    """Return seconds per token between devices, with a finite number for missing links."""
    finite = exchange.pace_s[np.isfinite(exchange.pace_s)]
    top = float(finite.max(initial=0.0)) or 1.0
    return np.where(np.isfinite(exchange.pace_s), exchange.pace_s, MISSING * top)


def climb(
    instance: Experts, exchange: Exchange, table: Table, homes: Homes, room: Array, stop_at: float
) -> tuple[Homes, int]:
    """Return one device per expert, (G, E), after moves from ``homes``, and their number; ``room`` (D,) is updated."""
    homes, num_moves = homes.copy(), 0
    with np.errstate(all="ignore"):
        for power in POWERS:
            stuck = 0
            g = 0
            while stuck < len(homes) and time.perf_counter() < stop_at:
                if _step(instance, exchange, table, homes, room, g, power):
                    stuck, num_moves = 0, num_moves + 1
                else:
                    stuck += 1
                    g = (g + 1) % len(homes)
    return homes, num_moves


def _step(
    instance: Experts, exchange: Exchange, table: Table, homes: Homes, room: Array, g: int, power: float
) -> bool:
    """Make the best change in layer ``g``; return whether there was one."""
    G, E, D = instance.num_layers, instance.num_experts, instance.num_devices
    pace = _paces(exchange)
    hot = np.eye(D)
    mine, load, sizes = homes[g], instance.load[g], instance.expert_bytes[g]
    unit = np.where(np.isfinite(table.unit_s[g]), table.unit_s[g], np.inf)
    cost = np.where(load[:, None] > 0, load[:, None] * unit, 0.0)  # (E, D)
    if g > 0:
        came = (exchange.origin[g - 1] * load).T @ hot[homes[g - 1]]  # (E, D): tokens by where they come from
        cost = cost + came @ pace[g - 1]
    at = np.arange(E)
    own = cost[at, mine]
    level = np.bincount(mine, own, minlength=D)
    scale = float(level.max())
    if not 0 < scale < math.inf:
        return False
    after = np.zeros((E, D))
    next_level = np.zeros(D)
    if g + 1 < G:
        after = (exchange.origin[g] * instance.load[g + 1]) @ hot[homes[g + 1]]  # (E, D): tokens by where they go
        work = instance.load[g + 1] * table.unit_s[g + 1][homes[g + 1]]
        next_level = np.bincount(homes[g + 1], work, minlength=D) + (after * pace[g][mine]).sum(axis=0)
        scale = max(scale, float(next_level.max()))
    level, next_level, cost, own, after = level / scale, next_level / scale, cost / scale, own / scale, after / scale

    def norm(total: Array) -> Array:
        out: Array = np.maximum(total, 0.0) ** (1 / power)
        return out

    now = float(norm((level**power).sum()) + norm((next_level**power).sum()))
    spread = level**power
    rest = spread.sum() - spread[mine][:, None] - spread[None, :]
    # one expert goes to d
    moved = rest + np.maximum(level[mine] - own, 0.0)[:, None] ** power + (level[None, :] + cost) ** power
    shift = pace[g][None, :, :] - pace[g][mine][:, None, :] if g + 1 < G else np.zeros((E, D, D))
    later = np.maximum(next_level + after[:, None, :] * shift, 0.0) ** power
    value = norm(moved) + norm(later.sum(axis=2))
    value[(sizes[:, None] > room) | (mine[:, None] == np.arange(D))] = math.inf
    index = int(np.nanargmin(value))
    best, e, d, other = float(value.flat[index]), index // D, index % D, -1
    # two experts change places
    b, k = mine[:, None], mine[None, :]
    swapped = rest[at[:, None], k] + np.maximum(level[b] - own[:, None] + cost[at[None, :], b], 0.0) ** power
    swapped = swapped + np.maximum(level[k] - own[None, :] + cost[at[:, None], k], 0.0) ** power
    tokens = after[:, None, :] - after[None, :, :]
    change = tokens * shift[at[:, None], k] if g + 1 < G else np.zeros((E, E, D))
    pair = norm(swapped) + norm((np.maximum(next_level + change, 0.0) ** power).sum(axis=2))
    grows = sizes[:, None] - sizes[None, :]
    pair[(b == k) | (grows > room[k]) | (-grows > room[b])] = math.inf
    index = int(np.nanargmin(pair))
    if float(pair.flat[index]) < best:
        best, e, other = float(pair.flat[index]), index // E, index % E
        d = int(mine[other])
    if not best < now * (1 - GAIN):
        return False
    if other >= 0:
        homes[g, other] = mine[e]
        room[mine[e]] -= sizes[other]
        room[d] += sizes[other]
    room[homes[g, e] if other < 0 else int(homes[g, other])] += sizes[e]
    room[d] -= sizes[e]
    homes[g, e] = d
    return True


def levels_of(instance: Experts, exchange: Exchange, table: Table, solution: ExpertsSolution) -> Array:
    """Return the seconds of every device in every layer, (G, D)."""
    assert solution.route is not None
    tokens = np.einsum("ge,ged->gd", instance.load, solution.share)
    with np.errstate(invalid="ignore"):
        level = np.where(tokens > 0, tokens * table.unit_s + table.fixed_s, 0.0)
    pace = _paces(exchange)
    for g in range(instance.num_layers - 1):
        stand = exchange.origin[g].T @ solution.share[g]
        came = np.einsum("f,fi,fij->ij", instance.load[g + 1], stand, solution.route[g])
        level[g + 1] += (came * pace[g] + np.where(came > 0, exchange.latency_s[g], 0.0)).sum(axis=0)
    return level


def sweep(instance: Experts, exchange: Exchange, table: Table, held: Bits) -> ExpertsSolution:
    """Split the tokens of each layer among its copies so that it ends as soon as it can, given the layer before."""
    G, E, D = held.shape
    wish = np.zeros((G - 1, E, D, D))
    parts = np.zeros(held.shape)
    _, share = layer_split(instance.load[0], held[0], table.unit_s[0], table.fixed_s[0])
    parts[0] = share
    for g in range(G - 1):
        stand = exchange.origin[g].T @ share
        wish[g] = _routes(instance, exchange, table, held[g + 1], stand, g)
        share = (stand[:, :, None] * wish[g]).sum(axis=1)
    return forward(instance, exchange, held, parts, wish)


def _routes(instance: Experts, exchange: Exchange, table: Table, held: Bits, stand: Array, g: int) -> Array:
    """Return the routes (E, D, D) into layer g + 1 for tokens that stand at ``stand`` (E, D), by a linear program."""
    import scipy.sparse as sp
    from scipy.optimize import linprog

    E, D = held.shape
    load = instance.load[g + 1]
    unit = np.where(np.isfinite(table.unit_s[g + 1]), table.unit_s[g + 1], np.inf)
    each_s = np.where(held[:, None, :], _paces(exchange)[g] + unit, np.inf)  # (E, from, to)
    near = each_s.argmin(axis=2)
    route = np.zeros((E, D, D))
    np.put_along_axis(route, near[:, :, None], 1.0, axis=2)
    tokens = load[:, None] * stand
    several = (np.isfinite(each_s).sum(axis=2) > 1) & (tokens > 1e-12 * load.sum())
    if not several.any():
        return route
    fixed = np.where(several, 0.0, tokens)
    base = (fixed[:, :, None] * np.where(route > 0, np.where(np.isfinite(each_s), each_s, 0.0), 0.0)).sum(axis=(0, 1))
    f, i = np.nonzero(several)
    at, j = np.nonzero(np.isfinite(each_s[f, i]))
    seconds = tokens[f[at], i[at]] * each_s[f[at], i[at], j]
    n, scale = len(at), max(float(base.max()), float(seconds.max()) / D, 1e-300)
    level = sp.csr_matrix((seconds / scale, (j, np.arange(n))), shape=(D, n))
    below = sp.hstack([level, sp.csr_matrix(-np.ones((D, 1)))], format="csr")
    one = sp.csr_matrix((np.ones(n), (at, np.arange(n))), shape=(len(f), n + 1))
    cost = np.append(1e-6 * seconds / scale / len(f), 1.0)  # among equals, what takes the least time in all
    answer = linprog(cost, below, -base / scale, one, np.ones(len(f)), (0, None), method="highs-ds")
    if answer.status == 0 and answer.x is not None:
        route[f, i] = 0.0
        route[f[at], i[at], j] = np.clip(answer.x[:n], 0.0, 1.0)
        total = route.sum(axis=2, keepdims=True)
        route = np.where(total > 0, route / np.where(total > 0, total, 1.0), 0.0)
    return route


def replicate(
    instance: Experts, exchange: Exchange, table: Table, held: Bits, room: Array,
    offer: Callable[[ExpertsSolution], object], stop_at: float,
) -> int:  # fmt: skip
    """Add copies of what the slowest device of every layer serves, as long as that helps; return how many."""
    G, E, D = held.shape
    most = instance.max_replicas or D
    pace = _paces(exchange)
    solution = sweep(instance, exchange, table, held)
    offer(solution)
    level = levels_of(instance, exchange, table, solution)
    best, idle, added, tried = math.fsum(level.max(axis=1).tolist()), 0, 0, held.copy()
    while idle < MOST_IDLE and time.perf_counter() < stop_at:
        new, left = held.copy(), room.copy()
        for g in range(G):
            d = int(level[g].argmax())
            came = pace[g - 1].mean(axis=0) if g > 0 else np.zeros(D)
            each = np.where(np.isfinite(table.unit_s[g]), table.unit_s[g], np.inf) + came
            tokens = instance.load[g] * solution.share[g, :, d]
            may = ~tried[g] & (new[g].sum(axis=1) < most)[:, None] & (instance.expert_bytes[g][:, None] <= left)
            with np.errstate(invalid="ignore"):
                ends = np.maximum(level[g][None, :] + 0.5 * tokens[:, None] * each, level[g, d] - 0.5 * tokens[:, None] * each[d])
            ends = np.where(may & (tokens > 0)[:, None] & np.isfinite(ends), ends, np.inf)
            index = int(ends.argmin())
            if ends.flat[index] < level[g, d]:
                e, o = divmod(index, D)
                new[g, e, o] = tried[g, e, o] = True
                left[o] -= instance.expert_bytes[g, e]
        if (new == held).all():
            break
        candidate = sweep(instance, exchange, table, new)
        now = levels_of(instance, exchange, table, candidate)
        total = math.fsum(now.max(axis=1).tolist())
        if total < best * (1 - 1e-9):
            added += int(new.sum() - held.sum())
            best, idle, held, room, solution, level = total, 0, new, left, candidate, now
            offer(solution)
        else:
            idle += 1
    return added
