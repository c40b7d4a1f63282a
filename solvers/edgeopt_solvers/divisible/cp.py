"""Divisible as a constraint program for OR-Tools CP-SAT: one Boolean per device and load, private links only.

x_dh: device d has h units. CP-SAT knows integers only: seconds and joules are multiplied by a scale and rounded DOWN,
limits are rounded UP,

    Σ_h x_dh = 1,   Σ_dh h x_dh = H,   Σ_d Σ_{h>0} x_dh <= K
    Σ_h ⌊end_dh⌋ x_dh <= T <= ⌈budget⌉,     Σ_dh ⌊joules_dh⌋ x_dh <= ⌈budget⌉,     min T + Σ ⌊weight · joules_dh⌋ x_dh

which relaxes the problem, so that CP-SAT's bound needs no correction. Loads that only the rounding admits are found by
the checker and forbidden. (Integer loads with coefficients of 12 digits are one row instead of many, and take CP-SAT
minutes on three devices.) A shared medium would multiply two variables per device; ``exact`` and ``pulp`` have it.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from ortools.sat.python import cp_model

from edgeopt_solvers.cpsat import STATUS
from edgeopt_solvers.divisible.check import evaluate
from edgeopt_solvers.divisible.feasible import few_devices
from edgeopt_solvers.divisible.instance import LIMIT_TOLERANCE, Divisible, Solution
from edgeopt_solvers.divisible.table import Table
from edgeopt_solvers.errors import BackendError
from edgeopt_solvers.result import Result, Status, relative_gap
from edgeopt_solvers.solve import Options

__all__ = ["build", "solve"]

#: The largest amount of a row becomes this.
LARGEST = 1e12

#: What rounding to 12 digits may leave open.
PROVEN = 1e-9


def build(instance: Divisible, table: Table) -> tuple[cp_model.CpModel, list[dict[int, Any]], float] | None:
    """Return the model, the Boolean of each load for every row of the table, and the objective scale; None: no plan."""
    H, weights = instance.num_units, instance.weights
    possible = table.possible.copy()
    if instance.max_makespan_s is not None:
        possible &= table.end <= instance.max_makespan_s * (1 + LIMIT_TOLERANCE)
    if "energy" not in weights and instance.max_energy_j is None:
        # loads that alone take longer than a plan at hand are not in the best: this keeps integers small
        loads = few_devices(table.least, table.most, H, instance.max_devices or len(table.most))
        if loads is None:
            return None
        possible &= table.end <= table.level_s(loads)
    possible[:, 0] = True
    model = cp_model.CpModel()
    pairs = [
        {h: model.new_bool_var(f"x{row}_{h}") for h in np.flatnonzero(possible[row]).tolist()} for row in table.rows
    ]
    for row in pairs:
        model.add_exactly_one(list(row.values()))
    model.add(sum(h * x for row in pairs for h, x in row.items()) == H)
    if instance.max_devices is not None:
        model.add(sum(1 - row[0] for row in pairs) <= instance.max_devices)
    end = np.where(possible, table.end, 0.0)
    end[:, 0] = 0.0
    joules = np.where(possible, table.joules, 0.0)
    w, v = weights.get("makespan", 0.0), weights.get("energy", 0.0)
    top = max(w * float(end.max(initial=0.0)), v * float(joules.max(initial=0.0)))
    scale = LARGEST / top if top > 0 else 1.0
    objective: list[Any] = []
    if w:
        level = model.new_int_var(0, math.floor(float(end.max(initial=0.0)) * w * scale), "T")
        objective.append(level)
        for number, row in enumerate(pairs):
            model.add(_rounded(row, end[number], w * scale) <= level)
    if v:
        objective += [_rounded(row, joules[number], v * scale) for number, row in enumerate(pairs)]
    model.minimize(sum(objective))
    most = float(joules.max(initial=0.0))
    if instance.max_energy_j is not None and most > 0:
        limit = min(instance.max_energy_j * (1 + LIMIT_TOLERANCE), most * len(pairs))
        total = sum(_rounded(row, joules[number], LARGEST / most) for number, row in enumerate(pairs))
        model.add(total <= math.ceil(limit * (LARGEST / most)))
    return model, pairs, scale


def _rounded(row: dict[int, Any], values: Any, scale: float) -> Any:
    """Σ_h ⌊values[h] · scale⌋ x_h."""
    return cp_model.LinearExpr.weighted_sum(list(row.values()), [math.floor(float(values[h]) * scale) for h in row])


def solve(instance: Divisible, options: Options) -> Result:
    """Solve with one CP-SAT worker.

    Raises
    ------
    BackendError
        CP-SAT calls the model invalid.
    """
    stop_at = math.inf if options.time_limit_s is None else time.perf_counter() + options.time_limit_s
    table = Table(instance)
    built = build(instance, table) if len(table.devices) else None
    nothing = Result(Status("infeasible", False), math.inf, math.inf, None, "ortools", 0.0)
    if built is None:
        return nothing
    model, pairs, scale = built
    if isinstance(options.warm_start, Solution) and len(options.warm_start.loads) == instance.num_devices:
        for number, row in enumerate(pairs):
            for h, x in row.items():
                model.add_hint(x, h == options.warm_start.loads[int(table.devices[number])])
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = options.seed % 2**31
    solver.parameters.relative_gap_limit = options.gap
    while True:
        if options.time_limit_s is not None:
            solver.parameters.max_time_in_seconds = max(0.01, stop_at - time.perf_counter())
        status = solver.solve(model)
        if status not in STATUS:
            raise BackendError(f"CP-SAT stopped with {solver.status_name(status)}; try backend='exact'")
        if STATUS[status] == "infeasible":
            return nothing
        bound = solver.best_objective_bound / scale
        if status == cp_model.UNKNOWN:
            return Result(Status("time_limit", False), math.inf, bound, None, "ortools", 0.0)
        chosen = [next(h for h, x in row.items() if solver.boolean_value(x)) for row in pairs]
        loads = np.array(chosen, dtype=np.int64)
        solution = table.solution(loads)
        evaluation = evaluate(instance, solution)
        if not evaluation.violations:
            break
        model.add_bool_or([~row[h] for row, h in zip(pairs, chosen, strict=True)])
    objective = evaluation.objective
    bound = min(bound, objective)
    reason = STATUS[status]
    if relative_gap(objective, bound) <= PROVEN:
        bound, reason = objective, "optimal"
    elif reason == "optimal":
        reason = "gap_reached"
    statistics = {"branches": float(solver.num_branches), "conflicts": float(solver.num_conflicts)}
    return Result(Status(reason, True), objective, bound, solution, "ortools", 0.0, statistics=statistics)
