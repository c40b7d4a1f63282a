"""Chain as a mixed-integer linear program in PuLP: segment flow, solved by HiGHS (or CBC where HiGHS is missing).

Sets: segments k = (d, v, a, b): elements a..b-1 on device d with variant v, every one runnable, fitting its device
alone and beginning and ending at legal cuts (``segments.py``); states (d, v); hand-overs h = (c, (d, v), (e, w)) at
cut c over an existing link.

Variables: y_k ∈ {0, 1}: segment k is a stage; f_h >= 0: the plan hands over along h; p_ed >= 0: last device e, first
device d (only with a loop term); u_dv ∈ [0, 1]: device d holds variant v, T_d >= 0: its largest transient (only with
reuse "many"; with "once" a segment's memory is known beforehand); P >= 0: the period.

Objective and budgets are linear in these. With t_k = compute seconds of k, x_h = transfer seconds of h, i_d and o_d =
input and result seconds, l_ed = loop seconds:

    latency  = Σ_k t_k y_k + Σ_{k: a=0} i_d y_k + Σ_{k: b=L} o_d y_k + Σ_h x_h f_h + Σ_ed l_ed p_ed
    energy   = the same sum, each term times the power of what is busy
    quality  = Σ_k q_k y_k + Σ_h η_h f_h

The objective also charges what must be loaded newly (``movement.py``): e_k y_k per segment, and with reuse "many"
g_dv u_dv for a variant's shared bytes.

Constraints, one function each below:

    (1) source     Σ_{k: a=0} y_k = 1
    (2) out        Σ_{k on (d,v): b=c} y_k = Σ_{h leaving (d,v) at c} f_h          for all c, (d, v)
    (3) in         Σ_{k on (d,v): a=c} y_k = Σ_{h entering (d,v) at c} f_h         for all c, (d, v)
    (4) once       Σ_{k on d} y_k <= 1                                             for all d
    (5) memory     Σ_{k on d} r_k y_k + Σ_v w_v u_dv + T_d <= M_d                  for all d
    (6) holds      Σ_{k on (d,v) covering l} y_k <= u_dv                           for all l, (d, v)
    (7) transient  Σ_{k on d covering l} a_kl y_k <= T_d                           for all l, d
    (8) stages     Σ_k y_k <= K
    (9) ends       Σ_d p_ed = Σ_{k on e: b=L} y_k,   Σ_e p_ed = Σ_{k on d: a=0} y_k
    (10) period    Σ_{k on d} t_k y_k <= P for all d;  everything sent over i→j or a time-shared medium, summed, <= P
    (11) budgets   latency, energy, quality, P <= their limits
    (12) price     Z_g >= Σ φ(λ) of what is sent over reserved medium g − λ        for all g, some λ

Z_g >= 0 is what reserved medium g costs with the best shares; x_h, i_d, o_d, l_ed then hold the messages' latency only.
(12) is a tangent of it at any λ (``media.py``): rows begin coarse, and every plan found adds one that is tight for it.

f and p are integral by themselves once y is: at each cut one state leaves and one enters. Integers are kept out of
everything else. Numbers are scaled by powers of ten: solvers work with absolute tolerances.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

import pulp

from edgeopt_solvers.chain.check import evaluate
from edgeopt_solvers.chain.deadline import OutOfTimeError, at_sight, bound_at_sight, look, ticking
from edgeopt_solvers.chain.instance import Chain, Solution
from edgeopt_solvers.chain.milp_media import add_price, first_prices, reserve
from edgeopt_solvers.chain.pulp_run import run
from edgeopt_solvers.chain.segments import Handover, Segment, Segments, unit_of
from edgeopt_solvers.chain.shares import with_shares
from edgeopt_solvers.result import Result, Status, relative_gap
from edgeopt_solvers.solve import Options

__all__ = ["Model", "build", "solve"]

#: Linear expressions: variable → coefficient. PuLP's own sums of lists lose repeated variables; dicts cannot.
Terms = dict[Any, float]


@dataclass(slots=True)
class Model:
    """The program with its variables by meaning."""

    chain: Chain
    segments: Segments
    problem: Any
    y: dict[Segment, Any] = field(default_factory=dict)
    f: dict[Handover, Any] = field(default_factory=dict)
    p: dict[tuple[int, int], Any] = field(default_factory=dict)
    u: dict[tuple[int, int], Any] = field(default_factory=dict)
    z: list[Any] = field(default_factory=list)
    shared_unit: float = 1.0
    period: Any | None = None
    objective_unit: float = 1.0
    units: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, Terms] = field(default_factory=dict)

    def binary(self, name: str) -> Any:
        """Add a variable in {0, 1}."""
        return self.problem.add_variable(name, cat=pulp.LpBinary)

    def positive(self, name: str, most: float | None = None) -> Any:
        """Add a variable >= 0."""
        return self.problem.add_variable(name, lowBound=0, upBound=most)

    def on(self, device: int) -> list[Segment]:
        """Return the segments on a device."""
        return [k for k in self.segments.items if k.device == device]


def build(chain: Chain, deadline: float = math.inf) -> Model:
    """Write the instance as a program (see the module docstring).

    Raises
    ------
    OutOfTimeError
        The deadline passed before it was written.
    """
    segments = Segments(chain, deadline)
    model = Model(chain, segments, pulp.LpProblem("chain", pulp.LpMinimize))
    for k in ticking(segments.items, deadline):
        model.y[k] = model.binary(f"y_d{k.device}v{k.variant}_{k.start}_{k.stop}")
    for h in ticking(segments.handovers, deadline):
        model.f[h] = model.positive(f"f_{h.cut}_d{h.before[0]}v{h.before[1]}_d{h.after[0]}v{h.after[1]}")
    if segments.looped:
        ends = sorted({k.device for k in segments.items if k.stop == chain.num_elements})
        begins = sorted({k.device for k in segments.items if k.start == 0})
        linked = [(e, d) for e in ends for d in begins if math.isfinite(segments.loop_s(e, d))]
        model.p = {(e, d): model.positive(f"p_{e}_{d}") for e, d in linked}
    if "throughput" in chain.weights or chain.max_period_s is not None:
        model.period = model.positive("P")
    for part in (
        _measure, reserve, _source, _balance, _once, _holds, _objective, _memory, _stages, _ends, _period, _budgets,
        first_prices,
    ):  # fmt: skip
        look(deadline)
        part(model)
    return model


def _sum(terms: Terms) -> Any:
    return pulp.LpAffineExpression(terms)


def _measure(model: Model) -> None:
    """latency, energy and quality as linear expressions, and the units they are written in."""
    chain, segments = model.chain, model.segments
    latency: Terms = defaultdict(float)
    energy: Terms = defaultdict(float)
    quality: Terms = defaultdict(float)

    def charge(variable: Any, seconds: float, watts: float) -> None:
        latency[variable] += seconds
        energy[variable] += watts * seconds if watts else 0.0

    for k, variable in model.y.items():
        charge(variable, segments.seconds[k], segments.compute_watts(k.device))
        quality[variable] += segments.loss[k]
        if chain.source is not None and k.start == 0:
            charge(variable, segments.input_s(k.device), segments.watts(chain.source, k.device))
        if chain.source is not None and k.stop == chain.num_elements:
            charge(variable, segments.output_s(k.device), segments.watts(k.device, chain.source))
    for h, variable in model.f.items():
        charge(variable, h.seconds, segments.watts(h.before[0], h.after[0]))
        quality[variable] += h.loss
    for (last, first), variable in model.p.items():
        charge(variable, segments.loop_s(last, first), segments.watts(last, first))
    model.metrics = {"latency": latency, "energy": energy, "quality": quality}
    model.units = {name: unit_of([abs(value) for value in terms.values()]) for name, terms in model.metrics.items()}
    model.units["throughput"] = model.units["latency"]


def _objective(model: Model) -> None:
    """Min Σ weight · metric, in units of the largest weight · unit."""
    weights, segments = model.chain.weights, model.segments
    loads: Terms = {model.y[k]: segments.load[k] for k in model.y if segments.load[k]}
    loads.update({u: float(segments.shared_load[state]) for state, u in model.u.items() if segments.shared_load[state]})
    model.objective_unit = max(weight * model.units[name] for name, weight in weights.items())
    if loads:
        model.objective_unit = max(model.objective_unit, unit_of(list(loads.values())))
    total: Terms = defaultdict(float, {variable: value / model.objective_unit for variable, value in loads.items()})
    for name, weight in weights.items():
        if name == "throughput":
            total[model.period] += weight * model.units[name] / model.objective_unit
            continue
        for variable, value in model.metrics[name].items():
            if value:
                total[variable] += weight * value / model.objective_unit
    for cost in model.z:
        total[cost] += model.segments.reserved.factor["objective"] * model.shared_unit / model.objective_unit
    model.problem += _sum(total)


def _source(model: Model) -> None:
    """(1) Σ_{k: a=0} y_k = 1."""
    begins = {variable: 1.0 for k, variable in model.y.items() if k.start == 0}
    model.problem += _sum(begins) == 1, "source"


def _balance(model: Model) -> None:
    """(2), (3) what ends in a state at a cut leaves it along a hand-over, what begins there arrives along one."""
    leaving: dict[tuple[int, tuple[int, int]], Terms] = defaultdict(dict)
    entering: dict[tuple[int, tuple[int, int]], Terms] = defaultdict(dict)
    for k, variable in model.y.items():
        if k.stop < model.chain.num_elements:
            leaving[k.stop, k.state][variable] = 1.0
        if k.start > 0:
            entering[k.start, k.state][variable] = 1.0
    for h, variable in model.f.items():
        leaving[h.cut, h.before][variable] = -1.0
        entering[h.cut, h.after][variable] = -1.0
    for name, rows in (("out", leaving), ("in", entering)):
        for (cut, (device, variant)), terms in sorted(rows.items()):
            model.problem += _sum(terms) == 0, f"{name}_{cut}_d{device}v{variant}"


def _once(model: Model) -> None:
    """(4) Σ_{k on d} y_k <= 1."""
    if model.chain.reuse != "once":
        return
    for device in range(model.chain.num_devices):
        terms = {model.y[k]: 1.0 for k in model.on(device)}
        if terms:
            model.problem += _sum(terms) <= 1, f"once_{device}"


def _holds(model: Model) -> None:
    """(6) cover <= u_dv: where a variant's shared bytes count once, in memory or as a new load; reuse "many" only."""
    chain, segments = model.chain, model.segments
    if chain.reuse == "once":
        return  # Segments keeps only what fits, and a device holds one
    for device in range(chain.num_devices):
        limited = math.isfinite(chain.memory_bytes[device])
        items = model.on(device)
        for variant in sorted({k.variant for k in items}):
            if not (limited and chain.shared_bytes[variant]) and not segments.shared_load[device, variant]:
                continue
            holds = model.positive(f"u_{device}_{variant}", 1)
            model.u[device, variant] = holds
            for element in range(chain.num_elements):
                cover: Terms = {model.y[k]: 1.0 for k in items if k.variant == variant and k.start <= element < k.stop}
                if cover:
                    model.problem += _sum({**cover, holds: -1.0}) <= 0, f"holds_d{device}v{variant}_{element}"


