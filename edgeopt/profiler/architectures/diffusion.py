"""Denoisers, text encoders and decoders: one forward pass each, cut into blocks by the modules' own names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgeopt.profiler.architectures.building import build_module
from edgeopt.profiler.architectures.calls import denoiser_call, encoder_outputs
from edgeopt.profiler.architectures.patches import patch_exchange
from edgeopt.profiler.architectures.trace import Trace
from edgeopt.profiles.model import Architecture, Block, Component, Variant
from edgeopt.programs.blocks import OUTPUT, mark_blocks
from edgeopt.programs.weights import torch_dtype

__all__ = ["Denoised", "decoder", "denoiser", "text_encoder", "text_encoders"]


@dataclass(frozen=True, slots=True)
class Denoised:
    """A denoiser's figures and the bytes of the conditioning that it reads."""

    variant: Variant
    conditioning_bytes: int


def denoiser(architecture: Architecture, latent_shape: list[int], tokens: int, dtype: str) -> Denoised:
    """Derive one step of one image.

    Parameters
    ----------
    latent_shape
        Without the batch axis.
    tokens
        Of the text conditioning; not used with class labels.

    Raises
    ------
    InputError
        The class is not known, or refuses its configuration.
    """
    kind = denoiser_call(architecture.class_name)
    module = build_module(architecture, torch_dtype(dtype))
    call = kind.call(module.config, latent_shape, tokens, torch_dtype(dtype))
    trace = Trace(module, call.latent.values())
    inside = _follow(module, trace)
    with trace.running():
        module(**call.arguments())
    trace.parts[-1].name = OUTPUT
    variant = Variant(
        architecture=architecture,
        weights=float(trace.weight_bytes(trace.weights)),
        flop=float(trace.flop),
        activations=float(trace.peak_bytes()),
        traffic=float(trace.traffic_bytes),
        kernels=trace.num_kernels,
        parameters=_parameters(trace),
        patch=patch_exchange(architecture, latent_shape, tokens, dtype),
        common_weights=float(trace.weight_bytes(trace.common_weights)),
        blocks=_blocks(trace, inside, math.prod(latent_shape) * torch_dtype(dtype).itemsize),
    )
    return Denoised(variant, call.conditioning_bytes)


def _follow(module: nn.Module, trace: Trace) -> dict[str, str]:
    """Mark each block of the chain as it runs; return, per block, the undividable module around it (or '')."""
    undividable = set(getattr(module, "_no_split_modules", None) or ())
    types = {name: type(child).__name__ for name, child in module.named_modules()}

    def around(name: str) -> str:
        outer = (".".join(name.split(".")[:depth]) for depth in range(1, name.count(".") + 1))
        return next((each for each in outer if types.get(each) in undividable), "")

    return {name: around(name) for name in mark_blocks(module, lambda ended: trace.mark(ended, OUTPUT))}


def _blocks(trace: Trace, inside: Mapping[str, str], result_bytes: int) -> list[Block]:
    crossing = [*trace.cut_bytes(), result_bytes]
    following = [inside.get(part.name, "") for part in trace.parts[1:]] + [""]
    return [
        Block(
            name=part.name,
            weights=float(trace.weight_bytes(part.weights)),
            flop=float(part.flop),
            output=float(output),
            traffic=float(part.traffic_bytes),
            kernels=part.num_kernels,
            legal=not (inside.get(part.name) and inside[part.name] == after),
        )
        for part, output, after in zip(trace.parts, crossing, following, strict=True)
    ]


def _parameters(trace: Trace) -> int:
    """Number of parameters that the pass reads (a VAE's encoder takes no part in decoding)."""
    tensors = (trace.tensors[name] for name in trace.weights)
    return sum(tensor.numel() for tensor in tensors if isinstance(tensor, nn.Parameter))


def text_encoder(architecture: Architecture, tokens: int, dtype: str) -> Component:
    """Derive a text encoder for prompts of ``tokens`` tokens (pipelines pad to this length)."""
    module = build_module(architecture, torch_dtype(dtype))
    trace = Trace(module)
    with trace.running():
        output = module(torch.zeros(1, tokens, dtype=torch.long, device="meta"))
    return _component(architecture, trace, encoder_outputs(output))


def text_encoders(parts: Mapping[str, Component]) -> Component:
    """Join encoders that run one after the other; a single one stays as it is."""
    if len(parts) == 1:
        return next(iter(parts.values()))
    every = list(parts.values())
    return Component(
        weights=sum(part.weights for part in every),
        flop=sum(part.flop for part in every),
        output=sum(part.output for part in every),
        activations=max(part.activations for part in every),
        traffic=sum(part.traffic or 0.0 for part in every),
        kernels=sum(part.kernels or 0 for part in every),
        parameters=sum(part.parameters or 0 for part in every),
        parts=dict(parts),
    )


def decoder(architecture: Architecture, latent_shape: list[int], dtype: str) -> Component:
    """Derive the decoding of one latent by an autoencoder; its encoder is not part of the figures."""
    module: Any = build_module(architecture, torch_dtype(dtype))
    latent = torch.empty((1, *latent_shape), dtype=torch_dtype(dtype), device="meta")
    trace = Trace(module)
    with trace.running():
        image = module.decode(latent).sample
    return _component(architecture, trace, image.nbytes)


def _component(architecture: Architecture, trace: Trace, output_bytes: int) -> Component:
    return Component(
        architecture=architecture,
        weights=float(trace.weight_bytes(trace.weights)),
        flop=float(trace.flop),
        output=float(output_bytes),
        activations=float(trace.peak_bytes()),
        traffic=float(trace.traffic_bytes),
        kernels=trace.num_kernels,
        parameters=_parameters(trace),
    )
