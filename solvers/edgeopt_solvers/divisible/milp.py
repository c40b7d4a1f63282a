"""Divisible as a mixed-integer linear program in PuLP, solved by HiGHS (or CBC where highspy is missing).

Variables: u_d ∈ {0, 1}: device d is used; h_d: its units; τ >= 0: the makespan. On the shared medium also
y_dh ∈ {0, 1}: device d has h units, b_d >= 0: its share, s_d >= 0: seconds it may exchange.

    (1) units     Σ_d h_d = H
    (2) limits    least_d u_d <= h_d <= most_d u_d              (least units; what the memory holds)
    (3) devices   Σ_d u_d <= K
    (4) level     everything but the medium: linear in u_d, h_d, and <= τ
    (5) pairs     Σ_h y_dh = u_d,  Σ_h h y_dh = h_d             (shared)
    (6) time      s_d + Σ_h offset_dh y_dh <= τ                 (shared)
    (7) medium    Σ_d b_d <= 1
    (8) exchange  s_d b_d >= a_dh where y_dh = 1                (a: seconds with the whole medium)
    (9) energy    Σ_d E0_d u_d + E1_d h_d,   budgets on it and on τ
   (10) lead      L0_d u_d + L1_d h_d <= λ,  and τ + λ in place of τ in objective and budget: λ >= 0, a first part
                  for which all wait

(8) is the cone √(s_d b_d) >= Σ_h √a_dh y_dh. The left side is the least of (s/κ + κ b)/2 over κ > 0, so each κ gives a
linear cut, and any set of cuts a relaxation. Cuts are added where the relaxed optimum breaks the cone, and where its
loads are really best, until the loads are worth what the relaxation says.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pulp
from numpy.typing import NDArray

from edgeopt_solvers.chain.pulp_run import run
from edgeopt_solvers.chain.segments import unit_of
from edgeopt_solvers.divisible.check import evaluate
from edgeopt_solvers.divisible.instance import Divisible, Solution
from edgeopt_solvers.divisible.table import Table
from edgeopt_solvers.result import Reason, Result, Status, relative_gap
from edgeopt_solvers.solve import Options

__all__ = ["Model", "build", "cut_at", "solve"]

#: Relative gap up to which an answer is called optimal: the solver's own tolerances.
PROVEN = 1e-6

#: Rounds of cuts before what was reached is returned.
MOST_ROUNDS = 200

Terms = dict[Any, float]
Loads = NDArray[np.int64]


@dataclass(slots=True)
class Model:
    """The program with its variables by meaning; rows of ``table`` are devices."""

    table: Table
    problem: Any
    used: list[Any]
    units: list[Any]
    level: Any
    pairs: dict[int, dict[int, Any]] = field(default_factory=dict)
    shares: dict[int, Any] = field(default_factory=dict)
    spans: dict[int, Any] = field(default_factory=dict)
    unit_s: float = 1.0
    unit_j: float = 1.0
    objective_unit: float = 1.0
    num_cuts: int = 0
    lead: Any = None

    def loads(self) -> Loads:
        """Return the loads of the last answer."""
        return np.array([round(variable.varValue or 0.0) for variable in self.units], dtype=np.int64)


def build(instance: Divisible) -> Model:
    """Write the instance as a program (see the module docstring), with a few cuts per device."""
    table = Table(instance)
    used = [pulp.LpVariable(f"u_{d}", cat=pulp.LpBinary) for d in table.devices.tolist()]
    units = [pulp.LpVariable(f"h_{d}", 0, int(m), cat=pulp.LpInteger) for d, m in zip(
        table.devices.tolist(), table.most.tolist(), strict=True)]  # fmt: skip
    model = Model(table, pulp.LpProblem("divisible", pulp.LpMinimize), used, units, pulp.LpVariable("tau", lowBound=0))
    finite = table.end[np.isfinite(table.end)]
    best = finite[finite > 0]
    model.unit_s = unit_of([float(np.median(best))]) if len(best) else 1.0
    joules = table.joules[:, 1:][np.isfinite(table.joules[:, 1:])]
    model.unit_j = unit_of([float(np.median(joules[joules > 0]))]) if (joules > 0).any() else 1.0
    if table.has_lead:
        model.lead = pulp.LpVariable("lead", lowBound=0)
    _objective(model)
    _units(model)
    if "makespan" in instance.weights or instance.max_makespan_s is not None:
        _level(model)
        _lead(model)
        _medium(model)
    _budgets(model)
    return model


def _sum(terms: Terms) -> Any:
    return pulp.LpAffineExpression(terms)


def _energy(model: Model) -> Terms:
    """(9) in units of ``unit_j``; energy is affine in the load: E0 + E1 h."""
    terms: Terms = {}
    for row in model.table.rows.tolist():
        fixed, slope = _affine(model.table.joules[row], model.table, row)
        if fixed:
            terms[model.used[row]] = fixed / model.unit_j
        if slope:
            terms[model.units[row]] = slope / model.unit_j
    return terms


def _affine(values: Any, table: Table, row: int) -> tuple[float, float]:
    """Return value and slope of a row that is affine over its possible loads, as E0 + E1 h."""
    least, most = int(table.least[row]), int(table.most[row])
    first = float(values[least])
    slope = (float(values[most]) - first) / (most - least) if most > least else 0.0
    return first - slope * least, slope


def _objective(model: Model) -> None:
    weights = model.table.instance.weights
    scales = {"makespan": model.unit_s, "energy": model.unit_j}
    model.objective_unit = max(weight * scales[name] for name, weight in weights.items())
    total: Terms = {}
    if "makespan" in weights:
        for part in _makespan(model):
            total[part] = weights["makespan"] * model.unit_s / model.objective_unit
    if "energy" in weights:
        for variable, value in _energy(model).items():
            total[variable] = weights["energy"] * value * model.unit_j / model.objective_unit
    model.problem += _sum(total)


def _makespan(model: Model) -> list[Any]:
    """Return τ, and λ where there is one."""
    return [model.level] if model.lead is None else [model.level, model.lead]


def _units(model: Model) -> None:
    """(1) all units, (2) limits of each device, (3) number of devices."""
    table = model.table
    model.problem += _sum(dict.fromkeys(model.units, 1.0)) == table.instance.num_units, "units"
    for row, (used, units) in enumerate(zip(model.used, model.units, strict=True)):
        d = int(table.devices[row])
        model.problem += _sum({units: 1.0, used: -float(table.least[row])}) >= 0, f"least_{d}"
        model.problem += _sum({units: 1.0, used: -float(table.most[row])}) <= 0, f"most_{d}"
    if table.instance.max_devices is not None:
        model.problem += _sum(dict.fromkeys(model.used, 1.0)) <= table.instance.max_devices, "devices"


def _level(model: Model) -> None:
    """(4) compute, and exchange over links of one's own, end by τ."""
    instance, table = model.table.instance, model.table
    for row, d in enumerate(table.devices.tolist()):
        steps = float(instance.num_steps[d])
        compute = steps * float(instance.fixed_s[d]), steps * float(instance.unit_s[d])
        exchange = steps * float(instance.latency_s[d]), 0.0
        rate = float(instance.rate_bytes_per_s[d])
        if not instance.shared[d] and 0 < rate < math.inf:
            exchange = (
                exchange[0] + steps * float(instance.fixed_bytes[d]) / rate,
                steps * float(instance.unit_bytes[d]) / rate,
            )
        together = (compute[0] + exchange[0], compute[1] + exchange[1])
        rows = [compute, exchange] if instance.exchange == "overlapped" else [together]
        for number, (fixed, slope) in enumerate(rows):
            terms: Terms = {model.level: -1.0}
            if fixed:
                terms[model.used[row]] = fixed / model.unit_s
            if slope:
                terms[model.units[row]] = slope / model.unit_s
            if len(terms) > 1:
                model.problem += _sum(terms) <= 0, f"level_{d}_{number}"


