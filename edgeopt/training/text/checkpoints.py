"""Train the family, write 16-bit checkpoints and held-out prompts, and keep a manifest of where each came from."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from edgeopt.errors import Finding, InputError
from edgeopt.files import write_whole
from edgeopt.training.digits.checkpoints import MANIFEST, read_manifest, sha256
from edgeopt.training.text.grammar import ALPHABET
from edgeopt.training.text.models import MODELS, stream, train_model

__all__ = ["DATA_FOLDER", "NUM_PROMPTS", "PROMPTS", "PROMPT_TOKENS", "text_folder", "train_all", "write_prompts"]

#: Below the library's folder: checkpoints, prompts and their manifest.
DATA_FOLDER = "data/text"
PROMPTS = "prompts.safetensors"
NUM_PROMPTS = 400
PROMPT_TOKENS = 128

_TRAIN_SEED, _PROMPT_SEED, _TEST_SEED = 0, 1, 2
_TRAIN_TOKENS, _TEST_TOKENS = 4_000_000, 40_960


def text_folder() -> Path:
    """Return the library's folder of checkpoints and prompts.

    Raises
    ------
    InputError
        The library has none.
    """
    from edgeopt.profiles.library import roots

    for root in roots():
        if (root / DATA_FOLDER).is_dir():
            return root / DATA_FOLDER
    raise InputError(
        Finding("data", f"no folder '{DATA_FOLDER}' in {', '.join(map(str, roots()))}", "reinstall edgeopt")
    )


def write_prompts(out: Path) -> Path:
    """Write held-out prompts: ``prompts``, shape (400, 128), uint8, each the beginning of a row of documents."""
    rows = stream(_PROMPT_SEED, NUM_PROMPTS * PROMPT_TOKENS, held_out=True).reshape(NUM_PROMPTS, PROMPT_TOKENS)
    target = out / PROMPTS
    save_file({"prompts": rows.to(torch.uint8)}, target)
    return target


def train_all(out: Path, only: list[str] | None = None, say: Any = print) -> dict[str, Any]:
    """Train the models into a folder, and return the manifest.

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
    if unknown := sorted(set(only or ()) - set(MODELS)):
        raise InputError(Finding("--only", f"there is no '{unknown[0]}'", f"use {', '.join(MODELS)}"))
    manifest = read_manifest(out) if (out / MANIFEST).is_file() else {"models": {}}
    manifest["data"] = {
        "source": "lines of the grammar in edgeopt/training/text/grammar.py; a tenth, chosen by digest, is held out",
        "alphabet": ALPHABET,
        "train_seed": _TRAIN_SEED,
        "prompts": PROMPTS,
        "prompts_sha256": sha256(write_prompts(out)),
    }
    before, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # the order of floating point sums, and so the last bits, depend on it
    try:
        tokens = stream(_TRAIN_SEED, _TRAIN_TOKENS, held_out=False)
        for name in only or MODELS:
            started = time.process_time()
            entry = _train(name, out, tokens)
            entry["processor_s"] = round(time.process_time() - started, 1)
            same = manifest["models"].get(name, {}).get("sha256") == entry["sha256"]
            manifest["models"][name] = entry
            write_whole(out / MANIFEST, json.dumps(manifest, indent=2) + "\n")
            say(
                f"{name}: {entry['held_out_bits_per_character']} bits per held-out character, "
                f"{entry['processor_s']} s{', the same bits as before' if same else ''}"
            )
    finally:
        torch.use_deterministic_algorithms(before)
        torch.set_num_threads(threads)
    return manifest


def _train(name: str, out: Path, tokens: torch.Tensor) -> dict[str, Any]:
    import transformers

    recipe, file = MODELS[name], out / f"{name}.safetensors"
    module, loss = train_model(recipe, tokens)
    save_file({key: value.detach().half().contiguous() for key, value in module.named_parameters()}, file)
    return {
        "file": file.name,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "seed": recipe.seed,
        "iterations": recipe.iterations,
        "batch": recipe.batch,
        "bits_per_character": round(loss / 0.6931471805599453, 4),
        "held_out_bits_per_character": round(_held_out_bits(module), 4),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
        "sha256": sha256(file),
    }


@torch.inference_mode()
def _held_out_bits(module: torch.nn.Module) -> float:
    """Bits per character on documents that were in no training batch; rows of 160 characters."""
    rows = stream(_TEST_SEED, _TEST_TOKENS, held_out=True).reshape(-1, 160)
    logits = module(rows[:, :-1], use_cache=False).logits
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    return float(nats) / 0.6931471805599453
