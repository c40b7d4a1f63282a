"""From a trained family to the quality in its profile, and from a plan back to the quality of its samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch

from edgeopt.errors import Finding, InputError
from edgeopt.plan import Plan
from edgeopt.profiler.quality.cascade import LevelSampler, runs_of
from edgeopt.profiler.quality.reference import Reference
from edgeopt.profiler.quality.sampling import PlanSampler, noise_errors
from edgeopt.profiles.model import (
    AdditiveQuality,
    CascadedDiffusion,
    CausalLM,
    Diffusion,
    TableQuality,
    WholeQuality,
)
from edgeopt.profiles.problem import ImageWorkload, TextWorkload
from edgeopt.quality import SampleQuality, fit_additive, rank_correlation, safety_margin
from edgeopt.training.digits import METRICS, SIDE

__all__ = [
    "METRIC", "PlanQuality", "calibration_plans", "check_plans", "noise_of", "profile_quality", "sample_plan",
]  # fmt: skip

METRIC = METRICS[SIDE]

Form = Literal["additive", "table", "whole"]
Progress = Callable[[str], None]


def _ignore(text: str) -> None:
    """Tell nobody."""


def noise_of(model: Diffusion, count: int, seed: int) -> torch.Tensor:
    """Draw the noise that every plan starts from."""
    return torch.randn((count, *model.latent_shape), generator=torch.Generator().manual_seed(seed))


def profile_quality(
    model: Diffusion,
    *,
    form: Form = "additive",
    steps: int = 25,
    guidance: float = 1.0,
    samples: int | None = None,
    first: str | None = None,
    second: str | None = None,
    cuts: int = 4,
    checks: int = 20,
    seed: int = 0,
    progress: Progress = _ignore,
) -> Diffusion:
    """Return the model with its quality measured.

    Parameters
    ----------
    form
        ``additive``: losses per step from noise-error gaps, fitted to sampled plans; ``table``: ``first`` for a
        fraction of the steps, ``second`` for the rest; ``whole``: runs in one variant.
    samples
        Images per plan; default: as many as there are held-out digits.
    first, second
        For ``table``.
    cuts
        Hand-over points sampled between each variant and the best one (in both orders for ``additive``).
    checks
        Random plans, sampled and kept out of the fit, that tell the error of ``additive`` and its margin, which holds
        for 9 of 10 further plans if they are 9 or more.
    seed
        Of the noise and of the plans that are checked.
    progress
        Told every figure of every plan that was sampled.

    Raises
    ------
    InputError
        Not a trained family of digits, or a form that needs other variants.
    """
    reference = Reference.of(model, samples)
    names = list(model.variants)
    _check_request(form, names, first, second, steps, cuts, checks)
    noise = noise_of(model, len(reference.images), seed)
    sampler = PlanSampler(model, steps, reference.labels, noise, guidance=guidance)

    def metric(plan: Sequence[int]) -> float:
        found = reference.measure(sampler(plan))
        progress(f"{_spelled(plan, names)}: {found}")
        return found.frechet

    quality: Any
    if form == "table":
        quality = _table(names, f"{first}", f"{second}", steps, cuts, metric)
    elif form == "whole":
        figures = {name: round(metric([v] * steps), 4) for v, name in enumerate(names)}
        quality = WholeQuality(form="whole", metric=METRIC, quality=figures, source="sampled")
    else:
        progress("noise errors")
        errors = noise_errors(model, steps, reference.images, reference.labels, seed=seed).numpy()
        quality = _additive(names, errors, cuts, checks, seed, metric)
    count = len(reference.images)
    source = (
        f"measured {date.today().isoformat()}: {quality.source}; {count} images per plan against {count} held-out "
        f"digits, {steps} steps of {model.sampler.class_name}, guidance {guidance:g}, noise seed {seed}"
    )
    told = {"metric": reference.metric, "floor": round(reference.floor.frechet, 4), "source": source}
    return model.model_copy(update={"quality": quality.model_copy(update=told)})


def _spelled(plan: Sequence[int], names: Sequence[str]) -> str:
    """Write a plan as ``10 small, 15 large``."""
    return ", ".join(f"{len(list(same))} {names[v]}" for v, same in groupby(plan))


def _check_request(
    form: Form, names: list[str], first: str | None, second: str | None, steps: int, cuts: int, checks: int
) -> None:
    known = f"use two of {', '.join(names)}"
    findings = []
    if form == "table":
        for option, name in (("first", first), ("second", second)):
            if name not in names:
                message = "is missing" if name is None else f"there is no variant '{name}'"
                findings.append(Finding(option, message, known))
        if first == second and not findings:
            findings.append(Finding("second", f"'{second}' is also the first variant", known))
    elif first is not None or second is not None:
        findings.append(Finding("form", f"{form} is of all variants", "drop first and second, or take form table"))
    if not 1 <= cuts < steps:
        findings.append(Finding("cuts", f"{cuts} hand-over points inside {steps} steps", f"use 1 to {steps - 1}"))
    if form == "additive" and len(names) < 2:
        findings.append(Finding("form", "one variant makes no mixtures", "take form whole"))
    if checks < 2:
        findings.append(Finding("checks", f"{checks} plans tell no error", "check 2 or more"))
    if findings:
        raise InputError(findings)


def _hand_overs(steps: int, cuts: int) -> list[int]:
    """Spread hand-over points over the inside of a run."""
    return sorted({max(1, min(steps - 1, round(steps * k / (cuts + 1)))) for k in range(1, cuts + 1)})


def _table(
    names: list[str], first: str, second: str, steps: int, cuts: int, metric: Callable[[Sequence[int]], float]
) -> TableQuality:
    a, b = names.index(first), names.index(second)
    at = [0, *_hand_overs(steps, cuts), steps]
    figures = [round(metric([a] * cut + [b] * (steps - cut)), 4) for cut in at]
    fractions = [cut / steps for cut in at]
    return TableQuality(
        form="table", metric=METRIC, first=first, second=second, fraction=fractions, quality=figures,
        source=f"sampled at {len(at)} hand-over points",
    )  # fmt: skip


def _additive(
    names: list[str],
    errors: np.ndarray,
    cuts: int,
    checks: int,
    seed: int,
    metric: Callable[[Sequence[int]], float],
) -> AdditiveQuality:
    num_variants, steps = errors.shape
    whole = [metric([v] * steps) for v in range(num_variants)]
    best = int(np.argmin(whole))
    plans = calibration_plans(num_variants, steps, cuts, best)
    figures = whole + [metric(plan) for plan in plans[num_variants:]]
    fit = fit_additive(errors - errors[best], best, plans, figures, figures[best])
    unseen = check_plans(num_variants, steps, checks, seed)
    sampled = [metric(plan) for plan in unseen]
    error = fit.rms_error(unseen, sampled)
    predicted = fit.predict(unseen)
    ranks, margin = rank_correlation(predicted, sampled), safety_margin(predicted, sampled)
    source = (
        f"losses start from noise-error gaps to '{names[best]}' and are fitted to {len(plans)} sampled plans (rms "
        f"error {fit.rms_error(plans, figures):.3f}); fit_error and margin (which 9 of 10 plans stay within) are of "
        f"{checks} random plans that were not in the fit, rank correlation {ranks:.2f}"
    )
    loss = {name: [round(float(x), 5) for x in fit.loss[v]] for v, name in enumerate(names)}
    return AdditiveQuality(
        form="additive", metric=METRIC, base=round(fit.base, 4), steps=steps, loss=loss,
        fit_error=round(error, 4), margin=round(margin, 4), source=source,
    )  # fmt: skip


def calibration_plans(num_variants: int, steps: int, cuts: int, best: int) -> list[list[int]]:
    """Plans that losses are fitted to: every variant throughout, then handed over to and from the best one."""
    plans = [[v] * steps for v in range(num_variants)]
    for v in range(num_variants):
        for cut in _hand_overs(steps, cuts) if v != best else ():
            plans += [[v] * cut + [best] * (steps - cut), [best] * cut + [v] * (steps - cut)]
    return plans


def check_plans(num_variants: int, steps: int, count: int, seed: int) -> list[list[int]]:
    """Draw plans of two or three stages in any variants, cut anywhere."""
    draw = np.random.default_rng(seed)
    plans = []
    for k in range(count):
        stages = min(2 + k % 2, steps)
        ends = [*sorted(draw.choice(np.arange(1, steps), stages - 1, replace=False)), steps]
        plan: list[int] = []
        for end in ends:
            others = [v for v in range(num_variants) if not plan or v != plan[-1]]
            plan += [int(draw.choice(others))] * int(end - len(plan))
        plans.append(plan)
    return plans


@dataclass(frozen=True, slots=True)
class PlanQuality:
    """The quality a plan was chosen for beside that of its samples."""

    metric: str
    predicted: float | None
    sampled: SampleQuality
    floor: SampleQuality
    fit_error: float | None

    @property
    def error(self) -> float | None:
        """Predicted minus sampled, in units of the metric."""
        return None if self.predicted is None else self.predicted - self.sampled.frechet

    def document(self) -> dict[str, Any]:
        """Return everything by name."""
        return {
            "metric": self.metric, "predicted": self.predicted, "sampled": self.sampled.document(),
            "error": self.error, "fit_error": self.fit_error, "floor": self.floor.document(),
        }  # fmt: skip


def sample_plan(plan: Plan, *, samples: int | None = None, seed: int = 0) -> PlanQuality:
    """Sample a plan's run, however its quality was predicted, and measure what it makes.

    Parameters
    ----------
    samples
        Images; default: as many as there are held-out digits.
    seed
        Of the noise. Profiles are measured with seed 0: another one also tells what luck makes.

    Raises
    ------
    InputError
        The plan is not a run of a trained family or cascade of digits, or its quality is predicted in another metric.
    """
    model, load = plan.problem.model, plan.problem.workload
    if isinstance(model, CausalLM) or isinstance(load, TextWorkload):
        raise InputError(Finding("model.family", f"'{model.name}' makes no images", "give a plan of a diffusion model"))
    reference = Reference.of(model, samples)
    told = model.quality
    if told is not None and told.metric != reference.metric:
        message = f"predicted as '{told.metric}', sampled as '{reference.metric}'"
        raise InputError(Finding("model.quality.metric", message, "measure it with `edgeopt profile quality`"))
    if isinstance(model, CascadedDiffusion):
        images = LevelSampler(model, reference.labels, seed=seed, guidance=load.guidance)(runs_of(plan))
    else:
        assert isinstance(load, ImageWorkload)
        names = list(model.variants)
        steps = [names.index(f"{stage.variant}") for stage in plan.stages for _ in range(stage.start, stage.stop)]
        noise = noise_of(model, len(reference.images), seed)
        images = PlanSampler(model, load.steps, reference.labels, noise, guidance=load.guidance)(steps)
    fit_error = told.fit_error if isinstance(told, AdditiveQuality) else None
    return PlanQuality(reference.metric, plan.quality, reference.measure(images), reference.floor, fit_error)
