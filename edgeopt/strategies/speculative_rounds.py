"""Rounds of speculative decoding: what passes, messages and memory of a problem come to, and one choice of them."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.costs.drafting import Expected, ModelPasses, draft_model, expected_request
from edgeopt.costs.links import LinkArrays, link_arrays
from edgeopt.costs.memory import usable_bytes
from edgeopt.errors import Finding, InputError
from edgeopt.plan import Stage, Transfer
from edgeopt.profiles.model import Acceptance, CausalLM
from edgeopt.profiles.problem import Problem, TextWorkload
from edgeopt.strategies.chain import able_devices, source_index
from edgeopt.strategies.messages import Hop, hop_transfers
from edgeopt.strategies.pipeline import basis_notes
from edgeopt.strategies.timeline import Bar, link_lane
from edgeopt_solvers import policy as family

__all__ = ["Choice", "Rounds"]

#: Bytes of a token id and of one probability on the wire.
_TOKEN_BYTES, _PROBABILITY_BYTES = 8, 4
#: How many tokens were taken, and the next one.
_REPLY_BYTES = 2 * _TOKEN_BYTES

Array = NDArray[np.float64]


class Rounds:
    """What one problem's rounds are made of."""

    def __init__(self, problem: Problem) -> None:
        assert isinstance(problem.model, CausalLM)
        assert isinstance(problem.workload, TextWorkload)
        self.problem, self.model, self.load = problem, problem.model, problem.workload
        self.able = able_devices(problem)
        self.source = source_index(problem)
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
        """Rates and latencies; messages are waited for, so that both ends take longer than where links are timed."""
        devices = self.problem.devices
        links = link_arrays(self.problem.network, [device.name for device in devices])
        rested_s = np.array([device.messages.rested if device.messages else 0.0 for device in devices])
        both_s = np.add.outer(rested_s, rested_s) * (1 - np.eye(len(devices)))
        return replace(links, latency_s=links.latency_s + both_s)

    @property
    def token_bytes(self) -> float:
        """Bytes sent per drafted token: its id, and when sampling what all tokens were given there."""
        if self.load.temperature == 0:
            return float(_TOKEN_BYTES)
        size = self.model.architecture and self.model.architecture.config.get("vocab_size")
        if not size:
            message = f"of '{self.model.name}' does not say its vocab_size, and drafts are sent with probabilities"
            raise InputError(Finding("model.architecture.config", message, "add it, or use temperature 0"))
        return float(_TOKEN_BYTES + _PROBABILITY_BYTES * size)

    @property
    def prompt_bytes(self) -> float:
        """Bytes of the prompt and the seed."""
        return float(_TOKEN_BYTES * (self.load.prompt_tokens + 1))

    def sending_s(self, i: int, j: int, num_bytes: float) -> float:
        """Seconds of one message."""
        if i == j:
            return 0.0
        rate = float(self.links.rate_bytes_per_s[i, j])
        return float(self.links.latency_s[i, j]) + num_bytes / rate if rate else math.inf

    def table(self, passes: ModelPasses, tokens: list[int]) -> Array:
        """Seconds of passes by device and number of new tokens, ``inf`` where nothing may run."""
        nowhere = np.full(len(tokens), math.inf)
        devices = zip(self.problem.devices, self.able, strict=True)
        return np.stack([passes.passes_s(device, tokens)[0] if can else nowhere for device, can in devices])

    def _verify_s(self) -> Array:
        """Seconds of the target's passes by device and number of positions; of one as where it decodes alone."""
        found = self.table(self.target, list(range(1, self.max_length + 2)))
        devices = zip(self.problem.devices, self.able, strict=True)
        found[:, 0] = [self.target.alone_s(device) if can else math.inf for device, can in devices]
        return found

    def prefill_s(self, passes: ModelPasses, d: int) -> float:
        """Seconds of a prefill on a device."""
        return passes.prefill_s(self.problem.devices[d]) if self.able[d] else math.inf

    def first_s(self, e: int) -> float:
        """Seconds until the target on device e has the first token."""
        return self.sending_s(self.source, e, self.prompt_bytes) + self.prefill_s(self.target, e)

    def output_s(self, e: int) -> float:
        """Seconds of sending the result back."""
        return self.sending_s(e, self.source, _TOKEN_BYTES * self.load.new_tokens)

    def start_s(self, a: int, d: int, e: int) -> float:
        """Seconds until the draft may begin its first round: both prefills, at the same time on different devices."""
        draft_s = self.prefill_s(self.drafts[a], d)
        if d == e:
            return self.first_s(e) + draft_s
        ready_s = self.sending_s(self.source, d, self.prompt_bytes) + draft_s
        return max(self.first_s(e) + self.sending_s(e, d, _REPLY_BYTES), ready_s)

    def instance(self) -> family.Speculative:
        """Return the choice among drafts, devices and lengths; seconds per request of N - 1 tokens in rounds."""
        D, A, limits = len(self.problem.devices), len(self.drafts), self.problem.constraints
        each = 1.0 / (self.load.new_tokens - 1)
        start = np.empty((A, D, 1, D))
        for a, d, _, e in np.ndindex(start.shape):
            start[a, d, 0, e] = (self.start_s(a, d, e) + self.output_s(e)) * each
        budgets = [limit for limit in (limits.deadline, limits.period) if limit is not None]
        return family.Speculative(
            draft_s=np.stack([self.table(draft, [1])[:, 0] for draft in self.drafts]),
            draft_round_s=np.array([[draft.round_s(each) for each in self.problem.devices] for draft in self.drafts]),
            verify_s=self._verify_s()[None],
            acceptance=np.array([[entry.by_position[: self.max_length]] for entry in self.measured]),
            max_length=self.max_length,
            min_length=min(limits.drafting.min_length, self.max_length),
            rate_bytes_per_s=self.links.rate_bytes_per_s,
            latency_s=self.links.latency_s,
            token_bytes=self.token_bytes,
            reply_bytes=float(_REPLY_BYTES),
            memory_bytes=np.array([usable_bytes(device) for device in self.problem.devices]),
            draft_bytes=np.array([draft.memory_bytes for draft in self.drafts]),
            target_bytes=np.array([self.target.memory_bytes]),
            start_s=start,
            alone_start_s=np.array([[(self.first_s(e) + self.output_s(e)) * each for e in range(D)]]),
            objective={"time": self.load.new_tokens - 1.0},
            max_time_per_token_s=min(budgets) * each if budgets else None,
        )

    def alone_s(self, instance: family.Speculative) -> float | None:
        """Least latency of the target alone, ``None`` where it fits on no device."""
        alone = [family.SpeculativeSolution(-1, -1, 0, e, 0) for e in range(instance.num_devices)]
        fitting = [s for s in alone if self.target.memory_bytes <= instance.memory_bytes[s.target_device]]
        times = [Choice(self, instance, s).latency_s for s in fitting if self.able[s.target_device]]
        return min((t for t in times if math.isfinite(t)), default=None)


