"""Patches: the rows of the latent are shared out, and all devices denoise at the same time, slow ones in fewer steps.

How many rows each gets is the divisible-load problem of :mod:`edgeopt_solvers.divisible`; the cost model is
:mod:`edgeopt.costs.patch`. Each denoiser that can be cut so is a case of its own. Text encoder and decoder run on the
source. Between devices of equal speed: Li et al., DistriFusion, arXiv:2402.19481.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from typing import ClassVar

import numpy as np

import edgeopt
from edgeopt.costs.diffusion import DiffusionCosts
from edgeopt.costs.energy import energy_terms, power_w
from edgeopt.costs.patch import PatchCosts
from edgeopt.costs.strides import STRIDES, stride_refusal, stride_vectors
from edgeopt.errors import Finding, InputError, NoPlanError
from edgeopt.plan import Plan
from edgeopt.profiles.model import Diffusion, StaleQuality
from edgeopt.profiles.problem import ImageWorkload, Problem
from edgeopt.strategies import refusals
from edgeopt.strategies.base import Strategy
from edgeopt.strategies.cases import margin_of, narrowed, qualities, quality_of
from edgeopt.strategies.chain import able_devices, wants_quality
from edgeopt.strategies.patch_shares import PatchShares, missing_link
from edgeopt_solvers import Result
from edgeopt_solvers.divisible import Divisible, Solution, evaluate
from edgeopt_solvers.result import relative_gap

__all__ = ["Patch"]

#: So many devices have all their subsets tried.
_ALL_SETS = 5


class Patch(Strategy):
    """Plan which device has which rows of the latent, and which of them computes fewer steps."""

    name: ClassVar[str] = "patch"

    def unfit(self, problem: Problem) -> str | None:
        """Refuse what has no patches, and goals and links that a division of rows does not know."""
        model = problem.model
        if not (isinstance(model, Diffusion) and isinstance(problem.workload, ImageWorkload)):
            return f"patch shares out the rows of an image; {model.name!r} is a {model.family} model"
        if not any(variant.patch for variant in model.variants.values()):
            return (
                f"patch needs what patches exchange, and {model.name!r} does not say it (`edgeopt profile model` "
                "derives it for the denoisers that can be cut so)"
            )
        if reason := _other_goal(problem):
            return reason
        if reason := refusals.of_stages(self.name, problem):
            return reason
        if any(link.medium for link in [problem.network.default, *problem.network.links] if link):
            return "patch sends over all links at once, and these share a medium"
        return None

    def cases(self, problem: Problem) -> list[Problem]:
        """One problem for each set of devices, their strides, and denoiser that has patches and enough quality.

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
            field = "constraints.patch" if "max_stride" in reason else "objective"
            raise InputError([Finding(field, reason, "use `latency`, `throughput` or `quality`, or another strategy")])
        known = qualities(model, workload)
        able = [name for name, variant in model.variants.items() if variant.patch]
        strides = [stride for stride in STRIDES if stride <= problem.constraints.patch.max_stride]
        good = {(name, stride) for name in able for stride in strides}
        if wants_quality(problem):
            good = _good_enough(problem, known, good)
        sharing, cases = _sharing(problem), []
        for name in able:
            narrow = narrowed(problem, model, name, known.get(name))
            for devices in sharing:
                for vector in _strides(narrow, devices):
                    if (name, max(vector, default=1)) in good:
                        cases.append(_shared_by(narrow, devices, vector))
        if not cases:
            message = f"strides {problem.constraints.patch.strides} do not reach the quality that is asked for"
            raise NoPlanError(f"{message}, or their loss was not measured")
        return cases

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
        units, makespan_s, bound_s = _one_takes_all_steps(shares, instance, result)
        latency_s = makespan_s + shares.around_s
        stages, transfers = shares.stages(units), shares.transfers(units)
        quality = None
        assert isinstance(problem.model, Diffusion)
        stale = _stale_loss(problem, shares.costs.variant, max(shares.strides))
        if problem.model.quality is not None and stale is not None:
            quality = quality_of(problem) + stale
        objective, bound, gap = latency_s, bound_s + shares.around_s, relative_gap(makespan_s, bound_s)
        if problem.objective == "quality":  # of this denoiser, however its rows are shared out
            assert quality is not None
            objective, bound, gap = quality, quality, 0.0
        plan = Plan(
            edgeopt_version=edgeopt.__version__,
            problem=problem,
            strategy=self.name,
            backend=result.backend,
            status="gap_reached" if result.status.reason == "optimal" and gap > 1e-6 else result.status.reason,
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
                "strides": shares.strides,
                "rows_per_unit": shares.costs.exchange.multiple,
            },
            stages=stages,
            transfers=transfers,
            timeline=shares.timeline(stages, transfers, latency_s),
            notes=shares.notes(units, quality is None and problem.model.quality is not None),
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


