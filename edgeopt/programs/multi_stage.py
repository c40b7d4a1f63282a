"""A denoising run in stages: each runs its own steps with its own denoiser, and the latent travels.

Elements are the text encoder, the steps and the decoder. Messages: the prompt to the encoder; its output, the
conditioning, to the first denoising stage, which draws the noise; latent and conditioning between denoising stages;
the latent alone to the decoder; the image at the end. A model without encoder is conditioned on class labels, which
are then prompt and conditioning at once; without decoder the latent is the result.
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
from edgeopt.programs.denoisers import DENOISERS, TEXT_ENCODERS, build_component
from edgeopt.programs.diffusion import DiffusionRun
from edgeopt.programs.placing import stage_device, stage_threads, threads_restored
from edgeopt.programs.schedules import make_scheduler

__all__ = ["TOLERANCE", "MultiStage", "build", "reference"]

#: Relative to the largest value, for machines whose kernels sum in another order; on one machine it is bitwise.
TOLERANCE: float | None = 1e-3

_TOKEN_BYTES = torch.int64.itemsize


class MultiStage(Program):
    """Stages of a denoising run. A denoiser that serves several stages of a process is held once."""

    resumes_from: ClassVar[frozenset[str]] = frozenset({"cut"})

    def __init__(self, plan: Plan, stages: Sequence[int]) -> None:
        super().__init__(plan, stages)
        self._facts = DiffusionRun(plan)
        self._labels = self._facts.label_count
        make_scheduler(self._facts.model.sampler, self._facts.load.steps, num_stages=self._facts.num_stages)
        self._schedulers: dict[int, Any] = {}
        self._predict = {name: self._facts.predict(name) for name in self._facts.model.variants}
        self._modules: dict[str, nn.Module] = {}
        for index in self.stages:
            for name in self._names(index):
                if name not in self._modules:
                    self._modules[name] = _load(self._facts, name, stage_device(plan, index))

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
        return [_prompt(self._facts, self._labels, seed)]

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
        facts = self._facts
        start = max(0, self.plan.stages[index].start - facts.first_step)
        return make_scheduler(facts.model.sampler, facts.load.steps, num_stages=facts.num_stages, start=start)

    @torch.inference_mode()
    def run(self, stage: int, round_index: int, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """Run a stage's elements in order."""
        span, facts = self.plan.stages[stage], self._facts
        device = stage_device(self.plan, stage)
        tensors = [tensor.to(device) for tensor in inputs]
        if span.start < facts.first_step:
            tensors = [_encode(self._modules["text_encoder"], tensors[0])]
            self._done(0)
        steps = range(max(span.start, facts.first_step), min(span.stop, facts.last_step))
        if steps:
            tensors = self._denoise(stage, steps, tensors, device)
        if span.stop > facts.last_step:
            tensors = [_decode(self._modules["decoder"], tensors[0])]
            self._done(facts.last_step)
        return [self.hand_over(tensor.contiguous()) for tensor in tensors]

    def _denoise(
        self, stage: int, elements: range, tensors: list[torch.Tensor], device: torch.device
    ) -> list[torch.Tensor]:
        facts, variant = self._facts, self.plan.stages[stage].variant
        denoiser, predict = self._modules[f"variant:{variant}"], self._predict[f"{variant}"]
        scheduler = self._schedulers.pop(stage)  # used up: it counts its steps
        if elements.start == facts.first_step:
            tensors = [_noise(facts, scheduler).to(device), *tensors]
        latent, conditioning = tensors
        guidance = facts.load.guidance
        both = torch.cat([_unconditional(conditioning, self._labels), conditioning]) if guidance > 1 else conditioning
        for element in elements:
            timestep = scheduler.timesteps[element - facts.first_step]
            x = _scaled(scheduler, latent, timestep)
            if guidance > 1:
                free, guided = predict(denoiser, torch.cat([x, x]), timestep.to(device), both).chunk(2)
                prediction = free + guidance * (guided - free)
            else:
                prediction = predict(denoiser, x, timestep.to(device), both)
            latent = scheduler.step(prediction, timestep, latent, return_dict=False)[0]
            self._done(element)
        return [latent] if elements.stop == facts.last_step else [latent, conditioning]

    def _done(self, element: int) -> None:
        if self.on_element is not None:
            self.on_element(element)


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
    labels = facts.label_count
    cpu = torch.device("cpu")
    stage_of = [k for k, stage in enumerate(plan.stages) for _ in range(stage.start, stage.stop)]

    def as_planned(element: int) -> None:
        if (threads := stage_threads(plan, stage_of[element])) is not None:
            torch.set_num_threads(threads)

    used = {plan.stages[stage_of[element]].variant for element in range(facts.first_step, facts.last_step)}
    denoisers = {name: _load(facts, f"variant:{name}", cpu) for name in used}
    scheduler = make_scheduler(facts.model.sampler, facts.load.steps, num_stages=1)
    with threads_restored():
        conditioning = _prompt(facts, labels, seed)
        if facts.model.text_encoder:
            as_planned(0)
            conditioning = _encode(_load(facts, "text_encoder", cpu), conditioning)
        empty = _unconditional(conditioning, labels)
        latents = _noise(facts, scheduler)
        for i, timestep in enumerate(scheduler.timesteps):
            as_planned(facts.first_step + i)
            name = plan.stages[stage_of[facts.first_step + i]].variant
            predict = facts.predict(f"{name}")
            if facts.load.guidance > 1:
                x = _scaled(scheduler, torch.cat([latents] * 2), timestep)
                output = predict(denoisers[name], x, timestep, torch.cat([empty, conditioning]))
                without, within = output[: len(latents)], output[len(latents) :]
                output = without + facts.load.guidance * (within - without)
            else:
                output = predict(denoisers[name], _scaled(scheduler, latents, timestep), timestep, conditioning)
            latents = scheduler.step(output, timestep, latents).prev_sample
        if facts.model.decoder:
            as_planned(facts.last_step)
            latents = _decode(_load(facts, "decoder", cpu), latents)
    return [latents.contiguous()]


