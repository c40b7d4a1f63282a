"""Model profiles of what is trained: counted like any other, with its checkpoints; their quality comes later."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path

from edgeopt.profiler.architectures.building import versions
from edgeopt.profiler.architectures.cascade import LevelFamily, cascaded_diffusion
from edgeopt.profiler.architectures.family import Family, diffusion
from edgeopt.profiles.model import CascadedDiffusion, Diffusion
from edgeopt.training.digits.checkpoints import MANIFEST
from edgeopt.training.digits.data import SIDE
from edgeopt.training.digits.denoisers import AUGMENTATION, DENOISERS, ENLARGERS, SAMPLER, SINGLES, Recipe

__all__ = ["LEVEL_STEPS", "digits_16_model", "digits_levels_model", "digits_model"]

#: Numbers of steps that are measured for each level of the cascade.
LEVEL_STEPS = ((5, 10, 15, 25), (2, 4))

_DESCRIPTION = (
    "Handwritten digits of 8 x 8 pixels by class: three transformers and a U-Net with skips that share pixels as their "
    "latent space, trained here by `make train-digits`; small enough to run and to measure anywhere"
)
_DESCRIPTION_16 = (
    "Handwritten digits of 16 x 16 pixels by class, drawn at once by one transformer, trained here by "
    "`make train-digits`: what a cascade of resolutions has to beat"
)
_DESCRIPTION_LEVELS = (
    "Handwritten digits by class in two levels, 8 x 8 pixels and then 16 x 16: the transformers of `digits`, and two "
    "that enlarge what they drew, trained here by `make train-digits`"
)


def digits_model(folder: Path) -> Diffusion:
    """Derive the profile of the family of 8 x 8 pixels in a folder.

    Parameters
    ----------
    folder
        Holds one ``NAME.safetensors`` per denoiser; the profile names them by absolute path.
    """
    return diffusion(_family(DENOISERS, folder), name="digits", source=_source(), description=_DESCRIPTION)


def digits_16_model(folder: Path) -> Diffusion:
    """Derive the profile of what draws 16 x 16 pixels at once; ``folder`` as in :func:`digits_model`."""
    return diffusion(_family(SINGLES, folder), name="digits-16", source=_source(), description=_DESCRIPTION_16)


def digits_levels_model(folder: Path) -> CascadedDiffusion:
    """Derive the profile of the cascade; ``folder`` as in :func:`digits_model`."""
    # The U-Net costs more than the largest transformer here and draws worse: it would only lengthen the table of runs.
    first = {name: recipe for name, recipe in DENOISERS.items() if name != "unet"}
    levels = [
        LevelFamily(f"{SIDE}x{SIDE}", _family(first, folder)),
        LevelFamily(f"{2 * SIDE}x{2 * SIDE}", _family(ENLARGERS, folder), AUGMENTATION),
    ]
    return cascaded_diffusion(levels, name="digits-levels", source=_source(), description=_DESCRIPTION_LEVELS)


def _family(recipes: Mapping[str, Recipe], folder: Path) -> Family:
    side = next(iter(recipes.values())).config["sample_size"]
    return Family(
        latent_shape=[1, side, side],
        sampler=SAMPLER,
        variants={
            name: recipe.architecture(str((folder / f"{name}.safetensors").absolute()))
            for name, recipe in recipes.items()
        },
        dtype="float32",
    )


def _source() -> str:
    return (
        f"trained by this project: seeds, iterations and versions in data/digits/{MANIFEST}; counted on torch's meta "
        f"device on {date.today().isoformat()} with {versions()}"
    )
