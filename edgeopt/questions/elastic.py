"""A diffusion request under way when devices leave, join or slow down: what is left of it is planned again.

When the change comes, ``step`` denoising steps are done and the device that runs the next one holds the latent. It goes
on from there, unless that device is the one that leaves: then the source goes on from the hand-off that it kept last,
and the steps since then are lost. What is left is a chain of its own (:mod:`edgeopt.executor.rest`) in which the held
latent is a first element that costs nothing, pinned to whoever holds it; limits on latency, energy and quality are what
remains of them. The search starts from the old plan's remainder. Where no plan keeps the quality that was asked for any
more, the rest is planned for the best quality that is left. Loading weights is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgeopt import planner
from edgeopt.errors import Finding, InputError, TimeLimitError
from edgeopt.executor.rest import rest_of
from edgeopt.plan import Plan, Stage
from edgeopt.profiles.problem import ImageWorkload, Problem
from edgeopt.questions.events import EXAMPLES, Event, changed
from edgeopt.questions.terms import element_names
from edgeopt_solvers import solve as solve_instance
from edgeopt_solvers.chain import Chain, Solution, evaluate

__all__ = ["Elastic", "Outcome", "elastic", "latent_held_by"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Figures of the whole request, from its start; ``None`` and a reason where it cannot be finished this way.

    ``variants`` is the denoiser of each step whose result is part of the image. A reason beside figures says which
    limit had to be given up.
    """

    latency_s: float | None
    quality: float | None
    variants: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Elastic:
    """A request before and after a change of its devices.

    Attributes
    ----------
    plan
        That the request followed.
    step
        Denoising steps done when the change came.
    resumed_at
        Steps whose result is kept: fewer than ``step`` where the device that held the latent has left.
    holder
        Who holds the latent from which it goes on.
    spent_s
        From the start of the request until the change.
    planned, kept, replanned
        The request as it was planned; as the old decisions finish it on the changed devices; planned again.
    stages
        What is left of the request, planned again; empty where it cannot be finished.
    status, gap
        Of the plan for the rest: why the search stopped, and how far its objective may be above the optimum.
    """

    plan: Plan
    events: tuple[Event, ...]
    step: int
    resumed_at: int
    holder: str
    spent_s: float
    planned: Outcome
    kept: Outcome
    replanned: Outcome
    stages: tuple[Stage, ...]
    status: str
    gap: float


def elastic(plan: Plan, step: int, events: Sequence[Event], time_limit_s: float | None = None) -> Elastic:
    """Plan the rest of a request again, and hold it beside what was planned and what the old decisions would give.

    Parameters
    ----------
    step
        Denoising steps that are done when all events come at once.
    time_limit_s
        For planning.

    Raises
    ------
    InputError
        Not a multi-stage plan, a step that the run does not have, or an event that cannot be (:func:`changed`).
    """
    if plan.strategy != "multi_stage" or not isinstance(plan.problem.workload, ImageWorkload):
        message = f"the plan's strategy is {plan.strategy}"
        mend = "give a multi_stage plan; of the others `edgeopt execute --on-fault replan` recovers at run time"
        raise InputError(Finding("PLAN", message, mend))
    steps = plan.problem.workload.steps
    if not 0 <= step < steps:
        message = f"{step} of {steps} steps are done"
        raise InputError(
            Finding("--at-step", message, f"give 0 to {steps - 1}: after the last there is nothing to plan")
        )
    if not events:
        raise InputError(Finding("--event", "nothing happens", f"write {EXAMPLES}"))
    return _Run(plan, step, changed(plan, events), tuple(events)).answer(time_limit_s)


