"""Checkpoint paths in a profile that is written: relative to its file, so that both can be moved together."""

from __future__ import annotations

import os
from pathlib import Path

from edgeopt.profiles.model import Diffusion

__all__ = ["with_relative_checkpoints"]


def with_relative_checkpoints(model: Diffusion, folder: Path) -> Diffusion:
    """Return the model with absolute paths of its denoisers' checkpoints as seen from ``folder``.

    Reading a profile makes them absolute again.
    """
    variants = {}
    for name, variant in model.variants.items():
        architecture = variant.architecture
        if architecture is not None and architecture.checkpoint and os.path.isabs(architecture.checkpoint):
            path = Path(os.path.relpath(architecture.checkpoint, folder.absolute())).as_posix()
            variant = variant.model_copy(update={"architecture": architecture.model_copy(update={"checkpoint": path})})
        variants[name] = variant
    return model.model_copy(update={"variants": variants})
