"""Experts: good placements by moves on the slowest device of every layer, all layers side by side.

A layer's slowest device b loses load to another device d: an expert moves, or two experts change places; where neither
helps, an expert is replicated on d and its tokens are split so that both end together. Layers share nothing but memory,
so that each round weighs the moves of all layers at once and makes the best of each while there is room. Stuck layers
split their tokens anew (``levels.py``) and give back replicas that they can do without.
"""

from __future__ import annotations

import math
import time

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.placement.experts import Experts, ExpertsSolution
from edgeopt_solvers.placement.instance import LIMIT_TOLERANCE
from edgeopt_solvers.placement.levels import Table, layer_split

__all__ = ["Search", "first_homes"]

#: A layer that ends within this part of what it takes at least is left alone.
DONE = 1e-7

#: A move must gain this part of the layer's makespan: large gains first, lest small ones use up the memory.
GAINS = (3e-3, 3e-4, 3e-5, 1e-9)

#: Copies moved off a full device at once, to devices with room.
MOVED_OFF = 8

#: Experts of the slowest device that are looked at for exchanges, the most loaded first; more would be slow.
MOST_EXCHANGED = 12

#: Rounds of moves between looks at the clock are one; this many in a row without any gain end the search.
MOST_ROUNDS = 5000


class Search:
    """Replicas and tokens of every layer, with the memory left on every device."""

    def __init__(self, instance: Experts, table: Table, target: Array, stop_at: float) -> None:
        self.instance, self.table, self.target, self.stop_at = instance, table, target, stop_at
        self.held: NDArray[np.bool_] = np.zeros((*instance.load.shape, instance.num_devices), dtype=np.bool_)
        self.tokens: Array = np.zeros(self.held.shape)
        self.able = np.isfinite(table.unit_s)
        self.unit = np.where(self.able, table.unit_s, 1.0)
        self.limit = instance.memory_bytes * (1 + 0.5 * LIMIT_TOLERANCE) - instance.reserved_bytes
        self.room = self.limit.copy()
        self.most = instance.max_replicas or instance.num_devices
        self.num_moves = 0
        self.enough = 0.0
        self.least_gain = GAINS[-1]

    # ── state ────────────────────────────────────────────────────────────────────────────────────────────────

    def begin(self, held: NDArray[np.bool_]) -> bool:
        """Start from given replicas; return whether they keep the memory."""
        self.held = held.copy()
        self.refill()
        for g in range(self.instance.num_layers):
            self.split(g)
        return bool((self.room >= 0).all())

    def refill(self) -> None:
        """Count the memory anew: differences of large sums would lose bytes."""
        used = np.einsum("ge,ged->d", self.instance.expert_bytes, self.held)
        self.room = np.where(np.isfinite(self.limit), self.limit - used, math.inf)

    def split(self, g: int) -> None:
        """Split the tokens of layer ``g`` among its replicas at best."""
        table, load = self.table, self.instance.load[g]
        _, share = layer_split(load, self.held[g], table.unit_s[g], table.fixed_s[g])
        self.tokens[g] = load[:, None] * share

    def levels(self) -> Array:
        """Return the seconds of every device in every layer, (G, D)."""
        served = self.tokens.sum(axis=1)
        levels: Array = np.where(served > 0, self.table.fixed_s + self.unit * served, 0.0)
        return levels

    def objective(self) -> float:
        """Return the sum of the makespans."""
        return math.fsum(self.levels().max(axis=1).tolist())

    def solution(self) -> ExpertsSolution:
        """Return the decisions, every layer split at best."""
        share = np.zeros(self.held.shape)
        for g in range(self.instance.num_layers):
            _, share[g] = layer_split(self.instance.load[g], self.held[g], self.table.unit_s[g], self.table.fixed_s[g])
        return ExpertsSolution(self.held, share)

    # ── the search ───────────────────────────────────────────────────────────────────────────────────────────

    def improve(self) -> None:
        """Make moves until no layer gains any more, or time is out."""
        stage, before = 0, math.inf
        for _ in range(MOST_ROUNDS):
            if time.perf_counter() > self.stop_at:
                return
            level = self.levels()
            ends = level.max(axis=1)
            open_layers = np.flatnonzero(ends > self.target * (1 + DONE))
            if not len(open_layers) or math.fsum(ends.tolist()) <= self.enough:
                return
            self.least_gain = GAINS[stage]
            if self._round(open_layers, level):
                continue
            for g in open_layers.tolist():
                if time.perf_counter() > self.stop_at:
                    return
                self.split(g)
            now = self.objective()
            if now > before * (1 - 0.1 * GAINS[stage]):
                if stage + 1 == len(GAINS):
                    return
                stage += 1
            before = min(before, now)
            self.consolidate()
            self.make_room()

    def _round(self, layers: NDArray[np.int64], level: Array) -> bool:
        """Make the best move of every layer in ``layers``; return whether any was made."""
        moves = self._moves(layers, level)
        made = False
        for gain, row, kind, e, d, other in sorted(moves, key=lambda move: (-move[0], move[1])):
            g = int(layers[row])
            b = int(level[g].argmax())
            if gain > 0 and self._make(g, kind, e, b, d, other):
                made = True
        if made:
            self.refill()
        return made

    def _moves(self, layers: NDArray[np.int64], level: Array) -> list[tuple[float, int, str, int, int, int]]:
        """Return the best move of each layer: (gain, row, kind, expert, device, expert that comes back)."""
        instance = self.instance
        at = np.arange(len(layers))
        b = level[layers].argmax(axis=1)
        top = level[layers, b]
        tokens, held, sizes = self.tokens[layers], self.held[layers], instance.expert_bytes[layers]
        served = tokens.sum(axis=1)
        unit, fixed = self.unit[layers], self.table.fixed_s[layers]
        mine = tokens[at, :, b]  # (R, E): what the slowest device serves of each expert
        allowed = self.able[layers].copy()
        allowed[at, b] = False
        other = fixed + unit * served  # (R, D): as if used
        unit_b = unit[at, b]
        fits = held | (sizes[:, :, None] <= self.room)
        copies = held.sum(axis=2)

        def after(delta: Array, u: Array, o: Array, extra: tuple[slice | None, ...]) -> Array:
            """Level of the slower of b and d when ``delta`` tokens go from b to d."""
            slower: Array = np.maximum(top[extra] - unit_b[extra] * delta, o + u * delta)
            return slower

        wide = (slice(None), None, None)
        # all of an expert, or as much as levels the two devices
        balance = ((top[:, None] - other) / np.maximum(unit_b[:, None] + unit, 1e-300))[:, None, :]
        whole = np.broadcast_to(mine[:, :, None], held.shape)
        part = np.minimum(balance, whole)
        usable = (mine > 0)[:, :, None] & allowed[:, None, :] & fits
        moved = np.where(usable, after(whole, unit[:, None, :], other[:, None, :], wide), math.inf)
        roomy = held | (copies < self.most)[:, :, None]
        shifted = np.where(
            usable & roomy & (part > 0), after(part, unit[:, None, :], other[:, None, :], wide), math.inf
        )
        free = np.where(held, shifted, math.inf)  # onto a replica that is there already
        best: list[tuple[float, int, str, int, int, int]] = []
        exchanged = self._exchanges(layers, b, mine, allowed, after)
        for row in range(len(layers)):
            found = (-math.inf, row, "", 0, 0, 0)
            for kind, values in (("move", moved[row]), ("shift", free[row])):
                index = int(values.argmin())
                gain = float(top[row] - values.flat[index])
                if gain > max(found[0], self.least_gain * top[row]):
                    found = gain, row, kind, *divmod(index, values.shape[1]), 0
            if exchanged is not None:
                gain = float(top[row] - exchanged[row][0])
                if gain > max(found[0], self.least_gain * top[row]):
                    found = gain, row, "exchange", *exchanged[row][1:]
            if not found[2]:
                index = int(shifted[row].argmin())
                gain = float(top[row] - shifted[row].flat[index])
                if gain > self.least_gain * top[row]:
                    found = gain, row, "shift", *divmod(index, shifted.shape[2]), 0
            if found[2]:
                best.append(found)
        return best

    def _exchanges(
        self, layers: NDArray[np.int64], b: NDArray[np.int64], mine: Array, allowed: NDArray[np.bool_], after: object
    ) -> list[tuple[float, int, int, int]] | None:
        """Return the best exchange of each layer: (level after it, expert, device, expert that comes back)."""
        tokens, held, sizes = self.tokens[layers], self.held[layers], self.instance.expert_bytes[layers]
        at = np.arange(len(layers))
        count = min(MOST_EXCHANGED, mine.shape[1])
        chosen = np.argsort(-mine, axis=1, kind="stable")[:, :count]  # (R, K)
        gives = np.take_along_axis(mine, chosen, axis=1)
        sized = np.take_along_axis(sizes, chosen, axis=1)
        here = np.take_along_axis(held, chosen[:, :, None], axis=1)  # (R, K, D)
        takes = np.where(held & ~held[at, :, b][:, :, None] & allowed[:, None, :], tokens, -1.0)  # (R, E, D)
        delta = gives[:, :, None, None] - takes[:, None, :, :]  # (R, K, E, D)
        fits = self.room[None, None, None, :] + sizes[:, None, :, None] >= sized[:, :, None, None]
        fits &= self.room[b][:, None, None, None] + sized[:, :, None, None] >= sizes[:, None, :, None]
        ok = (takes >= 0)[:, None, :, :] & (delta > 0) & fits & ~here[:, :, None, :] & (gives > 0)[:, :, None, None]
        served = tokens.sum(axis=1)
        unit, fixed = self.unit[layers], self.table.fixed_s[layers]
        down = (fixed[at, b] + unit[at, b] * served[at, b])[:, None, None, None] - unit[at, b][
            :, None, None, None
        ] * delta
        up = (fixed + unit * served)[:, None, None, :] + unit[:, None, None, :] * delta
        value = np.where(ok, np.maximum(down, up), math.inf).reshape(len(layers), -1)
        index = value.argmin(axis=1)
        k, e, d = np.unravel_index(index, delta.shape[1:])
        return [
            (float(value[row, index[row]]), int(chosen[row, k[row]]), int(d[row]), int(e[row])) for row in at.tolist()
        ]

    def _make(self, g: int, kind: str, e: int, b: int, d: int, other: int) -> bool:
        """Make a move unless the memory that it needs has gone to another layer meanwhile."""
        held, tokens, sizes = self.held[g], self.tokens[g], self.instance.expert_bytes[g]
        gives, size = float(tokens[e, b]), float(sizes[e])
        if kind == "exchange":
            back, taken = float(tokens[other, d]), float(sizes[other])
            if self.room[d] + taken < size or self.room[b] + size < taken:
                return False
            held[e, b], held[e, d], held[other, b], held[other, d] = False, True, True, False
            tokens[e, b], tokens[e, d], tokens[other, b], tokens[other, d] = 0.0, gives, back, 0.0
            self.room[d] += taken - size
            self.room[b] += size - taken
            self.num_moves += 1
            return True
        if not held[e, d] and self.room[d] < size:
            return False
        if kind == "shift":
            served = tokens.sum(axis=0)
            unit, fixed = self.unit[g], self.table.fixed_s[g]
            level_b, level_d = fixed[b] + unit[b] * served[b], fixed[d] + unit[d] * served[d]
            gives = min(gives, float((level_b - level_d) / max(unit[b] + unit[d], 1e-300)))
        whole = gives >= tokens[e, b]
        if not held[e, d]:
            held[e, d] = True
            self.room[d] -= size
        tokens[e, d] += gives
        tokens[e, b] = 0.0 if whole else tokens[e, b] - gives
        if whole:
            held[e, b] = False
            self.room[b] += size
        self.num_moves += 1
        return True

    def consolidate(self) -> int:
        """Give back replicas whose tokens fit their expert's other devices without a later end; return how many."""
        freed = 0
        ends = np.maximum(self.levels().max(axis=1), self.target)
        copies = self.held.sum(axis=2)
        for g, e in np.argwhere(copies > 1).tolist():
            served = self.tokens[g].sum(axis=0)
            spare = np.where(self.able[g] & (ends[g] >= self.table.fixed_s[g]), ends[g] - self.table.fixed_s[g], 0.0)
            spare = np.maximum(spare - self.unit[g] * served, 0.0) / np.maximum(self.unit[g], 1e-300)
            for d in sorted(np.flatnonzero(self.held[g, e]).tolist(), key=lambda d: float(self.tokens[g, e, d])):
                others = [o for o in np.flatnonzero(self.held[g, e]).tolist() if o != d]
                need = float(self.tokens[g, e, d])
                if not others or not any(self.able[g, others]) or float(spare[others].sum()) < need:
                    continue
                for o in others:
                    part = min(need, float(spare[o]))
                    self.tokens[g, e, o] += part
                    spare[o] -= part
                    need -= part
                self.tokens[g, e, d] = 0.0
                self.held[g, e, d] = False
                freed += 1
        if freed:
            self.refill()
        return freed

    def make_room(self) -> None:
        """Move copies off full devices to devices with room, where their layer does not end later for it."""
        sizes, ends = self.instance.expert_bytes, np.maximum(self.levels().max(axis=1), self.target)
        least = float(sizes.max())
        full = [d for d in np.argsort(self.room, kind="stable").tolist() if self.room[d] < least]
        for d in full:
            for _ in range(MOVED_OFF):
                if time.perf_counter() > self.stop_at:
                    return
                others = np.flatnonzero(self.room >= 2 * least)
                if not len(others):
                    return
                moved = np.where(self.held[:, :, d], self.tokens[:, :, d], math.inf)[:, :, None]
                served = self.tokens.sum(axis=1)[:, None, others]
                unit, fixed = self.unit[:, None, others], self.table.fixed_s[:, None, others]
                fits = fixed + unit * (served + moved) <= ends[:, None, None]
                fits &= self.able[:, None, others] & ~self.held[:, :, others] & np.isfinite(moved)
                value = np.where(fits, moved * unit, math.inf)
                index = int(value.argmin())
                if not math.isfinite(value.flat[index]):
                    break
                g, e, k = (int(i) for i in np.unravel_index(index, value.shape))
                o = int(others[k])
                self.tokens[g, e, o], self.tokens[g, e, d] = self.tokens[g, e, d], 0.0
                self.held[g, e, o], self.held[g, e, d] = True, False
                self.room[o] -= sizes[g, e]
                self.room[d] += sizes[g, e]
        self.refill()


