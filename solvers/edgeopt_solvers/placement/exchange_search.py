"""Experts that exchange tokens: good placements at any size.

One copy each at first: moves and exchanges within a layer, judged by what they change in that layer and in the next,
on a smooth stand-in for the makespan, (Σ_d level_gd^p)^(1/p). Then memory that is left takes replicas of what the
slowest devices serve, and every layer's senders choose among the copies by a small linear program, front to back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.placement.exchange import TRACE, Exchange, forward
from edgeopt_solvers.placement.experts import Experts, ExpertsSolution
from edgeopt_solvers.placement.levels import Table, layer_split

__all__ = ["climb", "improve", "levels_of", "rearrange", "replicate", "sweep"]

Homes = NDArray[np.int64]
Bits = NDArray[np.bool_]

#: Powers of the stand-in, one after the other: p = 2 to these.
DOUBLINGS = (2, 3, 5)

#: Changes in a layer before the next has its turn.
MOST_IN_A_ROW = 6

#: Experts of the slowest devices that are looked at for exchanges.
MOST_EXCHANGED = 12

#: A change must gain this part of the two layers that it touches.
GAIN = 1e-7

#: A link that is missing counts as so many times slower than the slowest.
MISSING = 1e6

#: Turns of copying and moving go on as long as each gains this part.
WORTH_A_TURN = 1e-4

#: Rounds of replicas without any gain before the search ends.
MOST_IDLE = 6


def _paces(exchange: Exchange) -> Array:
    """Return seconds per token between devices, with a finite number for missing links."""
    finite = exchange.pace_s[np.isfinite(exchange.pace_s)]
    top = float(finite.max(initial=0.0)) or 1.0
    return np.where(np.isfinite(exchange.pace_s), exchange.pace_s, MISSING * top)


@dataclass(frozen=True, slots=True)
class _Costs:
    """Tokens between experts (G-1, E, E), seconds per token of links (G-1, D, D), seconds of computing (G, E, D), bytes
    (G, E).
    """

    tokens: Array
    pace: Array
    work: Array
    bytes: Array


def climb(
    instance: Experts, exchange: Exchange, table: Table, homes: Homes, room: Array, stop_at: float
) -> tuple[Homes, int]:
    """Return one device per expert, (G, E), after moves from ``homes``, and their number; ``room`` (D,) is updated."""
    unit = np.where(np.isfinite(table.unit_s), table.unit_s, np.inf)
    with np.errstate(all="ignore"):
        work = np.where(instance.load[:, :, None] > 0, instance.load[:, :, None] * unit[:, None, :], 0.0)
    tokens = exchange.origin * instance.load[1:, None, :]
    return _descend(_Costs(tokens, _paces(exchange), work, instance.expert_bytes), homes.copy(), room, stop_at)


def _descend(costs: _Costs, homes: Homes, room: Array, stop_at: float) -> tuple[Homes, int]:
    """Make changes, layer by layer, until none helps."""
    num_moves = 0
    with np.errstate(all="ignore"):
        for doublings in DOUBLINGS:
            stuck, g = 0, 0
            while stuck < len(homes) and time.perf_counter() < stop_at:
                made = 0
                while made < MOST_IN_A_ROW and _step(costs, homes, room, g, doublings):
                    made += 1
                num_moves += made
                stuck = 0 if made else stuck + 1
                g = (g + 1) % len(homes)
    return homes, num_moves


def _step(costs: _Costs, homes: Homes, room: Array, g: int, doublings: int) -> bool:
    """Make the best change in layer ``g``; return whether there was one."""
    G, E, D = costs.work.shape
    hot, at = np.eye(D), np.arange(E)
    mine, sizes = homes[g], costs.bytes[g]
    cost = costs.work[g]
    if g > 0:  # (E, D): and what it takes to receive the tokens there
        cost = cost + (costs.tokens[g - 1].T @ hot[homes[g - 1]]) @ costs.pace[g - 1]
    own = cost[at, mine]
    level: Array = np.bincount(mine, own, minlength=D).astype(np.float64)
    after, later = np.zeros((E, D)), np.zeros(D)
    if g + 1 < G:
        pace = costs.pace[g]
        after = costs.tokens[g] @ hot[homes[g + 1]]  # (E, D): tokens by where they go
        busy = np.bincount(homes[g + 1], costs.work[g + 1][at, homes[g + 1]], minlength=D)
        later = busy + (after * pace[mine]).sum(axis=0)
    scale = max(float(level.max()), float(later.max()))
    if not 0 < scale < math.inf:
        return False
    level, later, cost, own, after = level / scale, later / scale, cost / scale, own / scale, after / scale

    def raised(values: Array) -> Array:
        out = np.maximum(values, 0.0)
        for _ in range(doublings):
            out = out * out
        return out

    def norm(total: Array) -> Array:
        out: Array = np.maximum(total, 0.0) ** (0.5**doublings)
        return out

    spread = raised(level)
    now = float(norm(spread.sum()) + norm(raised(later).sum()))
    rest = spread.sum() - spread[mine][:, None] - spread[None, :]  # (E, D): all devices but the own and another
    less = raised(level[mine] - own)
    # one expert goes to d
    value = norm(rest + less[:, None] + raised(level[None, :] + cost))
    if g + 1 < G:
        shift = pace[None, :, :] - pace[mine][:, None, :]  # (E, D, D): seconds per token, at d instead
        value = value + norm(raised(later + after[:, None, :] * shift).sum(axis=2))
    value[(sizes[:, None] > room) | (mine[:, None] == np.arange(D))] = math.inf
    best = float(np.nanmin(value))
    if best < now * (1 - GAIN):
        e, d = divmod(int(np.nanargmin(value)), D)
        _move(homes[g], room, e, d, float(sizes[e]))
        return True
    # two experts change places: the dearest of the slowest devices with any other
    chosen = np.argsort(-own * spread[mine], kind="stable")[:MOST_EXCHANGED]
    b, k = mine[chosen][:, None], mine[None, :]
    swapped = raised(level[b] - own[chosen][:, None] + cost[at[None, :], b])
    swapped = swapped + raised(level[k] - own[None, :] + cost[chosen[:, None], k]) + rest[chosen[:, None], k]
    pair = norm(swapped)
    if g + 1 < G:
        tokens = after[chosen][:, None, :] - after[None, :, :]
        pair = pair + norm(raised(later + tokens * shift[chosen[:, None], k]).sum(axis=2))
    grows = sizes[chosen][:, None] - sizes[None, :]
    pair[(b == k) | (grows > room[k]) | (-grows > room[b])] = math.inf
    if not float(np.nanmin(pair)) < now * (1 - GAIN):
        return False
    row, other = divmod(int(np.nanargmin(pair)), E)
    e = int(chosen[row])
    home, away = int(mine[e]), int(mine[other])
    _move(homes[g], room, e, away, float(sizes[e]))
    _move(homes[g], room, other, home, float(sizes[other]))
    return True


def _move(homes: Homes, room: Array, e: int, d: int, size: float) -> None:
    room[homes[e]] += size
    room[d] -= size
    homes[e] = d


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
    instance: Experts, exchange: Exchange, table: Table, held: Bits, room: Array, stop_at: float
) -> tuple[Bits, ExpertsSolution, float]:
    """Add copies of what the slowest device of every layer serves, as long as that helps.

    Return the copies, the plan, and its seconds, latencies of missing links aside.
    """
    G, _, D = held.shape
    most = instance.max_replicas or D
    pace = _paces(exchange)
    solution = sweep(instance, exchange, table, held)
    level = levels_of(instance, exchange, table, solution)
    best, idle, tried = math.fsum(level.max(axis=1).tolist()), 0, held.copy()
    while idle < MOST_IDLE and time.perf_counter() < stop_at:
        new, left = held.copy(), room.copy()
        for g in range(G):
            d = int(level[g].argmax())
            came = pace[g - 1].mean(axis=0) if g > 0 else np.zeros(D)
            each = np.where(np.isfinite(table.unit_s[g]), table.unit_s[g], np.inf) + came
            tokens = instance.load[g] * solution.share[g, :, d]
            may = ~tried[g] & (new[g].sum(axis=1) < most)[:, None] & (instance.expert_bytes[g][:, None] <= left)
            half = 0.5 * tokens[:, None]
            with np.errstate(invalid="ignore"):
                ends = np.maximum(level[g][None, :] + half * each, level[g, d] - half * each[d])
            ends = np.where(may & (half > 0) & np.isfinite(ends), ends, np.inf)
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
            best, idle, held, room, solution, level = total, 0, new, left, candidate, now
        else:
            idle += 1
    return held, solution, best


def rearrange(
    instance: Experts, exchange: Exchange, table: Table, solution: ExpertsSolution, limit: Array, stop_at: float
) -> tuple[Bits, Array]:
    """Move the copies of a plan, each with the tokens that it serves; return the copies and the memory left.

    A copy counts as an expert of its own, with the tokens that its senders route to it.
    """
    assert solution.route is not None
    G, E, D = solution.share.shape
    used = solution.replicas & (solution.share > TRACE)
    count = int(used.sum(axis=(1, 2)).max())
    homes = np.zeros((G, count), dtype=np.int64)
    expert, part, sizes = homes.copy(), np.zeros((G, count)), np.zeros((G, count))
    for g in range(G):
        e, d = np.nonzero(used[g])
        expert[g, : len(e)], homes[g, : len(e)] = e, d
        part[g, : len(e)], sizes[g, : len(e)] = solution.share[g, e, d], instance.expert_bytes[g, e]
    unit = np.where(np.isfinite(table.unit_s), table.unit_s, np.inf)
    tokens = np.zeros((G - 1, count, count))
    served = np.take_along_axis(instance.load, expert, axis=1) * part
    for g in range(G - 1):
        e, f, i, j = expert[g][:, None], expert[g + 1][None, :], homes[g][:, None], homes[g + 1][None, :]
        sent = (exchange.origin[g] * instance.load[g + 1])[e, f] * part[g][:, None] * solution.route[g][f, i, j]
        tokens[g] = np.where(part[g + 1] > 0, sent, 0.0)
    with np.errstate(all="ignore"):
        work = np.where(served[:, :, None] > 0, served[:, :, None] * unit[:, None, :], 0.0)
    room = limit - np.bincount(homes.ravel(), sizes.ravel(), minlength=D)
    homes, _ = _descend(_Costs(tokens, _paces(exchange), work, sizes), homes, room, stop_at)
    held = np.zeros((G, E, D), dtype=np.bool_)
    for g in range(G):
        real = part[g] > 0
        held[g, expert[g, real], homes[g, real]] = True
    left: Array = limit - np.einsum("ge,ged->d", instance.expert_bytes, held)
    return held, left


def improve(
    instance: Experts, exchange: Exchange, table: Table, held: Bits, limit: Array,
    offer: Callable[[ExpertsSolution], object], stop_at: float,
) -> None:  # fmt: skip
    """Add copies and move them, in turns, as long as that helps; ``limit`` (D,) is the memory for copies."""
    room = limit - np.einsum("ge,ged->d", instance.expert_bytes, held)
    best = math.inf
    while time.perf_counter() < stop_at:
        held, solution, value = replicate(instance, exchange, table, held, room, stop_at)
        offer(solution)
        if not value < best * (1 - WORTH_A_TURN):
            return
        best = value
        held, room = rearrange(instance, exchange, table, solution, limit, stop_at)
