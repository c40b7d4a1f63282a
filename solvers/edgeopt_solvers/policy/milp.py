"""Cascades as a mixed-integer linear program in PuLP, query by query: a reference for small traces.

Variables: for each model one of w_mt ∈ {0, 1} (threshold t), last_m (answers everybody) or off_m (not asked);
x_qm ∈ [0, 1]: query q gets as far as model m; y_qm ∈ [0, 1]: and asks it. A query with code c passes model m if

    p_qm = off_m + Σ_{t > c} w_mt

    (1) state    Σ_t w_mt + last_m + off_m = 1,   Σ_m last_m = 1
    (2) reach    x_q0 = 1,  x_qm + p_qm − 1 <= x_q(m+1) <= x_qm, p_qm,  nobody passes the last of the pool
    (3) asks     x_qm − off_m <= y_qm
    (4) floor    Σ_qm correct_qm (x_qm − x_q(m+1)) >= N min_accuracy
    (5) budgets  Σ_qm amount_qm y_qm <= limits,   Σ_m (1 − off_m) <= max_models
    (6) conflict Σ_{m in set} off_m >= 1
    minimise     Σ_qm value_qm y_qm

x and y are integral by themselves once w, last and off are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pulp

from edgeopt_solvers.chain.pulp_run import run
from edgeopt_solvers.chain.segments import unit_of
from edgeopt_solvers.policy.check import evaluate
from edgeopt_solvers.policy.instance import Cascade, CascadeSolution
from edgeopt_solvers.policy.traces import Traces, traces_of
from edgeopt_solvers.result import Reason, Result, Status, relative_gap
from edgeopt_solvers.solve import Options

__all__ = ["build", "solve"]

#: Relative gap up to which an answer is called optimal: the solver's own tolerances.
PROVEN = 1e-6

#: What the solver may be wrong by in units of the program: it does not tell smaller objectives apart.
TOLERANCE = 1e-7

Terms = dict[Any, float]


def build(instance: Cascade, traces: Traces) -> tuple[Any, list[list[Any]], list[Any], list[Any], float]:
    """Return the program, w[m][t − 1], last[m], off[m], and the unit of its objective."""
    N, M = instance.num_queries, instance.num_models
    problem = pulp.LpProblem("cascade", pulp.LpMinimize)
    w = [[_binary(f"w_{m}_{t + 1}") for t in range(len(traces.thresholds[m]))] for m in range(M)]
    last, off = [_binary(f"last_{m}") for m in range(M)], [_binary(f"off_{m}") for m in range(M)]
    x = [[pulp.LpVariable(f"x_{q}_{m}", 0, 1) for m in range(M)] for q in range(N)]
    y = [[pulp.LpVariable(f"y_{q}_{m}", 0, 1) for m in range(M)] for q in range(N)]
    unit = unit_of(traces.value.ravel().tolist())
    problem += _sum({y[q][m]: float(traces.value[m, q]) / unit for q in range(N) for m in range(M)})
    for m in range(M):  # (1)
        problem += _sum(dict.fromkeys([*w[m], last[m], off[m]], 1.0)) == 1, f"state_{m}"
    problem += _sum(dict.fromkeys(last, 1.0)) == 1, "last"
    score: Terms = {}
    for q in range(N):
        problem += _sum({x[q][0]: 1.0}) == 1, f"reach_{q}"
        for m in range(M):
            passes = dict.fromkeys([off[m], *w[m][int(traces.codes[m, q]) :]], 1.0)
            following: Terms = {} if m == M - 1 else {x[q][m + 1]: -1.0}
            problem += _sum({x[q][m]: 1.0, **passes, **following}) <= 1, f"go_{q}_{m}"  # (2)
            if m < M - 1:
                problem += _sum({x[q][m + 1]: 1.0, x[q][m]: -1.0}) <= 0, f"came_{q}_{m}"
                problem += _sum({x[q][m + 1]: 1.0, **dict.fromkeys(passes, -1.0)}) <= 0, f"passed_{q}_{m}"
            problem += _sum({x[q][m]: 1.0, off[m]: -1.0, y[q][m]: -1.0}) <= 0, f"asks_{q}_{m}"  # (3)
            before = float(traces.correct[m - 1, q]) if m else 0.0
            score[x[q][m]] = float(traces.correct[m, q]) - before
    if math.isfinite(traces.floor):  # (4)
        problem += _sum(score) >= traces.floor, "floor"
    for number, (amounts, limit) in enumerate(traces.limits):  # (5)
        scale = unit_of([limit])
        terms = {y[q][m]: float(amounts[m, q]) / scale for q in range(N) for m in range(M)}
        problem += _sum(terms) <= limit / scale, f"budget_{number}"
    if instance.max_models is not None:
        problem += _sum(dict.fromkeys(off, 1.0)) >= M - instance.max_models, "models"
    for number, conflict in enumerate(instance.conflicts):  # (6)
        problem += _sum(dict.fromkeys((off[m] for m in conflict), 1.0)) >= 1, f"conflict_{number}"
    return problem, w, last, off, unit


def _binary(name: str) -> Any:
    return pulp.LpVariable(name, cat=pulp.LpBinary)


def _sum(terms: Terms) -> Any:
    return pulp.LpAffineExpression(terms)


def solve(instance: Cascade, options: Options) -> Result:
    """Solve with HiGHS, or CBC where highspy is missing.

    Raises
    ------
    BackendError
        The solver stopped for a reason that has no meaning here.
    """
    traces = traces_of(instance)
    problem, w, last, off, unit = build(instance, traces)
    while True:
        answer = run(problem, time_limit_s=options.time_limit_s, gap=options.gap, seed=options.seed, start={})
        if answer.reason == "infeasible":
            return Result(Status("infeasible", False), math.inf, math.inf, None, "pulp", 0.0)
        bound = max(0.0, answer.bound - TOLERANCE) * unit / instance.num_queries
        if not answer.found:
            return Result(Status("time_limit", False), math.inf, bound, None, "pulp", 0.0)
        on = [v for row in w for v in row if _one(v)] + [v for v in (*last, *off) if _one(v)]
        solution = _solution(traces, w, last, off)
        evaluation = evaluate(instance, solution)
        if not evaluation.violations:
            break
        problem += _sum(dict.fromkeys(on, 1.0)) <= len(on) - 1  # only the solver's tolerance lets it pass
    objective = evaluation.objective
    bound = min(bound, objective)
    reason: Reason = answer.reason
    if relative_gap(objective, bound) <= PROVEN:
        reason, bound = "optimal", objective
    elif reason == "optimal":
        reason = "gap_reached"
    return Result(Status(reason, True), objective, bound, solution, "pulp", 0.0)


def _one(variable: Any) -> bool:
    return (variable.varValue or 0.0) > 0.5


def _solution(traces: Traces, w: list[list[Any]], last: list[Any], off: list[Any]) -> CascadeSolution:
    models, levels = [], []
    for m in range(len(w)):
        if _one(off[m]):
            continue
        models.append(m)
        if _one(last[m]):
            break
        levels.append(1 + next(t for t, variable in enumerate(w[m]) if _one(variable)))
    return traces.solution(tuple(models), np.array(levels, dtype=np.int64))