def _lead(model: Model) -> None:
    """(10) the first part ends by λ."""
    instance = model.table.instance
    for row, d in enumerate(model.table.devices.tolist() if model.lead is not None else ()):
        known = {model.used[row]: float(instance.lead_s[d]), model.units[row]: float(instance.lead_unit_s[d])}
        terms = {variable: value / model.unit_s for variable, value in known.items() if value}
        model.problem += _sum({**terms, model.lead: -1.0}) <= 0, f"lead_{d}"


def _medium(model: Model) -> None:
    """(5) pairs, (6) time left for the exchange, (7) the medium, and first cuts for (8)."""
    table = model.table
    for row in np.flatnonzero((table.seconds > 0).any(axis=1)).tolist():
        d = int(table.devices[row])
        model.shares[row] = pulp.LpVariable(f"b_{d}", 0, 1)
        model.spans[row] = pulp.LpVariable(f"s_{d}", 0)
        loads = np.flatnonzero(table.possible[row]).tolist()
        pairs = {h: pulp.LpVariable(f"y_{d}_{h}", cat=pulp.LpBinary) for h in loads}
        model.pairs[row] = pairs
        model.problem += _sum({**dict.fromkeys(pairs.values(), 1.0), model.used[row]: -1.0}) == 0, f"one_{d}"
        model.problem += _sum({**{y: float(h) for h, y in pairs.items()}, model.units[row]: -1.0}) == 0, f"load_{d}"
        offset = {y: float(table.offset[row, h]) / model.unit_s for h, y in pairs.items()}
        model.problem += _sum({**offset, model.spans[row]: 1.0, model.level: -1.0}) <= 0, f"time_{d}"
    if model.shares:
        model.problem += _sum(dict.fromkeys(model.shares.values(), 1.0)) <= 1, "medium"
        # one share each, and all of the time: cuts where the answer may lie
        for row in model.shares:
            for part in (0.1, 1.0, 10.0):
                _cut(model, row, math.sqrt(part * len(model.shares)))


