"""Chain as a constraint program for OR-Tools CP-SAT: the segment-flow variables of ``milp.py``, in integers.

Booleans: y_k (segment k is a stage), f_h (the plan hands over along h), p_ed (last device e, first device d), u_dv
(device d holds variant v); integers T_d (largest transient) and P (period). Equations are numbered as in ``milp.py``:
(1)-(4), (6), (8), (9) have unit coefficients and are exact here.

CP-SAT knows integers only, so every amount is multiplied by a scale of its kind and rounded DOWN, every limit is
rounded UP:

    (5)  Σ ⌊r_k⌋ y_k + Σ_v ⌊w_v⌋ u_dv + T_d <= ⌈M_d⌉        (7)  Σ_{k covering l} ⌊a_kl⌋ y_k <= T_d
    (10) Σ ⌊t_k⌋ y_k <= P, and per link                      (11) Σ ⌊metric⌋ <= ⌈limit⌉
    objective  Σ ⌊weight · metric + new loads⌋

which relaxes the problem: CP-SAT's bound is a bound on the real one without any correction. A plan that only the
rounding admits is found by the checker, cut off, and the search goes on. The scales leave 12 digits.

One worker and a fixed seed: several workers under a wall-clock limit answer differently from run to run.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from dataclasses import replace
from typing import Any

from ortools.sat.python import cp_model

from edgeopt_solvers.chain.check import evaluate
from edgeopt_solvers.chain.deadline import OutOfTimeError, at_sight, bound_at_sight, look, ticking
from edgeopt_solvers.chain.instance import Chain, Solution
from edgeopt_solvers.chain.segments import Segments
from edgeopt_solvers.cpsat import STATUS
from edgeopt_solvers.errors import BackendError
from edgeopt_solvers.result import Result, Status
from edgeopt_solvers.solve import Options

__all__ = ["Model", "solve"]

#: The largest coefficient of a row becomes this.
LARGEST = 1e12

Terms = dict[Any, float]


class Model:
    """The constraint program of one instance."""

    def __init__(self, chain: Chain, deadline: float = math.inf) -> None:
        self.chain = chain
        self.deadline = deadline
        self.segments = Segments(chain, deadline)
        self.cp = cp_model.CpModel()
        self.y = {k: self.cp.new_bool_var("") for k in ticking(self.segments.items, deadline)}
        self.f = {h: self.cp.new_bool_var("") for h in ticking(self.segments.handovers, deadline)}
        self.p: dict[tuple[int, int], Any] = {}
        self.u: dict[tuple[int, int], Any] = {}
        if self.segments.looped:
            self._ends()
        self.cp.add_exactly_one([variable for k, variable in self.y.items() if k.start == 0])
        self._balance()
        self._devices()
        if chain.max_stages is not None:
            self.cp.add(sum(self.y.values()) <= chain.max_stages)
        self.objective_scale = 1.0
        self._measure()

    def _ends(self) -> None:
        """(9) one last and one first device, over a link."""
        L = self.chain.num_elements
        last, first = defaultdict(list), defaultdict(list)
        for k, variable in self.y.items():
            if k.stop == L:
                last[k.device].append(variable)
            if k.start == 0:
                first[k.device].append(variable)
        for e in last:
            for d in first:
                if math.isfinite(self.chain.loop_s(e, d)):
                    self.p[e, d] = self.cp.new_bool_var(f"p{e}_{d}")
        for e, variables in last.items():
            self.cp.add(sum(p for (a, _), p in self.p.items() if a == e) == sum(variables))
        for d, variables in first.items():
            self.cp.add(sum(p for (_, b), p in self.p.items() if b == d) == sum(variables))

    def _balance(self) -> None:
        """(2), (3) a state that ends at a cut leaves along one hand-over, one that begins arrives along one."""
        leaving: dict[Any, tuple[list[Any], list[Any]]] = defaultdict(lambda: ([], []))
        entering: dict[Any, tuple[list[Any], list[Any]]] = defaultdict(lambda: ([], []))
        for k, variable in self.y.items():
            if k.stop < self.chain.num_elements:
                leaving[k.stop, k.state][0].append(variable)
            if k.start > 0:
                entering[k.start, k.state][0].append(variable)
        for h, variable in self.f.items():
            leaving[h.cut, h.before][1].append(variable)
            entering[h.cut, h.after][1].append(variable)
        for stages, moves in ticking([*leaving.values(), *entering.values()], self.deadline):
            self.cp.add(sum(stages) == sum(moves))

    def _devices(self) -> None:
        """(4) once, or (5)-(7) memory; with "once" the segments already fit."""
        chain = self.chain
        for device in range(chain.num_devices):
            look(self.deadline)
            items = [k for k in self.y if k.device == device]
            if chain.reuse == "once":
                self.cp.add_at_most_one([self.y[k] for k in items])
                continue
            limit = chain.allowance(float(chain.memory_bytes[device]))
            variants = sorted({k.variant for k in items})
            for variant in variants:
                if math.isinf(limit) and not self.segments.shared_load[device, variant]:
                    continue
                holds = self.u[device, variant] = self.cp.new_bool_var(f"u{device}_{variant}")
                for k in items:
                    if k.variant == variant:
                        self.cp.add_implication(self.y[k], holds)
            if math.isinf(limit) or not items:
                continue
            held: Terms = {self.y[k]: self.segments.resident[k] for k in items}
            held.update({self.u[device, v]: float(chain.shared_bytes[v]) for v in variants})
            scale = _scale([*held.values(), *(self.segments.transient[k] for k in items)])
            # what cannot be held anyway needs no exact limit; this keeps integers small
            limit = min(limit, sum(held.values()) + max(self.segments.transient[k] for k in items))
            room = math.ceil(limit * scale)
            largest = self.cp.new_int_var(0, max(room, 0), f"T{device}")
            for k in items:
                if self.segments.transient[k] > 0:
                    working = math.floor(self.segments.transient[k] * scale)
                    self.cp.add(largest >= working).only_enforce_if(self.y[k])
            self.cp.add(self._rounded(held, scale) + largest <= room)

    def _measure(self) -> None:
        """(10), (11) and the objective."""
        chain, segments = self.chain, self.segments
        latency: Terms = defaultdict(float)
        energy: Terms = defaultdict(float)
        quality: Terms = defaultdict(float)
        busy: dict[int | str, Terms] = defaultdict(lambda: defaultdict(float))

        def carry(variable: Any, sender: int, receiver: int, seconds: float) -> None:
            if sender != receiver and seconds:
                latency[variable] += seconds
                energy[variable] += segments.watts(sender, receiver) * seconds
                busy[segments.channel(sender, receiver)][variable] += seconds

        for k, variable in ticking(self.y.items(), self.deadline):
            latency[variable] += segments.seconds[k]
            energy[variable] += segments.compute_watts(k.device) * segments.seconds[k]
            quality[variable] += segments.loss[k]
            busy[k.device][variable] += segments.seconds[k]
            if chain.source is not None and k.start == 0:
                carry(variable, chain.source, k.device, segments.input_s(k.device))
            if chain.source is not None and k.stop == chain.num_elements:
                carry(variable, k.device, chain.source, segments.output_s(k.device))
        for h, variable in ticking(self.f.items(), self.deadline):
            carry(variable, h.before[0], h.after[0], h.seconds)
            quality[variable] += h.loss
        for (e, d), variable in self.p.items():
            carry(variable, e, d, chain.loop_s(e, d))

        metrics = {"latency": latency, "energy": energy, "quality": quality}
        for name, limit, scale in (
            ("latency", chain.max_latency_s, 0.0),
            ("energy", chain.max_energy_j, 0.0),
            ("quality", chain.max_quality_loss, chain.quality_scale),
        ):
            if limit is not None:
                self._limit(metrics[name], chain.allowance(limit, scale))
        if chain.max_period_s is not None:
            for terms in busy.values():
                self._limit(terms, chain.allowance(chain.max_period_s))

        weights = chain.weights
        total: Terms = defaultdict(float)
        for name, weight in weights.items():
            for variable, value in metrics.get(name, {}).items():
                total[variable] += weight * value
        for k, variable in self.y.items():
            total[variable] += segments.load[k]
        for state, variable in self.u.items():
            total[variable] += float(segments.shared_load[state])
        period_weight = weights.get("throughput", 0.0)
        longest = max((value for terms in busy.values() for value in terms.values()), default=0.0)
        self.objective_scale = _scale([*total.values(), period_weight * longest])
        objective = self._rounded(total, self.objective_scale)
        if period_weight:
            rows = [self._rounded(terms, period_weight * self.objective_scale) for terms in busy.values()]
            most = sum(math.floor(v * period_weight * self.objective_scale) for t in busy.values() for v in t.values())
            period = self.cp.new_int_var(0, most, "P")
            for row in rows:
                self.cp.add(row <= period)
            objective = objective + period
        self.cp.minimize(objective)

    def _limit(self, terms: Terms, limit: float) -> None:
        """Σ ⌊terms⌋ <= ⌈limit⌉; no row where nothing can break it, so that integers stay small."""
        if limit < sum(max(value, 0.0) for value in terms.values()):
            scale = _scale(list(terms.values()))
            self.cp.add(self._rounded(terms, scale) <= math.ceil(limit * scale))

    @staticmethod
    def _rounded(terms: Terms, scale: float) -> Any:
        variables = list(terms)
        return cp_model.LinearExpr.weighted_sum(variables, [math.floor(terms[v] * scale) for v in variables])


def _scale(values: list[float]) -> float:
    largest = max((abs(value) for value in values), default=0.0)
    return LARGEST / largest if largest > 0 else 1.0


def solve(chain: Chain, options: Options) -> Result:
    """Solve with one CP-SAT worker.

    Raises
    ------
    BackendError
        CP-SAT calls the model invalid.
    """
    deadline = math.inf if options.time_limit_s is None else time.perf_counter() + options.time_limit_s
    nothing = Result(Status("infeasible", False), math.inf, math.inf, None, "ortools", 0.0)
    try:
        model = Model(chain, deadline)
    except OutOfTimeError:
        return at_sight(chain, options, "ortools")
    if not any(k.start == 0 for k in model.y):
        return nothing
    if isinstance(options.warm_start, Solution):
        hint = model.segments.chosen(options.warm_start)
        for k, variable in model.y.items() if hint is not None else ():
            model.cp.add_hint(variable, k in (hint or ()))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = options.seed % 2**31
    solver.parameters.relative_gap_limit = options.gap
    while True:
        if options.time_limit_s is not None:
            left = deadline - time.perf_counter()
            if left <= 0:
                return at_sight(chain, options, "ortools")
            solver.parameters.max_time_in_seconds = left
        status = solver.solve(model.cp)
        if status not in STATUS:
            raise BackendError(f"CP-SAT stopped with {solver.status_name(status)}; try backend='exact'")
        statistics = {"branches": float(solver.num_branches), "conflicts": float(solver.num_conflicts)}
        bound = max(solver.best_objective_bound / model.objective_scale, bound_at_sight(chain))
        if STATUS[status] == "infeasible":
            return replace(nothing, statistics=statistics)
        if status == cp_model.UNKNOWN:
            return replace(nothing, status=Status("time_limit", False), bound=bound, statistics=statistics)
        chosen = [k for k, variable in model.y.items() if solver.boolean_value(variable)]
        solution = Segments.solution(chosen)
        evaluation = evaluate(chain, solution)
        if not evaluation.violations:
            break
        model.cp.add_bool_or([~model.y[k] for k in chosen])  # only rounding lets it pass: cut it off
    objective = evaluation.objective
    bound = min(bound, objective)
    reason = STATUS[status]
    # every chosen variable may have lost one unit to rounding, an overshot limit a little more
    rounding = 4 * (chain.num_elements + 1) / model.objective_scale + 1e-9 * abs(objective)
    if reason == "optimal" and objective - bound <= rounding:
        bound = objective
    elif reason == "optimal":
        reason = "gap_reached"
    return Result(Status(reason, True), objective, bound, solution, "ortools", 0.0, statistics=statistics)
