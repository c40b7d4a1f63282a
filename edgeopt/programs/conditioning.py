"""What a family's denoisers are conditioned on: which encoders read the prompt, and what of their outputs travels.

``plain``: one encoder's hidden states (SD 1.5, PixArt, Wan). ``pooled_time``: the last but one hidden states of all
encoders side by side, and the projected vector of the last (SDXL; a refiner that knows only the last encoder takes its
columns). ``flux``: the hidden states of T5, and CLIP's pooled vector. The denoisers' configuration tells which it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edgeopt.errors import Finding, InputError
from edgeopt.profiles.model import Architecture, Component, Diffusion
from edgeopt.programs.base import TensorSpec

__all__ = ["conditioning_shapes", "encode", "encoder_parts", "prompt_lengths", "vocabulary"]

_FIELD = "model.text_encoder"


def _arrangement(model: Diffusion) -> str:
    architectures = [variant.architecture for variant in model.variants.values() if variant.architecture]
    if any(each.config.get("addition_embed_type") == "text_time" for each in architectures):
        return "pooled_time"
    return "flux" if any(each.class_name == "FluxTransformer2DModel" for each in architectures) else "plain"


def encoder_parts(model: Diffusion) -> dict[str, Architecture]:
    """Return the architecture of every text encoder by name, in order.

    Raises
    ------
    InputError
        One of them has none, or there are more or fewer than the denoisers want.
    """
    encoder = model.text_encoder
    assert encoder is not None
    parts: dict[str, Component] = encoder.parts or {"text_encoder": encoder}
    found = {}
    for name, part in parts.items():
        if part.architecture is None:
            field = f"{_FIELD}.parts.{name}" if encoder.parts else _FIELD
            why = f"model '{model.name}' says nothing to build it from"
            raise InputError(Finding(f"{field}.architecture", why, "add it"))
        found[name] = part.architecture
    wanted = {"plain": (1, 1), "pooled_time": (1, 2), "flux": (2, 2)}[_arrangement(model)]
    if not wanted[0] <= len(found) <= wanted[1]:
        why = f"the denoisers read the output of {wanted[1]}, the model has {len(found)}"
        raise InputError(
            Finding(f"{_FIELD}.parts", why, "give the encoders of the pipeline that the denoisers are from")
        )
    return found


def _is_clip(architecture: Architecture) -> bool:
    return architecture.class_name.startswith("CLIP")


def _width(architecture: Architecture, key: str = "hidden_size") -> int:
    width = architecture.config.get(key, architecture.config.get("d_model"))
    if width is None:
        raise InputError(Finding(f"{_FIELD}.architecture.config", f"{key} is missing", "state the encoder's width"))
    return int(width)


def vocabulary(model: Diffusion) -> int:
    """Return how many tokens every encoder of a model knows."""
    return min(int(architecture.config["vocab_size"]) for architecture in encoder_parts(model).values())


def prompt_lengths(model: Diffusion, prompt_tokens: int) -> dict[str, int]:
    """Divide a prompt's token ids among the encoders: CLIP takes its positions, another encoder what is left."""
    parts = encoder_parts(model)
    if len(parts) == 1:
        return dict.fromkeys(parts, prompt_tokens)
    clip = {name: int(a.config.get("max_position_embeddings", 77)) for name, a in parts.items() if _is_clip(a)}
    left = prompt_tokens - sum(clip.values())
    lengths = {name: clip.get(name, left) for name in parts}
    if left < 0 or (left == 0) != (len(clip) == len(parts)):
        why = f"{prompt_tokens} token ids do not divide among {', '.join(parts)}"
        raise InputError(Finding("model.prompt", why, "write 8 B for each token that an encoder reads"))
    return lengths


def conditioning_shapes(model: Diffusion, prompt_tokens: int, images: int, dtype: torch.dtype) -> list[TensorSpec]:
    """Return the tensors that travel to every denoiser."""
    parts, lengths = encoder_parts(model), prompt_lengths(model, prompt_tokens)
    kind, last = _arrangement(model), list(parts)[-1]
    if kind == "plain":
        return [TensorSpec((images, lengths[last], _width(parts[last])), dtype)]
    if kind == "pooled_time":
        hidden = (images, lengths[last], sum(_width(part) for part in parts.values()))
        return [TensorSpec(hidden, dtype), TensorSpec((images, _width(parts[last], "projection_dim")), dtype)]
    clip, text = (next(name for name, part in parts.items() if _is_clip(part) is kept) for kept in (True, False))
    hidden = (images, lengths[text], _width(parts[text]))
    return [TensorSpec(hidden, dtype), TensorSpec((images, _width(parts[clip])), dtype)]


def encode(model: Diffusion, encoders: nn.Module, prompt: torch.Tensor) -> list[torch.Tensor]:
    """Return the conditioning of a prompt.

    Parameters
    ----------
    encoders
        One module by the name of each part, as :func:`encoder_parts` orders them.
    prompt
        (images, tokens) int64: the ids for one encoder after the other.
    """
    modules: dict[str, Any] = dict(encoders.named_children())
    lengths = prompt_lengths(model, prompt.shape[1])
    ids = dict(zip(lengths, prompt.split(list(lengths.values()), dim=1), strict=True))
    kind = _arrangement(model)
    if kind == "plain":
        ((name, module),) = modules.items()
        return [module(ids[name]).last_hidden_state]
    if kind == "pooled_time":
        outputs = [module(ids[name], output_hidden_states=True) for name, module in modules.items()]
        return [torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), outputs[-1].text_embeds]
    parts = encoder_parts(model)
    clip, text = (next(name for name in modules if _is_clip(parts[name]) is kept) for kept in (True, False))
    return [modules[text](ids[text]).last_hidden_state, modules[clip](ids[clip]).pooler_output]