def _memory(model: Model) -> None:
    """(5) Σ r_k y_k + Σ_v w_v u_dv + T_d <= M_d, (7) transients <= T_d; reuse "many" only."""
    chain, segments = model.chain, model.segments
    if chain.reuse == "once":
        return
    for device in range(chain.num_devices):
        limit = chain.allowance(float(chain.memory_bytes[device]))
        items = model.on(device)
        if math.isinf(limit) or not items:
            continue
        unit = unit_of([limit])
        largest = model.positive(f"T_{device}")
        row: Terms = {model.y[k]: segments.resident[k] / unit for k in items if segments.resident[k]}
        row[largest] = 1.0
        for variant in sorted({k.variant for k in items}):
            if chain.shared_bytes[variant]:
                row[model.u[device, variant]] = float(chain.shared_bytes[variant]) / unit
        for element in range(chain.num_elements):
            working: Terms = {
                model.y[k]: float(chain.transient_bytes[k.variant, element]) / unit
                for k in items
                if k.start <= element < k.stop and chain.transient_bytes[k.variant, element] > 0
            }
            if working:
                model.problem += _sum({**working, largest: -1.0}) <= 0, f"transient_{device}_{element}"
        model.problem += _sum(row) <= limit / unit, f"memory_{device}"


def _stages(model: Model) -> None:
    """(8) Σ_k y_k <= K."""
    if model.chain.max_stages is not None and model.y:
        model.problem += _sum(dict.fromkeys(model.y.values(), 1.0)) <= model.chain.max_stages, "stages"


