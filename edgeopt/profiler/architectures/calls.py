"""How each class of a diffusion pipeline is called: one function and one row per class.

A call is split into what depends on the latent, what is the request's conditioning (it travels to every denoising
stage), and what every device makes by itself (timesteps, positions, image sizes).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from edgeopt.errors import Finding, InputError

__all__ = ["DENOISERS", "Call", "Denoiser", "denoiser_call", "encoder_outputs"]


@dataclass(frozen=True, slots=True)
class Call:
    """Keyword arguments of a forward pass."""

    latent: dict[str, torch.Tensor]
    conditioning: dict[str, torch.Tensor] = field(default_factory=dict)
    other: dict[str, Any] = field(default_factory=dict)

    @property
    def conditioning_bytes(self) -> int:
        """Bytes of the conditioning, nested or not."""
        return sum(tensor.nbytes for tensor in self.conditioning.values())

    def arguments(self) -> dict[str, Any]:
        """All arguments. ``a.b`` is key ``b`` of the mapping that argument ``a`` takes."""
        flat: dict[str, Any] = {**self.latent, **self.conditioning, **self.other}
        nested: dict[str, Any] = {}
        for name, value in flat.items():
            outer, _, inner = name.partition(".")
            if inner:
                nested.setdefault(outer, {})[inner] = value
            else:
                nested[name] = value
        return nested


def _floats(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _integers(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.int64, device="meta")


def _unet_text(config: Any, latent: list[int], tokens: int, dtype: torch.dtype) -> Call:
    width = config.cross_attention_dim
    conditioning = {"encoder_hidden_states": _floats(dtype, 1, tokens, width if isinstance(width, int) else width[0])}
    other: dict[str, Any] = {"timestep": _integers()}
    if config.addition_embed_type == "text_time":
        # SDXL appends to the pooled text six numbers of sizes and crops, its refiner five: each a sine embedding.
        sizes = {2816: 6, 2560: 5}.get(config.projection_class_embeddings_input_dim, 6)
        pooled = config.projection_class_embeddings_input_dim - sizes * config.addition_time_embed_dim
        conditioning["added_cond_kwargs.text_embeds"] = _floats(dtype, 1, pooled)
        other["added_cond_kwargs.time_ids"] = _floats(dtype, 1, sizes)
    if config.num_class_embeds:
        conditioning["class_labels"] = _integers(1)
    return Call({"sample": _floats(dtype, 1, *latent)}, conditioning, other)


def _unet_label(config: Any, latent: list[int], tokens: int, dtype: torch.dtype) -> Call:
    labels = {"class_labels": _integers(1)} if config.num_class_embeds else {}
    return Call({"sample": _floats(dtype, 1, *latent)}, labels, {"timestep": _integers()})


def _dit(config: Any, latent: list[int], tokens: int, dtype: torch.dtype) -> Call:
    return Call(
        {"hidden_states": _floats(dtype, 1, *latent)}, {"class_labels": _integers(1)}, {"timestep": _integers(1)}
    )


def _pixart(config: Any, latent: list[int], tokens: int, dtype: torch.dtype) -> Call:
    sized = config.use_additional_conditions or (config.use_additional_conditions is None and config.sample_size == 128)
    return Call(
        {"hidden_states": _floats(dtype, 1, *latent)},
        {"encoder_hidden_states": _floats(dtype, 1, tokens, config.caption_channels)},
        {
            "timestep": _integers(1),
            "added_cond_kwargs.resolution": _floats(dtype, 1, 2) if sized else None,
            "added_cond_kwargs.aspect_ratio": _floats(dtype, 1, 1) if sized else None,
        },
    )


def _sd3(config: Any, latent: list[int], tokens: int, dtype: torch.dtype) -> Call:
    return Call(
        {"hidden_states": _floats(dtype, 1, *latent)},
        {
            "encoder_hidden_states": _floats(dtype, 1, tokens, config.joint_attention_dim),
            "pooled_projections": _floats(dtype, 1, config.pooled_projection_dim),
        },
        {"timestep": _integers(1)},
    )


def _flux(config: Any, latent: list[int], tokens: int, dtype: torch.dtype) -> Call:
    pixels = math.prod(latent) // config.in_channels  # the pipeline packs 2 x 2 latent pixels into one token
    return Call(
        {"hidden_states": _floats(dtype, 1, pixels, config.in_channels)},
        {
            "encoder_hidden_states": _floats(dtype, 1, tokens, config.joint_attention_dim),
            "pooled_projections": _floats(dtype, 1, config.pooled_projection_dim),
        },
        {
            "timestep": _floats(dtype, 1),
            "img_ids": _floats(dtype, pixels, 3),
            "txt_ids": _floats(dtype, tokens, 3),
            "guidance": _floats(torch.float32, 1) if config.guidance_embeds else None,
        },
    )


def _wan(config: Any, latent: list[int], tokens: int, dtype: torch.dtype) -> Call:
    return Call(
        {"hidden_states": _floats(dtype, 1, *latent)},
        {"encoder_hidden_states": _floats(dtype, 1, tokens, config.text_dim)},
        {"timestep": _integers(1)},
    )


@dataclass(frozen=True, slots=True)
class Denoiser:
    """How a class is called, and how long its prompts are."""

    call: Callable[[Any, list[int], int, torch.dtype], Call]
    #: Tokens of the conditioning that its pipeline uses by default; 0: class labels.
    tokens: int
    #: Latent channels from a configuration.
    channels: Callable[[Any], int] = lambda config: config.in_channels


DENOISERS = {
    "UNet2DConditionModel": Denoiser(_unet_text, 77),
    "UNet2DModel": Denoiser(_unet_label, 0),
    "DiTTransformer2DModel": Denoiser(_dit, 0),
    "PixArtTransformer2DModel": Denoiser(_pixart, 120),
    "SD3Transformer2DModel": Denoiser(_sd3, 77 + 256),
    "FluxTransformer2DModel": Denoiser(_flux, 512, lambda config: config.in_channels // 4),
    "WanTransformer3DModel": Denoiser(_wan, 512),
}


def denoiser_call(class_name: str) -> Denoiser:
    """Return how a denoiser is called.

    Raises
    ------
    InputError
        Not a class of the table.
    """
    if class_name not in DENOISERS:
        mend = f"use one of {', '.join(DENOISERS)}, or a causal language model"
        raise InputError(Finding("config._class_name", f"it is not known how to call {class_name}", mend))
    return DENOISERS[class_name]


def encoder_outputs(output: Any) -> int:
    """Bytes that a text encoder hands on: hidden states of all tokens, and the projected one where there is one."""
    projected = getattr(output, "text_embeds", None)
    return output.last_hidden_state.nbytes + (projected.nbytes if projected is not None else 0)
