"""Hierarchical diffusion: a cascade of resolutions whose levels, and whose steps within a level, lie on devices.

Chain elements are the text encoder and the steps of each level (:mod:`edgeopt.costs.cascade`). A level's steps may be
shared by several devices; its number of steps is part of the decision where runs of several numbers were measured.
Quality is that of a measured run, which names a denoiser and a number of steps for both levels: the chain carries it
at the hand-over between the levels, and every hand-over that no measured run makes is forbidden.

The technique is the cascade of Ho, Saharia, Chan, Fleet, Norouzi, Salimans, "Cascaded Diffusion Models for High
Fidelity Image Generation", JMLR 23, 2022, arXiv:2106.15282.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt.costs.cascade import CascadeCosts, Run, run_of
from edgeopt.errors import Finding, InputError
from edgeopt.plan import Plan, Stage
from edgeopt.profiles.model import CascadedDiffusion, RunsQuality
from edgeopt.profiles.problem import CascadeWorkload, Problem
from edgeopt.strategies.base import Strategy
from edgeopt.strategies.chain import able_devices, chain_plan, compute_table, shared_arguments, wants_quality
from edgeopt.strategies.pipeline import basis_notes
from edgeopt_solvers import Result
from edgeopt_solvers.chain import Chain

__all__ = ["Hierarchical"]


class Hierarchical(Strategy):
    """Plan which device runs which steps of which level with which denoiser, and how many steps each level takes."""

    name: ClassVar[str] = "hierarchical"

    def unfit(self, problem: Problem) -> str | None:
        """Refuse everything that is not a cascade with its workload."""
        if isinstance(problem.model, CascadedDiffusion) and isinstance(problem.workload, CascadeWorkload):
            return None
        return f"hierarchical runs cascades of levels; {problem.model.name!r} is a {problem.model.family} model"

    def build(self, problem: Problem) -> Chain:
        """Build the chain of all levels' steps; ``reuse`` is ``many``: a run may come back to a device.

        Raises
        ------
        InputError
            Nothing says how many steps a level takes, none of the measured runs takes the steps that are asked for,
            or the problem asks for quality and the model carries none.
        """
        costs = _costs(problem)
        floor = problem.constraints.quality
        if costs.model.quality is None and (field := wants_quality(problem)):
            message = f"the problem asks for quality and model {problem.model.name!r} has no quality profile"
            mend = "measure it with `edgeopt profile quality`, or drop the request"
            raise InputError(Finding(field, message, mend))
        compute_s = compute_table(problem, lambda device: costs.compute_s(device)[0])
        return Chain(
            compute_s=compute_s,
            cut_bytes=costs.cut_bytes,
            cut_legal=costs.cut_legal,
            resident_bytes=costs.resident_bytes,
            shared_bytes=costs.shared_bytes,
            transient_bytes=costs.transient_bytes,
            handoff_loss=None if costs.model.quality is None else _handoffs(costs, costs.model.quality),
            max_quality_loss=floor,
            reuse="many",
            **shared_arguments(problem, costs.names),
        )

    def plan(self, problem: Problem, chain: Chain, result: Result) -> Plan:
        """Write stages by denoiser and steps (``large@10``), and each level's number of steps under ``metrics``."""
        costs = _costs(problem)
        able = [device for device, can in zip(problem.devices, able_devices(problem), strict=True) if can]
        measured = {device.name: costs.compute_s(device)[1] for device in able}
        plan = chain_plan(
            problem,
            self.name,
            chain,
            result,
            costs.names,
            [None, *costs.variants[1:]],
            quality_base=None if costs.model.quality is None else 0.0,
            metrics={"images_per_s": costs.workload.images / result.metrics["latency_s"]},
            notes=basis_notes(measured, [device.name for device in able if costs.is_between_batches(device)]),
        )
        stages = [_worded(costs, stage) for stage in plan.stages]
        words = {before.elements: after.elements for before, after in zip(plan.stages, stages, strict=True)}
        timeline = [bar.model_copy(update={"label": words.get(bar.label, bar.label)}) for bar in plan.timeline]
        runs = [run_of(costs.model, stage.variant, "variant") for stage in stages if stage.variant is not None]
        steps = {f"steps_{costs.model.levels[run.level].name}": float(run.steps) for run in runs}
        return plan.model_copy(update={"stages": stages, "timeline": timeline, "metrics": plan.metrics | steps})


def _costs(problem: Problem) -> CascadeCosts:
    assert isinstance(problem.model, CascadedDiffusion)
    assert isinstance(problem.workload, CascadeWorkload)
    return CascadeCosts(problem.model, problem.workload)


def _worded(costs: CascadeCosts, stage: Stage) -> Stage:
    """Name the elements in which a stage computes: a short run leaves the last ones of its level empty."""
    if stage.variant is None:
        return stage
    run = run_of(costs.model, stage.variant, "variant")
    stop = min(stage.stop, costs.steps_of(run).stop)
    names = costs.names[stage.start : stop]
    words = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
    return stage.model_copy(update={"elements": words})


def _handoffs(costs: CascadeCosts, quality: RunsQuality) -> NDArray[np.float64]:
    """Quality of a run at the hand-over between its levels, shape (V, V, L + 1).

    ``inf`` where nobody measured it, and where a level's run has ended before its elements.
    """
    count = len(costs.variants)
    mixed = ~np.eye(count, dtype=bool)
    mixed[0] = mixed[:, 0] = False
    table = np.zeros((count, count, len(costs.names) + 1))
    table[mixed] = np.inf
    row = {run: index for index, run in enumerate(costs.runs, start=1)}
    for run, v in row.items():  # behind a run's last step nothing is left that another device could do
        table[v, v, costs.steps_of(run).stop : costs.levels[run.level].stop] = np.inf
    known = []
    for each in quality.runs:
        below, above = (Run(k, *ends) for k, ends in enumerate(zip(each.variants, each.steps, strict=True)))
        if below in row and above in row:
            table[row[below], row[above], costs.levels[1].start] = each.quality
            known.append(each)
    if not known:
        measured = sorted({tuple(each.steps) for each in quality.runs})
        mend = f"ask for one of {', '.join(str(list(steps)) for steps in measured)}, or leave the steps to the planner"
        raise InputError(Finding("workload.steps", f"no run of {costs.workload.steps} steps was measured", mend))
    return table
