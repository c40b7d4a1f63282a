"""What must hold inside a cascade of diffusion models, beyond the types of single fields."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from edgeopt.profiles.library import known_or_near
from edgeopt.profiles.model import CascadedDiffusion, RunsQuality
from edgeopt.profiles.reader import Flaw

__all__ = ["check_cascade"]

#: What the chain calls the encoder's variant, and what parts a denoiser's name from its steps.
_TAKEN = "common"
_SEPARATOR = "@"


def check_cascade(model: CascadedDiffusion) -> Iterator[Flaw]:
    """Levels grow and are told apart, denoisers too; only further levels are augmented; quality speaks of both."""
    levels, seen = [level.name for level in model.levels], {}
    for i, level in enumerate(model.levels):
        if level.name in levels[:i]:
            yield Flaw(("levels", i, "name"), f"a second level is called '{level.name}'", "give it another name")
        if i == 0 and level.augmentation is not None:
            yield Flaw(("levels", 0, "augmentation"), "is given, and the first level sees no image", "remove it")
        if i > 0 and level.augmentation is None:
            mend = "write the standard deviation that the denoisers were trained with, or 0"
            yield Flaw(("levels", i), "`augmentation` is missing", mend)
        for name in level.variants:
            at = ("levels", i, "variants", name)
            if name in seen:
                mend = "name each denoiser of the cascade once"
                yield Flaw(at, f"level '{seen[name]}' has a variant '{name}' too", mend)
            elif name == _TAKEN or _SEPARATOR in name:
                yield Flaw(at, f"'{name}' cannot name a variant of a cascade", f"use no '{_SEPARATOR}', nor '{_TAKEN}'")
            seen.setdefault(name, level.name)
    for i, (below, above) in enumerate(pairwise(model.levels), start=1):
        smaller = any(a > b for a, b in zip(below.latent_shape[1:], above.latent_shape[1:], strict=True))
        if smaller:
            message = f"{above.latent_shape} is smaller than the level before, {below.latent_shape}"
            yield Flaw(("levels", i, "latent_shape"), message, "order levels by growing resolution")
    if model.quality is not None:
        yield from _check_runs(model, model.quality)


def _check_runs(model: CascadedDiffusion, quality: RunsQuality) -> Iterator[Flaw]:
    """Every run names a variant and a number of steps for both levels, and is measured once."""
    if len(model.levels) != 2:
        message = f"runs are measured through two levels, '{model.name}' has {len(model.levels)}"
        yield Flaw(("quality",), message, "drop `quality:`, and state `workload.steps` in problems")
        return
    seen: dict[tuple[tuple[str, ...], tuple[int, ...]], int] = {}
    for i, run in enumerate(quality.runs):
        at = ("quality", "runs", i)
        for key, given in (("variants", run.variants), ("steps", run.steps)):
            if len(given) != len(model.levels):
                yield Flaw((*at, key), f"has {len(given)} entries for {len(model.levels)} levels", "give one per level")
        for k, (name, level) in enumerate(zip(run.variants, model.levels, strict=False)):
            if name not in level.variants:
                mend = known_or_near(name, list(level.variants))
                yield Flaw((*at, "variants", k), f"level '{level.name}' has no variant '{name}'", mend)
        for k, count in enumerate(run.steps):
            if count < 1:
                yield Flaw((*at, "steps", k), f"{count} steps make no image", "give 1 or more")
        key = tuple(run.variants), tuple(run.steps)
        if key in seen:
            yield Flaw(at, f"repeats runs[{seen[key]}]", "keep one of them")
        seen.setdefault(key, i)
