"""Patches: the rows of the latent are shared out, and all devices take all steps at the same time.

How many rows each gets is the divisible-load problem of :mod:`edgeopt_solvers.divisible`; the cost model is
:mod:`edgeopt.costs.patch`. Each denoiser that can be cut so is a case of its own. Text encoder and decoder run on the
source. Between devices of equal speed: Li et al., DistriFusion, arXiv:2402.19481.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import ClassVar

import edgeopt
from edgeopt.costs.energy import energy_terms, power_w
from edgeopt.errors import Finding, InputError, NoPlanError
from edgeopt.plan import Plan
from edgeopt.profiles.model import Diffusion, StaleQuality
from edgeopt.profiles.problem import ImageWorkload, Problem
from edgeopt.strategies.base import Strategy
from edgeopt.strategies.cases import narrowed, qualities, quality_of
from edgeopt.strategies.chain import able_devices, wants_quality
from edgeopt.strategies.patch_shares import PatchShares, missing_link
from edgeopt_solvers import Result
from edgeopt_solvers.divisible import Divisible, Solution

__all__ = ["Patch"]

#: So many devices have all their subsets tried.
_ALL_SETS = 5


class Patch(Strategy):
    """Plan which device has which rows of the latent."""

    name: ClassVar[str] = "patch"

    def unfit(self, problem: Problem) -> str | None:
        """Refuse what has no patches, and goals and links that a division of rows does not know."""
        model, limits = problem.model, problem.constraints
        if not (isinstance(model, Diffusion) and isinstance(problem.workload, ImageWorkload)):
            return f"patch shares out the rows of an image; {model.name!r} is a {model.family} model"
        if not any(variant.patch for variant in model.variants.values()):
            return (
                f"patch needs what patches exchange, and {model.name!r} does not say it (`edgeopt profile model` "
                "derives it for the denoisers that can be cut so)"
            )
        if reason := _other_goal(problem):
            return reason
        if limits.pin or limits.first or limits.last or limits.max_stages or limits.min_segment > 1:
            return "patch has no elements that could be pinned or counted (constraints pin, first, last, stages)"
        if any(link.medium for link in [problem.network.default, *problem.network.links] if link):
            return "patch sends over all links at once, and these share a medium"
        return None

    def cases(self, problem: Problem) -> list[Problem]:
        """One problem for each set of devices, and denoiser that has patches and, where asked for, enough quality.

        Who exchanges with whom depends on who takes part, which a divisible load does not know. Small sets come first:
        of equal plans the one with fewer devices is taken.

        Raises
        ------
        InputError
            The problem asks for quality, and the model carries none for these denoisers, or not for stale context.
        NoPlanError
            None is good enough.
        """
        model, workload = problem.model, problem.workload
        assert isinstance(model, Diffusion)
        assert isinstance(workload, ImageWorkload)
        if reason := _other_goal(problem):
            raise InputError([Finding("objective", reason, "use `latency`, `throughput` or `quality`")])
        known, floor = qualities(model, workload), problem.constraints.quality
        able = [name for name, variant in model.variants.items() if variant.patch]
        if field := wants_quality(problem):
            floor = math.inf if floor is None else floor
            losses = {name: _stale_loss(problem, name) for name in able}
            best = {name: known[name] + loss for name, loss in losses.items() if name in known and loss is not None}
            if not best:
                message = f"the problem asks for quality and model {model.name!r} has none for these patches"
                mend = "add measured `quality:` and `stale:` blocks to the model, use `mode: synchronous`, or drop it"
                raise InputError([Finding(field=field, message=message, mend=mend)])
            able = [name for name, value in best.items() if value <= floor]
            if not able:
                name = min(best, key=lambda each: best[each])
                raise NoPlanError(
                    f"constraints.quality is {floor:g}, and by patches {name!r} reaches {best[name]:.4g} at best"
                )
        sharing = _sharing(problem)
        return [
            _shared_by(narrowed(problem, model, name, known.get(name)), devices) for name in able for devices in sharing
        ]

    def build(self, problem: Problem) -> Divisible:
        """Build the load of the problem's first denoiser (of a case: its only one).

        Raises
        ------
        InputError
            As :meth:`cases`; two devices that may take part have no link; or the source cannot encode and decode.
        """
        return PatchShares.of(self.cases(problem)[0]).instance()

    def solution(self, plan: Plan) -> Solution:
        """Return the rows of every device, in units."""
        units = plan.decisions["units"]
        if not isinstance(units, list) or not all(isinstance(unit, int) for unit in units):
            raise ValueError(f"decisions.units is {units!r}, not a whole number for each device")
        return Solution(tuple(units), tuple(1.0 if unit else 0.0 for unit in units))  # type: ignore[arg-type, misc]

    def plan(self, problem: Problem, instance: Divisible, result: Result) -> Plan:
        """Write a stage for each device with rows, then those of the text encoder and the decoder."""
        problem = self.cases(problem)[0]
        shares = PatchShares.of(problem)
        units, latency_s = list(result.solution.loads), result.metrics["makespan_s"] + shares.around_s
        stages, transfers = shares.stages(units), shares.transfers(units)
        quality = None
        assert isinstance(problem.model, Diffusion)
        stale = _stale_loss(problem, shares.costs.variant)
        if problem.model.quality is not None and stale is not None:
            quality = quality_of(problem) + stale
        objective, bound, gap = result.objective + shares.around_s, result.bound + shares.around_s, result.gap
        if problem.objective == "quality":  # of this denoiser, however its rows are shared out
            assert quality is not None
            objective, bound, gap = quality, quality, 0.0
        plan = Plan(
            edgeopt_version=edgeopt.__version__,
            problem=problem,
            strategy=self.name,
            backend=result.backend,
            status=result.status.reason,
            objective=objective,
            bound=bound,
            gap=gap,
            runtime_s=result.runtime_s,
            latency_s=latency_s,
            throughput_per_s=1.0 / latency_s if latency_s > 0 else math.inf,
            quality=quality,
            metrics={"images_per_s": shares.costs.costs.workload.images / latency_s},
            decisions={
                "mode": problem.constraints.patch.mode,
                "warmup_steps": shares.costs.fresh_calls,
                "units": units,
                "rows_per_unit": shares.costs.exchange.multiple,
            },
            stages=stages,
            transfers=transfers,
            timeline=shares.timeline(stages, transfers, latency_s),
            notes=shares.notes(quality is None and problem.model.quality is not None),
        )
        if power_w(problem.devices, "busy") is None:
            return plan
        return plan.model_copy(update={"energy_j": sum(terms.counted for terms in energy_terms(plan).values())})


def _sharing(problem: Problem) -> list[list[str]]:
    """Sets of devices that may share the rows: all of them for few devices, else the likely ones.

    Raises
    ------
    InputError
        A device that should share is not there, or cannot compute.
    """
    able = [device.name for device, can in zip(problem.devices, able_devices(problem), strict=True) if can]
    asked = problem.constraints.patch.devices
    if asked and not set(asked) & set(problem.constraints.forbid):  # one that is forbidden leaves the rest open
        if missing := [name for name in asked if name not in able]:
            message = f"{', '.join(missing)} cannot share"
            raise InputError([Finding("constraints.patch.devices", message, f"choose among {', '.join(able)}")])
        return [asked]
    sizes = range(1, len(able) + 1) if len(able) <= _ALL_SETS else (1, 2, len(able) - 1, len(able))
    sets = [list(names) for size in sizes for names in combinations(able, size)]
    linked = [names for names in sets if not missing_link(problem, names)]
    return linked or [able]  # which says what is missing


def _shared_by(problem: Problem, devices: list[str]) -> Problem:
    options = problem.constraints.patch.model_copy(update={"devices": devices})
    return problem.model_copy(update={"constraints": problem.constraints.model_copy(update={"patch": options})})


def _other_goal(problem: Problem) -> str:
    """Say which goal of a problem is none of patches; empty where all are."""
    if problem.objective in ("latency", "throughput", "quality") and problem.constraints.energy is None:
        return ""
    return "patch makes requests short; it weighs neither energy nor several goals"


def _stale_loss(problem: Problem, variant: str) -> float | None:
    """Return what stale context costs: the loss measured with at most as many synchronous steps, over as few steps.

    0 where there is none, ``None`` where nothing was measured.
    """
    model, workload = problem.model, problem.workload
    assert isinstance(model, Diffusion)
    assert isinstance(workload, ImageWorkload)
    options = problem.constraints.patch
    if options.mode == "synchronous" or options.warmup_steps >= workload.steps:
        return 0.0
    known: StaleQuality | None = model.stale
    if known is None or workload.steps < known.steps:
        return None
    measured = zip(known.warmup_steps, known.loss.get(variant, []), strict=False)
    losses = [(steps, loss) for steps, loss in measured if steps <= options.warmup_steps]
    return max(losses)[1] if losses else None
