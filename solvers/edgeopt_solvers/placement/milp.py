"""Experts and deployment as mixed-integer linear programs in PuLP, solved by HiGHS (or CBC where highspy is missing).

Experts. y_ged ∈ {0, 1}: device d holds expert e of layer g; v_ged >= 0: part of its load there; u_gd ∈ {0, 1}: d
serves in g.

    min Σ_g T_g
    (1) split     Σ_d v_ged = 1
    (2) held      v_ged <= y_ged,   Σ_d y_ged <= R
    (3) serves    v_ged <= u_gd                                 (where d has latencies and e has tokens)
    (4) level     Σ_e w_gd load_ge v_ged + f_gd u_gd <= T_g
    (5) memory    Σ_ge bytes_ge y_ged <= M_d − reserved_d

Where experts exchange tokens between layers, m_gfij >= 0 is the part of the tokens for expert f of layer g + 1 that
goes from device i to the copy on j, q_gef the part of them that comes from e, and x_gij ∈ {0, 1}: link i→j is used
(``exchange.py``). (4) gains Σ_i (c_gi load m_gfid + ℓ_id x_gid), and

    (10) sent     Σ_j m_gfij = Σ_e q_gef v_gei
    (11) came     Σ_i m_gfij = v_(g+1)fj
    (12) link     m_gfij <= x_gij                               (where the link has latency)

Deployment. y_jn ∈ {0, 1}: node n keeps variant j; x_o >= 0: part of a demand i on way o, of r_i requests and s_o
seconds.

    min Σ_o r_i(o) s_o x_o
    (6) served    Σ_{o of i} x_o = 1
    (7) kept      x_o <= y_j(o)m(o)                             (unless o downloads)
    (8) memory    Σ_j bytes_j y_jn <= M_n
    (9) quality   Σ_o r_i(o) q_o x_o >= floor

Waiting in a queue is convex: routing has a cone program instead (``convex.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pulp
from numpy.typing import NDArray

from edgeopt_solvers.chain.pulp_run import Answer, run
from edgeopt_solvers.chain.segments import unit_of
from edgeopt_solvers.placement.check import evaluate
from edgeopt_solvers.placement.deployment_exact import solution_of
from edgeopt_solvers.placement.deployment_ways import Ways, cheapest, ways_of
from edgeopt_solvers.placement.exchange import exchange_of, forward
from edgeopt_solvers.placement.instance import Deployment, Experts, ExpertsSolution
from edgeopt_solvers.placement.levels import Table, layer_split, table_of
from edgeopt_solvers.result import Reason, Result, Status, relative_gap
from edgeopt_solvers.solve import Options

__all__ = ["ExpertsProgram", "build_deployment", "build_experts", "solve"]

#: Relative gap up to which an answer is called optimal: the solver's own tolerances.
PROVEN = 1e-6

Terms = dict[Any, float]


def solve(instance: Experts | Deployment, options: Options) -> Result:
    """Build and solve.

    Raises
    ------
    BackendError
        The solver stopped for a reason that has no meaning here.
    """
    if isinstance(instance, Experts):
        return _solve_experts(instance, options)
    return _solve_deployment(instance, options)


def _sum(terms: Terms) -> Any:
    return pulp.LpAffineExpression(terms)


# ── experts ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class ExpertsProgram:
    """``problem``, y and v by (layer, expert, device), m by (layer before, expert, from, to), seconds of its unit."""

    problem: Any
    held: dict[tuple[int, int, int], Any]
    part: dict[tuple[int, int, int], Any]
    moved: dict[tuple[int, int, int, int], Any]
    unit_s: float


def build_experts(instance: Experts) -> ExpertsProgram:
    """Return the program of the module docstring."""
    table = table_of(instance)
    G, E, D = instance.num_layers, instance.num_experts, instance.num_devices
    problem = pulp.LpProblem("experts", pulp.LpMinimize)
    finite = table.unit_s[np.isfinite(table.unit_s)]
    unit = unit_of([float(instance.load.mean()) * float(finite.mean() if len(finite) else 0) * E / D])
    held: dict[tuple[int, int, int], Any] = {}
    levels = [pulp.LpVariable(f"T_{g}", 0) for g in range(G)]
    problem += _sum(dict.fromkeys(levels, 1.0))
    every: dict[tuple[int, int, int], Any] = {}
    moved: dict[tuple[int, int, int, int], Any] = {}
    for g in range(G):
        able = np.flatnonzero(np.isfinite(table.unit_s[g])).tolist()
        parts: dict[tuple[int, int], Any] = {}
        for e in range(E):
            for d in able:
                held[g, e, d] = pulp.LpVariable(f"y_{g}_{e}_{d}", cat=pulp.LpBinary)
                parts[e, d] = pulp.LpVariable(f"v_{g}_{e}_{d}", 0)
                problem += _sum({parts[e, d]: 1.0, held[g, e, d]: -1.0}) <= 0, f"held_{g}_{e}_{d}"
            problem += _sum({parts[e, d]: 1.0 for d in able}) == 1, f"split_{g}_{e}"
            if instance.max_replicas is not None:
                copies = _sum({held[g, e, d]: 1.0 for d in able})
                problem += copies <= instance.max_replicas, f"replicas_{g}_{e}"
        every |= {(g, *key): part for key, part in parts.items()}
        received = _exchange(problem, instance, every, moved, g, unit) if g > 0 and instance.exchanges else {}
        for d in able:
            _level(problem, instance, table, levels[g], parts, g, d, unit, received.get(d, {}))
    for d in range(D):
        room = float(instance.memory_bytes[d]) - float(instance.reserved_bytes[d])
        sizes = {y: float(instance.expert_bytes[g, e]) for (g, e, k), y in held.items() if k == d}
        scale = max(sizes.values(), default=0.0)
        if math.isfinite(room) and scale > 0:
            problem += _sum({y: size / scale for y, size in sizes.items()}) <= room / scale, f"memory_{d}"
    return ExpertsProgram(problem, held, every, moved, unit)


def _exchange(
    problem: Any, instance: Experts, every: dict[tuple[int, int, int], Any],
    moved: dict[tuple[int, int, int, int], Any], g: int, unit: float,
) -> dict[int, Terms]:  # fmt: skip
    """(10)-(12) between layer g - 1 and g; return what receiving adds to (4), by device."""
    exchange = exchange_of(instance)
    terms: dict[int, Terms] = {}
    used: dict[tuple[int, int], Any] = {}
    before = sorted({d for k, _, d in every if k == g - 1})
    after = sorted({d for k, _, d in every if k == g})
    ways = [(i, j) for i in before for j in after if math.isfinite(exchange.pace_s[g - 1, i, j])]
    for i, j in ways:
        wait = float(exchange.latency_s[g - 1, i, j]) / unit
        if wait > 0:
            used[i, j] = pulp.LpVariable(f"x_{g - 1}_{i}_{j}", cat=pulp.LpBinary)
            terms.setdefault(j, {})[used[i, j]] = wait
    for f in np.flatnonzero(instance.load[g] > 0).tolist():
        mine = {(i, j): pulp.LpVariable(f"m_{g - 1}_{f}_{i}_{j}", 0) for i, j in ways}
        moved.update({(g - 1, f, i, j): m for (i, j), m in mine.items()})
        for (i, j), m in mine.items():
            seconds = float(exchange.pace_s[g - 1, i, j]) * float(instance.load[g, f]) / unit
            if seconds > 0:
                terms.setdefault(j, {})[m] = seconds
            if (i, j) in used:
                problem += _sum({m: 1.0, used[i, j]: -1.0}) <= 0, f"link_{g - 1}_{f}_{i}_{j}"
        senders = {e: float(exchange.origin[g - 1, e, f]) for e in range(instance.num_experts)}
        for i in before:
            row: Terms = {m: 1.0 for (k, _), m in mine.items() if k == i}
            row |= {every[g - 1, e, i]: -q for e, q in senders.items() if q > 0}
            problem += _sum(row) == 0, f"sent_{g - 1}_{f}_{i}"
        for j in after:
            row = {m: 1.0 for (_, k), m in mine.items() if k == j}
            problem += _sum({**row, every[g, f, j]: -1.0}) == 0, f"came_{g - 1}_{f}_{j}"
    return terms


def _level(
    problem: Any, instance: Experts, table: Table, level: Any, parts: dict[tuple[int, int], Any], g: int, d: int,
    unit: float, received: Terms,
) -> None:  # fmt: skip
    """(3) and (4) for one device."""
    fixed = float(table.fixed_s[g, d]) / unit
    terms: Terms = {level: -1.0, **received}
    serves = pulp.LpVariable(f"u_{g}_{d}", cat=pulp.LpBinary) if fixed else None
    if serves is not None:
        terms[serves] = fixed
    for (e, k), part in parts.items():
        if k == d and instance.load[g, e] > 0:
            seconds = float(table.unit_s[g, d]) * float(instance.load[g, e]) / unit
            if seconds:
                terms[part] = seconds
            if serves is not None:
                problem += _sum({part: 1.0, serves: -1.0}) <= 0, f"serves_{g}_{e}_{d}"
    if len(terms) > 1:
        problem += _sum(terms) <= 0, f"level_{g}_{d}"


def _solve_experts(instance: Experts, options: Options) -> Result:
    table = table_of(instance)
    nothing = Result(Status("infeasible", False), math.inf, math.inf, None, "pulp", 0.0)
    if not np.isfinite(table.unit_s).any(axis=1).all() or (instance.memory_bytes < instance.reserved_bytes).any():
        return nothing
    program = build_experts(instance)
    held = program.held
    start = {}
    given = options.warm_start
    if isinstance(given, ExpertsSolution) and not evaluate(instance, given).violations:
        start = {y.name: float(given.replicas[key]) for key, y in held.items()}
    limit = options.time_limit_s
    answer = run(program.problem, time_limit_s=limit, gap=options.gap, seed=options.seed, start=start)
    if answer.reason == "infeasible":
        return nothing
    solution = None
    if answer.found:
        replicas = np.zeros((*instance.load.shape, instance.num_devices), dtype=np.bool_)
        for key, y in held.items():
            replicas[key] = (y.varValue or 0.0) > 0.5
        solution = _routed(instance, program, replicas) if instance.exchanges else _split(instance, table, replicas)
    return _answered(instance, answer, solution, program.unit_s)


def _split(instance: Experts, table: Table, replicas: NDArray[np.bool_]) -> ExpertsSolution:
    """Split the tokens anew for the replicas found."""
    layers = zip(instance.load, replicas, table.unit_s, table.fixed_s, strict=True)
    return ExpertsSolution(replicas, np.array([layer_split(*layer)[1] for layer in layers]))


def _routed(instance: Experts, program: ExpertsProgram, replicas: NDArray[np.bool_]) -> ExpertsSolution:
    """Return the plan whose shares and routes are the program's."""
    G, E, D = replicas.shape
    parts, moved = np.zeros((G, E, D)), np.zeros((G - 1, E, D, D))
    for at, v in program.part.items():
        parts[at] = max(v.varValue or 0.0, 0.0)
    for way, m in program.moved.items():
        moved[way] = max(m.varValue or 0.0, 0.0)
    return forward(instance, exchange_of(instance), replicas, parts, moved)


