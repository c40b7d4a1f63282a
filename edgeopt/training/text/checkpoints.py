"""Train the family, write 16-bit checkpoints and held-out prompts, and keep a manifest of where each came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from edgeopt.training.library import chosen, library_folder, sha256, stored, train_into
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
    return library_folder(DATA_FOLDER)


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
    names = chosen(MODELS, only)
    data = {
        "source": "lines of the grammar in edgeopt/training/text/grammar.py; a tenth, chosen by digest, is held out",
        "alphabet": ALPHABET,
        "train_seed": _TRAIN_SEED,
        "prompts": PROMPTS,
        "prompts_sha256": sha256(write_prompts(out)),
    }
    tokens = stream(_TRAIN_SEED, _TRAIN_TOKENS, held_out=False)
    return train_into(
        out, names, data, lambda name: _train(name, out, tokens),
        lambda entry: f"{entry['held_out_bits_per_character']} bits per held-out character", say,
    )  # fmt: skip


def _train(name: str, out: Path, tokens: torch.Tensor) -> dict[str, Any]:
    recipe = MODELS[name]
    module, loss = train_model(recipe, tokens)

    def figures() -> dict[str, Any]:
        return {
            "seed": recipe.seed,
            "iterations": recipe.iterations,
            "batch": recipe.batch,
            "bits_per_character": round(loss / 0.6931471805599453, 4),
            "held_out_bits_per_character": round(_held_out_bits(module), 4),
        }

    return stored(module, out / f"{name}.safetensors", "transformers", figures)


@torch.inference_mode()
def _held_out_bits(module: torch.nn.Module) -> float:
    """Bits per character on documents that were in no training batch; rows of 160 characters."""
    rows = stream(_TEST_SEED, _TEST_TOKENS, held_out=True).reshape(-1, 160)
    logits = module(rows[:, :-1], use_cache=False).logits
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    return float(nats) / 0.6931471805599453