def _cut(model: Model, row: int, kappa: float) -> None:
    """(8) s/κ + κ b >= 2 Σ_h √a_h y_h, divided by κ where that keeps numbers small."""
    size = max(kappa, 1 / kappa)
    terms: Terms = {
        y: -2 * math.sqrt(float(model.table.seconds[row, h]) / model.unit_s) / size
        for h, y in model.pairs[row].items()
        if model.table.seconds[row, h] > 0
    }
    terms[model.spans[row]] = 1 / kappa / size
    terms[model.shares[row]] = kappa / size
    model.problem += _sum(terms) >= 0, f"cut_{int(model.table.devices[row])}_{model.num_cuts}"
    model.num_cuts += 1


def _budgets(model: Model) -> None:
    instance = model.table.instance
    if instance.max_energy_j is not None:
        model.problem += _sum(_energy(model)) <= instance.max_energy_j / model.unit_j, "max_energy"
    if instance.max_makespan_s is not None:
        whole = _sum(dict.fromkeys(_makespan(model), 1.0))
        model.problem += whole <= instance.max_makespan_s / model.unit_s, "max_makespan"


def solve(instance: Divisible, options: Options) -> Result:
    """Solve, cut, and solve again until the loads are worth what the relaxation says.

    Raises
    ------
    BackendError
        The solver stopped for a reason that has no meaning here.
    """
    stop_at = math.inf if options.time_limit_s is None else time.perf_counter() + options.time_limit_s
    model = build(instance)
    best: tuple[float, Solution] | None = None
    bound, reason = -math.inf, "gap_reached"
    start: dict[str, float] = {}
    if isinstance(options.warm_start, Solution) and not evaluate(instance, options.warm_start).violations:
        best = evaluate(instance, options.warm_start).objective, options.warm_start
    for _ in range(MOST_ROUNDS if len(model.used) else 0):
        left = stop_at - time.perf_counter()
        if left <= 0:
            reason = "time_limit"
            break
        limit = None if math.isinf(left) else left
        answer = run(model.problem, time_limit_s=limit, gap=options.gap, seed=options.seed, start=start)
        if answer.reason == "infeasible":
            if best is None:
                return Result(Status("infeasible", False), math.inf, math.inf, None, "pulp", 0.0)
            bound = best[0]  # only its rounding keeps the incumbent
            break
        bound = max(bound, answer.bound * model.objective_unit)
        if not answer.found:
            reason = "time_limit"
            break
        loads = model.loads()
        solution = model.table.solution(loads)
        evaluation = evaluate(instance, solution)
        if not evaluation.violations and (best is None or evaluation.objective < best[0]):
            best = evaluation.objective, solution
        if best is not None and relative_gap(best[0], bound) <= max(PROVEN, options.gap):
            break
        if answer.reason == "time_limit":
            reason = "time_limit"
            break
        if not cut_at(model, loads, solution):
            _forbid(model, loads)
    if best is None:
        status: Reason = "time_limit" if reason == "time_limit" else "infeasible"
        return Result(Status(status, False), math.inf, bound if status == "time_limit" else math.inf, None, "pulp", 0.0)
    objective, solution = best
    bound = min(bound, objective)
    final: Reason = "time_limit" if reason == "time_limit" else "gap_reached"
    if relative_gap(objective, bound) <= PROVEN:
        final, bound = "optimal", objective
    statistics = {"cuts": float(model.num_cuts), "rows": float(model.problem.numConstraints())}
    return Result(Status(final, True), objective, bound, solution, "pulp", 0.0, statistics=statistics)


def cut_at(model: Model, loads: Loads, solution: Solution) -> bool:
    """Cut at the answer's own (s, b) and at the best (s, b) of its loads; False: nothing new to say."""
    table, added = model.table, False
    for row in model.shares:
        seconds = float(table.seconds[row, loads[row]]) / model.unit_s
        if loads[row] == 0 or seconds == 0:
            continue
        share = solution.shares[int(table.devices[row])]
        span, part = model.spans[row].varValue or 0.0, model.shares[row].varValue or 0.0
        if span * part < seconds * (1 - 1e-7):
            added = True
            _cut(model, row, math.sqrt(max(span, 1e-3 * seconds) / max(part, 1e-3 * share)))
            _cut(model, row, math.sqrt(seconds / share) / share**0.5)
    return added


def _forbid(model: Model, loads: Loads) -> None:
    """Cut off loads that break a limit by no more than the solver's tolerance: some device has fewer units."""
    rows = np.flatnonzero(loads > 0).tolist()
    less = []
    for row in rows:
        flag = pulp.LpVariable(f"less_{model.num_cuts}_{int(model.table.devices[row])}", cat=pulp.LpBinary)
        model.problem += model.units[row] <= model.table.most[row] - (model.table.most[row] - loads[row] + 1) * flag
        less.append(flag)
    model.problem += pulp.lpSum(less) >= 1, f"other_{model.num_cuts}"
    model.num_cuts += 1
