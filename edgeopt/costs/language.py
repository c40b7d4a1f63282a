"""Costs of a decoder-only language model, element by element: prefill, decode, KV cache, what crosses a cut.

A request of N new tokens after P prompt tokens is one prefill, which yields the first token, and N - 1 decode
rounds; the round that yields token n + 1 attends to P + n tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edgeopt.costs.roofline import roofline_s
from edgeopt.costs.timings import interpolate_s, matching
from edgeopt.profiles.device import Device
from edgeopt.profiles.model import CausalLM, Layer
from edgeopt.profiles.problem import TextWorkload

__all__ = ["LanguageCosts"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LanguageCosts:
    """Seconds and bytes of one model under one workload. L elements: every layer with its ``count`` expanded."""

    model: CausalLM
    workload: TextWorkload

    @cached_property
    def layers(self) -> list[Layer]:
        """The L layers, one per element."""
        return [layer for layer in self.model.layers for _ in range(layer.count)]

    @cached_property
    def names(self) -> list[str]:
        """Element names: ``embed``, ``block.0`` …, ``head``."""
        return [
            f"{layer.name}.{i}" if layer.count > 1 else layer.name
            for layer in self.model.layers
            for i in range(layer.count)
        ]

    def _figures(self, name: str) -> Array:
        return np.array([getattr(layer, name) for layer in self.layers], float)

    @property
    def num_decode_rounds(self) -> int:
        """Rounds after the prefill."""
        return self.workload.new_tokens - 1

    @property
    def contexts(self) -> NDArray[np.int64]:
        """Cached tokens at the start of each decode round, shape (N - 1,)."""
        return self.workload.prompt_tokens + np.arange(self.num_decode_rounds)

    def prefill_s(self, device: Device) -> tuple[Array, bool]:
        """Seconds of the prefill per element, shape (L,), and whether they are measured.

        The roofline counts causal attention as the full square, as the FLOP counter of torch does; the last element
        (the head) sees only the last token, whose successor is sampled.
        """
        tokens, batch = self.workload.prompt_tokens, self.workload.batch
        timings = matching(device, self.model.name, "prefill", self.model.dtype, batch)
        measured = interpolate_s(timings, "tokens", np.array([tokens]))
        if measured is not None:
            return measured[0], True
        through = np.full(len(self.layers), float(tokens))
        through[-1] = 1.0
        flop = batch * through * (self._figures("flop_per_token") + tokens * self._figures("flop_per_token_context"))
        return roofline_s(device, self.model.dtype, flop, self._traffic(through, 0)), False

    def decode_s(self, device: Device) -> tuple[Array, bool]:
        """Seconds of each decode round per element, shape (N - 1, L), and whether they are measured."""
        batch, contexts = self.workload.batch, self.contexts
        if not contexts.size:
            return np.zeros((0, len(self.layers))), True
        timings = matching(device, self.model.name, "decode", self.model.dtype, batch)
        measured = interpolate_s(timings, "context", contexts)
        if measured is not None:
            return measured, True
        attended = contexts[:, None] + 1
        flop = batch * (self._figures("flop_per_token") + attended * self._figures("flop_per_token_context"))
        return roofline_s(device, self.model.dtype, flop, self._traffic(1, contexts[:, None])), False

    def _traffic(self, tokens: Array | int, context: NDArray[np.int64] | int) -> Array:
        """Bytes moved by one call: weights once, the cache read and extended, activations in and out.

        An element without arithmetic is a lookup (the embedding): it reads the rows of its tokens, not the table.
        """
        cache = self._figures("kv_per_token") * (context + tokens)
        activations = 2 * tokens * self._figures("output_per_token")
        weights = np.where(self._figures("flop_per_token") > 0, self._figures("weights"), 0.0)
        return weights + self.workload.batch * (cache + activations)

    @property
    def resident_bytes(self) -> Array:
        """Weights and the KV cache at its longest, shape (L,)."""
        longest = self.workload.prompt_tokens + self.workload.new_tokens
        return self._figures("weights") + self.workload.batch * longest * self._figures("kv_per_token")

    @property
    def transient_bytes(self) -> Array:
        """Activations in and out of an element during the prefill, shape (L,)."""
        return 2 * self.workload.batch * self.workload.prompt_tokens * self._figures("output_per_token")

    @property
    def cut_bytes(self) -> Array:
        """Bytes crossing each cut over the whole request, shape (L + 1,)."""
        load = self.workload
        hidden = self._figures("output_per_token") * load.batch * (load.prompt_tokens + self.num_decode_rounds)
        prompt = load.batch * load.prompt_tokens * self.model.token
        return np.concatenate([[prompt], hidden[:-1], [load.batch * load.new_tokens * self.model.token]])

    @property
    def cut_messages(self) -> Array:
        """Messages that make up ``cut_bytes``: prompt and result once, hidden states once a round; shape (L + 1,)."""
        rounds = 1 + self.num_decode_rounds
        return np.concatenate([[1.0], np.full(len(self.layers) - 1, float(rounds)), [1.0]])

    def prefill_cut_bytes(self, cut: int) -> float:
        """Bytes that cross a cut during the prefill alone."""
        tokens = self.workload.batch * self.workload.prompt_tokens
        return tokens * (self.layers[cut - 1].output_per_token if cut else self.model.token)

    @property
    def loop_bytes(self) -> float:
        """Sampled tokens returning from the last stage to the first, over the request."""
        return self.num_decode_rounds * self.workload.batch * self.model.token
