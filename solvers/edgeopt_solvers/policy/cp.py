"""Cascades as a constraint program for OR-Tools CP-SAT, over the prefixes of codes that queries share.

Queries with equal codes at models 0..m−1 have gone the same way before model m: they are one node of depth m. Booleans,
for each model: on_m (asked), last_m (answers everybody), p_mc (a query of code c goes on); for each node n of depth m:
r_n (its queries get as far as m), a_n (and ask it).

    (1) state    p_m(c+1) → p_mc,  ¬on_m → p_mc,  last_m → on_m,  last_m → ¬p_mc,  Σ_m last_m = 1
                 on_m ∧ ¬last_m → p_m0 ∧ ¬p_mL                 (thresholds 1..L; none: on_m → last_m)
    (2) reach    r_root,   r_child = r_n ∧ p_mc
    (3) asks     r_n ∧ on_m → a_n
    (4) floor    Σ_n r_n Σ_{q in n} (correct_qm − correct_q(m−1)) >= N min_accuracy
    (5) budgets  Σ_n a_n Σ_{q in n} amount_qm <= limits,   Σ_m on_m <= max_models
    (6) conflict ∨_{m in set} ¬on_m
    minimise     Σ_n a_n Σ_{q in n} value_qm

CP-SAT knows integers only: what is minimised or limited is multiplied by a scale and rounded DOWN, limits and what
counts for the floor UP. That relaxes the problem, so that the bound needs no correction; a cascade that only the
rounding admits is found by the checker and forbidden.
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ortools.sat.python import cp_model

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.cpsat import STATUS
from edgeopt_solvers.errors import BackendError, UnsupportedError
from edgeopt_solvers.policy.check import evaluate
from edgeopt_solvers.policy.instance import Cascade, CascadeSolution
from edgeopt_solvers.policy.traces import Traces, traces_of
from edgeopt_solvers.result import Result, Status, relative_gap
from edgeopt_solvers.solve import Options

__all__ = ["Model", "build", "solve"]

#: The largest sum that matters in a row becomes this.
LARGEST = 1e12

#: What rounding to 12 digits may leave open.
PROVEN = 1e-9

#: Nodes are Python objects; more than this take longer to write down than a search by boxes takes.
MOST_NODES = 200_000


@dataclass(slots=True)
class Model:
    """The program, its Booleans by meaning, and ``scale``: integers of its objective per unit of the sum of values."""

    program: cp_model.CpModel
    on: list[Any]
    last: list[Any]
    goes: list[dict[int, Any]]
    scale: float = 1.0
    asks: list[list[Any]] = field(default_factory=list)
    reaches: list[list[Any]] = field(default_factory=list)


def build(instance: Cascade, traces: Traces) -> Model:
    """Write the instance as a program (see the module docstring)."""
    groups = _prefixes(traces)
    program = cp_model.CpModel()
    M = instance.num_models
    model = Model(
        program,
        [program.new_bool_var(f"on_{m}") for m in range(M)],
        [program.new_bool_var(f"last_{m}") for m in range(M)],
        [{c: program.new_bool_var(f"p_{m}_{c}") for c in np.unique(traces.codes[m]).tolist()} for m in range(M)],
    )
    _states(model, traces)
    _reach(model, groups)
    if math.isfinite(traces.floor):
        _floor(model, traces, groups)
    for amounts, limit in traces.limits:
        _budget(model, amounts, limit, groups)
    if instance.max_models is not None:
        program.add(sum(model.on) <= instance.max_models)
    for conflict in instance.conflicts:
        program.add_bool_or([~model.on[m] for m in conflict])
    _objective(model, traces, groups)
    return model


def _states(model: Model, traces: Traces) -> None:
    """(1) off, last, or a threshold."""
    program = model.program
    program.add_exactly_one(model.last)
    for on, last, goes, thresholds in zip(model.on, model.last, model.goes, traces.thresholds, strict=True):
        codes = sorted(goes)
        program.add_implication(last, on)
        for c in codes:
            program.add_bool_or(on, goes[c])
            program.add_implication(last, ~goes[c])
        for lower, upper in itertools.pairwise(codes):
            program.add_implication(goes[upper], goes[lower])
        if not len(thresholds):
            program.add_implication(on, last)
            continue
        program.add_bool_or(~on, last, goes[codes[0]])
        if codes[-1] == len(thresholds):
            program.add_bool_or(~on, last, ~goes[codes[-1]])


def _prefixes(traces: Traces) -> list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Return for each depth the node of every query, and parent and last code of every node.

    Raises
    ------
    UnsupportedError
        There are too many nodes to write down.
    """
    N = traces.num_queries
    zero = np.zeros(1, dtype=np.int64)
    levels = [(np.zeros(N, dtype=np.int64), zero, zero)]
    for codes, thresholds in zip(traces.codes[:-1], traces.thresholds, strict=False):
        width = len(thresholds) + 1
        keys, node = np.unique(levels[-1][0] * width + codes, return_inverse=True)
        levels.append((node.astype(np.int64), keys // width, keys % width))
    total = sum(len(parent) for _, parent, _ in levels)
    if total > MOST_NODES:
        raise UnsupportedError(
            f"backend 'ortools' writes {total} ways that queries can take, at most {MOST_NODES}: lower num_levels, "
            "or use backend='exact'"
        )
    return levels


def _reach(model: Model, groups: list[Any]) -> None:
    """(2) who gets as far, (3) who asks."""
    program = model.program
    for m, (_, parents, codes) in enumerate(groups):
        if m == 0:
            reaches = [program.new_constant(1)]
        else:
            reaches = []
            for n, (parent, code) in enumerate(zip(parents.tolist(), codes.tolist(), strict=True)):
                came, passed, here = (
                    model.reaches[-1][parent],
                    model.goes[m - 1][code],
                    program.new_bool_var(f"r_{m}_{n}"),
                )
                program.add_implication(here, came)
                program.add_implication(here, passed)
                program.add_bool_or(~came, ~passed, here)
                reaches.append(here)
        asks = [program.new_bool_var(f"a_{m}_{n}") for n in range(len(reaches))]
        for here, ask in zip(reaches, asks, strict=True):
            program.add_bool_or(~here, ~model.on[m], ask)
        model.reaches.append(reaches)
        model.asks.append(asks)


def _sums(amounts: Array, groups: list[Any]) -> Array:
    """Σ over the queries of every node, all depths one after the other; ``amounts`` (M, N)."""
    return np.concatenate(
        [
            np.bincount(node, weights=row, minlength=len(parent))
            for row, (node, parent, _) in zip(amounts, groups, strict=True)
        ]
    )


def _weighted(rows: list[list[Any]], numbers: list[int]) -> Any:
    kept = [
        (variable, number) for variable, number in zip((v for row in rows for v in row), numbers, strict=True) if number
    ]
    return cp_model.LinearExpr.weighted_sum([v for v, _ in kept], [n for _, n in kept])


def _floor(model: Model, traces: Traces, groups: list[Any]) -> None:
    """(4); sums of scores of 0 and 1 are integers already."""
    correct = traces.correct
    gains = _sums(np.diff(correct, axis=0, prepend=np.zeros((1, traces.num_queries))), groups)
    scale = 1.0 if (gains == np.round(gains)).all() else LARGEST / traces.num_queries
    least = math.ceil(traces.floor) if scale == 1.0 else math.floor(traces.floor * scale)
    model.program.add(_weighted(model.reaches, [math.ceil(gain * scale) for gain in gains.tolist()]) >= least)


def _budget(model: Model, amounts: Array, limit: float, groups: list[Any]) -> None:
    """(5); an amount above the limit need not be larger than twice the limit."""
    sums = _sums(amounts, groups)
    if limit == 0:
        model.program.add(_weighted(model.asks, (sums > 0).astype(int).tolist()) <= 0)
        return
    numbers = [math.floor(min(amount / limit, 2.0) * LARGEST) for amount in sums.tolist()]
    model.program.add(_weighted(model.asks, numbers) <= math.ceil(LARGEST))


def _objective(model: Model, traces: Traces, groups: list[Any]) -> None:
    """Values above that of a single model that keeps every limit occur in no best cascade, whatever they are."""
    alone = [
        float(traces.value[m].sum())
        for m in range(len(model.on))
        if traces.correct[m].sum() >= traces.floor
        and all(amounts[m].sum() <= limit for amounts, limit in traces.limits)
    ]
    most = min(alone, default=float(traces.value.sum()))
    model.scale = LARGEST / most if most > 0 and math.isfinite(LARGEST / most) else 1.0
    sums = np.minimum(_sums(traces.value, groups), 2 * most if most > 0 else math.inf)
    model.program.minimize(_weighted(model.asks, [math.floor(value * model.scale) for value in sums.tolist()]))


def solve(instance: Cascade, options: Options) -> Result:
    """Solve with one CP-SAT worker.

    Raises
    ------
    BackendError
        CP-SAT calls the model invalid.
    UnsupportedError
        The traces have too many different ways to go.
    """
    stop_at = math.inf if options.time_limit_s is None else time.perf_counter() + options.time_limit_s
    traces = traces_of(instance)
    model = build(instance, traces)
    if isinstance(options.warm_start, CascadeSolution):
        for m, on in enumerate(model.on):
            model.program.add_hint(on, m in options.warm_start.models)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = options.seed % 2**31
    solver.parameters.relative_gap_limit = options.gap
    while True:
        if options.time_limit_s is not None:
            solver.parameters.max_time_in_seconds = max(0.01, stop_at - time.perf_counter())
        status = solver.solve(model.program)
        if status not in STATUS:
            raise BackendError(f"CP-SAT stopped with {solver.status_name(status)}; try backend='exact'")
        if STATUS[status] == "infeasible":
            return Result(Status("infeasible", False), math.inf, math.inf, None, "ortools", 0.0)
        bound = max(0.0, solver.best_objective_bound) / model.scale / instance.num_queries
        if status == cp_model.UNKNOWN:
            return Result(Status("time_limit", False), math.inf, bound, None, "ortools", 0.0)
        solution = _solution(model, traces, solver)
        evaluation = evaluate(instance, solution)
        if not evaluation.violations:
            break
        chosen = [*model.on, *model.last, *(variable for goes in model.goes for variable in goes.values())]
        model.program.add_bool_or([~v if solver.boolean_value(v) else v for v in chosen])
    objective = evaluation.objective
    bound, reason = min(bound, objective), STATUS[status]
    if relative_gap(objective, bound) <= PROVEN:
        reason, bound = "optimal", objective
    elif reason == "optimal":
        reason = "gap_reached"
    statistics = {"branches": float(solver.num_branches), "conflicts": float(solver.num_conflicts)}
    return Result(Status(reason, True), objective, bound, solution, "ortools", 0.0, statistics=statistics)


def _solution(model: Model, traces: Traces, solver: cp_model.CpSolver) -> CascadeSolution:
    models, levels = [], []
    for m, on in enumerate(model.on):
        if not solver.boolean_value(on):
            continue
        models.append(m)
        if solver.boolean_value(model.last[m]):
            break
        levels.append(1 + max(c for c, goes in model.goes[m].items() if solver.boolean_value(goes)))
    return traces.solution(tuple(models), np.array(levels, dtype=np.int64))
