"""The model profile of the trained family: counted like any other, with its checkpoints; its quality comes later."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from edgeopt.profiler.architectures.building import versions
from edgeopt.profiler.architectures.family import Family, diffusion
from edgeopt.profiles.model import Diffusion
from edgeopt.training.digits.checkpoints import MANIFEST
from edgeopt.training.digits.denoisers import DENOISERS, SAMPLER

__all__ = ["digits_model"]

_DESCRIPTION = (
    "Handwritten digits of 8 x 8 pixels by class: three transformers and a U-Net with skips that share pixels as their "
    "latent space, trained here by `make train-digits`; small enough to run and to measure anywhere"
)


def digits_model(folder: Path) -> Diffusion:
    """Derive the profile of the checkpoints in a folder.

    Parameters
    ----------
    folder
        Holds one ``NAME.safetensors`` per denoiser; the profile names them by absolute path.
    """
    family = Family(
        latent_shape=[1, 8, 8],
        sampler=SAMPLER,
        variants={
            name: recipe.architecture(str((folder / f"{name}.safetensors").absolute()))
            for name, recipe in DENOISERS.items()
        },
        dtype="float32",
    )
    source = (
        f"trained by this project: seeds, iterations and versions in data/digits/{MANIFEST}; counted on torch's meta "
        f"device on {date.today().isoformat()} with {versions()}"
    )
    return diffusion(family, name="digits", source=source, description=_DESCRIPTION)
