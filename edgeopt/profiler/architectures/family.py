"""A family of denoisers with its text encoders and decoder, put together to a model profile."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from edgeopt.profiler.architectures.calls import denoiser_call
from edgeopt.profiler.architectures.diffusion import Denoised, decoder, denoiser, text_encoder, text_encoders
from edgeopt.profiles.model import Architecture, Component, Diffusion, Sampler

__all__ = ["Family", "diffusion"]

_TOKEN_BYTES = 8

#: What `sources` says where a figure is not a plain count.
_ACTIVATIONS = (
    "derived: most bytes alive at once in one forward pass as the library runs it, attention fused; traffic is every "
    "operation's tensors read and written, without weights"
)

_CONDITIONING = (
    "derived: what the denoisers read of one prompt; under guidance the empty prompt's is needed too, but it is the "
    "same for every request"
)


@dataclass(frozen=True, slots=True)
class Family:
    """What a profile of denoisers is derived from.

    Attributes
    ----------
    latent_shape
        Without the batch axis.
    text_encoders
        Name to encoder and the tokens that its prompts are padded to; empty: class labels.
    conditioning_bytes
        Overrides what the denoisers' calls say.
    """

    latent_shape: list[int]
    sampler: Sampler
    variants: Mapping[str, Architecture]
    dtype: str = "float16"
    text_encoders: Mapping[str, tuple[Architecture, int]] = field(default_factory=dict)
    decoder: Architecture | None = None
    conditioning_bytes: int | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    quality: Mapping[str, Any] | None = None

    @property
    def tokens(self) -> int:
        """Tokens of the denoisers' text conditioning."""
        kind = denoiser_call(next(iter(self.variants.values())).class_name)
        if not self.text_encoders or not kind.tokens:
            return kind.tokens
        lengths = [tokens for _, tokens in self.text_encoders.values()]
        # SD3 puts the tokens of CLIP and T5 one after the other; elsewhere encoders run side by side or one gives
        # the tokens and the other a pooled vector.
        joined = next(iter(self.variants.values())).class_name == "SD3Transformer2DModel"
        return sum(sorted(set(lengths))) if joined else max(lengths)


def diffusion(family: Family, *, name: str, source: str, description: str = "") -> Diffusion:
    """Derive a model profile from a family.

    Raises
    ------
    InputError
        A class is not known, or refuses its configuration.
    """
    tokens = family.tokens if family.conditioning_bytes is None else 1
    steps: dict[str, Denoised] = {
        label: denoiser(architecture, family.latent_shape, tokens, family.dtype)
        for label, architecture in family.variants.items()
    }
    encoders = {
        label: _component("text", _key(architecture), length, family.dtype)
        for label, (architecture, length) in family.text_encoders.items()
    }
    conditioning = family.conditioning_bytes or max(step.conditioning_bytes for step in steps.values())
    encoder = text_encoders(encoders) if encoders else None
    latent = next(iter(steps.values())).variant.blocks[-1].output
    return Diffusion(
        name=name,
        family="diffusion",
        description=description,
        source=source,
        sources={"variants.*.activations": _ACTIVATIONS, "conditioning": _CONDITIONING, **family.sources},
        dtype=family.dtype,
        sampler=family.sampler,
        prompt=float(_TOKEN_BYTES * (sum(length for _, length in family.text_encoders.values()) or 1)),
        conditioning=float(conditioning),
        latent=latent,
        latent_shape=family.latent_shape,
        # What leaves the encoders is what the denoisers read, which is less than all their outputs together.
        text_encoder=encoder and encoder.model_copy(update={"output": float(conditioning)}),
        variants={label: step.variant for label, step in steps.items()},
        decoder=family.decoder and _component("image", _key(family.decoder), tuple(family.latent_shape), family.dtype),
        quality=family.quality,
    )


def _key(architecture: Architecture) -> str:
    return json.dumps(architecture.model_dump(by_alias=True))


@lru_cache(maxsize=32)
def _component(kind: str, key: str, size: Any, dtype: str) -> Component:
    """Derive an encoder or a decoder; families share them."""
    architecture = Architecture.model_validate(json.loads(key))
    return text_encoder(architecture, size, dtype) if kind == "text" else decoder(architecture, list(size), dtype)
