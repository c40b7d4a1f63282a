"""How each class of denoiser is called, and what it needs beside the latent.

A table by class: a new denoiser is one function and one row.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

import torch
from torch import nn

from edgeopt.errors import Finding, InputError, MissingDependencyError
from edgeopt.profiles.model import Architecture
from edgeopt.programs.weights import WeightSource, fill, meta_parameters, open_weights

__all__ = ["DENOISERS", "TEXT_ENCODERS", "Predict", "build_component", "library_class", "predictor"]

#: (denoiser, latent, timestep, tensors of the conditioning) to a prediction of the latent's shape.
Predict = Callable[..., torch.Tensor]

TEXT_ENCODERS = ("CLIPTextModel", "T5EncoderModel")


def _unet_text(unet: nn.Module, x: torch.Tensor, t: torch.Tensor, conditioning: torch.Tensor) -> torch.Tensor:
    return unet(x, t, encoder_hidden_states=conditioning, return_dict=False)[0]


def _unet_label(unet: nn.Module, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return unet(x, t, class_labels=labels, return_dict=False)[0]


def _dit(dit: nn.Module, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    output = dit(x, timestep=t.expand(len(x)), class_labels=labels, return_dict=False)[0]
    return output[:, : x.shape[1]]  # the other half, where there is one, predicts a variance that no solver here uses


def _pixart(dit: nn.Module, x: torch.Tensor, t: torch.Tensor, conditioning: torch.Tensor) -> torch.Tensor:
    output = dit(
        x,
        encoder_hidden_states=conditioning,
        timestep=t.expand(len(x)),
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        return_dict=False,
    )[0]
    return output[:, : x.shape[1]]


#: Class to (call, number of class labels by configuration; ``None``: conditioned on text).
DENOISERS: dict[str, tuple[Predict, Callable[[Any], int] | None]] = {
    "UNet2DConditionModel": (_unet_text, None),
    "PixArtTransformer2DModel": (_pixart, None),
    "DiTTransformer2DModel": (_dit, lambda config: config.num_embeds_ada_norm),
    "UNet2DModel": (_unet_label, lambda config: (config.num_class_embeds or 0) - 1),
}


def library_class(architecture: Architecture, allowed: tuple[str, ...], field: str) -> Any:
    """Return an architecture's class.

    Raises
    ------
    InputError
        Not one that programs know how to call.
    """
    if architecture.class_name not in allowed:
        raise InputError(
            Finding(
                f"{field}.architecture.class",
                f"programs do not know how to call {architecture.library} {architecture.class_name}",
                f"use one of {', '.join(allowed)}",
            )
        )
    try:
        import diffusers
        import transformers
    except ImportError as error:
        raise MissingDependencyError(str(error.name), "models", "running a diffusion model") from error
    transformers.logging.set_verbosity_error()
    return getattr(
        {"diffusers": diffusers, "transformers": transformers}[architecture.library], architecture.class_name
    )


def build_component(
    architecture: Architecture,
    allowed: tuple[str, ...],
    field: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    only: tuple[str, ...] | None = None,
    weights: Container[str] | None = None,
) -> nn.Module:
    """Build a module and load its weights.

    Parameters
    ----------
    allowed, field
        Classes that may stand in this field of the model profile.
    only
        Children to load; the others stay without memory. ``None``: all.
    weights
        Names of the parameters to load, within every child of ``only``. ``None``: all.
    """
    cls = library_class(architecture, allowed, field)
    with meta_parameters():
        if architecture.library == "transformers":
            module = cls(cls.config_class(**architecture.config))
        else:
            module = cls(**architecture.config)
    source: WeightSource = open_weights(architecture)
    for child in only or ("",):
        part = getattr(module, child) if child else module
        if part is not None:  # a decoder may come without its quantisation layer
            fill(part, source, dtype=dtype, device=device, rename=(f"{child}." if child else "").__add__, only=weights)
            _place_buffers(part, dtype, device)
    return module.eval()


def _place_buffers(module: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    for owner in module.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            setattr(owner, name, buffer.to(device=device, dtype=dtype if buffer.is_floating_point() else None))


def predictor(architecture: Architecture) -> tuple[Predict, Callable[[Any], int] | None]:
    """Return how to call a denoiser, and its number of class labels where it is conditioned on them."""
    library_class(architecture, tuple(DENOISERS), "model.variants")
    return DENOISERS[architecture.class_name]
