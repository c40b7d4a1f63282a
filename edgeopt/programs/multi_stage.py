"""A denoising run in stages: each runs its own steps with its own denoiser, and the latent travels.

Elements are the text encoder, the steps and the decoder. Messages: the prompt to the encoder; its output, the
conditioning, to the first denoising stage, which draws the noise; between denoising stages the latent, the conditioning
and what the solver remembers; the latent alone to the decoder; the image at the end. A model without encoder is
conditioned on class labels, which are then prompt and conditioning at once; without decoder the latent is the result.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from edgeopt.errors import Finding, InputError
from edgeopt.plan import Plan
from edgeopt.programs.base import Program, TensorSpec
from edgeopt.programs.conditioning import encode
from edgeopt.programs.diffusion import DiffusionRun
from edgeopt.programs.placing import stage_device
from edgeopt.programs.sampling import (
    decode,
    doubled,
    draw_noise,
    draw_prompt,
    guided,
    load_part,
    sample_whole,
    scaled,
    scheduler_of,
    set_threads,
)
from edgeopt.programs.schedules import check_cut, restore_state, solver_state

__all__ = ["TOLERANCE", "MultiStage", "build", "reference"]

#: Relative to the largest value, for machines whose kernels sum in another order; on one machine it is bitwise.
TOLERANCE: float | None = 1e-3


class MultiStage(Program):
    """Stages of a denoising run. A denoiser that serves several stages of a process is held once."""

    resumes_from: ClassVar[frozenset[str]] = frozenset({"cut"})

    def __init__(self, plan: Plan, stages: Sequence[int]) -> None:
        super().__init__(plan, stages)
        self._facts = DiffusionRun(plan)
        self._labels = self._facts.label_count
        self._schedulers: dict[int, Any] = {}
        for stage in plan.stages:
            check_cut(self._facts.model.sampler, self._facts.load.steps, stage.start - self._facts.first_step)
        self._predict = {name: self._facts.predict(name) for name in self._facts.model.variants}
        self._modules: dict[str, nn.Module] = {}
        for index in self.stages:
            for name in self._names(index):
                if name not in self._modules:
                    self._modules[name] = load_part(self._facts, name, stage_device(plan, index))

    def _names(self, index: int) -> list[str]:
        """Modules that a stage needs: ``text_encoder``, ``decoder``, or a denoiser as ``variant:name``."""
        stage, facts = self.plan.stages[index], self._facts
        names = ["text_encoder"] if stage.start < facts.first_step else []
        if stage.start < facts.last_step and stage.stop > facts.first_step:
            if stage.variant not in facts.model.variants:
                raise InputError(
                    Finding(
                        f"stages.{index}.variant",
                        f"no denoiser '{stage.variant}' in model '{facts.model.name}'",
                        f"use one of {', '.join(facts.model.variants)}",
                    )
                )
            names.append(f"variant:{stage.variant}")
        return names + (["decoder"] if stage.stop > facts.last_step else [])

    @property
    def rounds(self) -> int:
        """One pass over the stages makes the images."""
        return 1

    def request(self, seed: int) -> list[torch.Tensor]:
        """Draw one prompt (or label) per image. The noise is not part of it: it comes from the workload's seed."""
        return [draw_prompt(self._facts, self._labels, seed)]

    def resume(self, seed: int, handoffs: Sequence[list[torch.Tensor]]) -> list[torch.Tensor]:
        """Hand the last latent over once more."""
        return list(handoffs[-1])

    def specs(self, stage: int, round_index: int) -> list[TensorSpec]:
        """Return the tensors that cross the cut before a stage."""
        stages = self.plan.stages
        return self._facts.message(self._facts.num_elements if stage == len(stages) else stages[stage].start)

    def begin(self) -> None:
        """Set every hosted stage's schedule to its first step."""
        self._schedulers = {index: self._scheduler(index) for index in self.stages}

    def fork(self) -> MultiStage:
        """Share the denoisers; the schedules are new."""
        other = copy.copy(self)
        other._schedulers = {}
        return other

    def _scheduler(self, index: int) -> Any:
        start = self.plan.stages[index].start - self._facts.first_step
        return scheduler_of(self._facts, start if 0 < start < self._facts.solver.calls else 0)

    @torch.inference_mode()
    def run(self, stage: int, round_index: int, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """Run a stage's elements in order."""
        span, facts = self.plan.stages[stage], self._facts
        device = stage_device(self.plan, stage)
        tensors = [tensor.to(device) for tensor in inputs]
        if span.start < facts.first_step:
            tensors = encode(facts.model, self._modules["text_encoder"], tensors[0])
            self._done(0)
        steps = range(max(span.start, facts.first_step), min(span.stop, facts.last_step))
        if steps:
            tensors = self._denoise(stage, steps, tensors, device)
        if span.stop > facts.last_step:
            tensors = [decode(self._modules["decoder"], tensors[0])]
            self._done(facts.last_step)
        return [self.hand_over(tensor.contiguous()) for tensor in tensors]

    def _denoise(
        self, stage: int, elements: range, tensors: list[torch.Tensor], device: torch.device
    ) -> list[torch.Tensor]:
        facts, variant = self._facts, self.plan.stages[stage].variant
        denoiser, predict = self._modules[f"variant:{variant}"], self._predict[f"{variant}"]
        scheduler = self._schedulers.pop(stage)  # used up: it counts its steps
        sampler, num_steps = facts.model.sampler, facts.load.steps
        if elements.start == facts.first_step:
            tensors = [draw_noise(facts, scheduler).to(device), *tensors]
        count = 1 + len(facts.conditioning())
        (latent, *conditioning), state = tensors[:count], tensors[count:]
        restore_state(scheduler, sampler, num_steps, elements.start - facts.first_step, state)
        both = [*doubled(facts, conditioning, self._labels), *facts.local(f"{variant}", device)]
        for element in elements:
            timestep = scheduler.timesteps[element - facts.first_step]
            x = scaled(scheduler, latent, timestep)
            x = torch.cat([x, x]) if facts.is_guided else x
            prediction = guided(facts, predict(denoiser, x, timestep.to(device), *both))
            latent = scheduler.step(prediction, timestep, latent, return_dict=False)[0]
            self._done(element)
        if elements.stop == facts.last_step:
            return [latent]
        return [latent, *conditioning, *solver_state(scheduler, sampler, num_steps, elements.stop - facts.first_step)]


def build(plan: Plan, stages: Sequence[int]) -> MultiStage:
    """Load the stages that this process hosts."""
    return MultiStage(plan, stages)


@torch.inference_mode()
def reference(plan: Plan, seed: int) -> list[torch.Tensor]:
    """Sample in this process with one scheduler and one plain loop over all steps.

    Every element computes with the number of threads of the device that the plan gives it, since the order of
    floating point sums depends on it.

    Returns
    -------
    list of one tensor
        Images (images, channels, height, width), or latents without a decoder.
    """
    facts = DiffusionRun(plan)
    variants = [stage.variant for stage in plan.stages for _ in range(stage.start, stage.stop)]
    used = set(variants[facts.first_step : facts.last_step])
    denoisers = {name: load_part(facts, f"variant:{name}", torch.device("cpu")) for name in used}

    def denoiser_of(call: int) -> tuple[str, nn.Module]:
        set_threads(plan, facts.first_step + call)
        name = variants[facts.first_step + call]
        return f"{name}", denoisers[name]

    return sample_whole(facts, plan, seed, denoiser_of)
