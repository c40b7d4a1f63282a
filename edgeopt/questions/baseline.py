"""The plan to beat: everything on one device, as well as any single one can do it."""

from __future__ import annotations

import time

from edgeopt import planner
from edgeopt.errors import InputError, NoPlanError
from edgeopt.profiles.problem import Problem
from edgeopt.questions.contest import Entry
from edgeopt.questions.solving import solve_undiagnosed
from edgeopt.strategies.chain import able_devices
from edgeopt_solvers import solve

__all__ = ["ONE_DEVICE", "one_device"]

#: What it is called beside the strategies.
ONE_DEVICE = "one device"


def one_device(problem: Problem, time_limit_s: float | None = None) -> Entry:
    """Find the best plan that computes on a single device, by any strategy; ``infeasible`` where none can.

    ``time_limit_s`` is for each device.
    """
    started = time.perf_counter()
    names = [device.name for device in problem.devices]
    entry = Entry(ONE_DEVICE, outcome="infeasible", error=NoPlanError("no single device can run all of it"))
    for technique in planner.fitting_strategies(problem).values():
        for name, able in zip(names, able_devices(problem), strict=True):
            if not able:
                continue
            limits = {"forbid": [other for other in names if other != name]}
            alone = problem.model_copy(update={"constraints": problem.constraints.model_copy(update=limits)})
            try:
                instance = technique.build(alone)
            except (InputError, NoPlanError):  # a technique that needs more than one device, or more quality
                continue
            found = solve_undiagnosed(instance, time_limit_s)
            if found.solution is None:
                if found.status.reason != "infeasible" and entry.plan is None:
                    entry.outcome, entry.error = "time_limit", None
                continue
            plan = technique.plan(alone, instance, solve(instance, time_limit_s=time_limit_s, warm_start=found))
            if plan.objective < entry.objective:
                entry.plan, entry.outcome, entry.bound, entry.error = plan, plan.status, plan.bound, None
    entry.spent_s = time.perf_counter() - started
    return entry
