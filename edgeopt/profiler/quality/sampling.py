"""Many plans of one family sampled from the same noise, and the noise errors of its members."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from edgeopt.errors import Finding, InputError
from edgeopt.profiles.model import Architecture, Diffusion
from edgeopt.programs.denoisers import DENOISERS, build_component, predictor
from edgeopt.programs.diffusion import configured
from edgeopt.programs.schedules import make_scheduler
from edgeopt.programs.weights import torch_dtype

__all__ = ["PlanSampler", "load_trained", "noise_errors", "num_labels", "trained"]


class PlanSampler:
    """Runs plans, each a variant per step, on one set of labels and noise.

    Runs that begin alike share the beginning: what a single variant made of the noise up to each step is kept.

    Parameters
    ----------
    labels : (N,)
        Class asked for of each image.
    noise : (N, *latent_shape)
        Standard normal; the same for every plan, so that plans differ by what they do and not by luck.

    Raises
    ------
    InputError
        A variant without a checkpoint, or one that knows too few classes or none.
    """

    def __init__(
        self, model: Diffusion, steps: int, labels: torch.Tensor, noise: torch.Tensor, *, guidance: float = 1.0
    ) -> None:
        self.names = list(model.variants)
        self.steps, self.labels, self.guidance = steps, labels, guidance
        self._sampler, self._dtype = model.sampler, torch_dtype(model.dtype)
        self._modules = [load_trained(model, name) for name in self.names]
        self._predict = [predictor(trained(model, name))[0] for name in self.names]
        self._null = [num_labels(model, name) for name in self.names]
        wanted = int(labels.max()) + 1
        for name, count in zip(self.names, self._null, strict=True):
            if count < wanted:
                message = f"knows {count} classes, {wanted} are asked for"
                raise InputError(Finding(f"model.variants.{name}", message, "give a family trained on these classes"))
        scale = getattr(self._scheduler(0), "init_noise_sigma", 1.0)
        self._start = (noise * scale).to(self._dtype)
        self._kept: dict[tuple[int, int], torch.Tensor] = {}

    def _scheduler(self, start: int) -> Any:
        return make_scheduler(self._sampler, self.steps, num_stages=2, start=start)

    @torch.inference_mode()
    def __call__(self, plan: Sequence[int]) -> torch.Tensor:
        """Return the images of a plan, (N, *latent_shape).

        Parameters
        ----------
        plan
            Index of the variant at each step.
        """
        if len(plan) != self.steps:
            raise ValueError(f"{len(plan)} variants for {self.steps} steps")
        first = plan[0]
        alike = next((i for i, variant in enumerate(plan) if variant != first), self.steps)
        done = max((k for k in range(1, alike + 1) if (first, k) in self._kept), default=0)
        latent = self._kept[first, done] if done else self._start
        scheduler = self._scheduler(done)
        for i in range(done, self.steps):
            timestep = scheduler.timesteps[i]
            x = scheduler.scale_model_input(latent, timestep) if hasattr(scheduler, "scale_model_input") else latent
            latent = scheduler.step(self._estimate(plan[i], x, timestep), timestep, latent, return_dict=False)[0]
            if i < alike:
                self._kept[first, i + 1] = latent
        return latent

    def _estimate(self, variant: int, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        module, predict = self._modules[variant], self._predict[variant]
        if self.guidance <= 1:
            return predict(module, x, timestep, self.labels)
        both = torch.cat([torch.full_like(self.labels, self._null[variant]), self.labels])
        free, guided = predict(module, torch.cat([x, x]), timestep, both).chunk(2)
        return free + self.guidance * (guided - free)


def trained(model: Diffusion, name: str) -> Architecture:
    """Return what a variant is built from; random weights are refused, as they have no quality."""
    architecture = model.variants[name].architecture
    if architecture is None or architecture.checkpoint is None:
        missing = "architecture" if architecture is None else "checkpoint"
        message = f"'{name}' of '{model.name}' has no {missing}: random weights have no quality"
        raise InputError(Finding(f"model.variants.{name}.{missing}", message, "give a trained family"))
    return architecture


def num_labels(model: Diffusion, name: str) -> int:
    """Return a denoiser's number of classes, which is also its null label."""
    count = predictor(trained(model, name))[1]
    if count is None:
        raise InputError(
            Finding(f"model.variants.{name}", "is conditioned on text", "give a family conditioned on class labels")
        )
    return count(configured(trained(model, name)))


def load_trained(model: Diffusion, name: str) -> nn.Module:
    """Load a variant from its checkpoint."""
    return build_component(
        trained(model, name), tuple(DENOISERS), f"model.variants.{name}",
        dtype=torch_dtype(model.dtype), device=torch.device("cpu"),
    )  # fmt: skip


@torch.inference_mode()
def noise_errors(
    model: Diffusion, steps: int, images: torch.Tensor, labels: torch.Tensor, *, draws: int = 2, seed: int = 0
) -> torch.Tensor:
    """Return each variant's mean squared error of the noise in held-out images, at the noise level of each step.

    Parameters
    ----------
    draws
        Noises per image.

    Returns
    -------
    tensor (V, steps), float64

    Raises
    ------
    InputError
        A sampler that is not DDIM, or a family that does not predict noise.
    """
    scheduler = make_scheduler(model.sampler, steps, num_stages=2)
    kind = model.sampler.config.get("prediction_type", "epsilon")
    if model.sampler.class_name != "DDIMScheduler" or kind != "epsilon":
        message = f"{model.sampler.class_name} with prediction_type {kind}: noise errors are those of noise prediction"
        raise InputError(Finding("model.sampler", message, "use DDIMScheduler and a family that predicts noise"))
    modules = [load_trained(model, name) for name in model.variants]
    calls = [predictor(trained(model, name))[0] for name in model.variants]
    dtype, generator = torch_dtype(model.dtype), torch.Generator().manual_seed(seed)
    x, asked = images.repeat(draws, 1, 1, 1).to(dtype), labels.repeat(draws)
    errors = torch.zeros(len(modules), steps, dtype=torch.float64)
    for i, timestep in enumerate(scheduler.timesteps):
        noise = torch.randn(x.shape, generator=generator).to(dtype)
        noisy = scheduler.add_noise(x, noise, timestep.expand(len(x)))
        for v, (module, predict) in enumerate(zip(modules, calls, strict=True)):
            errors[v, i] = (predict(module, noisy, timestep, asked) - noise).double().square().mean()
    return errors