def _one_takes_all_steps(shares: PatchShares, instance: Divisible, result: Result) -> tuple[list[int], float, float]:
    """Return units, makespan and its bound of the best division in which a device without a stride has rows.

    Rows that all lie on devices with strides would be a run of fewer steps. If no division is better, one unit is moved
    from the device from which this costs least. No division with a row on d ends before the old level, nor before a
    single unit on d would.

    Raises
    ------
    NoPlanError
        No such division keeps the limits.
    """
    units, makespan_s = list(result.solution.loads), result.metrics["makespan_s"]
    whole = [int(d) for d in np.flatnonzero(shares.able) if shares.strides[d] == 1]
    if any(units[d] for d in whole):
        return units, makespan_s, result.bound
    found, single_s = [], math.inf
    for d in whole:
        one = Solution(tuple(int(k == d) for k in range(len(units))), (1.0,) * len(units))
        single_s = min(single_s, evaluate(replace(instance, num_units=1), one).metrics["makespan_s"])
        for donor in (k for k, count in enumerate(units) if count):
            moved = [count + (k == d) - (k == donor) for k, count in enumerate(units)]
            value = evaluate(instance, Solution(tuple(moved), tuple(1.0 if count else 0.0 for count in moved)))
            if not value.violations:
                found.append((value.metrics["makespan_s"], moved))
    if not found:
        raise NoPlanError("no division keeps the limits in which a device without a stride has rows")
    best_s, units = min(found)
    return units, best_s, min(best_s, max(result.bound, single_s))


def _strides(narrow: Problem, devices: list[str]) -> list[tuple[int, ...]]:
    """Strides of these devices, for a problem of one denoiser; a single empty one where all take all steps."""
    options = narrow.constraints.patch
    if options.strides and devices == options.devices:
        return [tuple(options.strides)]
    assert isinstance(narrow.model, Diffusion)
    assert isinstance(narrow.workload, ImageWorkload)
    costs = PatchCosts(DiffusionCosts(narrow.model, narrow.workload), options)
    if options.max_stride == 1 or costs.fresh_calls == costs.calls:
        return [()]
    by_name = {device.name: costs.step_s(device) for device in narrow.devices if device.name in devices}
    seconds = [by_name[name][0] + costs.num_units * by_name[name][1] for name in devices]
    return list(stride_vectors(seconds, options.max_stride))


def _shared_by(problem: Problem, devices: list[str], strides: tuple[int, ...]) -> Problem:
    options = problem.constraints.patch.model_copy(update={"devices": devices, "strides": list(strides)})
    return problem.model_copy(update={"constraints": problem.constraints.model_copy(update={"patch": options})})


def _good_enough(problem: Problem, known: dict[str, float], able: set[tuple[str, int]]) -> set[tuple[str, int]]:
    """Return which denoisers with which largest stride reach the quality that is asked for.

    Raises
    ------
    InputError
        The model says nothing of their quality.
    NoPlanError
        None is good enough.
    """
    losses = {(name, stride): _stale_loss(problem, name, stride) for name, stride in able if name in known}
    reached = {key: known[key[0]] + loss for key, loss in losses.items() if loss is not None}
    field, options = wants_quality(problem) or "objective", problem.constraints.patch
    if not reached:
        message = f"the problem asks for quality and model {problem.model.name!r} has none for these patches"
        mend = "add measured `quality:` and `stale:` blocks to the model, use `mode: synchronous`, or drop it"
        raise InputError([Finding(field=field, message=message, mend=mend)])
    if max(options.strides or [options.max_stride]) > 1 and all(stride == 1 for _, stride in reached):
        message = f"the problem asks for quality and model {problem.model.name!r} has none for patches with strides"
        mend = "add measured `stale.strided:` losses to the model, or drop max_stride"
        raise InputError([Finding("constraints.patch.max_stride", message, mend)])
    floor = math.inf if problem.constraints.quality is None else problem.constraints.quality
    assert isinstance(problem.model, Diffusion)
    spare = {name: known[name] * margin_of(problem.model, known[name]) for name, _ in reached}  # as samples may exceed
    good = {key for key, value in reached.items() if value + spare[key[0]] <= floor}
    if not good:
        name, stride = min(sorted(reached), key=lambda key: reached[key] + spare[key[0]])
        message = f"constraints.quality is {floor:g}, and by patches {name!r} reaches {reached[name, stride]:.4g}"
        margin = f", which samples may exceed by {spare[name]:.4g}" if spare[name] else ""
        raise NoPlanError(f"{message} at best{margin}")
    return good


def _other_goal(problem: Problem) -> str:
    """Say which wish of a problem is none of patches; empty where all are."""
    model, workload, options = problem.model, problem.workload, problem.constraints.patch
    if problem.objective not in ("latency", "throughput", "quality") or problem.constraints.energy is not None:
        return "patch makes requests short; it weighs neither energy nor several goals"
    if not (isinstance(model, Diffusion) and isinstance(workload, ImageWorkload)):
        return ""
    if options.max_stride > 1 and (why := stride_refusal(model.sampler, workload.steps)):
        return f"constraints.patch.max_stride is {options.max_stride}, and {why}"
    return ""


def _stale_loss(problem: Problem, variant: str, stride: int) -> float | None:
    """Return what stale context costs: the loss measured with at most as many synchronous steps, over as few steps.

    With a stride no less than without one. 0 where there is none, ``None`` where nothing was measured.
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
    plain = _at_warmup(known.warmup_steps, known.loss.get(variant, []), options.warmup_steps)
    if stride == 1 or plain is None:
        return plain
    for strided in known.strided:
        if strided.stride == stride:
            loss = _at_warmup(strided.warmup_steps, strided.loss.get(variant, []), options.warmup_steps)
            return None if loss is None else max(loss, plain)
    return None


def _at_warmup(warmup_steps: list[int], losses: list[float], asked: int) -> float | None:
    known = [(steps, loss) for steps, loss in zip(warmup_steps, losses, strict=False) if steps <= asked]
    return max(known)[1] if known else None