class _Run:
    """One request: what was done before the change, and what is left after it."""

    def __init__(self, plan: Plan, step: int, problem: Problem, events: tuple[Event, ...]) -> None:
        self.plan, self.step, self.problem, self.events = plan, step, problem, events
        self.names = element_names(plan.problem)
        self.first = self.names.index("step.0")
        self.technique = planner.choose_strategy(problem, plan.strategy)
        self.before, self.after = self.technique.build(plan.problem), self.technique.build(problem)
        self.known = {device.name: i for i, device in enumerate(problem.devices)}
        at = self.first + step
        running = next(stage for stage in plan.stages if stage.start <= at < stage.stop)
        # The latent lies where it was made: a hand-off at this very step is still to come.
        owner = next((stage for stage in plan.stages if stage.start < at <= stage.stop), running)
        self.reached, self.cut, self.holder = at, at, owner.device
        if at == 0:
            self.holder = self._source
        elif owner.device not in self.known:
            self.cut, self.holder = owner.start, self._source

    @property
    def _source(self) -> str:
        return self.problem.constraints.source or self.problem.devices[0].name

    def answer(self, time_limit_s: float | None) -> Elastic:
        """Plan the rest."""
        spent = _until(self.before, self.plan, self.reached)
        rest = self._rest(spent)
        old = self._remainder()
        planned = Outcome(self.plan.latency_s, self.plan.quality, self._variants(self.plan.stages, 0))
        kept = self._kept(rest, old, spent["latency_s"])
        stages: tuple[Stage, ...] = ()
        redone, reason = self._planned_again(rest, old if kept.latency_s is not None else None, time_limit_s)
        if redone is None:
            replanned, status, gap = Outcome(None, None, reason=reason), "infeasible", math.inf
        else:
            stages, status, gap = tuple(self._stages(redone)), redone.status, redone.gap
            replanned = self._outcome(spent["latency_s"] + redone.latency_s, redone.quality, stages, reason)
        return Elastic(
            self.plan, self.events, self.step, max(0, self.cut - self.first), self.holder, spent["latency_s"],
            planned, kept, replanned, stages, status, gap,
        )  # fmt: skip

    def _rest(self, spent: dict[str, float]) -> Chain:
        """Return the chain from the latent on, within what the request has not used up of its limits."""
        chain = self.after
        if self.cut:
            chain = latent_held_by(
                rest_of(chain, self.cut, self.plan.cuts, self.plan.variants), self.known[self.holder]
            )
        used = {"max_latency_s": spent["latency_s"], "max_energy_j": spent.get("energy_j", 0.0)}
        limits = {name: getattr(chain, name) for name in used}
        left = {name: max(limit - used[name], 0.0) for name, limit in limits.items() if limit is not None}
        return replace(chain, **left) if left else chain

    def _remainder(self) -> Solution | None:
        """Return the old decisions on the changed devices, ``None`` where one that they need has left."""
        devices, cuts, variants = [], [], []
        for stop, stage, variant in zip(self.plan.cuts, self.plan.stages, self.plan.variants, strict=True):
            if stop > self.cut:
                if stage.device not in self.known:
                    return None
                devices.append(self.known[stage.device])
                cuts.append(stop - self.cut + (1 if self.cut else 0))
                variants.append(variant)
        if self.cut:
            devices, cuts, variants = [self.known[self.holder], *devices], [1, *cuts], [0, *variants]
        return Solution(tuple(cuts), tuple(devices), tuple(variants))

    def _kept(self, rest: Chain, old: Solution | None, spent_s: float) -> Outcome:
        if old is None:
            gone = dict.fromkeys(stage.device for stage in self.plan.stages if stage.device not in self.known)
            return Outcome(None, None, reason=f"{' and '.join(gone)} left")
        found = evaluate(rest, old)
        if found.violations:
            return Outcome(None, None, reason=self.technique.describe(self.problem)(found.violations[0]))
        return Outcome(spent_s + found.metrics["latency_s"], self.plan.quality, self._variants(self.plan.stages, 0))

    def _planned_again(self, rest: Chain, start: Solution | None, limit_s: float | None) -> tuple[Plan | None, str]:
        """Return the best plan of the rest, and which limit it had to give up or why there is none."""
        result, lost = solve_instance(rest, time_limit_s=limit_s, warm_start=start), ""
        if result.status.reason == "infeasible":
            words = self.technique.describe(self.problem)
            lost = words(result.message)
            if rest.max_quality_loss is not None:
                free = replace(rest, max_quality_loss=None, objective="quality")
                first = result.message.partition("; or ")[0]  # what else would make a plan is of no use here
                result = solve_instance(free, time_limit_s=limit_s)
                lost = words(first) if result.solution is not None else lost
        if result.solution is not None:
            return self.technique.plan(self.problem, rest, result), lost
        if result.status.reason != "infeasible":
            raise TimeLimitError(f"no plan for what is left within {limit_s:g} s; raise the time limit")
        return None, f"what is left has no plan: {lost}"

    def _stages(self, rest: Plan) -> list[Stage]:
        """Name the rest's stages by the elements of the whole request, without the one that stands for the latent."""
        shift = self.cut - 1 if self.cut else 0
        stages: list[Stage] = []
        for stage in rest.stages:
            start, stop = max(stage.start + shift, self.cut), stage.stop + shift
            if stop > start:
                first, last = self.names[start], self.names[stop - 1]
                words = first if stop == start + 1 else f"{first} … {last}"
                named = {"index": len(stages), "start": start, "stop": stop, "elements": words}
                stages.append(stage.model_copy(update=named))
        return stages

    def _outcome(self, latency_s: float, loss: float | None, stages: Sequence[Stage], reason: str) -> Outcome:
        done = self._variants(self.plan.stages, 0)[: max(0, self.cut - self.first)]
        variants = done + self._variants(stages, self.cut)
        quality = None if loss is None else loss + _until(self.before, self.plan, self.cut)["quality_loss"]
        return Outcome(latency_s, quality, variants, reason)

    def _variants(self, stages: Sequence[Stage], start: int) -> tuple[str, ...]:
        """Return the denoiser of each step from element ``start`` on."""
        last = self.first + self.plan.problem.workload.steps  # type: ignore[union-attr]
        return tuple(
            str(stage.variant)
            for stage in stages
            for element in range(stage.start, stage.stop)
            if max(start, self.first) <= element < last
        )


