"""Costs of speculative decoding: a draft guesses γ tokens, the target checks them in one pass over γ + 1 positions.

A request of N new tokens after P prompt tokens is a prefill of both models at once, which yields the first token, and
rounds until the other N - 1 are there. Passes are counted at the middle of the request, with P + N / 2 cached tokens.
A round drafts no more than can still be used, so the last ones may be shorter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edgeopt.costs.language import LanguageCosts
from edgeopt.costs.timings import interpolate_s, matching
from edgeopt.profiles.device import Device
from edgeopt.profiles.model import CausalLM, Draft
from edgeopt.profiles.problem import TextWorkload
from edgeopt.units import SECONDS_PER

__all__ = ["Expected", "ModelPasses", "draft_model", "expected_request"]

Array = NDArray[np.float64]


def draft_model(model: CausalLM, name: str) -> CausalLM:
    """Return a draft as a model of its own, ``MODEL.DRAFT``."""
    draft: Draft = model.drafts[name]
    own = {"architecture": draft.architecture, "layers": draft.layers, "parameters": draft.parameters}
    return model.model_copy(update={"name": f"{model.name}.{name}", "drafts": {}, **own})


@dataclass(frozen=True)
class ModelPasses:
    """Seconds and bytes of a whole model on one device."""

    model: CausalLM
    workload: TextWorkload

    @cached_property
    def costs(self) -> LanguageCosts:
        """Of the model's layers."""
        return LanguageCosts(self.model, self.workload)

    @property
    def context(self) -> int:
        """Cached tokens in the middle of a request."""
        return self.workload.prompt_tokens + self.workload.new_tokens // 2

    def prefill_s(self, device: Device) -> float:
        """Seconds of the prefill."""
        return float(self.costs.prefill_s(device)[0].sum())

    def passes_s(self, device: Device, tokens: Sequence[int]) -> tuple[Array, bool]:
        """Seconds of passes over each number of new tokens, and whether they are measured (phase ``verify``)."""
        timings = matching(device, self.model.name, "verify", self.model.dtype)
        measured = interpolate_s(timings, self.workload.batch, "tokens", np.asarray(tokens, np.int64))
        if measured is not None:
            return measured.sum(axis=1), True
        return np.array([self.costs.pass_s(device, count, self.context) for count in tokens]), False

    def elements_s(self, device: Device, tokens: Sequence[int]) -> Array:
        """Seconds of these passes by element, (len(tokens), L); the roofline shares out what was measured whole."""
        shares = np.stack([self.costs.pass_elements_s(device, count, self.context) for count in tokens])
        whole = self.passes_s(device, tokens)[0]
        return shares * (whole / shares.sum(axis=1))[:, None]

    def alone_s(self, device: Device) -> float:
        """Seconds of a token where the model decodes alone: tables of decoding count before those of passes.

        Passes of rounds come after rests, in which caches grow cold; those of a model alone follow each other.
        """
        seconds, measured = self.costs.decode_s(device)
        return (
            float(seconds.sum(axis=1).mean()) if measured and len(seconds) else float(self.passes_s(device, [1])[0][0])
        )

    def round_s(self, device: Device) -> float:
        """Seconds that a round of drafting takes beside its steps: ``wake`` in the tables of passes, else none."""
        rows = matching(device, self.model.name, "verify", self.model.dtype)
        known = [row.wake * SECONDS_PER[row.unit] for row in rows if row.wake is not None]
        return float(np.mean(known)) if known else 0.0

    @property
    def memory_bytes(self) -> float:
        """Weights, cache at its longest and activations of the prefill."""
        return float(self.costs.resident_bytes.sum() + self.costs.transient_bytes.max())


@dataclass(frozen=True, slots=True)
class Expected:
    """What a request's rounds come to on average, without the prefill; ``positions`` are checked by the target."""

    rounds: float
    drafted: float
    positions: dict[int, float]


def expected_request(acceptance: Array, length: int, num_tokens: int) -> Expected:
    """Follow the rounds of a request to its end.

    Parameters
    ----------
    acceptance : (>= length,)
        Probability that the token at a position is taken, given that all before it were.
    length
        Most tokens drafted in a round, γ; 0: the target decodes alone.
    num_tokens
        Tokens to make in rounds.

    Returns
    -------
    Expected
        With n tokens to go, a round drafts min(γ, n - 1) and makes k + 1 tokens with probability
        Π_{j<=k} α_j (1 - α_{k+1}), or Π α_j for all of them; reach[n], the chance that n tokens are ever to go, follows
        from the highest n down.
    """
    reach = np.zeros(num_tokens + 1)
    reach[num_tokens] = 1.0
    positions: dict[int, float] = {}
    for left in range(num_tokens, 0, -1):
        if not reach[left]:
            continue
        drafted = min(length, left - 1)
        positions[drafted + 1] = positions.get(drafted + 1, 0.0) + float(reach[left])
        going = float(reach[left])
        for k in range(drafted):
            reach[left - k - 1] += going * (1.0 - acceptance[k])
            going *= float(acceptance[k])
        reach[left - drafted - 1] += going
    rounds = sum(positions.values())
    return Expected(rounds, sum((count - 1) * times for count, times in positions.items()), positions)