# ── deployment ───────────────────────────────────────────────────────────────────────────────────────────────────


def build_deployment(instance: Deployment, ways: Ways) -> tuple[Any, dict[tuple[int, int], Any], float]:
    """Return the program, y by (variant, node), and the seconds of its unit of time."""
    weight = ways.weight[ways.demand]
    unit = unit_of((weight * ways.seconds).tolist())
    problem = pulp.LpProblem("deployment", pulp.LpMinimize)
    used = {(int(j), int(m)) for j, m in zip(ways.variant, ways.node, strict=True) if m >= 0}
    kept = {(j, m): pulp.LpVariable(f"y_{j}_{m}", cat=pulp.LpBinary) for j, m in sorted(used)}
    parts = [pulp.LpVariable(f"x_{o}", 0) for o in range(len(weight))]
    problem += _sum({x: float(weight[o] * ways.seconds[o]) / unit for o, x in enumerate(parts)})
    for i in range(ways.num_demands):
        problem += _sum({parts[o]: 1.0 for o in np.flatnonzero(ways.demand == i).tolist()}) == 1, f"served_{i}"
    for o, x in enumerate(parts):
        if ways.node[o] >= 0:
            problem += _sum({x: 1.0, kept[int(ways.variant[o]), int(ways.node[o])]: -1.0}) <= 0, f"kept_{o}"
    for m in range(instance.num_nodes):
        sizes = {y: float(instance.variant_bytes[j]) for (j, n), y in kept.items() if n == m}
        scale = max(sizes.values(), default=0.0)
        if math.isfinite(instance.memory_bytes[m]) and scale > 0:
            row = _sum({y: size / scale for y, size in sizes.items()})
            problem += row <= float(instance.memory_bytes[m]) / scale, f"memory_{m}"
    if instance.min_quality is not None:
        top = max(float(ways.quality.max(initial=0.0)), 1e-300)
        row = _sum({x: float(weight[o] * ways.quality[o]) / top for o, x in enumerate(parts)})
        problem += row >= instance.min_quality / top, "quality"
    return problem, kept, unit


