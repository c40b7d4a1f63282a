"""A contiguous part of a decoder-only language model of `transformers`: embedding, some blocks, head.

Written against the structure that these families share: ``model.embed_tokens``, ``model.layers``,
``model.rotary_emb``, ``model.norm`` and ``lm_head``. A part is built from the library's own class with only its own
number of layers, so that layer and cache indices count from the part's first layer; parameter names are mapped back.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from edgeopt.errors import Finding, InputError, MissingDependencyError
from edgeopt.profiles.model import Architecture
from edgeopt.programs.quantised import fill_quantised
from edgeopt.programs.weights import fill, meta_parameters, open_weights

__all__ = ["FAMILIES", "LanguagePart", "build_model", "model_config"]

#: Families whose forward pass is exactly: embed, blocks in order, norm, head; with no scaling in between.
FAMILIES = (
    "LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "Qwen2ForCausalLM", "Qwen2MoeForCausalLM",
    "Qwen3ForCausalLM", "Qwen3MoeForCausalLM",
)  # fmt: skip

#: Rotary kinds whose frequencies depend on the length of the sequence: their tables cannot be made ahead.
_CHANGING_ROTARY = ("dynamic", "longrope")


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError("transformers", "models", "running a language model") from error
    transformers.logging.set_verbosity_error()
    return transformers


def model_config(architecture: Architecture) -> Any:
    """Return the `transformers` configuration of the whole model.

    Raises
    ------
    InputError
        Not a family that the pipeline program can cut.
    """
    if architecture.library != "transformers" or architecture.class_name not in FAMILIES:
        raise InputError(
            Finding(
                "model.architecture.class",
                f"the pipeline program cannot cut {architecture.library} {architecture.class_name}",
                f"use one of {', '.join(FAMILIES)} of transformers",
            )
        )
    config = getattr(_library(), architecture.class_name).config_class(**architecture.config)
    config._attn_implementation = "sdpa"
    return config


def build_model(architecture: Architecture, config: Any) -> nn.Module:
    """Construct the class with parameters on the meta device."""
    with meta_parameters():
        return getattr(_library(), architecture.class_name)(config).eval()


def _is_sliding(config: Any, layer: int) -> bool:
    types = getattr(config, "layer_types", None)
    return types[layer] == "sliding_attention" if types else getattr(config, "sliding_window", None) is not None


def _likeliest(logits: torch.Tensor) -> torch.Tensor:
    return logits.argmax(-1, keepdim=True)


def _keep_dense(config: Any, first: int, last: int) -> None:
    """Let those of a mixture's layers be dense in a part that are so in the whole, where they have other indices."""
    if (every := getattr(config, "decoder_sparse_step", None)) is not None:
        dense = [i for i in range(first, last) if i in config.mlp_only_layers or (i + 1) % every]
        config.decoder_sparse_step, config.mlp_only_layers = 1, [i - first for i in dense]


