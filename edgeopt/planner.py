"""From a problem to a plan, and from a plan back to a verdict on it."""

from __future__ import annotations

import math
import time
from typing import Any

from edgeopt.errors import Finding, InputError, NoPlanError, TimeLimitError
from edgeopt.plan import Plan
from edgeopt.profiles.problem import Problem
from edgeopt.questions.contest import failure_of, hold_contest
from edgeopt.strategies import Strategy, get_strategy, strategy_names
from edgeopt_solvers import solve as solve_instance
from edgeopt_solvers.result import relative_gap

__all__ = ["choose_strategy", "fitting_strategies", "solve", "solve_with", "verify"]

#: Relative disagreement that recomputation may show: YAML keeps every bit, sums may be ordered differently.
TOLERANCE = 1e-9


def solve(
    problem: Problem,
    *,
    strategy: str | None = None,
    backend: str = "exact",
    time_limit_s: float | None = None,
    gap: float = 0.0,
    warm_start: Plan | None = None,
    diagnose: bool = True,
) -> Plan:
    """Plan a problem.

    Parameters
    ----------
    strategy
        Overrides the problem's own; ``auto`` takes the best of all that fit model and workload, and the plan says under
        ``alternatives`` how the others fared.
    backend, gap
        As in :func:`edgeopt_solvers.solve`.
    time_limit_s
        Wall seconds; ``auto`` divides them among the strategies (:mod:`edgeopt.questions.contest`).
    warm_start
        An earlier plan of a similar problem.
    diagnose
        Find out which limit leaves no plan, which takes far longer than most problems do; otherwise it is not named.

    Raises
    ------
    InputError
        Unknown strategy, one that does not fit, or a number it needs is missing.
    NoPlanError
        Proven infeasible; the message names the binding limit and by how much.
    TimeLimitError
        Out of time without a plan.
    """
    name = strategy or problem.strategy
    if name != "auto":
        technique = choose_strategy(problem, name)
        return solve_with(technique, problem, backend, time_limit_s, gap, warm_start, diagnose)
    from edgeopt.questions.figures import alternative_of

    fitting = fitting_strategies(problem)
    starts = {} if warm_start is None else {warm_start.strategy: warm_start}

    def attempt(name: str, limit_s: float | None, start: Plan | None) -> Plan:
        return solve_with(fitting[name], problem, backend, limit_s, gap, start or starts.get(name), diagnose)

    best, *others = hold_contest(list(fitting), attempt, time_limit_s)
    if best.plan is None:
        raise failure_of([best, *others])
    return best.plan.model_copy(update={"alternatives": [alternative_of(entry, problem) for entry in others]})


def solve_with(
    technique: Strategy,
    problem: Problem,
    backend: str = "exact",
    time_limit_s: float | None = None,
    gap: float = 0.0,
    warm_start: Plan | None = None,
    diagnose: bool = True,
) -> Plan:
    """Plan a problem by one strategy; parameters and exceptions as in :func:`solve`."""
    cases = technique.cases(problem)
    time_limit_s = technique.patience_s if time_limit_s is None else time_limit_s
    if len(cases) == 1:
        return _solve_case(technique, cases[0], backend, time_limit_s, gap, warm_start, diagnose)
    plans: list[Plan] = []
    failures: list[NoPlanError | TimeLimitError] = []
    deadline = None if time_limit_s is None else time.perf_counter() + time_limit_s
    for k, case in enumerate(cases):
        left_s = None if deadline is None else max(1e-3, deadline - time.perf_counter()) / (len(cases) - k)
        try:
            plans.append(_solve_case(technique, case, backend, left_s, gap, warm_start, diagnose))
        except (NoPlanError, TimeLimitError) as error:
            failures.append(error)
    if not plans:
        raise next((error for error in failures if isinstance(error, TimeLimitError)), failures[0])
    return _best_case(plans, unsolved=any(isinstance(error, TimeLimitError) for error in failures))


def _best_case(plans: list[Plan], unsolved: bool) -> Plan:
    """Return the best of the cases' plans, with a bound that holds for all of them."""
    best = min(plans, key=lambda plan: plan.objective)
    bound = -math.inf if unsolved else min(plan.bound for plan in plans)
    if bound >= best.bound:
        return best
    status = "time_limit" if unsolved or any(plan.status == "time_limit" for plan in plans) else "gap_reached"
    return best.model_copy(update={"bound": bound, "gap": relative_gap(best.objective, bound), "status": status})


def _solve_case(
    technique: Strategy,
    problem: Problem,
    backend: str,
    time_limit_s: float | None,
    gap: float,
    warm_start: Plan | None,
    diagnose: bool,
) -> Plan:
    instance = technique.build(problem)
    # The decisions of another technique say nothing here, nor those of another case.
    known = warm_start is not None and warm_start.strategy == technique.name and _same_model(warm_start, problem)
    incumbent = technique.solution(warm_start) if warm_start is not None and known else None
    result = solve_instance(
        instance, backend, time_limit_s=time_limit_s, gap=gap, warm_start=incumbent, diagnose=diagnose
    )
    if result.solution is None:
        if result.status.reason == "infeasible":
            why = technique.describe(problem)(result.message) if result.message else "no plan keeps every limit"
            raise NoPlanError(f"no plan exists for {problem.name!r}: {why}")
        raise TimeLimitError(
            f"no plan for {problem.name!r} within {time_limit_s:g} s (bound {result.bound:.6g}); raise the time limit"
        )
    return technique.plan(problem, instance, technique.settle(problem, instance, result))