def _ends(model: Model) -> None:
    """(9) Σ_d p_ed = Σ_{k on e: b=L} y_k, Σ_e p_ed = Σ_{k on d: a=0} y_k."""
    if not model.segments.looped:
        return
    for device in range(model.chain.num_devices):
        for name, position, mine in (
            ("last", 0, [k for k in model.on(device) if k.stop == model.chain.num_elements]),
            ("first", 1, [k for k in model.on(device) if k.start == 0]),
        ):
            terms: Terms = {model.y[k]: -1.0 for k in mine}
            terms.update({variable: 1.0 for pair, variable in model.p.items() if pair[position] == device})
            if terms:
                model.problem += _sum(terms) == 0, f"{name}_{device}"


def _period(model: Model) -> None:
    """(10) busy time of every device, and of every link over all that it carries, <= P."""
    if model.period is None:
        return
    chain, segments, unit = model.chain, model.segments, model.units["throughput"]
    busy: dict[str, Terms] = defaultdict(lambda: defaultdict(float))
    for k, variable in model.y.items():
        busy[f"busy_{k.device}"][variable] += segments.seconds[k]
        if chain.source is not None and k.start == 0:
            busy[segments.channel(chain.source, k.device)][variable] += segments.input_s(k.device)
        if chain.source is not None and k.stop == chain.num_elements:
            busy[segments.channel(k.device, chain.source)][variable] += segments.output_s(k.device)
    for h, variable in model.f.items():
        busy[segments.channel(h.before[0], h.after[0])][variable] += h.seconds
    for (last, first), variable in model.p.items():
        busy[segments.channel(last, first)][variable] += segments.loop_s(last, first)
    for name, terms in sorted(busy.items()):
        row = {variable: seconds / unit for variable, seconds in terms.items() if seconds > 0}
        if row:
            model.problem += _sum({**row, model.period: -1.0}) <= 0, name


