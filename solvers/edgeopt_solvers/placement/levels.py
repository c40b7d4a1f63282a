"""Experts: what a layer takes for given replicas, exactly, and at least for any replicas.

At level T, device d with latencies f_d and w_d seconds per token serves at most (T − f_d)⁺ / w_d tokens. A layer
can end by T exactly if the tokens of its experts flow through these capacities to the devices that hold them. Begun
below, T rises to where the experts cut off by the last maximum flow fit the devices that hold them (Newton's method
on the parametric flow; each step tightens another set of experts, so that there are finitely many).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.placement.experts import Experts

__all__ = ["Table", "fluid_level", "fluid_levels", "layer_split", "table_of"]

#: Tokens that rounding may leave unserved by a flow, as a part of all.
ROUNDING = 1e-13


@dataclass(frozen=True, slots=True)
class Table:
    """Costs of an instance by layer and device: ``unit_s`` w (G, D), ``fixed_s`` f (G, D); inf: cannot run."""

    unit_s: Array
    fixed_s: Array


def table_of(instance: Experts) -> Table:
    """Fold links into seconds per token and per layer of each device."""
    D = instance.num_devices
    away = instance.home[:, None] * (1 - np.eye(D))
    with np.errstate(divide="ignore", invalid="ignore"):
        out = np.where(away > 0, away / instance.rate_bytes_per_s, 0.0).sum(axis=0)
        back = np.where(away > 0, away / instance.rate_bytes_per_s.T, 0.0).sum(axis=0)
    sends, returns = instance.dispatch_bytes[:, None], instance.combine_bytes[:, None]
    with np.errstate(invalid="ignore"):
        unit = instance.unit_s + np.where(sends > 0, sends * out, 0.0) + np.where(returns > 0, returns * back, 0.0)
    homes = away > 0
    to = np.where(homes, instance.latency_s, 0.0).sum(axis=0)
    back_s = np.where(homes, instance.latency_s.T, 0.0).sum(axis=0)
    return Table(unit, np.where(sends > 0, to, 0.0) + np.where(returns > 0, back_s, 0.0))


def fluid_level(tokens: float, unit_s: Array, fixed_s: Array) -> float:
    """Return the least T with Σ_d (T − f_d)⁺ / w_d >= tokens; 0 for no tokens, inf without devices."""
    if tokens <= 0:
        return 0.0
    able = np.isfinite(unit_s)
    if not able.any():
        return math.inf
    unit, fixed = unit_s[able], fixed_s[able]
    order = np.argsort(fixed, kind="stable")
    unit, fixed = unit[order], fixed[order]
    free = unit == 0
    speed = np.cumsum(np.where(free, 0.0, 1 / np.where(free, 1.0, unit)))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        level = (tokens + np.cumsum(np.where(free, 0.0, fixed / np.where(free, 1.0, unit)))) / speed
    level = np.where(np.isnan(level), math.inf, np.maximum(level, fixed))
    best = float(level.min())
    return min(best, float(fixed[free].min())) if free.any() else best


def fluid_levels(instance: Experts, table: Table) -> Array:
    """Return what every layer takes at least, (G,): all tokens spread over all devices, each expert over its most."""
    G = instance.num_layers
    most = instance.max_replicas
    levels = np.zeros(G)
    for g in range(G):
        unit, fixed = table.unit_s[g], table.fixed_s[g]
        levels[g] = fluid_level(math.fsum(instance.load[g].tolist()), unit, fixed)
        if most is not None and most < instance.num_devices:
            tokens = float(instance.load[g].max())
            levels[g] = max(levels[g], _few_devices_level(tokens, unit, fixed, most))
    return levels


def _few_devices_level(tokens: float, unit: Array, fixed: Array, most: int) -> float:
    """Return a level below which no ``most`` devices serve ``tokens``."""
    if tokens <= 0:
        return 0.0
    if most == 1:
        return float((fixed + tokens * unit).min())
    low, high = 0.0, float((fixed + tokens * unit).min())
    if not math.isfinite(high):
        return high
    for _ in range(60):
        middle = 0.5 * (low + high)
        with np.errstate(divide="ignore", invalid="ignore"):
            able = np.where(middle > fixed, (middle - fixed) / unit, 0.0)
        if float(np.sort(able)[::-1][:most].sum()) >= tokens:
            high = middle
        else:
            low = middle
    return low


def layer_split(load: Array, held: NDArray[np.bool_], unit_s: Array, fixed_s: Array) -> tuple[float, Array]:
    """Return the least makespan of a layer for given replicas, and the shares (E, D) that reach it.

    Parameters
    ----------
    load : (E,)
        Tokens of each expert.
    held : (E, D)
        Replicas; those on devices with infinite ``unit_s`` serve nothing.
    unit_s, fixed_s : (D,)
        Seconds per token, and latencies of a device that serves any.
    """
    E, D = held.shape
    share = np.zeros((E, D))
    able = held & np.isfinite(unit_s)
    for e in np.flatnonzero(load <= 0).tolist():
        share[e, int(np.argmax(able[e] if able[e].any() else held[e]))] = 1.0
    active = np.flatnonzero(load > 0).tolist()
    if not active:
        return 0.0, share
    if not able[active].any(axis=1).all():
        return math.inf, share
    total = math.fsum(load.tolist())
    level = max(_lone_level(load[e], able[e], unit_s, fixed_s) for e in active)
    level = max(level, fluid_level(total, np.where(able[active].any(axis=0), unit_s, math.inf), fixed_s))
    for _ in range(4 * (E + D)):
        flow, left = _flow(load, able, active, _capacity(level, unit_s, fixed_s))
        if not left.size or left[0] < 0:
            break
        cut = np.flatnonzero(able[left].any(axis=0))
        need = math.fsum(load[left].tolist())
        raised = fluid_level(need, unit_s[cut], fixed_s[cut])
        if not raised > level:
            break
        level = raised
    served = flow.sum(axis=1)
    for e in active:
        if served[e] < load[e]:  # what rounding left goes where most of the expert already is
            flow[e, int(np.argmax(np.where(able[e], flow[e], -1.0)))] += load[e] - served[e]
        share[e] = flow[e] / flow[e].sum()
    tokens = (load[:, None] * share).sum(axis=0)
    used = tokens > 0
    return float((fixed_s[used] + tokens[used] * unit_s[used]).max()), share


def _lone_level(tokens: float, able: NDArray[np.bool_], unit_s: Array, fixed_s: Array) -> float:
    return fluid_level(float(tokens), np.where(able, unit_s, math.inf), fixed_s)


def _capacity(level: float, unit_s: Array, fixed_s: Array) -> list[float]:
    room = []
    for w, f in zip(unit_s.tolist(), fixed_s.tolist(), strict=True):
        room.append(0.0 if level < f or w == math.inf else math.inf if w == 0 else (level - f) / w)
    return room


def _flow(
    load: Array, able: NDArray[np.bool_], active: list[int], room: list[float]
) -> tuple[Array, NDArray[np.int64]]:
    """Return a maximum flow (E, D) and the experts on the source's side of the minimum cut; ``[-1]``: all is served."""
    least = ROUNDING * math.fsum(load.tolist())
    flow = np.zeros(able.shape)
    left = {}
    for e in sorted(active, key=lambda e: int(able[e].sum())):
        need = float(load[e])
        for d in np.flatnonzero(able[e]).tolist():
            part = min(need, room[d])
            flow[e, d] += part
            need -= part
            room[d] -= part
            if need <= 0:
                break
        if need > least:
            left[e] = need
    if not left:
        return flow, np.array([-1])
    devices_of = {e: np.flatnonzero(able[e]).tolist() for e in active}
    for start in list(left):
        path = _augmenting(start, devices_of, flow, room, least)
        while path and left[start] > least:
            part = min([left[start], room[path[-1]]] + [
                float(flow[path[i + 1], path[i]]) for i in range(1, len(path) - 1, 2)
            ])  # fmt: skip
            for i in range(0, len(path) - 1, 2):
                flow[path[i], path[i + 1]] += part
                if i:
                    flow[path[i], path[i - 1]] -= part
            room[path[-1]] -= part
            left[start] -= part
            path = _augmenting(start, devices_of, flow, room, least)
        if left[start] <= least:
            del left[start]
    if not left:
        return flow, np.array([-1])
    # what rounding left on an edge is no flow that could be moved, here as in the search for paths
    reached = set(left)
    stack, seen = list(left), set()
    while stack:
        for d in devices_of[stack.pop()]:
            if d not in seen:
                seen.add(d)
                others = [e for e in np.flatnonzero(flow[:, d] > least).tolist() if e not in reached]
                reached.update(others)
                stack.extend(others)
    return flow, np.array(sorted(reached))


def _augmenting(
    start: int, devices_of: dict[int, list[int]], flow: Array, room: list[float], least: float
) -> list[int] | None:
    """Return a shortest path expert, device, expert, …, device with room; ``None``: there is none."""
    parent: dict[tuple[int, int], tuple[int, int]] = {}
    queue, seen_e = [start], {start}
    for e in queue:
        for d in devices_of[e]:
            if (1, d) in parent:
                continue
            parent[1, d] = (0, e)
            if room[d] > least:
                path, node = [d], (0, e)
                while True:
                    path.append(node[1])
                    if node == (0, start):
                        return path[::-1]
                    node = parent[node]
            for other in np.flatnonzero(flow[:, d] > least).tolist():
                if other not in seen_e:
                    seen_e.add(other)
                    parent[0, other] = (1, d)
                    queue.append(other)
    return None
