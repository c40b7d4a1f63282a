"""One choice of draft, length and pipeline for speculative decoding: what it comes to, message by message."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from edgeopt.costs.drafting import Expected, expected_request
from edgeopt.plan import Stage, Transfer
from edgeopt.strategies.messages import Hop, hop_transfers
from edgeopt.strategies.pipeline import basis_notes
from edgeopt.strategies.speculative_rounds import Rounds
from edgeopt.strategies.timeline import Bar, link_lane
from edgeopt_solvers import policy as family
from edgeopt_solvers import solve
from edgeopt_solvers.policy.staged_check import first_s, pass_s, round_s, start_s

__all__ = ["Choice", "alone_s"]

#: Wall seconds for the best pipeline of the target alone, beside which a plan is put.
_ALONE_LIMIT_S = 30.0


def alone_s(rounds: Rounds, instance: family.StagedSpeculative) -> float | None:
    """Least latency of the target alone, whole or cut; ``None`` where it fits nowhere."""
    nobody = np.full_like(instance.draft_s, np.inf)
    alone = replace(instance, draft_s=nobody, min_length=0, max_time_s=None)
    found = solve(alone, diagnose=False, time_limit_s=_ALONE_LIMIT_S).solution
    return None if found is None else Choice(rounds, instance, found).latency_s


@dataclass(frozen=True)
class Choice:
    """One solution and what it comes to; ``counted`` are rounds that replace the expected ones."""

    rounds: Rounds
    instance: family.StagedSpeculative
    solution: family.StagedSolution
    counted: Expected | None = None

    @property
    def drafts(self) -> bool:
        """Whether anything is drafted."""
        return self.solution.length > 0

    @property
    def is_cut(self) -> bool:
        """Whether the target has several stages."""
        return len(self.solution.cuts) > 1

    @cached_property
    def expected(self) -> Expected:
        """Rounds until the request's end."""
        if self.counted is not None:
            return self.counted
        s = self.solution
        return expected_request(self.instance.acceptance[s.draft], s.length, self.rounds.load.new_tokens - 1)

    @property
    def draft_rounds(self) -> float:
        """Rounds in which something is drafted."""
        return self.expected.rounds - self.expected.positions.get(1, 0.0) if self.drafts else 0.0

    @property
    def led_rounds(self) -> float:
        """Rounds that a message of the draft begins: of a cut target, that for the last token alone too."""
        return self.expected.rounds if self.drafts and self.is_cut else self.draft_rounds

    @property
    def draft_s(self) -> float:
        """Seconds of drafting after the prefill."""
        if not self.drafts:
            return 0.0
        at = self.solution.draft, self.solution.draft_device
        step_s, round_s = float(self.instance.draft_s[at]), float(self.instance.draft_round_s[at])
        return step_s * self.expected.drafted + round_s * self.draft_rounds

    @property
    def ttft_s(self) -> float:
        """Seconds until the first token."""
        return first_s(self.instance, self.solution)

    @cached_property
    def latency_s(self) -> float:
        """Seconds of a request; the draft waits for a reply before each of its rounds, for the first in the start."""
        s, instance = self.solution, self.instance
        seconds = start_s(instance, s) + instance.sending_s(s.devices[-1], instance.source, instance.result_bytes)
        for positions, times in self.expected.positions.items():
            seconds += times * (self._single_s if positions == 1 else round_s(instance, s, positions - 1))
        if self.drafts:
            waited = max(0.0, self.led_rounds - 1.0)
            seconds += (waited - self.draft_rounds) * instance.sending_s(
                s.devices[-1], s.draft_device, instance.reply_bytes
            )
        return seconds

    @property
    def _single_s(self) -> float:
        """Seconds of a round without guesses: the draft hands the last token on where the target is cut."""
        s, instance = self.solution, self.instance
        if not self.drafts or not self.is_cut:
            return round_s(instance, s, 0)
        riding = instance.round_bytes
        return instance.sending_s(s.draft_device, s.devices[0], riding) + pass_s(instance, s, 1, riding)

    @cached_property
    def transfers(self) -> list[Transfer]:
        """Messages by purpose; between different devices only."""
        s, instance, expected = self.solution, self.instance, self.expected
        first, last, source = s.devices[0], s.devices[-1], instance.source
        riding, drafts = 0.0, [s.draft_device] if self.drafts else []
        if self.drafts:
            riding = self.led_rounds * instance.round_bytes + expected.drafted * instance.token_bytes
        passed = sum(positions * times for positions, times in expected.positions.items())
        hops = [("input", source, e, instance.prompt_bytes, 1.0) for e in dict.fromkeys([first, *drafts])]
        for (i, *_), (j, start, _) in itertools.pairwise(s.segments):
            hidden = float(instance.prefill_cut_bytes[start] + passed * instance.position_cut_bytes[start])
            hops.append(("cut", i, j, hidden + riding, 1.0 + expected.rounds))
        for d in drafts:
            hops.append(("draft", d, first, riding, self.led_rounds))
            if instance.spread_bytes:
                spread = expected.drafted * instance.spread_bytes
                hops.append(("distributions", d, last, spread, self.draft_rounds))
            replies = 1.0 + self.draft_rounds
            hops.append(("reply", last, d, replies * instance.reply_bytes, replies))
            hops += [("stop", i, j, 0.0, 1.0) for i, j in itertools.pairwise([d, *s.devices[:-1]])]
        if not drafts:
            hops.append(("loop", last, first, expected.rounds * instance.loop_bytes, expected.rounds))
        hops.append(("output", last, source, instance.result_bytes, 1.0))
        names = [device.name for device in self.rounds.problem.devices]
        return hop_transfers(itertools.starmap(Hop, hops), names, self.rounds.links)

    @property
    def stop_below(self) -> float:
        """How sure a draft must be of all its guesses for another one to be worth its seconds.

        One more guess takes τ seconds, in which rounds make λ τ tokens; it makes one more if all of them are right.
        Small models are right more often than they think, so they may doubt twice as much.
        """
        s, instance = self.solution, self.instance
        longest, d, first = instance.max_length, s.draft_device, s.devices[0]

        def way_s(guesses: int) -> float:
            riding = instance.round_bytes + guesses * instance.token_bytes
            return instance.sending_s(d, first, riding) + pass_s(instance, s, guesses + 1, riding)

        more_s = float(instance.draft_s[s.draft, d]) + (way_s(longest) - way_s(1)) / max(1, longest - 1)
        tokens = 1.0 + float(np.cumprod(instance.acceptance[s.draft, : s.length]).sum())
        return 0.5 * more_s * tokens / round_s(instance, s, s.length)

    def decisions(self) -> dict[str, Any]:
        """Return what the plan decides, in names."""
        s, devices = self.solution, self.rounds.problem.devices
        adaptive = self.drafts and self.rounds.problem.constraints.drafting.adaptive
        found = {
            "draft": list(self.rounds.model.drafts)[s.draft] if self.drafts else None,
            "draft_device": devices[s.draft_device].name if self.drafts else None,
            "target_devices": [devices[e].name for e in s.devices],
            "target_cuts": list(s.cuts),
            "draft_length": s.length,
            "adaptive": adaptive,
        }
        if adaptive and self.rounds.load.temperature == 0:
            found["stop_below"] = self.stop_below
        return found

    def stages(self) -> list[Stage]:
        """Return a stage for the draft, if there is one, and those of the target."""
        s, rounds, instance = self.solution, self.rounds, self.instance
        parts = []
        if self.drafts:
            draft = rounds.drafts[s.draft]
            seconds = float(instance.draft_prefill_s[s.draft, s.draft_device]) + self.draft_s
            words = f"draft {draft.model.name}, {s.length} token{'s' if s.length > 1 else ''} a round"
            span = (0, len(draft.costs.layers))
            parts.append((s.draft_device, span, list(rounds.model.drafts)[s.draft], words, seconds, draft.memory_bytes))
        names = rounds.target.costs.names
        for device, start, stop in s.segments:
            words = f"target {rounds.model.name}"
            if self.is_cut:
                words += f", {names[start]}" + (f" … {names[stop - 1]}" if stop > start + 1 else "")
            seconds = float(instance.prefill_s[device, start:stop].sum())
            for positions, times in self.expected.positions.items():
                seconds += times * float(instance.verify_s[device, positions - 1, start:stop].sum())
            held = float(instance.resident_bytes[start:stop].sum() + instance.transient_bytes[start:stop].max())
            parts.append((device, (start, stop), None, words, seconds, held))
        stages = []
        for index, (device, (start, stop), variant, words, seconds, held) in enumerate(parts):
            name = rounds.problem.devices[device].name
            arriving = [t for t in self.transfers if t.destination == name and t.purpose != "output"]
            stages.append(
                Stage(
                    index=index,
                    device=name,
                    variant=variant,
                    start=start,
                    stop=stop,
                    elements=words,
                    compute_s=seconds,
                    transfer_s=sum(t.seconds for t in arriving),
                    transfer_bytes=sum(t.bytes for t in arriving),
                    memory_bytes=held,
                )
            )
        return stages

    def bars(self) -> list[Bar]:
        """Return the prefill and the first round."""
        s, instance = self.solution, self.instance
        names = [device.name for device in self.rounds.problem.devices]
        d, first, last, length = s.draft_device, s.devices[0], s.devices[-1], s.length

        def hop(purpose: str, i: int, j: int, num_bytes: float) -> list[Bar]:
            seconds = instance.sending_s(i, j, num_bytes)
            return [] if i == j else [Bar(link_lane(names[i], names[j]), purpose, seconds)]

        def way(label: str, riding: float, positions: int) -> list[Bar]:
            """Stages and cuts; no positions: the prefill."""
            bars = []
            for k, (e, start, stop) in enumerate(s.segments):
                hidden = positions * instance.position_cut_bytes if positions else instance.prefill_cut_bytes
                bars += hop("cut", s.devices[k - 1], e, float(hidden[start]) + riding) if k else []
                table = instance.verify_s[:, positions - 1] if positions else instance.prefill_s
                bars.append(Bar(names[e], f"target, {label}", float(table[e, start:stop].sum())))
            return bars

        bars = hop("input", instance.source, first, instance.prompt_bytes) + way("prefill", 0.0, 0)
        if not self.drafts:
            return [*bars, *hop("loop", last, first, instance.loop_bytes), *way("one token", 0.0, 1)]
        riding = instance.round_bytes + length * instance.token_bytes
        bars += hop("reply", last, d, instance.reply_bytes)
        draft_s = length * float(instance.draft_s[s.draft, d]) + float(instance.draft_round_s[s.draft, d])
        bars.append(Bar(names[d], f"draft of {length}", draft_s))
        bars += hop("draft", d, first, riding) + way(f"{length + 1} positions", riding, length + 1)
        return bars + hop("reply", last, d, instance.reply_bytes)

    def notes(self, proven: bool) -> list[str]:
        """Say why nothing is drafted, where seconds and acceptance come from, how the target lies, and who is idle."""
        s, rounds = self.solution, self.rounds
        devices = rounds.problem.devices
        basis = {devices[e].name: rounds.target.passes_s(devices[e], [1])[1] for e in s.devices}
        able = np.isfinite(self.instance.prefill_s).all(axis=1)
        notes = ["the target is kept whole on one device"]
        if self.is_cut:
            whole = float(self.instance.resident_bytes.sum() + self.instance.transient_bytes.max())
            largest = float(self.instance.memory_bytes[able].max())
            why = "no device holds it whole" if whole > largest else "which takes less than whole on any device"
            notes = [f"the target is cut into {len(s.cuts)} stages: {why}"]
        if self.drafts:
            device = devices[s.draft_device]
            known = rounds.drafts[s.draft].passes_s(device, [1])[1]
            basis[device.name] = basis.get(device.name, True) and known
            notes.append(f"acceptance: {rounds.measured[s.draft].source}")
        else:
            notes.append("nothing is drafted: no draft makes the request shorter")
        idle = [d.name for i, d in enumerate(devices) if able[i] and i not in (*s.devices, s.draft_device)]
        if idle and proven:
            notes.append(f"no part, since no plan that gives {'it' if len(idle) == 1 else 'them'} one is better: "
                         f"{', '.join(idle)}")  # fmt: skip
        return [*basis_notes(basis), *notes]