def latent_held_by(rest: Chain, device: int) -> Chain:
    """Return the rest of a chain with the latent in front: an element that is free, on the device that holds it.

    It runs as variant 0, which runs no steps and has no weights of its own.
    """
    count, variants = rest.num_devices, rest.num_variants
    assert rest.shared_bytes[0] == 0
    free = np.full((count, variants, 1), np.inf)
    free[device, 0, 0] = 0.0
    nothing = np.zeros((variants, 1))
    handed = np.zeros((variants, variants, 1))
    before = np.concatenate([handed, rest.handoff_loss], axis=2)
    before[0, :, 1] = 0.0  # what the hand-off to the first step loses is part of that step's loss
    return replace(
        rest,
        compute_s=np.concatenate([free, rest.compute_s], axis=2),
        cut_bytes=np.concatenate([[0.0], rest.cut_bytes]),
        cut_messages=np.concatenate([[0.0], rest.cut_messages]),
        resident_bytes=np.concatenate([nothing, rest.resident_bytes], axis=1),
        transient_bytes=np.concatenate([nothing, rest.transient_bytes], axis=1),
        quality_loss=np.concatenate([nothing, rest.quality_loss], axis=1),
        handoff_loss=before,
        max_stages=None if rest.max_stages is None else rest.max_stages + 1,
        min_segment=1,
        pins={0: device, **{element + 1: where for element, where in rest.pins.items()}},
        cut_legal=np.concatenate([[True, True], rest.cut_legal[1:]]),
        held=None,
    )


def _until(chain: Chain, plan: Plan, cut: int) -> dict[str, float]:
    """Return what the request has cost when its first ``cut`` elements are done: metrics of the checker."""
    if cut == 0:
        return {"latency_s": 0.0, "energy_j": 0.0, "quality_loss": 0.0}
    stop = next(i for i, end in enumerate(plan.cuts) if end >= cut)
    done = Solution((*plan.cuts[:stop], cut), tuple(plan.devices[: stop + 1]), tuple(plan.variants[: stop + 1]))
    beginning = replace(
        chain,
        compute_s=chain.compute_s[:, :, :cut],
        cut_bytes=np.append(chain.cut_bytes[:cut], 0.0),
        cut_messages=np.append(chain.cut_messages[:cut], 0.0),
        resident_bytes=chain.resident_bytes[:, :cut],
        transient_bytes=chain.transient_bytes[:, :cut],
        quality_loss=chain.quality_loss[:, :cut],
        handoff_loss=chain.handoff_loss[:, :, : cut + 1],
        pins={element: device for element, device in chain.pins.items() if element < cut},
        cut_legal=chain.cut_legal[: cut + 1],
        held=None,
    )
    return evaluate(beginning, done).metrics
