"""Pieces of a denoising run that every technique needs: prompt, noise, guidance, text encoder, decoder, plain loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from edgeopt.plan import Plan
from edgeopt.programs.conditioning import encode, encoder_parts, vocabulary
from edgeopt.programs.denoisers import DENOISERS, TEXT_ENCODERS, build_component
from edgeopt.programs.diffusion import DiffusionRun
from edgeopt.programs.placing import stage_threads, threads_restored
from edgeopt.programs.schedules import make_scheduler

__all__ = [
    "decode", "doubled", "draw_noise", "draw_prompt", "guided", "load_part", "sample_whole", "scaled",
    "scheduler_of", "set_threads",
]  # fmt: skip

Tensors = Sequence[torch.Tensor]


def load_part(facts: DiffusionRun, name: str, device: torch.device) -> nn.Module:
    """Load ``text_encoder``, ``decoder``, or a denoiser as ``variant:name``."""
    where: dict[str, Any] = {"dtype": facts.dtype, "device": device}
    kind, _, variant = name.partition(":")
    if kind == "text_encoder":
        parts = encoder_parts(facts.model).items()
        return nn.ModuleDict(
            {part: build_component(each, TEXT_ENCODERS, "model.text_encoder", **where) for part, each in parts}
        )
    if kind == "decoder":
        architecture = facts.architecture(facts.model.decoder, "model.decoder")
        where["only"] = ("decoder", "post_quant_conv")
        return build_component(architecture, ("AutoencoderKL",), "model.decoder", **where)
    field = f"model.variants.{variant}"
    architecture = facts.architecture(facts.model.variants[variant], field)
    return build_component(architecture, tuple(DENOISERS), field, **where)


def scheduler_of(facts: DiffusionRun, start: int = 0) -> Any:
    """Return the run's scheduler, ready for call ``start``."""
    return make_scheduler(facts.model.sampler, facts.load.steps, start=start, latent_shape=facts.model.latent_shape)


def draw_prompt(facts: DiffusionRun, labels: int | None, seed: int) -> torch.Tensor:
    """Random token ids for the text encoder, or random class labels."""
    spec, generator = facts.prompt(), torch.Generator().manual_seed(seed)
    largest = vocabulary(facts.model) if labels is None else labels
    return torch.randint(largest, spec.shape, generator=generator)


def draw_noise(facts: DiffusionRun, scheduler: Any) -> torch.Tensor:
    """Draw the initial latent, on the CPU so that every device starts from the same, scaled as the solver wants it."""
    spec, generator = facts.latent(), torch.Generator().manual_seed(facts.load.seed)
    noise = torch.randn(spec.shape, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    return noise.to(spec.dtype)


def scaled(scheduler: Any, latent: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Return what the denoiser sees of a latent."""
    # Flow matching knows no input scaling.
    return scheduler.scale_model_input(latent, timestep) if hasattr(scheduler, "scale_model_input") else latent


def doubled(facts: DiffusionRun, conditioning: Tensors, labels: int | None) -> list[torch.Tensor]:
    """Put what guidance steers away from before the conditioning: an empty text embedding, or the null label."""
    if not facts.is_guided:
        return list(conditioning)
    return [torch.cat([_empty(each, labels), each]) for each in conditioning]


def _empty(conditioning: torch.Tensor, labels: int | None) -> torch.Tensor:
    """Return the null label after all others, or zeros."""
    return torch.zeros_like(conditioning) if labels is None else torch.full_like(conditioning, labels)


def guided(facts: DiffusionRun, prediction: torch.Tensor) -> torch.Tensor:
    """Join the predictions without and with conditioning, where the run is guided."""
    if not facts.is_guided:
        return prediction
    free, within = prediction.chunk(2)
    return free + facts.load.guidance * (within - free)


def decode(decoder: nn.Module, latent: torch.Tensor) -> torch.Tensor:
    """Return the images of latents."""
    config = decoder.config
    latent = latent / config.scaling_factor + (config.shift_factor or 0.0)
    return decoder.decode(latent, return_dict=False)[0]


def sample_whole(
    facts: DiffusionRun,
    plan: Plan,
    seed: int,
    denoiser_of: Callable[[int], tuple[str, nn.Module]],
) -> list[torch.Tensor]:
    """Sample in this process with one scheduler and one plain loop over all calls of the denoiser.

    Parameters
    ----------
    denoiser_of
        Name and module of the denoiser that makes call ``i``; sets the threads that it computes with.

    Returns
    -------
    list of one tensor
        Images (images, channels, height, width), or latents without a decoder.
    """
    labels, cpu = facts.label_count, torch.device("cpu")
    scheduler = scheduler_of(facts)
    with threads_restored():
        conditioning: Tensors = [draw_prompt(facts, labels, seed)]
        if facts.model.text_encoder:
            set_threads(plan, 0)
            conditioning = encode(facts.model, load_part(facts, "text_encoder", cpu), conditioning[0])
        empty = [_empty(each, labels) for each in conditioning]
        latents = draw_noise(facts, scheduler)
        for i, timestep in enumerate(scheduler.timesteps):
            name, module = denoiser_of(i)
            predict, local = facts.predict(name), facts.local(name)
            if facts.is_guided:
                x = scaled(scheduler, torch.cat([latents] * 2), timestep)
                both = [torch.cat(pair) for pair in zip(empty, conditioning, strict=True)]
                output = predict(module, x, timestep, *both, *local)
                without, within = output[: len(latents)], output[len(latents) :]
                output = without + facts.load.guidance * (within - without)
            else:
                output = predict(module, scaled(scheduler, latents, timestep), timestep, *conditioning, *local)
            latents = scheduler.step(output, timestep, latents).prev_sample
        if facts.model.decoder:
            set_threads(plan, facts.num_elements - 1)
            latents = decode(load_part(facts, "decoder", cpu), latents)
    return [latents.contiguous()]


def set_threads(plan: Plan, element: int) -> None:
    """Compute with the number of threads of the device that the plan gives an element; float sums depend on it."""
    index = next(k for k, stage in enumerate(plan.stages) if stage.start <= element < stage.stop)
    if (threads := stage_threads(plan, index)) is not None:
        torch.set_num_threads(threads)
