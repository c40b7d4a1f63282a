"""A cascade of diffusion models in stages: the first level draws an image, each further level enlarges it.

Elements are the text encoder and every level's steps. Messages: the prompt to the encoder; the conditioning to the
first level; latent, the image that the level enlarges, and conditioning inside a level; image and conditioning
between levels; the last level's image at the end. Noise never travels: every process draws what it needs from the
workload's seed. A level whose run is shorter than its elements passes on what it has in the rest of them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from edgeopt.costs.cascade import Run
from edgeopt.errors import Finding, InputError
from edgeopt.plan import Plan
from edgeopt.programs.base import Program, TensorSpec
from edgeopt.programs.cascade import CascadeFacts, augmented
from edgeopt.programs.placing import stage_device, threads_restored
from edgeopt.programs.sampling import doubled, draw_prompt, encode, guided, load_part, scaled, set_threads
from edgeopt.programs.schedules import make_scheduler

__all__ = ["TOLERANCE", "Hierarchical", "build", "reference"]

#: Relative to the largest value, for machines whose kernels sum in another order; on one machine it is bitwise.
TOLERANCE: float | None = 1e-3

_ENCODER = "text_encoder"


class Hierarchical(Program):
    """Stages of a cascade. A denoiser that serves several stages of a process is held once."""

    def __init__(self, plan: Plan, stages: Sequence[int]) -> None:
        super().__init__(plan, stages)
        self._facts = CascadeFacts(plan)
        self._labels = self._facts.labels
        self._runs = [self._facts.run(stage) for stage in plan.stages]
        self._check_lengths()
        self._noises = self._facts.noises()
        self._schedulers: dict[int, Any] = {}
        self._modules: dict[str, nn.Module] = {}
        for index in self.stages:
            run = self._runs[index]
            name = _ENCODER if run is None else run.denoiser
            if name not in self._modules:
                self._modules[name] = _load(self._facts, run, stage_device(plan, index))
        for index in range(len(plan.stages)):
            self._scheduler(index)  # refuses, in every process alike, a solver that cannot be cut so

    def _check_lengths(self) -> None:
        """All stages of a level run the same number of steps."""
        lengths: dict[int, int] = {}
        for index, run in enumerate(self._runs):
            if run is not None and lengths.setdefault(run.level, run.steps) != run.steps:
                message = f"'{run}' continues a run of {lengths[run.level]} steps"
                raise InputError(Finding(f"stages.{index}.variant", message, "let a level's stages agree on its steps"))

    @property
    def rounds(self) -> int:
        """One pass over the stages makes the images."""
        return 1

    def request(self, seed: int) -> list[torch.Tensor]:
        """Draw one prompt (or label) per image. The noise is not part of it: it comes from the workload's seed."""
        return [draw_prompt(self._facts.families[0], self._labels, seed)]

    def specs(self, stage: int, round_index: int) -> list[TensorSpec]:
        """Return the tensors that cross the cut before a stage."""
        stages = self.plan.stages
        return self._facts.message(self._facts.num_elements if stage == len(stages) else stages[stage].start)

    def begin(self) -> None:
        """Set every hosted stage's schedule to its first step."""
        self._schedulers = {index: self._scheduler(index) for index in self.stages}

    def fork(self) -> Hierarchical:
        """Share the denoisers; the schedules are new."""
        other = copy.copy(self)
        other._schedulers = {}
        return other

    def _scheduler(self, index: int) -> Any:
        run = self._runs[index]
        if run is None:
            return None
        sharing = sum(other is not None and other.level == run.level for other in self._runs)
        level, start = self._facts.model.levels[run.level], self._facts.steps(self.plan.stages[index], run).start
        return make_scheduler(
            level.sampler, run.steps, start=start, latent_shape=level.latent_shape, num_stages=sharing
        )

    @torch.inference_mode()
    def run(self, stage: int, round_index: int, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """Run a stage's elements in order."""
        device = stage_device(self.plan, stage)
        tensors = [tensor.to(device) for tensor in inputs]
        if self._runs[stage] is None:
            tensors = encode(self._facts.families[0].model, self._modules[_ENCODER], tensors[0])
            self._done(0)
        else:
            tensors = self._denoise(stage, tensors, device)
        return [tensor.contiguous().cpu() for tensor in tensors]

    def _denoise(self, index: int, tensors: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
        facts, stage, run = self._facts, self.plan.stages[index], self._runs[index]
        assert run is not None
        level, span = facts.model.levels[run.level], facts.costs.levels[run.level]
        scheduler = self._schedulers.pop(index)  # used up: it counts its steps
        noise, seen = (None if each is None else each.to(device) for each in self._noises[run.level])
        if stage.start == span.start:
            tensors = [noise * getattr(scheduler, "init_noise_sigma", 1.0), *tensors]
        (latent, *below), conditioning = tensors[: 1 + (run.level > 0)], tensors[1 + (run.level > 0) :]
        extra = [augmented(image, seen, level.augmentation or 0.0) for image in below]
        family = facts.families[run.level]
        predict, both = family.predict(run.denoiser), doubled(family, conditioning, self._labels)
        for step in facts.steps(stage, run):
            timestep = scheduler.timesteps[step]
            x = torch.cat([scaled(scheduler, latent, timestep), *extra], dim=1)
            x = torch.cat([x, x]) if family.is_guided else x
            prediction = guided(family, predict(self._modules[run.denoiser], x, timestep.to(device), *both))
            latent = scheduler.step(prediction, timestep, latent, return_dict=False)[0]
            self._done(span.start + step)
        for element in range(max(stage.start, span.start + run.steps), stage.stop):
            self._done(element)
        if stage.stop == facts.num_elements:
            return [latent]
        return [latent, *conditioning] if stage.stop == span.stop else [latent, *below, *conditioning]


def build(plan: Plan, stages: Sequence[int]) -> Hierarchical:
    """Load the stages that this process hosts."""
    return Hierarchical(plan, stages)


@torch.inference_mode()
def reference(plan: Plan, seed: int) -> list[torch.Tensor]:
    """Sample in this process: level after level, each with one scheduler and one plain loop over its steps.

    Every step computes with the number of threads of the device that the plan gives it, since the order of floating
    point sums depends on it.

    Returns
    -------
    list of one tensor
        Images of the last level, (images, channels, height, width).
    """
    facts = CascadeFacts(plan)
    labels, runs = facts.labels, [facts.run(stage) for stage in plan.stages]
    stage_of = [k for k, stage in enumerate(plan.stages) for _ in range(stage.start, stage.stop)]
    modules: dict[str, nn.Module] = {}

    def as_planned(element: int) -> str:
        """Set the element's threads and return the name of what runs it, loaded."""
        set_threads(plan, element)
        run = runs[stage_of[element]]
        name = _ENCODER if run is None else run.denoiser
        if name not in modules:
            modules[name] = _load(facts, run, torch.device("cpu"))
        return name

    with threads_restored():
        conditioning, image = [draw_prompt(facts.families[0], labels, seed)], None
        if facts.model.text_encoder:
            conditioning = encode(facts.families[0].model, modules[as_planned(0)], conditioning[0])
        for k, (level, (noise, seen)) in enumerate(zip(facts.model.levels, facts.noises(), strict=True)):
            first, family = facts.costs.levels[k].start, facts.families[k]
            steps = next(run.steps for run in runs if run is not None and run.level == k)
            scheduler = make_scheduler(level.sampler, steps, latent_shape=level.latent_shape)
            latents = noise * getattr(scheduler, "init_noise_sigma", 1.0)
            shown = None if seen is None or image is None else augmented(image, seen, level.augmentation or 0.0)
            both = doubled(family, conditioning, labels)
            for i, timestep in enumerate(scheduler.timesteps):
                name = as_planned(first + i)
                x = scaled(scheduler, latents, timestep)
                x = x if shown is None else torch.cat([x, shown], dim=1)
                if facts.load.guidance > 1:
                    output = family.predict(name)(modules[name], torch.cat([x] * 2), timestep, *both)
                    without, within = output[: len(latents)], output[len(latents) :]
                    output = without + facts.load.guidance * (within - without)
                else:
                    output = family.predict(name)(modules[name], x, timestep, *conditioning)
                latents = scheduler.step(output, timestep, latents).prev_sample
            image = latents
    assert image is not None
    return [image.contiguous()]


def _load(facts: CascadeFacts, run: Run | None, device: torch.device) -> nn.Module:
    """Load a run's denoiser, or (``None``) the text encoder."""
    if run is None:
        return load_part(facts.families[0], _ENCODER, device)
    return load_part(facts.families[run.level], f"variant:{run.denoiser}", device)
