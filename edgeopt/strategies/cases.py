"""One denoiser of a family as a problem of its own, for techniques that run the same one from first step to last."""

from __future__ import annotations

from edgeopt.costs.diffusion import DiffusionCosts
from edgeopt.costs.quality import quality_terms
from edgeopt.profiles.model import AdditiveQuality, Diffusion, WholeQuality
from edgeopt.profiles.problem import ImageWorkload, Problem

__all__ = ["margin_notes", "margin_of", "narrowed", "qualities", "quality_of"]


def qualities(model: Diffusion, workload: ImageWorkload) -> dict[str, float]:
    """Quality of whole runs with each denoiser that the profile says something of."""
    costs = DiffusionCosts(model, workload)
    terms = quality_terms(costs)
    if terms is None:
        return {}
    return {
        name: terms.base + float(terms.loss[row].sum())
        for row, name in enumerate(costs.variants[1:], start=1)
        if row not in terms.unmeasured
    }


def narrowed(problem: Problem, model: Diffusion, name: str, quality: float | None) -> Problem:
    """Keep one denoiser; its quality is that of a whole run, with the margin that a fitted one has."""
    old = model.quality
    kept = None
    if old is not None and quality is not None:
        kept = WholeQuality(
            form="whole", metric=old.metric, quality={name: quality}, margin=margin_of(model, quality) or None,
            floor=old.floor, source=old.source,
        )  # fmt: skip
    narrow = model.model_copy(update={"variants": {name: model.variants[name]}, "quality": kept})
    return problem.model_copy(update={"model": narrow})


def quality_of(case: Problem) -> float:
    """Return the quality of a case that has one."""
    assert isinstance(case.model, Diffusion)
    assert isinstance(case.model.quality, WholeQuality)
    (quality,) = case.model.quality.quality.values()
    return quality


def margin_of(model: Diffusion, quality: float) -> float:
    """Return the fraction by which samples may exceed a whole run's quality; the best run of a fit was sampled."""
    known = model.quality
    if isinstance(known, AdditiveQuality) and quality <= known.base:
        return 0.0
    return getattr(known, "margin", None) or 0.0


def margin_notes(problem: Problem, target: float, margin: float) -> list[str]:
    """Say to which prediction ``target`` the quality asked for has been tightened, if it has."""
    asked = problem.constraints.quality
    if asked is None or target == asked:
        return []
    return [
        f"quality {asked:g} is planned as {target:.4g}: samples may exceed their prediction by "
        f"{margin:.1%} (margin of the model's quality profile)"
    ]
