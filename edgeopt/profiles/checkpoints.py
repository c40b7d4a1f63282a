"""Checkpoint paths in a profile that is written: relative to its file, so that both can be moved together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from edgeopt.profiles.model import CascadedDiffusion, Diffusion, Variant

__all__ = ["with_relative_checkpoints"]

Model = TypeVar("Model", Diffusion, CascadedDiffusion)


def with_relative_checkpoints(model: Model, folder: Path) -> Model:
    """Return the model with absolute paths of its denoisers' checkpoints as seen from ``folder``.

    Reading a profile makes them absolute again.
    """
    if isinstance(model, CascadedDiffusion):
        levels = [each.model_copy(update={"variants": _relative(each.variants, folder)}) for each in model.levels]
        return model.model_copy(update={"levels": levels})
    return model.model_copy(update={"variants": _relative(model.variants, folder)})


def _relative(variants: Mapping[str, Variant], folder: Path) -> dict[str, Variant]:
    result = {}
    for name, variant in variants.items():
        architecture = variant.architecture
        if architecture is not None and architecture.checkpoint and os.path.isabs(architecture.checkpoint):
            path = Path(os.path.relpath(architecture.checkpoint, folder.absolute())).as_posix()
            variant = variant.model_copy(update={"architecture": architecture.model_copy(update={"checkpoint": path})})
        result[name] = variant
    return result
