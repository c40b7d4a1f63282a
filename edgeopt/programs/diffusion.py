"""What a diffusion problem says about the tensors of its run: shapes, ranges of elements, bytes on the wire."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from edgeopt.costs.diffusion import guides_twice
from edgeopt.costs.solvers import solver_of
from edgeopt.errors import Finding, InputError
from edgeopt.plan import Plan
from edgeopt.profiles.model import Architecture, Component, Diffusion, Variant
from edgeopt.profiles.problem import ImageWorkload
from edgeopt.programs.base import TensorSpec
from edgeopt.programs.conditioning import conditioning_shapes
from edgeopt.programs.denoisers import DENOISERS, Predict, library_class, local_conditioning, predictor
from edgeopt.programs.weights import torch_dtype

__all__ = ["DiffusionRun", "configured", "configured_module"]

_TOKEN_BYTES = torch.int64.itemsize


class DiffusionRun:
    """Shapes and ranges that follow from the problem alone."""

    def __init__(self, plan: Plan) -> None:
        model, load = plan.problem.model, plan.problem.workload
        if not isinstance(model, Diffusion) or not isinstance(load, ImageWorkload):
            mend = "change the strategy"
            raise InputError(
                Finding("model.family", f"the {plan.strategy} program runs diffusion models on image workloads", mend)
            )
        self.model, self.load = model, load
        self.dtype = torch_dtype(model.dtype)
        self.solver = solver_of(model.sampler, load.steps)
        self.first_step = 1 if model.text_encoder else 0
        self.last_step = self.first_step + self._num_inner(plan)
        self.num_elements = self.last_step + (1 if model.decoder else 0)
        self.prompt_tokens = max(1, round(model.prompt / _TOKEN_BYTES))
        self._check_bytes()

    def _num_inner(self, plan: Plan) -> int:
        """Elements between text encoder and decoder: calls of a denoiser."""
        return self.solver.calls

    @property
    def is_guided(self) -> bool:
        """Whether every call of a denoiser is made with and without conditioning."""
        return guides_twice(self.model, self.load)

    def architecture(self, part: Component | Variant, field: str) -> Architecture:
        if part.architecture is None:
            raise InputError(
                Finding(f"{field}.architecture", f"model '{self.model.name}' says nothing to build it from", "add it")
            )
        return part.architecture

    def predict(self, variant: str) -> Predict:
        """Return how to call a denoiser."""
        field = f"model.variants.{variant}"
        return predictor(self.architecture(self.model.variants[variant], field))[0]

    @property
    def label_count(self) -> int | None:
        """Classes that a label-conditioned denoiser knows, without the null label; ``None`` with a text encoder."""
        name, variant = next(iter(self.model.variants.items()))
        architecture = self.architecture(variant, f"model.variants.{name}")
        _, labels = predictor(architecture)
        if (labels is None) != (self.model.text_encoder is not None):
            have, needs = ("no text encoder", "one") if labels is None else ("a text encoder", "none")
            raise InputError(
                Finding(
                    "model.text_encoder",
                    f"{architecture.class_name} needs {needs}, the model has {have}",
                    "add or drop it",
                )
            )
        if labels is None:
            return None
        count = labels(configured(architecture))
        if count < 1:
            raise InputError(
                Finding(
                    f"model.variants.{name}.architecture.config",
                    "the denoiser has no class embedding",
                    "set num_class_embeds",
                )
            )
        return count

    def prompt(self) -> TensorSpec:
        shape = (self.load.images, self.prompt_tokens) if self.model.text_encoder else (self.load.images,)
        return TensorSpec(shape, torch.int64)

    def conditioning(self) -> list[TensorSpec]:
        """What denoisers read beside latent and timestep."""
        if self.model.text_encoder is None:
            return [self.prompt()]
        return conditioning_shapes(self.model, self.prompt_tokens, self.load.images, self.dtype)

    @property
    def image_size(self) -> tuple[int, ...]:
        """Height and width of the images; without a decoder, those of pipelines that scale by eight."""
        scale = 8
        if self.model.decoder is not None:
            config = self.architecture(self.model.decoder, "model.decoder").config
            scale = 2 ** (len(config.get("block_out_channels", [64])) - 1)
        return tuple(size * scale for size in self.model.latent_shape[-2:])

    def local(self, variant: str, device: torch.device | str = "cpu") -> list[torch.Tensor]:
        """Return what a denoiser reads beside the conditioning, for the batch of a call; every device makes it."""
        architecture = self.architecture(self.model.variants[variant], f"model.variants.{variant}")
        pooled = self.conditioning()[-1].shape[-1] if self.model.text_encoder else 0
        rows = local_conditioning(
            architecture, pixels=self.image_size, pooled_width=pooled, guidance=self.load.guidance
        )
        halves = (0, 1) if self.is_guided else (1,)
        return [
            torch.tensor(
                [pair[half] for half in halves for _ in range(self.load.images)], dtype=self.dtype, device=device
            )
            for pair in rows
        ]

    def latent(self) -> TensorSpec:
        return TensorSpec((self.load.images, *self.model.latent_shape), self.dtype)

    def result(self) -> TensorSpec:
        if self.model.decoder is None:
            return self.latent()
        config = self.architecture(self.model.decoder, "model.decoder").config
        return TensorSpec((self.load.images, config.get("out_channels", 3), *self.image_size), self.dtype)

    def message(self, cut: int) -> list[TensorSpec]:
        """Tensors that cross a cut, in order."""
        if cut == 0:
            return [self.prompt()]
        if cut == self.num_elements:
            return [self.result()]
        if cut == self.first_step:
            return self.conditioning()
        if cut == self.last_step:
            return [self.latent()]
        state = self.solver.state(cut - self.first_step)
        return [self.latent(), *self.conditioning(), *[self.latent()] * state]

    def _check_bytes(self) -> None:
        """Refuse a profile whose bytes are not the tensors': its predictions would be of another run."""
        stated = {"prompt": [self.prompt()], "conditioning": self.conditioning(), "latent": [self.latent()]}
        claims = [(f"model.{name}", getattr(self.model, name), specs) for name, specs in stated.items()]
        if self.model.decoder:
            claims.append(("model.decoder.output", self.model.decoder.output, [self.result()]))
        findings = []
        for field, claimed, specs in claims:
            actual = sum(math.prod(spec.shape[1:]) * spec.dtype.itemsize for spec in specs)
            if claimed != actual:
                tensors = " and ".join(f"{spec.shape[1:]} {spec.dtype}" for spec in specs)
                why = f"the profile says {claimed:g} B per image, the tensor {tensors} has {actual} B"
                findings.append(Finding(field, why, f"write {actual} B"))
        if findings:
            raise InputError(findings)


def configured(architecture: Architecture) -> Any:
    """Return the configuration with the class's defaults filled in."""
    return configured_module(architecture).config


def configured_module(architecture: Architecture, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a denoiser without memory."""
    cls = library_class(architecture, tuple(DENOISERS), "model.variants")
    with torch.device("meta"):
        return cls(**architecture.config).to(dtype).eval()
