"""Three language models of one family and tokenizer, and how they are trained: to predict the next character."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from edgeopt.profiles.model import Architecture
from edgeopt.training.optimise import optimise
from edgeopt.training.text.grammar import ALPHABET, corpus, encode

__all__ = ["CONTEXT", "MODELS", "TARGET", "Recipe", "stream", "train_model"]

#: Characters that a model sees at once in training.
CONTEXT = 160
#: The model that the others draft for.
TARGET = "large"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one model is built and trained."""

    width: int
    layers: int
    heads: int
    iterations: int
    learning_rate: float
    batch: int = 24
    seed: int = 0
    ema: float = 0.99

    @property
    def config(self) -> dict[str, Any]:
        """What `transformers` makes a ``LlamaForCausalLM`` from."""
        return {
            "vocab_size": len(ALPHABET),
            "hidden_size": self.width,
            "intermediate_size": 2 * self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": max(1, self.heads // 2),
            "head_dim": self.width // self.heads,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
        }

    def architecture(self, checkpoint: str | None = None) -> Architecture:
        """Return what a model profile says of it."""
        fields = {"library": "transformers", "class": "LlamaForCausalLM", "config": self.config}
        return Architecture.model_validate({**fields, "checkpoint": checkpoint})


MODELS: dict[str, Recipe] = {
    "large": Recipe(128, 3, 4, iterations=900, learning_rate=3e-3),
    "medium": Recipe(64, 2, 4, iterations=1200, learning_rate=5e-3),
    "small": Recipe(32, 1, 2, iterations=1200, learning_rate=1e-2),
}


def stream(seed: int, num_tokens: int, *, held_out: bool) -> torch.Tensor:
    """Return documents one after the other as ``num_tokens`` token ids, int64."""
    tokens: list[int] = []
    documents = corpus(seed, held_out)
    while len(tokens) < num_tokens:
        tokens += encode(next(documents))
    return torch.tensor(tokens[:num_tokens])


def train_model(recipe: Recipe, tokens: torch.Tensor) -> tuple[torch.nn.Module, float]:
    """Train one model.

    Parameters
    ----------
    tokens
        The corpus as one row of ids.

    Returns
    -------
    module
        With averaged weights, in evaluation mode.
    loss
        Nats per character over the last tenth of the iterations.
    """
    import transformers

    torch.manual_seed(recipe.seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**recipe.config)).train()
    generator = torch.Generator().manual_seed(recipe.seed)

    def loss_of_batch() -> torch.Tensor:
        starts = torch.randint(len(tokens) - CONTEXT - 1, (recipe.batch, 1), generator=generator)
        rows = tokens[starts + torch.arange(CONTEXT + 1)]
        logits = model(rows[:, :-1], use_cache=False).logits
        return functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

    loss = optimise(
        model, loss_of_batch, iterations=recipe.iterations, learning_rate=recipe.learning_rate, betas=(0.9, 0.98),
        weight_decay=0.05, ema=recipe.ema,
    )  # fmt: skip
    return model.eval().requires_grad_(False), loss
