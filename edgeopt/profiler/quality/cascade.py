"""Quality of a cascade: runs through its levels are sampled, compared with real images, and kept as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from itertools import product

import torch

from edgeopt.costs.cascade import Run, run_of
from edgeopt.errors import Finding, InputError
from edgeopt.plan import Plan
from edgeopt.profiler.quality.reference import Reference
from edgeopt.profiler.quality.sampling import load_trained, num_labels, trained
from edgeopt.profiles.model import CascadedDiffusion, MeasuredRun, RunsQuality
from edgeopt.profiles.problem import CascadeWorkload
from edgeopt.programs.cascade import augmented, draw_noises
from edgeopt.programs.denoisers import predictor
from edgeopt.programs.sampling import scaled
from edgeopt.programs.schedules import make_scheduler
from edgeopt.programs.weights import torch_dtype

__all__ = ["LevelSampler", "profile_cascade", "runs_of"]

Progress = Callable[[str], None]


class LevelSampler:
    """Runs a cascade's levels on one set of labels and noise; what begins alike is sampled once.

    Parameters
    ----------
    labels : (N,)
        Class asked for of each image.
    seed
        Of all levels' noise, drawn as by :func:`edgeopt.programs.cascade.draw_noises`.

    Raises
    ------
    InputError
        A variant without a checkpoint, or one that knows too few classes or none.
    """

    def __init__(self, model: CascadedDiffusion, labels: torch.Tensor, *, seed: int = 0, guidance: float = 1.0) -> None:
        self.model, self.labels, self.guidance = model, labels, guidance
        self._families = [model.level(k) for k in range(len(model.levels))]
        wanted = int(labels.max()) + 1
        for k, family in enumerate(self._families):
            for name in family.variants:
                if (count := num_labels(family, name)) < wanted:
                    field = f"model.levels.{k}.variants.{name}"
                    message = f"knows {count} classes, {wanted} are asked for"
                    raise InputError(Finding(field, message, "give a cascade trained on these classes"))
        dtype = torch_dtype(model.dtype)
        self._noises = [
            (latent.to(dtype), None if seen is None else seen.to(dtype))
            for latent, seen in draw_noises(model, len(labels), seed)
        ]
        self._modules: dict[str, torch.nn.Module] = {}
        self._kept: dict[tuple[Run, ...], torch.Tensor] = {}

    @torch.inference_mode()
    def __call__(self, runs: Sequence[Run]) -> torch.Tensor:
        """Return the images of the last of ``runs``, one for each level from the first on; (N, *latent_shape)."""
        key = tuple(runs)
        if key not in self._kept:
            below = self(key[:-1]) if len(key) > 1 else None
            self._kept[key] = self._sample(key[-1], below)
        return self._kept[key]

    def _sample(self, run: Run, below: torch.Tensor | None) -> torch.Tensor:
        level, family = self.model.levels[run.level], self._families[run.level]
        predict = predictor(trained(family, run.denoiser))[0]
        if run.denoiser not in self._modules:
            self._modules[run.denoiser] = load_trained(family, run.denoiser)
        module = self._modules[run.denoiser]
        null = torch.full_like(self.labels, num_labels(family, run.denoiser))
        scheduler = make_scheduler(level.sampler, run.steps, latent_shape=level.latent_shape)
        noise, seen = self._noises[run.level]
        latent = noise * getattr(scheduler, "init_noise_sigma", 1.0)
        extra = [] if below is None or seen is None else [augmented(below, seen, level.augmentation or 0.0)]
        for timestep in scheduler.timesteps:
            x = torch.cat([scaled(scheduler, latent, timestep), *extra], dim=1)
            if self.guidance > 1:
                both = torch.cat([null, self.labels])
                free, within = predict(module, torch.cat([x, x]), timestep, both).chunk(2)
                guess = free + self.guidance * (within - free)
            else:
                guess = predict(module, x, timestep, self.labels)
            latent = scheduler.step(guess, timestep, latent, return_dict=False)[0]
        return latent


def profile_cascade(
    model: CascadedDiffusion,
    steps: Sequence[Sequence[int]],
    *,
    guidance: float = 1.0,
    samples: int | None = None,
    seed: int = 0,
    progress: Progress = lambda text: None,
) -> CascadedDiffusion:
    """Return the cascade with the quality of its runs measured: every denoiser and number of steps of both levels.

    Parameters
    ----------
    steps
        Numbers of steps to measure, for each level.
    samples
        Images per run; default: as many as there are held-out digits.
    seed
        Of the noise, shared by all runs.

    Raises
    ------
    InputError
        Not a trained cascade of two levels of digits, or no numbers of steps for a level.
    """
    reference = Reference.of(model, samples)
    if len(model.levels) != 2 or len(steps) != 2 or not all(steps):
        message = f"{len(steps)} lists of steps for {len(model.levels)} levels"
        raise InputError(Finding("steps", message, "give a cascade of two levels, and numbers of steps for both"))
    choices = [
        [Run(k, name, count) for name, count in product(level.variants, dict.fromkeys(steps[k]))]
        for k, level in enumerate(model.levels)
    ]
    sampler = LevelSampler(model, reference.labels, seed=seed, guidance=guidance)
    runs = []
    for below, above in product(*choices):
        found = reference.measure(sampler((below, above)))
        progress(f"{below}, {above}: {found}")
        run = {"variants": [below.denoiser, above.denoiser], "steps": [below.steps, above.steps]}
        runs.append(MeasuredRun(**run, quality=round(found.frechet, 4)))
    count = len(reference.images)
    source = (
        f"measured {date.today().isoformat()}: {len(runs)} runs sampled, {count} images each against {count} held-out "
        f"digits, {model.levels[0].sampler.class_name}, guidance {guidance:g}, noise seed {seed}"
    )
    floor = round(reference.floor.frechet, 4)
    quality = RunsQuality(form="runs", metric=reference.metric, runs=runs, floor=floor, source=source)
    return model.model_copy(update={"quality": quality})


def runs_of(plan: Plan) -> list[Run]:
    """Return what a plan of a cascade runs, level by level.

    Raises
    ------
    InputError
        A level in several denoisers, which no table of runs predicts and no sampler here draws.
    """
    assert isinstance(plan.problem.model, CascadedDiffusion)
    assert isinstance(plan.problem.workload, CascadeWorkload)
    runs: dict[int, Run] = {}
    for stage in plan.stages:
        if stage.variant is None:
            continue
        run = run_of(plan.problem.model, stage.variant, f"stages.{stage.index}.variant")
        if runs.setdefault(run.level, run) != run:
            message = f"'{run}' continues '{runs[run.level]}'"
            raise InputError(
                Finding(f"stages.{stage.index}.variant", message, "only runs of one denoiser per level are sampled")
            )
    return [runs[k] for k in sorted(runs)]