def first_homes(search: Search, wish: Array) -> NDArray[np.bool_] | None:
    """Return one device per expert, (G, E, D), near a fractional placement and within the memory; ``None``: not found.

    Parameters
    ----------
    search
        Gives capabilities and limits.
    wish : (G, E, D)
        How much each expert wants to be on each device.
    """
    instance = search.instance
    G, E, D = wish.shape
    able = np.broadcast_to(search.able[:, None, :], wish.shape)
    if not able.any(axis=2).all():
        return None
    value = np.where(able, wish, -1.0)
    sizes, room = instance.expert_bytes, search.limit.copy()
    held = np.zeros((G, E, D), dtype=np.bool_)
    # the surest first, then by size; an expert that no longer fits goes where most memory is left
    surest = np.lexsort((-sizes.ravel(), -np.round(value.max(axis=2), 6).ravel()))
    for order in (surest, np.argsort(-sizes.ravel(), kind="stable")):
        room, held[:] = search.limit.copy(), False
        fitted = True
        for index in order.tolist():
            g, e = divmod(index, E)
            fits = able[g, e] & (room >= sizes[g, e])
            if not fits.any():
                fitted = False
                break
            liked = np.where(fits, value[g, e], -1.0)
            d = int(liked.argmax()) if liked.max() > 1e-6 else int(np.where(fits, room, -1.0).argmax())
            held[g, e, d] = True
            room[d] -= sizes[g, e]
        if fitted:
            return held
    return None