def _same_model(plan: Plan, case: Problem) -> bool:
    """Whether a plan is of a model with the case's parts (a language model has but one)."""
    parts = [getattr(problem.model, "variants", {}) for problem in (plan.problem, case)]
    return list(parts[0]) == list(parts[1])


def fitting_strategies(problem: Problem) -> dict[str, Strategy]:
    """Return every installed strategy that fits the problem, by name.

    Raises
    ------
    InputError
        None does; the message has the reason of each.
    """
    known = {name: get_strategy(name) for name in strategy_names()}
    reasons = {name: technique.unfit(problem) for name, technique in known.items()}
    fitting = {name: technique for name, technique in known.items() if reasons[name] is None}
    if not fitting:
        message = "; ".join(reason for reason in reasons.values() if reason)
        raise InputError([Finding(field="strategy", message=message, mend=f"known: {', '.join(known)}")])
    return fitting


def choose_strategy(problem: Problem, name: str) -> Strategy:
    """Return the named strategy if it fits the problem, or for ``auto`` the first that does."""
    if name == "auto":
        return next(iter(fitting_strategies(problem).values()))
    known = strategy_names()
    if name not in known:
        raise InputError(
            [Finding(field="strategy", message=f"unknown strategy {name!r}", mend=f"known: auto, {', '.join(known)}")]
        )
    strategy = get_strategy(name)
    if reason := strategy.unfit(problem):
        raise InputError([Finding(field="strategy", message=reason, mend="use `strategy: auto`")])
    return strategy


def verify(plan: Plan, *, resolve_time_limit_s: float | None = 10.0) -> list[str]:
    """Recompute a plan from its problem and decisions alone; return what does not hold (empty: all of it does).

    Cost, feasibility, every stage, transfer and metric are rebuilt and compared. The bound is held against a fresh
    solve (``None`` skips it): a plan may not claim a bound above a better plan's cost.
    """
    technique = choose_strategy(plan.problem, plan.strategy)
    instance = technique.build(plan.problem)
    try:
        solution = technique.solution(plan)
        evaluation = technique.evaluate(instance, solution)
    except (ValueError, IndexError, KeyError, TypeError) as error:
        return [f"the decisions do not fit the problem: {error}"]
    if evaluation.violations:
        return [technique.describe(plan.problem)(sentence) for sentence in evaluation.violations]
    fresh = solve_instance(instance, time_limit_s=resolve_time_limit_s) if resolve_time_limit_s else None
    claimed = _Claim(plan, evaluation, solution, technique.proven)
    rebuilt = technique.plan(plan.problem, instance, claimed.result())
    findings = list(_differences(plan.model_dump(mode="json"), rebuilt.model_dump(mode="json")))
    if fresh is not None and fresh.solution is not None:
        settled = technique.settle(plan.problem, instance, fresh)
        optimum = technique.plan(plan.problem, instance, settled).objective
        if plan.bound > optimum + 1e-6 * max(abs(optimum), 1e-12):
            findings.append(f"bound {plan.bound!r} is not one: a plan of objective {optimum!r} exists")
    return findings


class _Claim:
    """A plan's own proof (status, bound, gap) joined to the recomputed cost of its decisions."""

    def __init__(self, plan: Plan, evaluation: Any, solution: Any, proven: float) -> None:
        self.plan, self.evaluation, self.solution, self.proven = plan, evaluation, solution, proven

    def result(self) -> Any:
        from edgeopt_solvers import Result, Status

        plan, objective = self.plan, self.evaluation.objective
        offset = plan.objective - plan.bound
        # An optimum is proven up to what its solver leaves open and no further.
        closed = plan.status == "optimal" and offset > self.proven * abs(plan.objective)
        bound = objective if closed else objective - offset
        return Result(
            Status(plan.status, True), objective, bound, self.solution, plan.backend, plan.runtime_s,
            dict(self.evaluation.metrics),
        )  # fmt: skip


def _differences(claimed: Any, rebuilt: Any, path: str = "") -> Any:
    """Yield a sentence for every field in which two dumps differ by more than rounding."""
    if isinstance(claimed, dict) and isinstance(rebuilt, dict):
        for key in sorted(claimed.keys() | rebuilt.keys()):
            if key not in ("problem", "edgeopt_version", "alternatives"):
                yield from _differences(claimed.get(key), rebuilt.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(claimed, list) and isinstance(rebuilt, list) and len(claimed) == len(rebuilt):
        for i, (a, b) in enumerate(zip(claimed, rebuilt, strict=True)):
            yield from _differences(a, b, f"{path}[{i}]")
    elif isinstance(claimed, float | int) and isinstance(rebuilt, float | int):
        if not math.isclose(claimed, rebuilt, rel_tol=TOLERANCE, abs_tol=1e-12):
            yield f"{path}: the plan says {claimed!r}, recomputed {rebuilt!r}"
    elif claimed != rebuilt:
        yield f"{path}: the plan says {claimed!r}, recomputed {rebuilt!r}"
