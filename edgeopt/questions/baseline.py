"""The plan to beat: everything on one device, as well as any single one can do it."""

from __future__ import annotations

from edgeopt import planner
from edgeopt.errors import NoPlanError
from edgeopt.plan import Plan
from edgeopt.profiles.problem import Problem
from edgeopt.questions.contest import Entry
from edgeopt.strategies import Strategy
from edgeopt.strategies.chain import able_devices

__all__ = ["ONE_DEVICE", "one_device"]

#: What it is called beside the strategies.
ONE_DEVICE = "one device"


def one_device(problem: Problem, backend: str = "exact", time_limit_s: float | None = None) -> Entry:
    """Find the best plan that computes on a single device, by any strategy; ``infeasible`` where none can."""
    names = [device.name for device in problem.devices]
    able = [name for name, can in zip(names, able_devices(problem), strict=True) if can]
    tried = [
        _alone(problem, technique, name, backend, time_limit_s)
        for technique in planner.fitting_strategies(problem).values()
        for name in able
    ]
    best = min(tried, key=lambda entry: entry.objective, default=Entry(ONE_DEVICE, outcome="infeasible"))
    best.spent_s = sum(entry.spent_s for entry in tried)
    if best.outcome == "open":
        best.outcome = "time_limit"
    if best.outcome == "infeasible":
        best.error = NoPlanError("no single device can run all of it within the limits")
    return best


def _alone(problem: Problem, technique: Strategy, name: str, backend: str, time_limit_s: float | None) -> Entry:
    others = [device.name for device in problem.devices if device.name != name]
    limits = problem.constraints.model_copy(update={"forbid": others})
    alone = problem.model_copy(update={"constraints": limits})

    def attempt(_: str, limit_s: float | None, start: Plan | None) -> Plan:
        return planner.solve_with(technique, alone, backend, limit_s, warm_start=start)

    entry = Entry(ONE_DEVICE)
    entry.run(attempt, time_limit_s)
    return entry
