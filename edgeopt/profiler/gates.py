"""How often a mixture's gates choose each expert, and which together, counted while the model really generates."""

from __future__ import annotations

from datetime import date
from itertools import combinations
from typing import Any

import torch

from edgeopt.errors import Finding, InputError
from edgeopt.profiles.gates import layers_with_experts
from edgeopt.profiles.model import CausalLM, Gates
from edgeopt.profiles.problem import TextWorkload
from edgeopt.programs.language import build_model, model_config
from edgeopt.programs.mixtures import expert_layers
from edgeopt.programs.speculative import draw_prompt
from edgeopt.programs.weights import fill, open_weights, torch_dtype

__all__ = ["measure_gates"]

#: Pairs of more experts than this would fill pages, and costs do without them.
_MOST_PAIRED = 16


def measure_gates(
    model: CausalLM, *, prompts: int = 32, prompt_tokens: int = 64, new_tokens: int = 32, seed: int = 0
) -> Gates:
    """Run the model in this process and count its gates' choices.

    Parameters
    ----------
    prompts, prompt_tokens, new_tokens
        How many prompts, of how many tokens, and how many to generate after each (greedily); all tokens that pass
        the gates count. Prompts are those of the model's profile from row ``seed`` on, or random tokens.

    Raises
    ------
    InputError
        The model has no experts, or no architecture to build it from.
    """
    if not layers_with_experts(model):
        message = f"no layer of '{model.name}' has experts"
        raise InputError(Finding("model.layers", message, "measure gates of a mixture of experts"))
    if model.architecture is None:
        message = f"'{model.name}' says nothing to build it from"
        raise InputError(Finding("model.architecture", message, "add `architecture:`"))
    config = model_config(model.architecture)
    whole: Any = build_model(model.architecture, config)
    if config.tie_word_embeddings:
        whole.lm_head.weight = whole.model.embed_tokens.weight
    fill(whole, open_weights(model.architecture), dtype=torch_dtype(model.dtype))
    whole.generation_config.eos_token_id = None
    layers = list(expert_layers(whole).values())
    counts = [torch.zeros(module.num_experts, module.num_experts) for module in layers]
    for module, count in zip(layers, counts, strict=True):
        module.register_forward_pre_hook(_counting(count))
    load = TextWorkload(prompt_tokens=prompt_tokens, new_tokens=new_tokens, batch=prompts)
    prompt = draw_prompt(model, load, seed)
    with torch.inference_mode():
        whole.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new_tokens, do_sample=False, num_beams=1,
            pad_token_id=0,
        )  # fmt: skip
    tokens = prompts * (prompt_tokens + new_tokens - 1)
    pairs = list(combinations(range(len(counts[0])), 2)) if len(counts[0]) <= _MOST_PAIRED else []
    weights = "its checkpoint" if model.architecture.checkpoint else f"random weights of seed {model.architecture.seed}"
    kind = "of the profile" if model.prompts else "of random tokens"
    return Gates(
        frequencies=[[round(float(count[e, e]) / tokens, 6) for e in range(len(count))] for count in counts],
        pairs=[[round(float(count[pair]) / tokens, 6) for pair in pairs] for count in counts] if pairs else [],
        source=f"measured {date.today().isoformat()} with {weights} on {prompts} prompts {kind}, {prompt_tokens} "
        f"tokens each and {new_tokens} more generated: {tokens} tokens",
    )


def _counting(count: torch.Tensor) -> Any:
    """Return a hook that adds up which experts are chosen together; the diagonal is each one's own count."""

    def hook(module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        chosen = torch.zeros(arguments[1].shape[0], len(count)).scatter_(1, arguments[1].cpu(), 1.0)
        count.add_(chosen.T @ chosen)

    return hook
