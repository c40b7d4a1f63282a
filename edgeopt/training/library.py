"""Folders of what is trained: where the library has them, and a manifest of where each checkpoint came from."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from edgeopt.errors import Finding, InputError
from edgeopt.files import write_whole
from edgeopt.profiles.library import roots

__all__ = ["MANIFEST", "chosen", "library_folder", "read_manifest", "sha256", "stored", "train_into"]

MANIFEST = "manifest.json"


def library_folder(name: str) -> Path:
    """Return a folder below the library's, such as ``data/digits``.

    Raises
    ------
    InputError
        The library has none.
    """
    for root in roots():
        if (root / name).is_dir():
            return root / name
    raise InputError(Finding("data", f"no folder '{name}' in {', '.join(map(str, roots()))}", "reinstall edgeopt"))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what a folder's manifest says."""
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


def sha256(file: Path) -> str:
    """Return a file's SHA-256 as hexadecimal text."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def chosen(known: Iterable[str], only: list[str] | None) -> list[str]:
    """Return the names to train: all that are known, or those asked for.

    Raises
    ------
    InputError
        A name of none.
    """
    names = list(known)
    if unknown := sorted(set(only or ()) - set(names)):
        raise InputError(Finding("--only", f"there is no '{unknown[0]}'", f"use {', '.join(names)}"))
    return only or names


def stored(module: torch.nn.Module, file: Path, library: str, figures: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Write a module's weights with 16 bits, and return its entry of the manifest.

    Parameters
    ----------
    library
        Package that the module is built with; its version is noted.
    figures
        What else there is to say; asked when the file is written.
    """
    save_file({key: value.detach().half().contiguous() for key, value in module.named_parameters()}, file)
    return {
        "file": file.name,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        **figures(),
        "torch": torch.__version__,
        library: import_module(library).__version__,
        "machine": platform.machine(),
        "sha256": sha256(file),
    }


def train_into(
    out: Path,
    names: list[str],
    data: dict[str, Any],
    train: Callable[[str], dict[str, Any]],
    figure: Callable[[dict[str, Any]], str],
    say: Callable[[str], Any],
) -> dict[str, Any]:
    """Train models into a folder, one after the other, and return the manifest.

    Parameters
    ----------
    names
        Of the models; the manifest keeps what it says of others.
    data
        What the manifest says of what they are trained on.
    train
        Trains and writes one, and returns its entry, for example of :func:`stored`.
    figure
        What an entry says of a model's quality.
    say
        Called with one line per model.
    """
    manifest = read_manifest(out) if (out / MANIFEST).is_file() else {"models": {}}
    manifest["data"] = data
    with _repeatable():
        for name in names:
            started = time.process_time()
            entry = train(name)
            entry["processor_s"] = round(time.process_time() - started, 1)
            same = manifest["models"].get(name, {}).get("sha256") == entry["sha256"]
            manifest["models"][name] = entry
            write_whole(out / MANIFEST, json.dumps(manifest, indent=2) + "\n")
            say(f"{name}: {figure(entry)}, {entry['processor_s']} s{', the same bits as before' if same else ''}")
    return manifest


@contextmanager
def _repeatable() -> Iterator[None]:
    """Compute with one thread and deterministic kernels: the order of sums, and so the last bits, depend on both."""
    before, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.set_num_threads(threads)
