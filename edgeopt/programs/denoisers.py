"""How each class of denoiser is called, and what it needs beside the latent.

A table by class: a new denoiser is one function and one row.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any

import torch
from torch import nn

from edgeopt.errors import Finding, InputError, MissingDependencyError
from edgeopt.profiles.model import Architecture
from edgeopt.programs.weights import WeightSource, fill, meta_parameters, open_weights

__all__ = [
    "DENOISERS",
    "TEXT_ENCODERS",
    "Predict",
    "build_component",
    "library_class",
    "local_conditioning",
    "predictor",
]

#: (denoiser, latent, timestep, tensors of the conditioning) to a prediction of the latent's shape.
Predict = Callable[..., torch.Tensor]

TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel", "UMT5EncoderModel")


def _unet_text(unet: nn.Module, x: torch.Tensor, t: torch.Tensor, hidden: torch.Tensor, *more: Any) -> torch.Tensor:
    width = unet.config.cross_attention_dim
    added = None
    if more:
        pooled, time_ids = more
        added = {"text_embeds": pooled, "time_ids": time_ids}
        hidden = hidden[..., -width:]  # a refiner knows the last encoder only
    return unet(x, t, encoder_hidden_states=hidden, added_cond_kwargs=added, return_dict=False)[0]


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


def _flux(
    flux: nn.Module, x: torch.Tensor, t: torch.Tensor, hidden: torch.Tensor, pooled: torch.Tensor, *guidance: Any
) -> torch.Tensor:
    """Pack 2 x 2 latent pixels into a token, as FLUX's pipeline does before its loop."""
    images, channels, height, width = x.shape
    rows, columns = height // 2, width // 2
    x = x.view(images, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5)
    y = flux(
        hidden_states=x.reshape(images, rows * columns, 4 * channels),
        timestep=t.expand(images).to(x.dtype) / 1000,
        guidance=guidance[0] if guidance else None,
        pooled_projections=pooled,
        encoder_hidden_states=hidden,
        txt_ids=torch.zeros(hidden.shape[1], 3, device=x.device, dtype=x.dtype),
        img_ids=_grid(rows, columns, x),
        return_dict=False,
    )[0]
    y = y.view(images, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return y.reshape(images, channels, height, width)


def _grid(rows: int, columns: int, like: torch.Tensor) -> torch.Tensor:
    """Positions of tokens, (rows * columns, 3): nothing, row, column."""
    row = torch.arange(rows, device=like.device, dtype=like.dtype)[:, None].expand(rows, columns)
    column = torch.arange(columns, device=like.device, dtype=like.dtype)[None, :].expand(rows, columns)
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).reshape(rows * columns, 3)


def _wan(wan: nn.Module, x: torch.Tensor, t: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    return wan(hidden_states=x, timestep=t.expand(len(x)), encoder_hidden_states=hidden, return_dict=False)[0]


def local_conditioning(
    architecture: Architecture, *, pixels: Sequence[int], pooled_width: int, guidance: float
) -> list[tuple[list[float] | float, list[float] | float]]:
    """Return what a denoiser reads of an image beside the conditioning, and every device makes by itself.

    Parameters
    ----------
    pixels
        Height and width of the image.
    pooled_width
        Of the pooled text that SDXL's denoisers read with the sizes.

    Returns
    -------
    list of pairs
        Without and with guidance: SDXL's sizes, crops and (its refiner) aesthetic scores, which are the defaults of
        diffusers' pipelines; the strength of guidance that a distilled FLUX is told.
    """
    config = architecture.config
    if config.get("addition_embed_type") == "text_time":
        height, width = map(float, pixels)
        count = (config["projection_class_embeddings_input_dim"] - pooled_width) / config["addition_time_embed_dim"]
        if count == 6:
            return [([height, width, 0.0, 0.0, height, width],) * 2]
        if count == 5:
            return [([height, width, 0.0, 0.0, 2.5], [height, width, 0.0, 0.0, 6.0])]
        why = f"leaves room for {count:g} sizes beside {pooled_width} of pooled text; known: 6, and 5 for a refiner"
        field = "model.variants.architecture.config.projection_class_embeddings_input_dim"
        raise InputError(Finding(field, why, "give the encoders that the denoiser was made for"))
    return [(guidance, guidance)] if config.get("guidance_embeds") else []


#: Class to (call, number of class labels by configuration; ``None``: conditioned on text).
DENOISERS: dict[str, tuple[Predict, Callable[[Any], int] | None]] = {
    "UNet2DConditionModel": (_unet_text, None),
    "PixArtTransformer2DModel": (_pixart, None),
    "DiTTransformer2DModel": (_dit, lambda config: config.num_embeds_ada_norm),
    "UNet2DModel": (_unet_label, lambda config: (config.num_class_embeds or 0) - 1),
    "FluxTransformer2DModel": (_flux, None),
    "WanTransformer3DModel": (_wan, None),
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
