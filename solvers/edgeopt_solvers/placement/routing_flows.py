"""Routing for given models on devices, or with part of them undecided: columns, interior point, bound by prices."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.placement.interior import Point, Program, minimise
from edgeopt_solvers.placement.routing import Routing, RoutingSolution
from edgeopt_solvers.placement.routing_columns import cheapest, first_columns, first_prices, worthwhile

__all__ = ["Answer", "Flows"]

#: With at most this many (class, model, device) the interior point sees all of them.
FEW = 3_000

MOST_ROUNDS = 40

#: Relative gap that the interior point works to.
TIGHT = 2e-8

#: Relative gap that ends the rounds.
NEAR = 2e-7

#: A column whose class would overload its queue so many times is left to the bound alone.
TRACE = 1e9

#: A floor within this of the best possible accuracy leaves only the columns that reach it.
EXACT = 1e-9

#: Above this the rows are kept sparse.
MOST_DENSE = 60_000


@dataclass(frozen=True, slots=True)
class Answer:
    """Best routing found, proven bound on the mean response, whether this is settled, and how much each model is used.

    ``decided``: the bound is as near as it gets, or there is no routing (bound inf). ``worth`` (M, V) is a relaxed
    decision for models that are not decided.
    """

    solution: RoutingSolution | None
    bound: float
    decided: bool
    worth: Array | None = None


class Flows:
    """The convex program of an instance with models ``usable``; those not in ``held`` take part of the memory."""

    def __init__(self, instance: Routing, usable: NDArray[np.bool_], held: NDArray[np.bool_] | None = None) -> None:
        self.instance, self.usable = instance, usable
        self.held = usable if held is None else held
        self.classes = np.flatnonzero(instance.arrival_per_s > 0)
        self.total = math.fsum(instance.arrival_per_s.tolist())
        arrival = instance.arrival_per_s[self.classes]
        M, V = usable.shape
        reach = np.isfinite(instance.network_s[self.classes])
        with np.errstate(divide="ignore", over="ignore"):
            weight = arrival[:, None, None] / np.where(usable, instance.service_per_s, 0.0)
        self.allowed = usable & reach[:, None, :] & np.isfinite(weight)  # (C', M, V)
        self.weight = np.where(self.allowed, weight, 0.0)
        network = np.where(reach, instance.network_s[self.classes], 0.0) * arrival[:, None]
        self.cost = np.broadcast_to(network[:, None, :], self.allowed.shape)
        queue = np.arange(M * V).reshape(M, V) if instance.queue == "server" else np.broadcast_to(np.arange(V), (M, V))
        self.queue = np.broadcast_to(queue, self.allowed.shape)
        self.num_queues = M * V if instance.queue == "server" else V
        self.accuracy = instance.accuracy[self.classes]
        self.part = arrival / self.total
        self._floors()
        self._memory()

    # ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _floors(self) -> None:
        """Find which floors bind; ``mean_floor``: None or a number, ``class_floor``: (C',), -inf where none."""
        floor = self.instance.min_accuracy
        best = np.where(self.allowed.any(axis=2), self.accuracy, -math.inf).max(axis=1)
        self.mean_floor: float | None = None
        self.class_floor = np.full(len(self.classes), -math.inf)
        self.hopeless = not np.isfinite(best).all()
        if floor is None or self.hopeless:
            return
        if isinstance(floor, float):
            most = math.fsum((self.part * best).tolist())
            self.hopeless = floor > most + EXACT
            if floor > most - EXACT:
                self.allowed = self.allowed & (self.accuracy >= best[:, None] - EXACT)[:, :, None]
            elif floor > float((self.part * np.where(self.allowed.any(axis=2), self.accuracy, 2.0).min(axis=1)).sum()):
                self.mean_floor = floor
            return
        floors = np.asarray(floor)[self.classes]
        self.hopeless = bool((floors > best + EXACT).any())
        tight = floors > best - EXACT
        keep = self.accuracy >= np.where(tight, best - EXACT, -1.0)[:, None]
        self.allowed = self.allowed & keep[:, :, None]
        least = np.where(self.allowed.any(axis=2), self.accuracy, 2.0).min(axis=1)
        self.class_floor = np.where(tight | (floors <= least), -math.inf, floors)

    def _memory(self) -> None:
        """Find the memory that undecided models take at least, per part of a class sent to them: (C', M, V) of room."""
        instance = self.instance
        self.devices = np.zeros(0, dtype=np.int64)
        free = self.usable & ~self.held
        if instance.model_bytes is None or instance.memory_bytes is None or not free.any():
            return
        sizes = instance.model_bytes[:, None]
        room = instance.memory_bytes - np.where(self.held, sizes, 0.0).sum(axis=0)
        # a model serves at most all queries, and at most as many as keep its load below the limit
        rate = np.where(free, instance.service_per_s * instance.max_load, math.inf)
        taken = np.where(free, sizes * np.maximum(1 / self.total, 1 / rate), 0.0)
        scale = np.maximum(room, 1e-300)
        self.taken = instance.arrival_per_s[self.classes][:, None, None] * (taken / scale)
        self.devices = np.flatnonzero(np.isfinite(room) & free.any(axis=0))
        # a model that does not fit is not usable
        fits = self.held | (sizes <= room * (1 + 1e-9))
        self.allowed = self.allowed & fits
        self.room = np.where(room > 0, 1.0, 0.0)

    # ── solving ──────────────────────────────────────────────────────────────────────────────────────────────

    def solve(self, gap: float, stop_at: float) -> Answer:
        """Solve to a relative gap of ``gap``, or as near as the interior point gets."""
        nothing = Answer(None, math.inf, True)
        if self.hopeless or not self.allowed.any(axis=(1, 2)).all():
            return nothing
        whole = self.allowed
        self.allowed = self._sensible()
        try:
            return self._solve(gap, stop_at, whole)
        finally:
            self.allowed = whole

    def _sensible(self) -> NDArray[np.bool_]:
        """Leave out columns that could take no more than a trace of their class, unless it has no others."""
        trace = self.weight > TRACE * self.instance.max_load
        sensible: NDArray[np.bool_] = self.allowed & ~trace
        without = np.asarray(~sensible.any(axis=(1, 2)))
        both: NDArray[np.bool_] = sensible | (self.allowed & without[:, None, None])
        return both

    def _solve(self, gap: float, stop_at: float, whole: NDArray[np.bool_]) -> Answer:
        count = int(self.allowed.sum())
        chosen = self.allowed.copy() if count <= FEW else first_columns(self)
        best, value, bound, worth = None, math.inf, self._least_number(), None
        for _ in range(MOST_ROUNDS):
            columns = np.flatnonzero(chosen)
            point = self._inside(columns, stop_at)
            ended = time.perf_counter() > stop_at
            prices = self._prices(point)
            sensible, self.allowed = self.allowed, whole  # the bound is for all columns
            bound = max(bound, self._bound(*prices))
            self.allowed = sensible
            x: Array = np.zeros(self.allowed.shape)
            x.flat[columns] = point.x[: len(columns)]
            worth = self._worth(x)
            reduced = self.reduced(prices)
            least = np.where(chosen, reduced, math.inf).min(axis=(1, 2))
            # traces that an inner point leaves on dear columns may weigh much on slow queues
            wanted = np.where((reduced <= (least + 1e-6 * np.abs(least))[:, None, None]) | (x > 1e-4), x, 0.0)
            for given in (wanted, x):
                solution, objective = self.plan(given)
                if objective < value:
                    best, value = solution or best, objective
            near = value < math.inf and value - bound <= max(gap, NEAR) * value
            if near or ended:
                break
            if not chosen.sum() < count:
                break
            elif point.residual > 1e-2:  # too few columns for any routing
                chosen |= cheapest(self, self.reduced(first_prices(self)), 2 * int(chosen.sum() / len(chosen)))
            else:
                chosen |= worthwhile(self, reduced, least)
        if value == math.inf:
            return self._least_load(bound, stop_at)
        return Answer(best, bound / self.total, True, worth)

    def _inside(self, columns: NDArray[np.int64], stop_at: float) -> Point:
        """Run the interior point on some columns; slacks follow them."""
        import scipy.sparse as sp

        C, _, V = self.allowed.shape
        c, m, v = np.unravel_index(columns, self.allowed.shape)
        n = len(columns)
        at = np.arange(n)
        blocks: list[tuple[Any, Any, Any]] = [(np.ones(n), c, at)]
        rhs, slacks = [np.ones(C)], []
        row = C
        if self.mean_floor is not None:
            blocks.append((self.part[c] * self.accuracy[c, m], np.full(n, row), at))
            rhs.append(np.array([self.mean_floor]))
            slacks.append((row, -1.0))
            row += 1
        floors = np.flatnonzero(np.isfinite(self.class_floor))
        if len(floors):
            place = np.full(C, -1)
            place[floors] = row + np.arange(len(floors))
            on = place[c] >= 0
            blocks.append((self.accuracy[c, m][on], place[c][on], at[on]))
            rhs.append(self.class_floor[floors])
            slacks += [(row + k, -1.0) for k in range(len(floors))]
            row += len(floors)
        if len(self.devices):
            place = np.full(V, -1)
            place[self.devices] = row + np.arange(len(self.devices))
            on = place[v] >= 0
            blocks.append((self.taken[c, m, v][on], place[v][on], at[on]))
            rhs.append(self.room[self.devices])
            slacks += [(row + k, 1.0) for k in range(len(self.devices))]
            row += len(self.devices)
        for k, (i, sign) in enumerate(slacks):
            blocks.append((np.array([sign]), np.array([i]), np.array([n + k])))
        data, rows, cols = (np.concatenate(part) for part in zip(*blocks, strict=True))
        matrix = sp.csr_matrix((data, (rows, cols)), shape=(row, n + len(slacks)))
        zeros = np.zeros(len(slacks))
        # in units of the least that any routing can cost
        unit = self._least_number()
        program = Program(
            np.concatenate([self.cost[c, m, v] / unit, zeros]),
            np.concatenate([self.queue[c, m, v], np.full(len(slacks), -1)]),
            np.concatenate([self.weight[c, m, v], zeros]),
            self.num_queues, self.instance.max_load,
            matrix.toarray() if row * n <= MOST_DENSE else matrix, np.concatenate(rhs), 1 / unit,
        )  # fmt: skip
        speed = 1 / np.maximum(self.weight[c, m, v], 1e-300)
        speed /= np.bincount(c, speed, minlength=C)[c]
        share = 0.5 * speed + 0.5 / np.bincount(c, minlength=C)[c]
        start = np.concatenate([share, np.full(len(slacks), 0.1)])
        over = program.load(start) / (0.9 * self.instance.max_load)
        start[:n] /= np.maximum(over, 1.0)[self.queue[c, m, v]]
        point = minimise(program, np.maximum(start, 1e-12), TIGHT, stop_at)
        return replace(point, row_price=point.row_price * unit, queue_price=point.queue_price * unit)

    def _least_number(self) -> float:
        """Return the number in the system if nobody waited: a bound, and the unit of the interior point."""
        least = np.where(self.allowed, self.cost + self.weight, math.inf).min(axis=(1, 2))
        total = math.fsum(least.tolist())
        return total if 1e-290 < total < 1e290 else 1.0

    def plan(self, x: Array) -> tuple[RoutingSolution | None, float]:
        """Make whole fractions of an inner point, with the number in the system; ``None`` if they break a rule."""
        part = np.where(x > 1e-13, x, 0.0)
        sums = part.sum(axis=(1, 2))
        if not (sums > 0.5).all():
            return None, math.inf
        part /= sums[:, None, None]
        load = np.bincount(self.queue.ravel(), (self.weight * part).ravel(), minlength=self.num_queues)
        if load.max() >= 1 or load.max() > self.instance.max_load * (1 + 0.5e-9):
            return None, math.inf
        if self.mean_floor is not None:
            right = float(np.einsum("c,cmv,cm->", self.part, part, self.accuracy))
            if right < self.mean_floor - 0.5e-9:
                return None, math.inf
        if (np.einsum("cmv,cm->c", part, self.accuracy) < self.class_floor - 0.5e-9).any():
            return None, math.inf
        number = float((self.cost * part).sum() + (load / (1 - load)).sum())
        loaded = self.held | (part > 0).any(axis=0)
        instance = self.instance
        if instance.memory_bytes is not None and instance.model_bytes is not None:
            used = np.where(loaded, instance.model_bytes[:, None], 0.0).sum(axis=0)
            if (used > instance.memory_bytes * (1 + 0.5e-9)).any():
                return None, number
        return self._complete(part, loaded), number

    def _complete(self, part: Array, loaded: NDArray[np.bool_]) -> RoutingSolution:
        """Return a solution from the fractions of classes that arrive; the others go anywhere."""
        C, M, V = self.instance.num_classes, *self.usable.shape
        fractions = np.zeros((C, M, V))
        fractions[self.classes] = part
        idle = np.setdiff1d(np.arange(C), self.classes)
        m, v = np.argwhere(loaded)[0]
        fractions[idle, m, v] = 1.0
        return RoutingSolution(fractions, loaded)

    # ── prices ───────────────────────────────────────────────────────────────────────────────────────────────

    def _prices(self, point: Point) -> tuple[Array, float, Array, Array]:
        """Return prices of queues, of the mean floor, of the classes' floors (C',), and of memory, from the rows."""
        row = len(self.classes)
        mean, floors = 0.0, np.zeros(len(self.classes))
        y = point.row_price
        if self.mean_floor is not None:
            mean = max(float(y[row]), 0.0)
            row += 1
        at = np.flatnonzero(np.isfinite(self.class_floor))
        floors[at] = np.maximum(y[row : row + len(at)], 0.0)
        row += len(at)
        return np.maximum(point.queue_price, 0.0), mean, floors, np.maximum(-y[row : row + len(self.devices)], 0.0)

    def bound(self, point: Point) -> float:
        """Return the bound of ``routing_exact.py`` on the number in the system, at the prices of a point."""
        return self._bound(*self._prices(point))

    def reduced(self, prices: tuple[Array, float, Array, Array]) -> Array:
        """Return what sending a class to each model and device costs at the prices, (C', M, V)."""
        queue, mean, floors, memory = prices
        value = self.cost + self.weight * queue[self.queue]
        if mean or floors.any():
            value = value - ((mean * self.part + floors)[:, None] * self.accuracy)[:, :, None]
        if len(self.devices):
            per_device = np.zeros(self.usable.shape[1])
            per_device[self.devices] = memory
            value = value + self.taken * per_device
        reduced: Array = np.where(self.allowed, value, math.inf)
        return reduced

    def _bound(self, queue: Array, mean: float, floors: Array, memory: Array) -> float:
        """Return the bound at given prices."""
        most = self.instance.max_load
        root = np.sqrt(np.maximum(queue, 1.0))
        reached = 1 - 1 / root >= most
        with np.errstate(divide="ignore", invalid="ignore"):
            full = most / (1 - most) - queue * most if most < 1 else np.zeros(len(queue))
        parts = np.where(reached & (most < 1), full, -((root - 1) ** 2))
        least = self.reduced((queue, mean, floors, memory)).min(axis=(1, 2))
        constant = mean * (self.mean_floor or 0.0)
        at = np.isfinite(self.class_floor)
        constant += math.fsum((floors[at] * self.class_floor[at]).tolist())
        if len(self.devices):
            constant -= math.fsum((memory * self.room[self.devices]).tolist())
        bound = math.fsum([constant, *parts.tolist(), *least.tolist()])
        return bound if math.isfinite(bound) else 0.0

    def _worth(self, x: Array) -> Array:
        """Return how much of each model the routing uses, as a relaxed decision, (M, V)."""
        flow = np.einsum("c,cmv->mv", self.instance.arrival_per_s[self.classes], x)
        with np.errstate(divide="ignore", invalid="ignore"):
            load = np.where(self.usable, flow / np.maximum(self.instance.service_per_s, 1e-300), 0.0)
        worth: Array = np.clip(np.maximum(flow / self.total, load / self.instance.max_load), 0.0, 1.0)
        return worth

    def _least_load(self, bound: float, stop_at: float) -> Answer:
        """Decide by a linear program whether any routing exists: the least possible load of the fullest queue."""
        from edgeopt_solvers.placement.routing_load import least_load

        found = least_load(self, stop_at)
        if found is None:
            return Answer(None, bound / self.total, False)
        load, x = found
        if load > self.instance.max_load * (1 + 1e-9) or load >= 1:
            return Answer(None, math.inf, True)
        if x is None:
            return Answer(None, bound / self.total, False)
        solution, _ = self.plan(x)
        return Answer(solution, bound / self.total, False, self._worth(x))
