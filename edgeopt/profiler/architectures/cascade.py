"""A cascade of diffusion models, put together to a model profile from a family of denoisers for each level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgeopt.profiler.architectures.family import Family, diffusion
from edgeopt.profiles.model import CascadedDiffusion, Level, Variant
from edgeopt.programs.weights import torch_dtype

__all__ = ["LevelFamily", "cascaded_diffusion"]


@dataclass(frozen=True, slots=True)
class LevelFamily:
    """A level's name and denoisers, and the noise on the image that it enlarges (``None``: it is the first)."""

    name: str
    family: Family
    augmentation: float | None = None


def cascaded_diffusion(
    levels: Sequence[LevelFamily], *, name: str, source: str, description: str = ""
) -> CascadedDiffusion:
    """Derive a model profile from the levels of a cascade.

    Every denoiser is counted with the channels that it is shown: its own and those of the image below. The text
    encoder, the number format and the conditioning are those of the first level's family.

    Raises
    ------
    InputError
        A class is not known, or refuses its configuration.
    """
    built, below = [], 0
    for each in levels:
        channels, *size = each.family.latent_shape
        shown = replace(each.family, latent_shape=[channels + below, *size])
        level_bytes = float(math.prod(each.family.latent_shape) * torch_dtype(each.family.dtype).itemsize)
        derived = diffusion(shown, name=name, source=source, description=description)
        variants = {label: _making(variant, level_bytes) for label, variant in derived.variants.items()}
        level = Level(
            name=each.name,
            sampler=each.family.sampler,
            latent=level_bytes,
            latent_shape=each.family.latent_shape,
            augmentation=each.augmentation,
            variants=variants,
        )
        built.append((derived, level))
        below = channels
    first = built[0][0]
    patterns = {key.replace("variants.", "levels.*.variants."): text for key, text in first.sources.items()}
    return CascadedDiffusion(
        name=name,
        family="cascaded_diffusion",
        description=description,
        source=source,
        sources=patterns,
        dtype=first.dtype,
        prompt=first.prompt,
        conditioning=first.conditioning,
        text_encoder=first.text_encoder,
        levels=[level for _, level in built],
    )


def _making(variant: Variant, result_bytes: float) -> Variant:
    """Return a denoiser whose step makes the level's own channels, whatever it was shown."""
    *blocks, last = variant.blocks
    return variant.model_copy(update={"blocks": [*blocks, last.model_copy(update={"output": result_bytes})]})