def _load(facts: DiffusionRun, name: str, device: torch.device) -> nn.Module:
    where: dict[str, Any] = {"dtype": facts.dtype, "device": device}
    kind, _, variant = name.partition(":")
    if kind == "text_encoder":
        architecture = facts.architecture(facts.model.text_encoder, "model.text_encoder")
        return build_component(architecture, TEXT_ENCODERS, "model.text_encoder", **where)
    if kind == "decoder":
        architecture = facts.architecture(facts.model.decoder, "model.decoder")
        where["only"] = ("decoder", "post_quant_conv")
        return build_component(architecture, ("AutoencoderKL",), "model.decoder", **where)
    field = f"model.variants.{variant}"
    architecture = facts.architecture(facts.model.variants[variant], field)
    return build_component(architecture, tuple(DENOISERS), field, **where)


def _prompt(facts: DiffusionRun, labels: int | None, seed: int) -> torch.Tensor:
    """Random token ids for the text encoder, or random class labels."""
    spec, generator = facts.prompt(), torch.Generator().manual_seed(seed)
    if labels is None:
        config = facts.architecture(facts.model.text_encoder, "model.text_encoder").config
        return torch.randint(config["vocab_size"], spec.shape, generator=generator)
    return torch.randint(labels, spec.shape, generator=generator)


def _noise(facts: DiffusionRun, scheduler: Any) -> torch.Tensor:
    """Draw the initial latent, on the CPU so that every device starts from the same, scaled as the solver wants it."""
    spec, generator = facts.latent(), torch.Generator().manual_seed(facts.load.seed)
    noise = torch.randn(spec.shape, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    return noise.to(spec.dtype)


def _scaled(scheduler: Any, latent: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    # Flow matching knows no input scaling.
    return scheduler.scale_model_input(latent, timestep) if hasattr(scheduler, "scale_model_input") else latent


def _unconditional(conditioning: torch.Tensor, labels: int | None) -> torch.Tensor:
    """Return what guidance steers away from: an empty text embedding, or the null label after all others."""
    return torch.zeros_like(conditioning) if labels is None else torch.full_like(conditioning, labels)


def _encode(encoder: nn.Module, prompt: torch.Tensor) -> torch.Tensor:
    return encoder(prompt).last_hidden_state


def _decode(decoder: nn.Module, latent: torch.Tensor) -> torch.Tensor:
    config = decoder.config
    latent = latent / config.scaling_factor + (config.shift_factor or 0.0)
    return decoder.decode(latent, return_dict=False)[0]
