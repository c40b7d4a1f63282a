"""What a language model loses where its layers' weights are stored in fewer bits, measured on text.

The loss is the mean Kullback-Leibler divergence of next-token distributions, in nats: that of the model as it is from
that of the model with rounded weights, over all tokens of the text. It is never negative, zero for the same weights,
and for small losses about the sum of what each layer adds, so that plans may add layers up.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

import torch

from edgeopt.errors import Finding, InputError
from edgeopt.profiles.model import Architecture, CausalLM, WeightQuality
from edgeopt.programs.language import build_model, model_config
from edgeopt.programs.quantised import FORMATS, fill_quantised
from edgeopt.programs.weights import fill, open_weights, torch_dtype

__all__ = ["METRIC", "measure_weights"]

METRIC = "KL divergence per token (nats)"
_ROWS_AT_ONCE = 50


def measure_weights(
    model: CausalLM, text: torch.Tensor, what: str, formats: Sequence[str] = tuple(FORMATS)
) -> WeightQuality:
    """Measure every block in every format alone, and all blocks together.

    Parameters
    ----------
    model
        With a checkpoint: random weights lose nothing that means anything.
    text : (rows, tokens) int64
        That the model was not trained on.
    what
        The text in words, for the source.

    Returns
    -------
    WeightQuality
        ``margin`` is by how much all layers together exceed the sum of the layers, in the worst format.

    Raises
    ------
    InputError
        The model names no checkpoint.
    """
    architecture = model.architecture
    if architecture is None or architecture.checkpoint is None:
        mend = "name the weights that were trained"
        raise InputError(Finding("model.architecture.checkpoint", f"'{model.name}' has random weights", mend))
    dtype = torch_dtype(model.dtype)
    expected = _log_probabilities(_stored(architecture, {}, dtype), text)
    num_blocks = model_config(architecture).num_hidden_layers
    loss: dict[str, list[float]] = {}
    whole: dict[str, float] = {}
    for name in formats:
        alone = [_divergence(expected, _stored(architecture, {k: name}, dtype), text) for k in range(num_blocks)]
        loss[name] = [0.0, *(round(value, 9) for value in alone), 0.0]
        together = _stored(architecture, dict.fromkeys(range(num_blocks), name), dtype)
        whole[name] = round(_divergence(expected, together, text), 9)
    margin = max(0.0, *(whole[name] / sum(loss[name]) - 1.0 for name in formats))
    tokens = text.shape[0] * text.shape[1]
    return WeightQuality.model_validate(
        {
            "form": "weights", "metric": METRIC, "loss": loss, "whole": whole, "margin": round(margin, 4),
            "source": f"measured {date.today().isoformat()} on {what} ({tokens} tokens): from the distributions with "
            f"{model.dtype} weights, each block alone and all of them; int8 by row, int4 in groups of 128",
        }
    )  # fmt: skip


def _stored(architecture: Architecture, formats: dict[int, str], dtype: torch.dtype) -> Any:
    """Load the whole model, some blocks in a format of their own."""
    config = model_config(architecture)
    whole: Any = build_model(architecture, config)
    if config.tie_word_embeddings:
        whole.lm_head.weight = whole.model.embed_tokens.weight
    source = open_weights(architecture)
    for number, name in formats.items():
        rename = f"model.layers.{number}.".__add__
        fill_quantised(whole.model.layers[number], source, name, dtype=dtype, rename=rename)
    return fill(whole, source, dtype=dtype)


@torch.inference_mode()
def _log_probabilities(model: Any, text: torch.Tensor) -> torch.Tensor:
    parts = [model(rows, use_cache=False).logits.double().log_softmax(-1) for rows in text.split(_ROWS_AT_ONCE)]
    return torch.cat(parts)


def _divergence(expected: torch.Tensor, model: Any, text: torch.Tensor) -> float:
    found = _log_probabilities(model, text)
    return float((expected.exp() * (expected - found)).sum(-1).mean())
