"""Experts as a constraint program for OR-Tools CP-SAT: Booleans for replicas, whole parts of each expert's load.

y_ged: device d holds expert e of layer g; n_ged ∈ 0..K: parts of its load there, K = 10 000; u_gd: d serves in layer g.

    Σ_d n_ged = K,   n_ged <= K y_ged,   Σ_d y_ged <= R,   n_ged <= K u_gd
    Σ_e ⌊w_gd load_ge / K⌋ n_ged + ⌊f_gd⌋ u_gd <= T_g,    Σ_ge ⌊bytes_ge⌋ y_ged <= ⌈room_d⌉,    min Σ_g T_g

in seconds and bytes scaled to whole numbers. Rounding down relaxes the problem. Whole parts do not: any split is
within one part of a whole one on every device, so that Σ_g max_d Σ_e w_gd load_ge / K is taken off the bound. A proof
much finer than that would be lost on it and may never end: CP-SAT is told to stop there, and is given a first plan,
without which it found none in 15 s for one layer of three experts. The tokens are split anew for the replicas found
(``levels.py``).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ortools.sat.python import cp_model

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.cpsat import STATUS
from edgeopt_solvers.errors import BackendError
from edgeopt_solvers.placement.check import evaluate
from edgeopt_solvers.placement.experts import Experts, ExpertsSolution
from edgeopt_solvers.placement.instance import LIMIT_TOLERANCE
from edgeopt_solvers.placement.levels import Table, layer_split, table_of
from edgeopt_solvers.result import Reason, Result, Status, relative_gap
from edgeopt_solvers.solve import Options

__all__ = ["PARTS", "Program", "build", "first_replicas", "solve"]

#: Parts of an expert's load.
PARTS = 10_000

#: The largest seconds of a part, and the largest bytes, become these. Seconds a hundred times finer leave CP-SAT
#: without an end on instances that it otherwise closes in a tenth of a second.
LARGEST_S, LARGEST = 1e4, 1e6

#: What parts and rounding may leave open.
PROVEN = 1e-9

#: CP-SAT stops once it is as near as this part of what whole parts take off its bound.
FINE = 1.0


@dataclass(frozen=True, slots=True)
class Program:
    """``model``, y and n by (layer, expert, device), u by (layer, device), units per second, what parts add."""

    model: cp_model.CpModel
    held: dict[tuple[int, int, int], Any]
    parts: dict[tuple[int, int, int], Any]
    serves: dict[tuple[int, int], Any]
    scale: float
    added_s: float

    def hint(self, replicas: NDArray[np.bool_]) -> None:
        """Start from given replicas, the tokens of each with one of them."""
        self.model.clear_hints()
        busy = set()
        for (g, e, d), y in self.held.items():
            first = (g, e, d) in self.parts and int(replicas[g, e].argmax()) == d
            self.model.add_hint(y, bool(replicas[g, e, d]))
            self.model.add_hint(self.parts[g, e, d], PARTS if first else 0)
            busy |= {(g, d)} if first else set()
        for key, serves in self.serves.items():
            self.model.add_hint(serves, key in busy)


def build(instance: Experts) -> Program | None:
    """Return the program; ``None``: no plan."""
    table = table_of(instance)
    G, E = instance.num_layers, instance.num_experts
    able = np.isfinite(table.unit_s)
    room = instance.memory_bytes * (1 + LIMIT_TOLERANCE) - instance.reserved_bytes
    if not able.any(axis=1).all() or (room < 0).any():
        return None
    part_s: Array = np.where(able, table.unit_s, 0.0)[:, None, :] * instance.load[:, :, None] / PARTS
    top = max(float(part_s.max()), float(np.where(able, table.fixed_s, 0.0).max()) / PARTS)
    scale = LARGEST_S / top if top > 0 else 1.0
    model, held, levels = cp_model.CpModel(), {}, []
    every, used = {}, {}
    most = math.floor(LARGEST_S * PARTS * (E + 1)) + 1
    for g in range(G):
        devices = np.flatnonzero(able[g]).tolist()
        level = model.new_int_var(0, most, f"T{g}")
        levels.append(level)
        parts = {(e, d): model.new_int_var(0, PARTS, f"n{g}_{e}_{d}") for e in range(E) for d in devices}
        for e in range(E):
            for d in devices:
                every[g, e, d] = parts[e, d]
                held[g, e, d] = model.new_bool_var(f"y{g}_{e}_{d}")
                model.add(parts[e, d] <= PARTS * held[g, e, d])
            model.add(sum(parts[e, d] for d in devices) == PARTS)
            if instance.max_replicas is not None:
                model.add(sum(held[g, e, d] for d in devices) <= instance.max_replicas)
        for d in devices:
            fixed = math.floor(float(table.fixed_s[g, d]) * scale)
            serves = used[g, d] = model.new_bool_var(f"u{g}_{d}")
            if fixed:
                for e in np.flatnonzero(instance.load[g] > 0).tolist():
                    model.add(parts[e, d] <= PARTS * serves)
            row = sum(math.floor(float(part_s[g, e, d]) * scale) * parts[e, d] for e in range(E))
            model.add(row + fixed * serves <= level)
    for d in np.flatnonzero(np.isfinite(room)).tolist():
        keys = [key for key in held if key[2] == d]
        sizes = [float(instance.expert_bytes[g, e]) for g, e, _ in keys]
        if max(sizes, default=0.0) > 0:
            per_byte = LARGEST / max(sizes)
            total = sum(math.floor(size * per_byte) * held[key] for size, key in zip(sizes, keys, strict=True))
            model.add(total <= math.ceil(min(float(room[d]), math.fsum(sizes)) * per_byte))
    model.minimize(sum(levels))
    return Program(model, held, every, used, scale, math.fsum(part_s.sum(axis=1).max(axis=1).tolist()))


def first_replicas(instance: Experts, table: Table) -> NDArray[np.bool_] | None:
    """Return one copy per expert, the largest first, each where most memory is left; ``None``: they do not fit so."""
    room = instance.memory_bytes * (1 + 0.5 * LIMIT_TOLERANCE) - instance.reserved_bytes
    replicas = np.zeros((*instance.load.shape, instance.num_devices), dtype=np.bool_)
    seconds = np.zeros(table.unit_s.shape)
    for index in np.argsort(-instance.expert_bytes.ravel(), kind="stable").tolist():
        g, e = divmod(index, instance.num_experts)
        usable = np.isfinite(table.unit_s[g]) & (room >= instance.expert_bytes[g, e])
        if not usable.any():
            return None
        unit = np.where(usable, table.unit_s[g], 0.0)
        after = seconds[g] + table.fixed_s[g] + instance.load[g, e] * unit
        left = np.where(np.isinf(room), 0.0, -room)  # without limits, where the layer ends first
        d = int(np.lexsort((np.where(usable, after, np.inf), np.where(usable, left, np.inf)))[0])
        replicas[g, e, d] = True
        seconds[g, d] += float(instance.load[g, e] * unit[d])
        room[d] -= instance.expert_bytes[g, e]
    return replicas


def solve(instance: Experts, options: Options) -> Result:
    """Solve with one CP-SAT worker.

    Raises
    ------
    BackendError
        CP-SAT calls the model invalid.
    """
    nothing = Result(Status("infeasible", False), math.inf, math.inf, None, "ortools", 0.0)
    started = time.perf_counter()
    built = build(instance)
    if built is None:
        return nothing
    model, held, scale, added = built.model, built.held, built.scale, built.added_s
    table = table_of(instance)
    given = options.warm_start
    start = given.replicas if isinstance(given, ExpertsSolution) else first_replicas(instance, table)
    if start is not None and start.shape == (*instance.load.shape, instance.num_devices):
        built.hint(start)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = options.seed % 2**31
    solver.parameters.relative_gap_limit = options.gap
    solver.parameters.absolute_gap_limit = FINE * added * scale
    while True:
        if options.time_limit_s is not None:
            left_s = options.time_limit_s - (time.perf_counter() - started)
            solver.parameters.max_time_in_seconds = max(0.01, left_s)
        status = solver.solve(model)
        if status not in STATUS:
            raise BackendError(f"CP-SAT stopped with {solver.status_name(status)}; try backend='exact'")
        if STATUS[status] == "infeasible":
            return nothing
        bound = max(0.0, solver.best_objective_bound / scale - added)
        if status == cp_model.UNKNOWN:
            return Result(Status("time_limit", False), math.inf, bound, None, "ortools", 0.0)
        replicas = np.zeros((*instance.load.shape, instance.num_devices), dtype=np.bool_)
        for key, y in held.items():
            replicas[key] = solver.boolean_value(y)
        share = [
            layer_split(instance.load[g], replicas[g], table.unit_s[g], table.fixed_s[g])[1]
            for g in range(instance.num_layers)
        ]
        solution = ExpertsSolution(replicas, np.array(share))
        evaluation = evaluate(instance, solution)
        if not evaluation.violations:
            break
        # only the rounding of bytes admitted this: another one, please
        model.add_bool_or([~y if replicas[key] else y for key, y in held.items()])
    bound = min(bound, evaluation.objective)
    gap = relative_gap(evaluation.objective, bound)
    reason: Reason = STATUS[status]
    if reason == "optimal" and gap > PROVEN:
        reason = "gap_reached"
    message = f"parts of 1/{PARTS} leave a gap of {gap:.1e}" if reason == "gap_reached" else ""
    return Result(Status(reason, True), evaluation.objective, bound, solution, "ortools", 0.0, message=message)
