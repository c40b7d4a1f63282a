"""A request whose devices changed under way, as the one plan that its result has come from."""

from __future__ import annotations

from itertools import groupby

from edgeopt import planner
from edgeopt.errors import Finding, InputError
from edgeopt.plan import Plan
from edgeopt.questions.elastic import Elastic
from edgeopt.questions.events import changed
from edgeopt_solvers import Result, Status
from edgeopt_solvers.chain import Solution, evaluate

__all__ = ["followed_plan"]


def followed_plan(found: Elastic) -> Plan:
    """Return the stages whose steps are part of the image: those kept, then those planned again.

    Run from its start it makes the image that the interrupted request makes. Its prediction does not know of steps that
    were lost, of the way over the source, nor of a device's speed before it slowed down. Devices are those after the
    change and, behind them, those that left.

    Raises
    ------
    InputError
        What is left of the request has no plan.
    """
    if not found.stages:
        message = f"the request cannot be finished: {found.replanned.reason}"
        raise InputError(Finding("--event", message, "change the events, or what the problem asks for"))
    before = found.plan.problem
    problem = changed(found.plan, found.events)
    names = [device.name for device in problem.devices]
    devices = [*problem.devices, *(device for device in before.devices if device.name not in names)]
    problem = problem.model_copy(update={"devices": devices, "network": before.network})
    rows = [device.name for device in devices]
    variants = [None, *problem.model.variants]  # type: ignore[union-attr]
    kept = [stage for stage in found.plan.stages if stage.start < found.stages[0].start]
    ran = [
        (rows.index(stage.device), variants.index(stage.variant), min(stage.stop, found.stages[0].start))
        for stage in kept
    ]
    ran += [(rows.index(stage.device), variants.index(stage.variant), stage.stop) for stage in found.stages]
    # A device that goes on with what it was doing has one stage of it.
    joined = [list(same)[-1] for _, same in groupby(ran, key=lambda row: row[:2])]
    where, which, cuts = zip(*joined, strict=True)
    technique = planner.choose_strategy(problem, found.plan.strategy)
    chain = technique.build(problem)
    solution = Solution(cuts, where, which)
    value = evaluate(chain, solution)
    status = Status("gap_reached", True)
    return technique.plan(
        problem, chain, Result(status, value.objective, 0.0, solution, "elastic", 0.0, dict(value.metrics))
    )
