"""Every strategy that fits a problem, beside the best that one device can do."""

from __future__ import annotations

from dataclasses import dataclass

from edgeopt import planner
from edgeopt.plan import Alternative, Plan
from edgeopt.profiles.problem import Problem
from edgeopt.questions.baseline import one_device
from edgeopt.questions.contest import failure_of, hold_contest
from edgeopt.questions.figures import alternative_of
from edgeopt.strategies import get_strategy, strategy_names

__all__ = ["Comparison", "compare"]

#: Wall seconds that the plan on one device may take, for each device.
BASELINE_S = 1.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the strategies fared, best first.

    Attributes
    ----------
    plan
        The best plan.
    strategies
        All that fit.
    baseline
        The best plan on a single device.
    unfit
        Strategy → why it does not fit.
    """

    problem: Problem
    plan: Plan
    strategies: tuple[Alternative, ...]
    baseline: Alternative
    unfit: dict[str, str]


def compare(
    problem: Problem, backend: str = "exact", time_limit_s: float | None = None, gap: float = 0.0
) -> Comparison:
    """Solve a problem by every strategy that fits.

    Parameters
    ----------
    problem
        Its own ``strategy`` is left aside.
    backend, gap
        As in :func:`edgeopt_solvers.solve`.
    time_limit_s
        Wall seconds for all strategies together; the plan on one device takes up to :data:`BASELINE_S` per device
        beside them, by the exact method.

    Raises
    ------
    InputError
        No strategy fits, or none can be built; the message has the reason of each.
    NoPlanError, TimeLimitError
        None found a plan.
    """
    fitting = planner.fitting_strategies(problem)

    def attempt(name: str, limit_s: float | None, start: Plan | None) -> Plan:
        return planner.solve_with(fitting[name], problem, backend, limit_s, gap, start)

    entries = hold_contest(list(fitting), attempt, time_limit_s)
    best = entries[0].plan
    if best is None:
        raise failure_of(entries)
    limit_s = BASELINE_S if time_limit_s is None else min(BASELINE_S, time_limit_s)
    others = {name: get_strategy(name).unfit(problem) for name in strategy_names() if name not in fitting}
    return Comparison(
        problem=problem,
        plan=best,
        strategies=tuple(alternative_of(entry, problem) for entry in entries),
        baseline=alternative_of(one_device(problem, limit_s), problem),
        unfit={name: reason for name, reason in others.items() if reason},
    )
