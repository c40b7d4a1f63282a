"""The model profile of the trained family: the largest as target, the others as its drafts, with what was measured."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import torch

from edgeopt.profiler.architectures import causal_lm
from edgeopt.profiler.architectures.building import versions
from edgeopt.profiler.quality.weights import measure_weights
from edgeopt.profiles.model import Acceptance, CausalLM, Draft
from edgeopt.programs.language import build_model, model_config
from edgeopt.programs.weights import fill, open_weights
from edgeopt.training.digits.checkpoints import MANIFEST
from edgeopt.training.text.acceptance import greedy_marks, positions_of, sampled_marks, yields
from edgeopt.training.text.answers import record_answers
from edgeopt.training.text.checkpoints import PROMPTS
from edgeopt.training.text.models import MODELS, TARGET

__all__ = ["MAX_LENGTH", "text_model"]

#: Longest draft whose acceptance is measured.
MAX_LENGTH = 16

_ROWS, _PROMPT_TOKENS, _NEW_TOKENS, _STARTS = 400, 64, 96, 40
_TEMPERATURES = (0.0, 1.0)
_NAME = "text"
_TOKENIZER = "edgeopt-text: one token per character of data/text/manifest.json's alphabet"
_DESCRIPTION = (
    "Notes about a household, character by character: a Llama of 0.45 million parameters and two smaller ones that "
    "draft for it, trained here by `make train-text`; small enough to run and to measure anywhere"
)


def text_model(folder: Path, say: Any = print) -> CausalLM:
    """Derive the profile of a folder's checkpoints: acceptance of drafts, answers of all, the loss of fewer bits.

    Parameters
    ----------
    folder
        Holds the checkpoints and prompts; the profile names them relative to a sibling of its parent, as the library
        has them.
    """
    from safetensors.torch import load_file

    source = (
        f"trained by this project: seeds, iterations and versions in data/text/{MANIFEST}; counted on torch's meta "
        f"device on {date.today().isoformat()} with {versions()}"
    )
    counted = {
        name: causal_lm(
            recipe.architecture(f"../data/text/{name}.safetensors"), name=name, source=source, dtype="float32"
        )
        for name, recipe in MODELS.items()
    }
    prompts = load_file(folder / PROMPTS)["prompts"][:_ROWS, :_PROMPT_TOKENS].long()
    modules = {name: _module(name, folder) for name in MODELS}
    drafts = {}
    for name, model in counted.items():
        if name == TARGET:
            continue
        drafts[name] = Draft(
            architecture=model.architecture, tokenizer=_TOKENIZER, parameters=model.parameters,
            layers=[layer.model_copy(update={"weights_by_dtype": {}}) for layer in model.layers],
            acceptance=[_measured(modules[TARGET], modules[name], prompts, t) for t in _TEMPERATURES],
        )  # fmt: skip
        taken = [entry.by_position for entry in drafts[name].acceptance]
        say(f"{name}: first guess taken {', '.join(f'{row[0]:.3f}' for row in taken)} at {_TEMPERATURES}")
    asked = {_NAME if name == TARGET else name: MODELS[name].architecture(str(folder / f"{name}.safetensors"))
             for name in [*drafts, TARGET]}  # fmt: skip
    target = MODELS[TARGET].architecture(str(folder / f"{TARGET}.safetensors"))
    quality = measure_weights(
        counted[TARGET].model_copy(update={"architecture": target}),
        prompts,
        f"{_ROWS} held-out prompts of {_PROMPT_TOKENS} tokens",
    )
    say(f"{TARGET}: {quality.metric} {quality.whole}")
    return counted[TARGET].model_copy(
        update={
            "name": _NAME,
            "description": _DESCRIPTION,
            "tokenizer": _TOKENIZER,
            "prompts": f"../data/text/{PROMPTS}",
            "drafts": drafts,
            "answers": record_answers(folder, asked, say),
            "quality": quality,
        }
    )


def _module(name: str, folder: Path) -> torch.nn.Module:
    architecture = MODELS[name].architecture(str(folder / f"{name}.safetensors"))
    config = model_config(architecture)
    whole: Any = build_model(architecture, config)
    whole.lm_head.weight = whole.model.embed_tokens.weight
    fill(whole, open_weights(architecture), dtype=torch.float32)
    whole.generation_config.eos_token_id = None
    return whole


def _measured(target: torch.nn.Module, draft: torch.nn.Module, prompts: torch.Tensor, temperature: float) -> Acceptance:
    if temperature == 0:
        marks = greedy_marks(target, draft, prompts, _NEW_TOKENS)
    else:
        marks = sampled_marks(target, draft, prompts, _NEW_TOKENS, temperature)
    positions = [round(value, 4) for value in positions_of(yields(marks, MAX_LENGTH, _STARTS))]
    source = (
        f"measured {date.today().isoformat()} on {_ROWS} held-out prompts of {_PROMPT_TOKENS} tokens, {_NEW_TOKENS} "
        f"new ones each: of all tokens {marks[:, 1:].mean():.4f} are taken; the figures fit the measured yield of "
        f"a round at every length up to {MAX_LENGTH}"
    )
    return Acceptance(temperature=temperature, by_position=positions, source=source)