class LanguagePart:
    """Elements ``start`` to ``stop`` of the chain embed, block 0 … block L-1, head, with their own KV cache.

    Parameters
    ----------
    architecture
        Class, configuration and weights of the whole model.
    start, stop
        Half-open range of elements; L + 2 elements in all.
    dtype, device
        Of weights and activations.
    max_tokens
        Longest sequence, prompt and generated; rotary tables are made once for it.
    adapt
        Called with the library's model before its weights are read, to put other modules in the place of its own.
    weights
        Format that the blocks' matrices are stored in (:mod:`edgeopt.programs.quantised`); ``None``: ``dtype``.
    """

    def __init__(
        self,
        architecture: Architecture,
        start: int,
        stop: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        max_tokens: int,
        adapt: Callable[[nn.Module], None] | None = None,
        weights: str | None = None,
    ) -> None:
        config = model_config(architecture)
        num_layers = config.num_hidden_layers
        #: Called with an element's index when it is done.
        self.on_element: Callable[[int], None] = lambda element: None
        #: Called with logits (batch, vocabulary); returns a token for each, (batch, 1).
        self.choose: Callable[[torch.Tensor], torch.Tensor] = _likeliest
        self.first, self.last = max(start - 1, 0), min(stop - 1, num_layers)
        self.has_embed, self.has_head = start == 0, stop == num_layers + 2
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[self.first : self.last]
        _keep_dense(config, self.first, self.last)
        config.num_hidden_layers = self.last - self.first
        self.config = config
        self.dtype, self.device, self.weights = dtype, device, weights
        self._tied = bool(config.tie_word_embeddings)
        self._load(architecture, adapt)
        self._rotary = self._rotary_tables(max_tokens)
        self.reset()

    def _load(self, architecture: Architecture, adapt: Callable[[nn.Module], None] | None) -> None:
        model = build_model(architecture, self.config)
        if adapt is not None:
            adapt(model)
        source = open_weights(architecture)
        where = {"dtype": self.dtype, "device": self.device}
        self.layers: list[nn.Module] = []
        for i, layer in enumerate(model.model.layers):
            prefix = f"model.layers.{self.first + i}."
            self.layers.append(fill_quantised(layer, source, self.weights, rename=prefix.__add__, **where))
        self.rotary = model.model.rotary_emb.to(self.device)
        self.embed = self.norm = self.head = None
        if self.has_embed:
            self.embed = fill(model.model.embed_tokens, source, rename="model.embed_tokens.".__add__, **where)
        if self.has_head:
            self.norm = fill(model.model.norm, source, rename="model.norm.".__add__, **where)
            self.head = model.lm_head
            if self._tied and self.embed is not None:
                self.head.weight = self.embed.weight
            # Tied, and the embedding lives elsewhere: this part needs a copy of the same matrix.
            key = "model.embed_tokens." if self._tied else "lm_head."
            fill(self.head, source, rename=key.__add__, **where)

    def _rotary_tables(self, max_tokens: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        kind = getattr(self.rotary, "rope_type", "default")
        if not self.layers or kind in _CHANGING_ROTARY:
            return None
        positions = torch.arange(max_tokens, device=self.device)[None]
        with torch.inference_mode():
            return self.rotary(torch.empty(0, dtype=self.dtype, device=self.device), positions)

    def reset(self) -> None:
        """Forget the cached keys and values."""
        self._cache = _library().DynamicCache(config=self.config)
        self._past = 0

    def fork(self) -> LanguagePart:
        """Share the modules; the cache is new."""
        other = copy.copy(self)
        other.reset()
        return other

    def __call__(self, x: torch.Tensor, *, yields: bool = True) -> torch.Tensor:
        """Run the part.

        Parameters
        ----------
        x : (batch, tokens) int64 or (batch, tokens, hidden)
            Token ids where the part begins with the embedding, hidden states elsewhere.
        yields
            Whether a token is wanted of a part with the head; not after a chunk in the middle of a prompt.

        Returns
        -------
        (batch, tokens, hidden), or (batch, 1) int64 where the part ends with the head
            Hidden states, or the next token as :attr:`choose` takes it from the logits.
        """
        if self.embed is not None:
            x = self.embed(x)
            self.on_element(0)
        if self.layers:
            x = self._blocks(x)
        if yields and self.norm is not None and self.head is not None:
            x = self.choose(self.head(self.norm(x[:, -1:]))[:, 0])
        return x

    def _blocks(self, x: torch.Tensor) -> torch.Tensor:
        tokens, past = x.shape[1], self._past
        positions = torch.arange(past, past + tokens, device=self.device)[None]
        if self._rotary is None:
            rotary = self.rotary(x, positions)
        else:
            rotary = tuple(table[:, past : past + tokens] for table in self._rotary)
        masks = self._masks(x, positions)
        for i, layer in enumerate(self.layers):
            x = layer(
                x,
                attention_mask=masks[_is_sliding(self.config, i)],
                position_ids=positions,
                position_embeddings=rotary,
                past_key_values=self._cache,
                use_cache=True,
            )
            self.on_element(1 + self.first + i)
        self._past += tokens
        return x

    def _masks(self, x: torch.Tensor, positions: torch.Tensor) -> dict[bool, torch.Tensor | None]:
        """Masks of full and of sliding layers. One new token attends to all that its layer's cache still holds."""
        if x.shape[1] == 1:
            return {False: None, True: None}
        from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

        make = {False: create_causal_mask, True: create_sliding_window_causal_mask}
        used = {_is_sliding(self.config, i) for i in range(len(self.layers))}
        arguments = {
            "config": self.config,
            "inputs_embeds": x,
            "attention_mask": None,
            "past_key_values": self._cache,
            "position_ids": positions,
        }
        return {sliding: make[sliding](**arguments) for sliding in used}