def _solve_deployment(instance: Deployment, options: Options) -> Result:
    ways = ways_of(instance)
    if len(np.unique(ways.demand)) < ways.num_demands:
        return Result(Status("infeasible", False), math.inf, math.inf, None, "pulp", 0.0)
    problem, kept, unit = build_deployment(instance, ways)
    answer = run(problem, time_limit_s=options.time_limit_s, gap=options.gap, seed=options.seed, start={})
    if answer.reason == "infeasible":
        return Result(Status("infeasible", False), math.inf, math.inf, None, "pulp", 0.0)
    solution = None
    if answer.found:
        held = np.zeros((instance.num_variants, instance.num_nodes), dtype=np.bool_)
        for key, y in kept.items():
            held[key] = (y.varValue or 0.0) > 0.5
        usable = (ways.node < 0) | held[ways.variant, np.maximum(ways.node, 0)]
        found = cheapest(ways, usable, instance.min_quality)
        solution = None if found is None else solution_of(instance, ways, held, found[1])
    return _answered(instance, answer, solution, unit)


def _answered(instance: Experts | Deployment, answer: Answer, solution: Any, unit: float) -> Result:
    bound = max(answer.bound * unit, 0.0)
    evaluation = None if solution is None else evaluate(instance, solution)
    if evaluation is None or evaluation.violations:
        message = f"HiGHS keeps limits to its tolerance only: {evaluation.violations[0]}" if evaluation else ""
        return Result(Status("time_limit", False), math.inf, bound, None, "pulp", 0.0, message=message)
    bound = min(bound, evaluation.objective)
    gap = relative_gap(evaluation.objective, bound)
    reason: Reason = "optimal" if gap <= PROVEN else "time_limit" if answer.reason == "time_limit" else "gap_reached"
    return Result(Status(reason, True), evaluation.objective, bound, solution, "pulp", 0.0)