@dataclass(frozen=True)
class Choice:
    """One solution and what it comes to; ``counted`` are rounds that replace the expected ones."""

    rounds: Rounds
    instance: family.Speculative
    solution: family.SpeculativeSolution
    counted: Expected | None = None

    @property
    def drafts(self) -> bool:
        """Whether anything is drafted."""
        return self.solution.length > 0

    @cached_property
    def expected(self) -> Expected:
        """Rounds until the request's end."""
        if self.counted is not None:
            return self.counted
        s = self.solution
        return expected_request(self.instance.acceptance[s.draft, 0], s.length, self.rounds.load.new_tokens - 1)

    @property
    def draft_rounds(self) -> float:
        """Rounds in which something is drafted."""
        return self.expected.rounds - self.expected.positions.get(1, 0.0) if self.drafts else 0.0

    @property
    def verify_s(self) -> float:
        """Seconds of the target's passes after the prefill."""
        by_positions = self.instance.verify_s[0, self.solution.target_device]
        return sum(float(by_positions[count - 1]) * times for count, times in self.expected.positions.items())

    @property
    def draft_s(self) -> float:
        """Seconds of the draft's steps after the prefill."""
        if not self.drafts:
            return 0.0
        at = self.solution.draft, self.solution.draft_device
        step_s, round_s = float(self.instance.draft_s[at]), float(self.instance.draft_round_s[at])
        return step_s * self.expected.drafted + round_s * self.draft_rounds

    @property
    def ttft_s(self) -> float:
        """Seconds until the first token."""
        return self.rounds.first_s(self.solution.target_device)

    @cached_property
    def latency_s(self) -> float:
        """Seconds of a request; the draft waits for a reply before each of its rounds, for the first in the start."""
        s, rounds = self.solution, self.rounds
        start_s = rounds.start_s(s.draft, s.draft_device, s.target_device) if self.drafts else self.ttft_s
        moving_s = 0.0
        if self.drafts:
            up_s = sum(t.seconds for t in self.transfers if t.purpose == "draft")
            down_s = rounds.sending_s(s.target_device, s.draft_device, _REPLY_BYTES)
            moving_s = up_s + max(0.0, self.draft_rounds - 1.0) * down_s
        return start_s + self.draft_s + self.verify_s + moving_s + rounds.output_s(s.target_device)

    @cached_property
    def transfers(self) -> list[Transfer]:
        """Messages by purpose; between different devices only."""
        s, rounds = self.solution, self.rounds
        e, source, prompt = s.target_device, rounds.source, rounds.prompt_bytes
        hops = [("input", source, e, prompt, 1.0)]
        if self.drafts:
            d, drafted = s.draft_device, self.expected.drafted
            if d != e:
                hops.append(("input", source, d, prompt, 1.0))
            hops.append(("draft", d, e, drafted * rounds.token_bytes, self.draft_rounds))
            hops.append(("reply", e, d, (1 + self.draft_rounds) * _REPLY_BYTES, 1 + self.draft_rounds))
        hops.append(("output", e, source, float(_TOKEN_BYTES * rounds.load.new_tokens), 1.0))
        names = [device.name for device in rounds.problem.devices]
        return hop_transfers(itertools.starmap(Hop, hops), names, rounds.links)

    @property
    def stop_below(self) -> float:
        """How sure a draft must be of all its guesses for another one to be worth its seconds.

        One more guess takes τ seconds, in which rounds make λ τ tokens; it makes one more if all of them are right.
        Small models are right more often than they think, so they may doubt twice as much.
        """
        s, rounds = self.solution, self.rounds
        i, j, verify_s = s.draft_device, s.target_device, self.instance.verify_s[0, s.target_device]
        step_s = float(self.instance.draft_s[s.draft, i])
        round_s = float(self.instance.draft_round_s[s.draft, i]) + s.length * step_s + float(verify_s[s.length])
        more_s = step_s + float(verify_s[-1] - verify_s[1]) / max(1, len(verify_s) - 2)
        round_s += rounds.sending_s(i, j, s.length * rounds.token_bytes) + rounds.sending_s(j, i, _REPLY_BYTES)
        more_s += rounds.sending_s(i, j, rounds.token_bytes) - rounds.sending_s(i, j, 0.0)
        tokens = 1.0 + float(np.cumprod(self.instance.acceptance[s.draft, 0, : s.length]).sum())
        return 0.5 * more_s * tokens / round_s

    def decisions(self) -> dict[str, Any]:
        """Return what the plan decides, in names."""
        s, devices = self.solution, self.rounds.problem.devices
        adaptive = self.drafts and self.rounds.problem.constraints.drafting.adaptive
        found = {
            "draft": list(self.rounds.model.drafts)[s.draft] if self.drafts else None,
            "draft_device": devices[s.draft_device].name if self.drafts else None,
            "target_device": devices[s.target_device].name,
            "draft_length": s.length,
            "adaptive": adaptive,
        }
        if adaptive and self.rounds.load.temperature == 0:
            found["stop_below"] = self.stop_below
        return found

    def stages(self) -> list[Stage]:
        """Return a stage for the draft, if there is one, and one for the target."""
        s, rounds = self.solution, self.rounds
        parts = []
        if self.drafts:
            draft = rounds.drafts[s.draft]
            seconds = rounds.prefill_s(draft, s.draft_device) + self.draft_s
            words = f"draft {draft.model.name}, {s.length} token{'s' if s.length > 1 else ''} a round"
            parts.append((s.draft_device, draft, list(rounds.model.drafts)[s.draft], words, seconds))
        seconds = rounds.prefill_s(rounds.target, s.target_device) + self.verify_s
        words = f"target {rounds.model.name}"
        parts.append((s.target_device, rounds.target, None, words, seconds))
        stages = []
        for index, (device, passes, variant, words, seconds) in enumerate(parts):
            name = rounds.problem.devices[device].name
            arriving = [t for t in self.transfers if t.destination == name and t.purpose != "output"]
            stages.append(
                Stage(
                    index=index,
                    device=name,
                    variant=variant,
                    start=0,
                    stop=len(passes.costs.layers),
                    elements=words,
                    compute_s=seconds,
                    transfer_s=sum(t.seconds for t in arriving),
                    transfer_bytes=sum(t.bytes for t in arriving),
                    memory_bytes=passes.memory_bytes,
                )
            )
        return stages

    def bars(self) -> list[Bar]:
        """Return the prefill and the first round."""
        s, rounds = self.solution, self.rounds
        names = [device.name for device in rounds.problem.devices]
        e, d = s.target_device, s.draft_device
        verify_s = float(self.instance.verify_s[0, e, s.length])

        def hop(purpose: str, i: int, j: int, num_bytes: float) -> list[Bar]:
            return [] if i == j else [Bar(link_lane(names[i], names[j]), purpose, rounds.sending_s(i, j, num_bytes))]

        bars = hop("input", rounds.source, e, rounds.prompt_bytes)
        bars.append(Bar(names[e], "target, prefill", rounds.prefill_s(rounds.target, e)))
        if not self.drafts:
            return [*bars, Bar(names[e], "target, one token", verify_s)]
        bars += hop("reply", e, d, _REPLY_BYTES)
        draft_s = s.length * float(self.instance.draft_s[s.draft, d]) + float(self.instance.draft_round_s[s.draft, d])
        bars.append(Bar(names[d], f"draft of {s.length}", draft_s))
        bars += hop("draft", d, e, s.length * rounds.token_bytes)
        bars.append(Bar(names[e], f"target, {s.length + 1} positions", verify_s))
        return bars + hop("reply", e, d, _REPLY_BYTES)

    def notes(self) -> list[str]:
        """Say why nothing is drafted, where seconds and acceptance come from, and that the target is one device's."""
        s, rounds = self.solution, self.rounds
        devices = rounds.problem.devices
        basis = {devices[s.target_device].name: rounds.target.passes_s(devices[s.target_device], [1])[1]}
        notes = ["the target is kept whole on one device"]
        if self.drafts:
            device = devices[s.draft_device]
            known = rounds.drafts[s.draft].passes_s(device, [1])[1]
            basis[device.name] = basis.get(device.name, True) and known
            notes.append(f"acceptance: {rounds.measured[s.draft].source}")
        else:
            notes.append("nothing is drafted: no draft makes the request shorter")
        return [*basis_notes(basis), *notes]
