"""Paths in a profile that is written: relative to its file, so that it can be moved with what it names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from edgeopt.profiles.model import Architecture, CascadedDiffusion, CausalLM, Diffusion, Variant

__all__ = ["with_relative_checkpoints", "with_relative_files"]

Model = TypeVar("Model", Diffusion, CascadedDiffusion)


def with_relative_checkpoints(model: Model, folder: Path) -> Model:
    """Return the model with absolute paths of its denoisers' checkpoints as seen from ``folder``.

    Reading a profile makes them absolute again.
    """
    if isinstance(model, CascadedDiffusion):
        levels = [each.model_copy(update={"variants": _relative(each.variants, folder)}) for each in model.levels]
        return model.model_copy(update={"levels": levels})
    return model.model_copy(update={"variants": _relative(model.variants, folder)})


def with_relative_files(model: CausalLM, folder: Path) -> CausalLM:
    """Return a language model with all absolute paths as seen from ``folder``: checkpoints, prompts and answers."""
    drafts = {
        name: draft.model_copy(update={"architecture": _built_from(draft.architecture, folder)})
        for name, draft in model.drafts.items()
    }
    answers = model.answers and model.answers.model_copy(
        update={name: _seen_from(getattr(model.answers, name), folder) for name in ("trace", "queries")}
    )
    own = {"architecture": _built_from(model.architecture, folder), "prompts": _seen_from(model.prompts, folder)}
    return model.model_copy(update={**own, "drafts": drafts, "answers": answers})


def _relative(variants: Mapping[str, Variant], folder: Path) -> dict[str, Variant]:
    return {
        name: variant.model_copy(update={"architecture": _built_from(variant.architecture, folder)})
        for name, variant in variants.items()
    }


def _built_from(architecture: Architecture | None, folder: Path) -> Architecture | None:
    if architecture is None or not architecture.checkpoint:
        return architecture
    return architecture.model_copy(update={"checkpoint": _seen_from(architecture.checkpoint, folder)})


def _seen_from(path: str | None, folder: Path) -> str | None:
    if path is None or not os.path.isabs(path):
        return path
    return Path(os.path.relpath(path, folder.absolute())).as_posix()
