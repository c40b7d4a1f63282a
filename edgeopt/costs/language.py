"""Costs of a decoder-only language model, element by element: prefill, decode, KV cache, what crosses a cut.

A request of N new tokens after P prompt tokens is one prefill, which yields the first token, and N - 1 decode
rounds; the round that yields token n + 1 attends to P + n tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edgeopt.costs.roofline import Work, roofline
from edgeopt.costs.terms import Terms
from edgeopt.costs.timings import between_batches, interpolate_s, matching
from edgeopt.profiles.device import Device
from edgeopt.profiles.model import CausalLM, Layer, WeightQuality
from edgeopt.profiles.problem import Problem, TextWorkload
from edgeopt.units import SECONDS_PER

__all__ = ["LanguageCosts", "distinct_experts", "weight_formats"]

Array = NDArray[np.float64]


def distinct_experts(num_experts: int, num_active: int, num_tokens: float) -> float:
    """Experts that at least one of ``num_tokens`` tokens is sent to, expected when each chooses evenly."""
    return num_experts * (1 - (1 - num_active / num_experts) ** num_tokens)


def weight_formats(problem: Problem) -> list[str]:
    """Return the formats that layers' weights may be stored in beside the model's own dtype.

    They are there for the taking only where the problem says what a loss may be or costs.
    """
    quality = problem.model.quality
    wanted = problem.objective if isinstance(problem.objective, dict) else {problem.objective: 1.0}
    asked = problem.constraints.quality is not None or wanted.get("quality", 0.0) > 0
    return list(quality.loss) if isinstance(quality, WeightQuality) and asked else []


def _corrected(found: Terms, measured: Array, ideal: Terms) -> Terms:
    """Scale a roofline by what was measured elsewhere over the roofline there.

    A roofline beside a measurement would look better than that by all that rooflines leave out.
    """
    ratio = np.divide(measured, ideal.total, out=np.ones_like(ideal.total), where=ideal.total > 0)
    return Terms(**{name: value * ratio for name, value in found})


@dataclass(frozen=True)
class LanguageCosts:
    """Seconds and bytes of one model under one workload. L elements: every layer with its ``count`` expanded.

    ``weights`` is the format that layers' matrices are stored in; ``None``: the model's dtype, in which it computes in
    any case.
    """

    model: CausalLM
    workload: TextWorkload
    weights: str | None = None

    @cached_property
    def layers(self) -> list[Layer]:
        """The L layers, one per element."""
        stored = [layer if self.weights is None else layer.stored_as(self.weights) for layer in self.model.layers]
        return [layer for layer in stored for _ in range(layer.count)]

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
        """Seconds of the prefill per element, shape (L,), and whether they are measured."""
        terms, measured = self.prefill_terms(device)
        return terms.total, measured

    def decode_s(self, device: Device) -> tuple[Array, bool]:
        """Seconds of each decode round per element, shape (N - 1, L), and whether they are measured."""
        terms, measured = self.decode_terms(device)
        return terms.total, measured

    def prefill_terms(self, device: Device) -> tuple[Terms, bool]:
        """Split the prefill by what takes the time, shape (L,).

        The roofline counts causal attention as the full square, as the FLOP counter of torch does; the last element
        (the head) sees only the last token, whose successor is sampled.
        """
        tokens = np.array([self.workload.prompt_tokens])
        whole = len(self.workload.chunks) == 1
        if whole and (measured := self._measured(device, "prefill", "tokens", tokens)) is not None:
            return Terms.from_table(measured[0]), True
        found, own = self._prefill_roofline(device), self._own
        if (known := own._measured(device, "prefill", "tokens", tokens)) is not None:
            found = _corrected(found, known[0], own._prefill_roofline(device))
        return found, False

    def _prefill_roofline(self, device: Device) -> Terms:
        """Add up the chunks of the prompt, each on those before it; the head is applied after the last."""
        total, cached, chunks = Terms.from_table(np.zeros(len(self.layers))), 0, self.workload.chunks
        for index, tokens in enumerate(chunks):
            is_last = index == len(chunks) - 1
            through = np.array([*[float(tokens)] * (len(self.layers) - 1), 1.0])
            piece = self._roofline(device, through, np.full(len(self.layers), float(cached)))
            # What the head sees is one token, with none before it.
            piece = piece if is_last else Terms(**{name: np.append(value[:-1], 0.0) for name, value in piece})
            total, cached = total + piece, cached + tokens
        return total

    def decode_terms(self, device: Device) -> tuple[Terms, bool]:
        """Split each decode round by what takes the time, shape (N - 1, L)."""
        contexts = self.contexts
        if not contexts.size:
            return Terms.from_table(np.zeros((0, len(self.layers)))), True
        measured = self._measured(device, "decode", "context", contexts)
        if measured is not None:
            return Terms.from_table(measured), True
        ones, cached, own = np.ones(len(self.layers)), contexts[:, None].astype(float), self._own
        found = self._roofline(device, ones, cached)
        if (known := own._measured(device, "decode", "context", contexts)) is not None:
            found = _corrected(found, known, own._roofline(device, ones, cached))
        return found, False

    def _measured(self, device: Device, phase: str, axis: str, values: NDArray[np.int64]) -> Array | None:
        timings = matching(device, self.model.name, phase, self.model.dtype, self.weights)
        return interpolate_s(timings, self.workload.batch, axis, values)

    @property
    def _own(self) -> LanguageCosts:
        """The same in the model's own dtype and with the prompt in one piece, which is what devices are timed with."""
        return replace(self, weights=None, workload=self.workload.model_copy(update={"prefill_chunk": None}))

    def pass_s(self, device: Device, tokens: int, cached: float) -> float:
        """Seconds of one pass of the whole model over ``tokens`` new ones on ``cached`` ones, by the roofline.

        Unlike in a prefill, the head is applied to every one of them.
        """
        return float(self.pass_elements_s(device, tokens, cached).sum())

    def pass_elements_s(self, device: Device, tokens: int, cached: float) -> Array:
        """Seconds of each element in such a pass, shape (L,)."""
        through = np.full(len(self.layers), float(tokens))
        return self._roofline(device, through, np.full(len(self.layers), float(cached))).total

    def wake_s(self, device: Device) -> float:
        """Seconds that a stage takes longer in a round that it waited for, at the nearest measured batch; else 0."""
        timings = matching(device, self.model.name, "decode", self.model.dtype)
        known = [(abs(row.batch - self.workload.batch), row) for row in timings if row.wake is not None]
        nearest = [row for apart, row in known if apart == min(apart for apart, _ in known)]
        return float(np.mean([row.wake * SECONDS_PER[row.unit] for row in nearest])) if nearest else 0.0

    def is_between_batches(self, device: Device) -> bool:
        """Whether the device's tables were measured at other batches than the workload's."""
        batches = dict.fromkeys(("prefill", "decode"), self.workload.batch)
        return between_batches(device, self.model.name, self.model.dtype, batches)

    def _roofline(self, device: Device, tokens: Array, cached: Array) -> Terms:
        """Terms of ``tokens`` new tokens on ``cached`` ones, for every sequence of the batch."""
        batch, attended = self.workload.batch, cached + tokens
        flop, weights = self._figures("flop_per_token"), self._figures("weights")
        # An element without arithmetic is a lookup (the embedding): it reads the rows of its tokens, not the table.
        weights = np.where(flop > 0, weights, 0.0)
        routed_share, routed_weights, routed_rows = self._experts(batch * tokens)
        nothing = np.zeros(np.broadcast_shapes(tokens.shape, cached.shape))
        rest = Work(
            flop=batch * tokens * flop * (1 - routed_share) + nothing,
            weights=np.maximum(weights - self._all_experts, 0.0),
            rows=batch * tokens,
            activations=batch * tokens * self._either("traffic_per_token", 2 * self._figures("output_per_token")),
            attention_flop=batch * tokens * attended * self._figures("flop_per_token_context"),
            cache=batch * attended * self._either("traffic_per_cached_token", self._figures("kv_per_token")),
            kernels=self._either("kernels", np.ones(len(self.layers))),
        )
        routed = Work(
            flop=batch * tokens * flop * routed_share + nothing, weights=routed_weights, rows=routed_rows, kernels=0
        )
        return roofline(device, self.model.dtype, rest) + roofline(device, self.model.dtype, routed)

    def _either(self, name: str, otherwise: Array) -> Array:
        """Return a figure where the layer has it, else what is known at least."""
        given = [getattr(layer, name) for layer in self.layers]
        return np.array([b if a is None else a for a, b in zip(given, otherwise, strict=True)], float)

    @property
    def _all_experts(self) -> Array:
        return np.array([e.num_experts * e.weights if (e := layer.experts) else 0.0 for layer in self.layers])

    def _experts(self, num_tokens: Array) -> tuple[Array, Array, Array]:
        """What routed experts do when every layer sees ``num_tokens`` tokens, shape (L,) each.

        Returns
        -------
        share
            Of the layer's FLOPs: as its active experts' share of the weights that work on a token.
        weights
            Bytes of the experts that any token is sent to, expected when each token chooses k of E evenly:
            ``E (1 - (1 - k / E) ** tokens)`` experts.
        rows
            Tokens that each of these works on.
        """
        share, weights, rows = (np.zeros(len(self.layers)) for _ in range(3))
        for i, (layer, tokens) in enumerate(zip(self.layers, num_tokens, strict=True)):
            if (experts := layer.experts) is not None:
                touched = distinct_experts(experts.num_experts, experts.num_active, tokens)
                active = experts.num_active * experts.weights
                share[i] = active / (layer.weights - experts.num_experts * experts.weights + active)
                weights[i], rows[i] = touched * experts.weights, tokens * experts.num_active / touched
        return share, weights, np.maximum(rows, 1.0)

    @property
    def resident_bytes(self) -> Array:
        """Weights and the KV cache at its longest, shape (L,)."""
        longest = self.workload.prompt_tokens + self.workload.new_tokens
        return self._figures("weights") + self.workload.batch * longest * self._figures("kv_per_token")

    @property
    def transient_bytes(self) -> Array:
        """Activations in and out of an element during the prefill (of a chunk), shape (L,)."""
        return 2 * self.workload.batch * max(self.workload.chunks) * self._figures("output_per_token")

    @property
    def seed_bytes(self) -> float:
        """What travels with the prompt to the last stage where that draws tokens: the seed, a number of 64 bits."""
        return 8.0 if self.workload.temperature > 0 else 0.0

    @property
    def cut_bytes(self) -> Array:
        """Bytes crossing each cut over the whole request, shape (L + 1,)."""
        load = self.workload
        hidden = self._figures("output_per_token") * load.batch * (load.prompt_tokens + self.num_decode_rounds)
        prompt, result = (load.batch * count * self.model.token for count in (load.prompt_tokens, load.new_tokens))
        return np.concatenate([[prompt + self.seed_bytes], hidden[:-1] + self.seed_bytes, [result]])

    @property
    def cut_messages(self) -> Array:
        """Messages that make up ``cut_bytes``: prompt and result once, hidden states once a round; shape (L + 1,)."""
        rounds = len(self.workload.chunks) + self.num_decode_rounds
        return np.concatenate([[1.0], np.full(len(self.layers) - 1, float(rounds)), [1.0]])

    def prefill_cut_bytes(self, cut: int) -> float:
        """Bytes that cross a cut during the prefill alone."""
        tokens = self.workload.batch * self.workload.prompt_tokens
        return tokens * (self.layers[cut - 1].output_per_token if cut else self.model.token) + self.seed_bytes

    def decode_cut_bytes(self, cut: int) -> float:
        """Bytes that cross a cut between blocks in one decode round."""
        return self.workload.batch * self.layers[cut - 1].output_per_token

    @property
    def loop_bytes(self) -> float:
        """Sampled tokens returning from the last stage to the first, over the request."""
        return self.num_decode_rounds * self.workload.batch * self.model.token
