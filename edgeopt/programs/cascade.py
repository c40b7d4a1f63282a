"""What a cascade's problem says about the tensors of its run, and how a level sees the image that it enlarges."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from edgeopt.costs.cascade import CascadeCosts, Run, run_of
from edgeopt.errors import Finding, InputError
from edgeopt.plan import Plan, Stage
from edgeopt.profiles.model import CascadedDiffusion
from edgeopt.profiles.problem import CascadeWorkload, ImageWorkload
from edgeopt.programs.base import TensorSpec
from edgeopt.programs.diffusion import DiffusionRun, configured
from edgeopt.programs.weights import torch_dtype

__all__ = ["CascadeFacts", "augmented", "draw_noises"]


def augmented(image: torch.Tensor, noise: torch.Tensor, augmentation: float) -> torch.Tensor:
    """Return the channels by which a denoiser sees a smaller image: enlarged bilinearly, with noise added.

    Parameters
    ----------
    image : (N, C, h, w)
    noise : (N, C, H, W)
        Standard normal, of the size that is wanted.
    augmentation
        Standard deviation of the noise that is added.
    """
    large = functional.interpolate(image, size=noise.shape[-2:], mode="bilinear", align_corners=False)
    return large + augmentation * noise


def draw_noises(model: CascadedDiffusion, count: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Draw every level's noise: of its latent, and of the image that it enlarges (``None`` in the first).

    In one order from one generator on the CPU, so that every process can draw what it needs and all agree.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn: list[tuple[torch.Tensor, torch.Tensor | None]] = []
    for k, level in enumerate(model.levels):
        latent = torch.randn((count, *level.latent_shape), generator=generator)
        seen = (count, model.levels[k - 1].latent_shape[0], *level.latent_shape[1:])
        drawn.append((latent, torch.randn(seen, generator=generator) if k else None))
    return drawn


class CascadeFacts:
    """Shapes and ranges that follow from a plan of a cascade."""

    def __init__(self, plan: Plan) -> None:
        model, load = plan.problem.model, plan.problem.workload
        if not isinstance(model, CascadedDiffusion) or not isinstance(load, CascadeWorkload):
            message = "the hierarchical program runs cascades of diffusion models on their workloads"
            raise InputError(Finding("model.family", message, "change the strategy"))
        self.plan, self.model, self.load, self.costs = plan, model, load, CascadeCosts(model, load)
        self.dtype = torch_dtype(model.dtype)
        self.num_elements = len(self.costs.names)
        #: Shapes and checks of every level as a family of its own.
        self.families = [DiffusionRun(_as_family(plan, k, count[-1])) for k, count in enumerate(self.costs.choices)]
        self._check_channels()

    @property
    def labels(self) -> int | None:
        """Classes that the denoisers know, without the null label; ``None`` with a text encoder."""
        counts = {family.label_count for family in self.families}
        if len(counts) > 1:
            raise InputError(
                Finding("model.levels", f"levels know {sorted(map(str, counts))} classes", "let all know the same")
            )
        return counts.pop()

    def run(self, stage: Stage) -> Run | None:
        """Return the denoiser and the number of steps of a stage; ``None`` for one that only encodes."""
        if stage.stop <= self.costs.first_step:
            return None
        run = run_of(self.model, stage.variant, f"stages.{stage.index}.variant")
        span = self.costs.levels[run.level]
        if not span.start <= stage.start < stage.stop <= span.stop:
            level = self.model.levels[run.level].name
            message = f"elements {stage.start} to {stage.stop} are not inside level '{level}' of '{stage.variant}'"
            raise InputError(Finding(f"stages.{stage.index}", message, "cut where levels meet"))
        return run

    def message(self, cut: int) -> list[TensorSpec]:
        """Tensors that cross a cut, in order: latent, image below it, conditioning."""
        first, latents = self.families[0], [family.latent() for family in self.families]
        if cut == 0:
            return [first.prompt()]
        if cut == self.num_elements:
            return [latents[-1]]
        level = next(k for k, span in enumerate(self.costs.levels) if cut < span.stop)
        below = [latents[level - 1]] if level else []
        own = [] if cut == self.costs.levels[level].start else [latents[level]]
        return [*own, *below, *first.conditioning()]

    def steps(self, stage: Stage, run: Run) -> range:
        """Steps of its level that a stage computes; none where the level's run is shorter than its elements."""
        start = self.costs.levels[run.level].start
        return range(min(stage.start - start, run.steps), min(stage.stop - start, run.steps))

    def noises(self) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """Return every level's noise in the model's dtype."""
        drawn = draw_noises(self.model, self.load.images, self.load.seed)
        return [(latent.to(self.dtype), None if seen is None else seen.to(self.dtype)) for latent, seen in drawn]

    def _check_channels(self) -> None:
        """Refuse denoisers that do not take what their level shows them."""
        findings = []
        for k, (level, family) in enumerate(zip(self.model.levels, self.families, strict=True)):
            channels = level.latent_shape[0] + (self.model.levels[k - 1].latent_shape[0] if k else 0)
            for name, variant in level.variants.items():
                field = f"model.levels.{k}.variants.{name}"
                taken = configured(family.architecture(variant, field)).in_channels
                if taken != channels:
                    shows = f"takes {taken} channels, level '{level.name}' shows {channels}"
                    mend = f"set in_channels to {channels}" + (": its own and those of the image below" if k else "")
                    findings.append(Finding(f"{field}.architecture.config", shows, mend))
        if findings:
            raise InputError(findings)


def _as_family(plan: Plan, level: int, steps: int) -> Plan:
    """Return a plan of one level alone, for what families of denoisers are asked."""
    assert isinstance(plan.problem.model, CascadedDiffusion)
    load: Any = plan.problem.workload
    workload = ImageWorkload(steps=steps, images=load.images, guidance=load.guidance, seed=load.seed)
    problem = plan.problem.model_copy(update={"model": plan.problem.model.level(level), "workload": workload})
    return plan.model_copy(update={"problem": problem, "stages": []})
