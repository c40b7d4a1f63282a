"""Train everything, write 16-bit checkpoints, and keep a manifest of where each came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from edgeopt.training.digits.classifier import CLASSIFIERS, load_classifier, train_classifier
from edgeopt.training.digits.data import SIDE, Digits, data_folder, load_digits
from edgeopt.training.digits.denoisers import RECIPES, train_denoiser
from edgeopt.training.digits.enlarging import enlarged_digits
from edgeopt.training.library import MANIFEST, chosen, sha256, stored, train_into

__all__ = ["MANIFEST", "NAMES", "train_all"]

#: Everything that is trained, in order.
NAMES = (*CLASSIFIERS.values(), *RECIPES)


def train_all(out: Path, only: list[str] | None = None, say: Any = print) -> dict[str, Any]:
    """Train classifier and denoisers into a folder, and return the manifest.

    Parameters
    ----------
    only
        Names to train; the manifest keeps what it says of the others.
    say
        Called with one line per model.

    Raises
    ------
    InputError
        A name of none.
    """
    names = chosen(NAMES, only)
    source = out if (out / "digits.safetensors").is_file() else data_folder()
    train, test = load_digits(source)
    data = {
        "file": "digits.safetensors",
        "sha256": sha256(source / "digits.safetensors"),
        "train": len(train.images),
        "held_out": len(test.images),
        "source": "Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI, doi:10.24432/C50P49",
        "license": "CC BY 4.0",
    }
    return train_into(out, names, data, lambda name: _train(name, out, train, test), _figure, say)


def _figure(entry: dict[str, Any]) -> str:
    return f"loss {entry['loss']:.4f}" if "loss" in entry else f"accuracy {entry['accuracy']:.4f}"


def _train(name: str, out: Path, train: Digits, test: Digits) -> dict[str, Any]:
    side = next((side for side, classifier in CLASSIFIERS.items() if classifier == name), None)
    if side is not None and side > SIDE:
        train, test = enlarged_digits(train), enlarged_digits(test)
    if side is not None:
        module: torch.nn.Module = train_classifier(train)
        entry: dict[str, Any] = {"seed": 0, "iterations": 1500}
    else:
        recipe = RECIPES[name]
        module, loss = train_denoiser(recipe, train)
        entry = {"seed": recipe.seed, "iterations": recipe.iterations, "batch": recipe.batch, "loss": round(loss, 6)}

    def figures() -> dict[str, Any]:
        if side is None:
            return entry
        guessed = load_classifier(out, side)(test.images).argmax(1)
        return {**entry, "accuracy": round(float((guessed == test.labels).float().mean()), 4)}

    return stored(module, out / f"{name}.safetensors", "diffusers", figures)