def _budgets(model: Model) -> None:
    """(11) latency, energy, quality and P at most their limits."""
    chain, units = model.chain, model.units
    for name, limit, scale in (
        ("latency", chain.max_latency_s, 0.0),
        ("energy", chain.max_energy_j, 0.0),
        ("quality", chain.max_quality_loss, chain.quality_scale),
    ):
        terms = {variable: value / units[name] for variable, value in model.metrics[name].items() if value}
        if f"max_{name}" in {key.rsplit("_", 1)[0] for key in model.segments.reserved.factor}:
            terms.update(dict.fromkeys(model.z, model.shared_unit / units[name]))
        if limit is not None and (terms or limit < 0):
            model.problem += _sum(terms) <= chain.allowance(limit, scale) / units[name], f"max_{name}"
    if chain.max_period_s is not None:
        limit = chain.allowance(chain.max_period_s) / units["throughput"]
        model.problem += _sum({model.period: 1.0}) <= limit, "max_period"


# ── solving ──────────────────────────────────────────────────────────────────────────────────────────────────────


def solve(chain: Chain, options: Options) -> Result:
    """Solve with HiGHS, or CBC where highspy is missing.

    Raises
    ------
    BackendError
        The solver stopped for a reason that has no meaning here.
    """
    deadline = math.inf if options.time_limit_s is None else time.perf_counter() + options.time_limit_s
    try:
        return _solve(chain, options, build(chain, deadline), deadline)
    except OutOfTimeError:
        return at_sight(chain, options, "pulp")


def _solve(chain: Chain, options: Options, model: Model, deadline: float) -> Result:
    statistics = {"columns": float(len(model.y) + len(model.f)), "rows": float(model.problem.numConstraints())}
    nothing = Result(Status("infeasible", False), math.inf, math.inf, None, "pulp", 0.0, statistics=statistics)
    if not any(k.start == 0 for k in model.y):
        return nothing
    warm = model.segments.chosen(options.warm_start) if isinstance(options.warm_start, Solution) else None
    start = {} if warm is None else {variable.name: float(k in warm) for k, variable in model.y.items()}
    best: Result | None = None
    sight = bound_at_sight(chain)
    tried: set[Solution] = set()
    while True:
        left = None if math.isinf(deadline) else max(0.0, deadline - time.perf_counter())
        answer = run(model.problem, time_limit_s=left, gap=options.gap, seed=options.seed, start=start)
        bound = max(answer.bound * model.objective_unit, sight)
        if best is not None and (answer.reason == "infeasible" or bound >= best.objective):
            return replace(best, status=Status("optimal", True), bound=best.objective)
        if answer.reason == "infeasible":
            return nothing
        if not answer.found:
            nothing = replace(nothing, status=Status(answer.reason, False), bound=bound)
            return nothing if best is None else replace(best, status=Status(answer.reason, True))
        chosen = [k for k, variable in model.y.items() if (variable.varValue or 0.0) > 0.5]
        solution = with_shares(chain, Segments.solution(chosen))
        evaluation = evaluate(chain, solution)
        if not evaluation.violations:
            objective = evaluation.objective
            rounding = 1e-6 * max(abs(objective), model.objective_unit)
            reason = answer.reason
            if reason == "optimal" and objective - bound > rounding:
                reason = "gap_reached"  # asked for: without a gap HiGHS goes on
            found = Result(Status(reason, True), objective, min(bound, objective), solution, "pulp", 0.0)
            found = replace(found, bound=objective if reason == "optimal" else found.bound, statistics=statistics)
            if best is None or objective < best.objective:
                best = found
            else:
                best = replace(found, objective=best.objective, solution=best.solution)
                best = replace(best, bound=best.objective if reason == "optimal" else bound)
            if not model.z or reason != "gap_reached" or relative_gap(best.objective, bound) <= options.gap:
                return best
        if model.z and solution not in tried:  # what the media cost was bounded too loosely for this plan
            tried.add(solution)
            add_price(model, model.segments.reserved.price_of(solution), list(range(len(model.z))))
            continue
        # The solver's absolute tolerance let a limit be passed by a hair: cut this plan off and go on.
        model.problem += _sum({model.y[k]: 1.0 for k in chosen}) <= len(chosen) - 1
