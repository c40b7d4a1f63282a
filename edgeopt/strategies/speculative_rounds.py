"""Rounds of speculative decoding: what passes, messages and memory of a problem come to, as an instance."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.costs.drafting import ModelPasses, draft_model
from edgeopt.costs.links import LinkArrays, waiting_links
from edgeopt.costs.memory import usable_bytes
from edgeopt.errors import Finding, InputError
from edgeopt.profiles.device import Device
from edgeopt.profiles.model import Acceptance, CausalLM
from edgeopt.profiles.problem import Problem, TextWorkload
from edgeopt.strategies.chain import compute_table, source_index
from edgeopt_solvers import policy as family

__all__ = ["ROUND_BYTES", "Rounds"]

#: Bytes of a token id and of one probability on the wire.
_TOKEN_BYTES, _PROBABILITY_BYTES = 8, 4
#: How many tokens were taken, and the next one: to the draft, and with its next guesses to the stages.
ROUND_BYTES = 2 * _TOKEN_BYTES

Array = NDArray[np.float64]


class Rounds:
    """What one problem's rounds are made of."""

    def __init__(self, problem: Problem) -> None:
        assert isinstance(problem.model, CausalLM)
        assert isinstance(problem.workload, TextWorkload)
        self.problem, self.model, self.load = problem, problem.model, problem.workload
        self.target = ModelPasses(self.model, self.load)
        self.drafts = [ModelPasses(draft_model(self.model, name), self.load) for name in self.model.drafts]
        self.measured = [self._acceptance(name) for name in self.model.drafts]
        known = min(len(entry.by_position) for entry in self.measured)
        #: Longest draft: as allowed, as measured, and as the request has use for.
        self.max_length = max(1, min(problem.constraints.drafting.max_length, known, self.load.new_tokens - 2))

    def _acceptance(self, name: str) -> Acceptance:
        entries = self.model.drafts[name].acceptance
        for entry in entries:
            if entry.temperature == self.load.temperature:
                return entry
        known = ", ".join(f"{entry.temperature:g}" for entry in entries)
        message = f"is {self.load.temperature:g}; the acceptance of draft '{name}' was measured at {known}"
        raise InputError(Finding("workload.temperature", message, "use one of these, or measure it there"))

    @cached_property
    def links(self) -> LinkArrays:
        """Rates and latencies."""
        return waiting_links(self.problem.network, self.problem.devices)

    @property
    def spread_bytes(self) -> float:
        """Bytes of what the draft gave all tokens at one place, which the last stage needs where tokens are sampled."""
        if self.load.temperature == 0:
            return 0.0
        size = self.model.architecture and self.model.architecture.config.get("vocab_size")
        if not size:
            message = f"of '{self.model.name}' does not say its vocab_size, and drafts are sent with probabilities"
            raise InputError(Finding("model.architecture.config", message, "add it, or use temperature 0"))
        return float(_PROBABILITY_BYTES * size)

    def instance(self) -> family.StagedSpeculative:
        """Return the choice among drafts, devices, lengths and cuts; seconds per request of N - 1 tokens in rounds."""
        limits, costs = self.problem.constraints, self.target.costs
        tokens = list(range(1, self.max_length + 2))
        inner = range(1, len(costs.layers))
        budgets = [limit for limit in (limits.deadline, limits.period) if limit is not None]
        return family.StagedSpeculative(
            draft_s=np.stack([self._by_device(lambda x, a=a: a.passes_s(x, [1])[0][0]) for a in self.drafts]),
            draft_round_s=np.array([[draft.round_s(each) for each in self.problem.devices] for draft in self.drafts]),
            draft_prefill_s=np.stack([self._by_device(lambda x, a=a: a.prefill_s(x)) for a in self.drafts]),
            prefill_s=self._by_device(lambda device: costs.prefill_s(device)[0]),
            verify_s=self._by_device(lambda device: self._verify_s(device, tokens)),
            acceptance=np.array([entry.by_position[: self.max_length] for entry in self.measured]),
            max_length=self.max_length,
            min_length=min(limits.drafting.min_length, self.max_length),
            num_tokens=self.load.new_tokens - 1.0,
            rate_bytes_per_s=self.links.rate_bytes_per_s,
            latency_s=self.links.latency_s,
            source=source_index(self.problem),
            prompt_bytes=float(_TOKEN_BYTES * (self.load.prompt_tokens + 1)),  # and the seed
            result_bytes=float(_TOKEN_BYTES * self.load.new_tokens),
            prefill_cut_bytes=np.array([0.0, *map(costs.prefill_cut_bytes, inner), 0.0]),
            position_cut_bytes=np.array([0.0, *map(costs.decode_cut_bytes, inner), 0.0]),
            round_bytes=float(ROUND_BYTES),
            token_bytes=float(_TOKEN_BYTES),
            spread_bytes=self.spread_bytes,
            reply_bytes=float(ROUND_BYTES),
            loop_bytes=float(self.model.token),
            memory_bytes=np.array([usable_bytes(device) for device in self.problem.devices]),
            draft_bytes=np.array([draft.memory_bytes for draft in self.drafts]),
            resident_bytes=costs.resident_bytes,
            transient_bytes=costs.transient_bytes,
            max_stages=limits.max_stages,
            max_time_s=min(budgets) if budgets else None,
        )

    def _verify_s(self, device: Device, tokens: list[int]) -> Array:
        """Seconds of the target's passes by number of positions and element; of one as where it decodes alone."""
        found = self.target.elements_s(device, tokens)
        found[0] *= self.target.alone_s(device) / found[0].sum()
        return found

    def _by_device(self, seconds: Callable[..., Any]) -> Array:
        return compute_table(self.problem, lambda device: np.asarray(seconds(device)))
