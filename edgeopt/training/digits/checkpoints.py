"""Train everything, write 16-bit checkpoints, and keep a manifest of where each came from."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save_file

from edgeopt.errors import Finding, InputError
from edgeopt.files import write_whole
from edgeopt.training.digits.classifier import CLASSIFIERS, load_classifier, train_classifier
from edgeopt.training.digits.data import SIDE, Digits, data_folder, load_digits
from edgeopt.training.digits.denoisers import RECIPES, train_denoiser
from edgeopt.training.digits.enlarging import enlarged_digits

__all__ = ["MANIFEST", "NAMES", "read_manifest", "sha256", "train_all"]

MANIFEST = "manifest.json"

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
    if unknown := sorted(set(only or ()) - set(NAMES)):
        raise InputError(Finding("--only", f"there is no '{unknown[0]}'", f"use {', '.join(NAMES)}"))
    source = out if (out / "digits.safetensors").is_file() else data_folder()
    train, test = load_digits(source)
    manifest = read_manifest(out) if (out / MANIFEST).is_file() else {"models": {}}
    manifest["data"] = {
        "file": "digits.safetensors",
        "sha256": sha256(source / "digits.safetensors"),
        "train": len(train.images),
        "held_out": len(test.images),
        "source": "Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI, doi:10.24432/C50P49",
        "license": "CC BY 4.0",
    }
    before, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # the order of floating point sums, and so the last bits, depend on it
    try:
        for name in only or NAMES:
            started = time.process_time()
            entry = _train(name, out, train, test)
            entry["processor_s"] = round(time.process_time() - started, 1)
            same = manifest["models"].get(name, {}).get("sha256") == entry["sha256"]
            manifest["models"][name] = entry
            write_whole(out / MANIFEST, json.dumps(manifest, indent=2) + "\n")
            figure = f"loss {entry['loss']:.4f}" if "loss" in entry else f"accuracy {entry['accuracy']:.4f}"
            say(f"{name}: {figure}, {entry['processor_s']} s{', the same bits as before' if same else ''}")
    finally:
        torch.use_deterministic_algorithms(before)
        torch.set_num_threads(threads)
    return manifest


def _train(name: str, out: Path, train: Digits, test: Digits) -> dict[str, Any]:
    file = out / f"{name}.safetensors"
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
    save_file({key: value.detach().half().contiguous() for key, value in module.named_parameters()}, file)
    if side is not None:
        guessed = load_classifier(out, side)(test.images).argmax(1)
        entry["accuracy"] = round(float((guessed == test.labels).float().mean()), 4)
    return {
        "file": file.name,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        **entry,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "machine": platform.machine(),
        "sha256": sha256(file),
    }


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what a folder's manifest says."""
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


def sha256(file: Path) -> str:
    """Return a file's SHA-256 as hexadecimal text."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
