"""1797 handwritten digits of 8 x 8 pixels with 17 grey levels.

The test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, UCI Machine Learning Repository,
1998, doi:10.24432/C50P49, CC BY 4.0), which scikit-learn bundles as ``digits.csv.gz``. It is kept beside the
checkpoints, since without it neither training nor a quality figure could be repeated.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from edgeopt.errors import Finding, InputError
from edgeopt.training.library import library_folder

__all__ = ["DATA_FOLDER", "NUM_CLASSES", "NUM_TRAIN", "SIDE", "Digits", "data_folder", "load_digits", "pack_csv"]

NUM_CLASSES = 10
NUM_TRAIN = 1200
#: Pixels along an edge of the data's images.
SIDE = 8
#: Below the library's folder: data, checkpoints and their manifest.
DATA_FOLDER = "data/digits"

_SPLIT_SEED = 0
_LEVELS = 16


class Digits(NamedTuple):
    """Images (N, 1, side, side), float32 from -1 (paper) to 1 (ink), and labels (N,), int64."""

    images: torch.Tensor
    labels: torch.Tensor


def data_folder() -> Path:
    """Return the library's folder of data and checkpoints.

    Raises
    ------
    InputError
        The library has none.
    """
    return library_folder(DATA_FOLDER)


def load_digits(folder: Path | None = None) -> tuple[Digits, Digits]:
    """Return 1200 digits to train on and 597 held out, always the same ones.

    Parameters
    ----------
    folder
        Holds ``digits.safetensors``; default: the library's.
    """
    raw = load_file((folder or data_folder()) / "digits.safetensors")
    images = raw["images"].float().div(_LEVELS / 2).sub(1).unsqueeze(1)
    order = torch.from_numpy(np.random.default_rng(_SPLIT_SEED).permutation(len(images)))
    parts = order[:NUM_TRAIN], order[NUM_TRAIN:]
    train, test = (Digits(images[part], raw["labels"][part].long()) for part in parts)
    return train, test


def pack_csv(csv: Path, folder: Path) -> Path:
    """Turn scikit-learn's ``sklearn/datasets/data/digits.csv.gz`` into ``digits.safetensors``.

    Raises
    ------
    InputError
        The file holds something else.
    """
    with gzip.open(csv, "rt", encoding="ascii") as file:
        table = np.loadtxt(file, delimiter=",")
    pixels, labels = table[:, :-1], table[:, -1]
    whole = np.array_equal(table, table.astype(np.uint8))
    if pixels.shape[1] != 64 or not whole or pixels.max() > _LEVELS or labels.max() >= NUM_CLASSES:
        message = f"{csv} holds {table.shape} numbers up to {table.max():g}: not 64 grey levels of 0 to 16 and a label"
        raise InputError(Finding("--csv", message, "give scikit-learn's digits.csv.gz"))
    target = folder / "digits.safetensors"
    tensors = {
        "images": torch.from_numpy(pixels.astype(np.uint8).reshape(-1, 8, 8)),
        "labels": torch.from_numpy(labels.astype(np.uint8)),
    }
    save_file(tensors, target)
    return target
