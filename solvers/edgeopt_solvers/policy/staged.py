"""Speculative decoding as data where the target may be cut: a draft on one device, the target's stages on others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgeopt_solvers.chain.arrays import Array, optional_limit, whole_number
from edgeopt_solvers.data import JsonInstance
from edgeopt_solvers.errors import InstanceError
from edgeopt_solvers.policy.validate import amounts, within_unit

__all__ = ["STAGED_FEATURES", "StagedSolution", "StagedSpeculative"]

#: Absent optional arrays; validation fills in arrays that say the same.
_ABSENT: Any = None

STAGED_FEATURES = frozenset(
    {"staged", "memory", "spread", "drafting_required", "max_stages", "max_time", "per_position"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class StagedSolution:
    """Decisions: a draft, its device and length, and the target's stages.

    Attributes
    ----------
    draft, draft_device
        -1 when nothing is drafted.
    length
        Tokens drafted per round, γ; 0: the target decodes alone.
    cuts
        Ends of the stages, increasing; the last is the number of elements.
    devices
        Of the stages, each another one; any of them may be the draft's too.
    """

    draft: int
    draft_device: int
    length: int
    cuts: tuple[int, ...]
    devices: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("cuts", "devices"):
            object.__setattr__(self, name, tuple(int(i) for i in getattr(self, name)))

    @property
    def segments(self) -> list[tuple[int, int, int]]:
        """Device, first element and end of each stage."""
        return list(zip(self.devices, (0, *self.cuts[:-1]), self.cuts, strict=True))


@dataclass(frozen=True, eq=False)
class StagedSpeculative(JsonInstance):
    """Choose a draft, its device and length, and contiguous stages of the target; least seconds of a request.

    A drafts, D devices, a target of L elements, lengths up to G. The target's stages read the prompt one after the
    other, while the draft reads it too. Then a round of length γ takes γ draft steps, sends the guesses to the first
    stage, passes γ + 1 positions through the stages, and returns what was taken from the last stage to the draft; it
    yields 1 + Σ_{i<=γ} Π_{j<=i} α_j tokens on average. With γ = 0 every token passes the stages alone and returns from
    the last to the first. One stage is a target that is not cut.

    Parameters
    ----------
    draft_s, draft_prefill_s : (A, D)
        Seconds of one draft step, and of reading the prompt; ``inf``: cannot run there.
    draft_round_s : (A, D), optional
        Seconds of a round of drafting beside its steps.
    prefill_s : (D, L)
        Seconds of the target's elements on the prompt; ``inf``: cannot run there.
    verify_s : (D, G + 1, L)
        The same in a pass over 1..G + 1 positions.
    acceptance : (A, G)
        Probability that the token at a position is accepted, given that all before it were.
    max_length : int
        G.
    num_tokens : float
        Tokens to make in rounds.
    rate_bytes_per_s, latency_s : (D, D), optional
        Directed links; the diagonal is ignored (i to i is free). Rate 0: no link. Default: all free.
    source : int
        Device that owns prompt and result.
    prompt_bytes, result_bytes : float
        Of the whole request.
    prefill_cut_bytes, position_cut_bytes : (L + 1,), optional
        What crosses a cut during the prefill, and for every position of a pass; the ends are ignored.
    round_bytes, token_bytes : float
        Sent with every draft, and for each of its tokens: to the first stage, and on with the hidden states.
    spread_bytes : float
        Sent per drafted token straight from the draft to the last stage, while the stages compute.
    reply_bytes, loop_bytes : float
        Returned to the draft per round, and from the last stage to the first per token where nothing is drafted.
    memory_bytes : (D,), draft_bytes : (A,), resident_bytes : (L,), transient_bytes : (L,), optional
        Usable memory; what drafts and elements hold; working memory, of which a stage needs its elements' largest.
    min_length : int
        Smallest length allowed; 1 forbids that the target decodes alone. Default 0.
    max_stages : int, optional
        Most stages of the target.
    max_time_s : float, optional
        Budget.

    Raises
    ------
    InstanceError
        A shape, sign, magnitude or reference is wrong; the message names the field, the value and the mend.
    """

    family: ClassVar[str] = "policy"
    problem: ClassVar[str] = "staged_speculative"

    draft_s: Array
    draft_prefill_s: Array
    prefill_s: Array
    verify_s: Array
    acceptance: Array
    max_length: int
    num_tokens: float
    draft_round_s: Array = _ABSENT
    rate_bytes_per_s: Array = _ABSENT
    latency_s: Array = _ABSENT
    source: int = 0
    prompt_bytes: float = 0.0
    result_bytes: float = 0.0
    prefill_cut_bytes: Array = _ABSENT
    position_cut_bytes: Array = _ABSENT
    round_bytes: float = 0.0
    token_bytes: float = 0.0
    spread_bytes: float = 0.0
    reply_bytes: float = 0.0
    loop_bytes: float = 0.0
    memory_bytes: Array = _ABSENT
    draft_bytes: Array = _ABSENT
    resident_bytes: Array = _ABSENT
    transient_bytes: Array = _ABSENT
    min_length: int = 0
    max_stages: int | None = None
    max_time_s: float | None = None

    def __post_init__(self) -> None:
        for name, value in _normalised(self).items():
            object.__setattr__(self, name, value)

    @property
    def num_drafts(self) -> int:
        """A."""
        return int(self.draft_s.shape[0])

    @property
    def num_devices(self) -> int:
        """D."""
        return int(self.prefill_s.shape[0])

    @property
    def num_elements(self) -> int:
        """L."""
        return int(self.prefill_s.shape[1])

    def rounds(self, draft: int, length: int) -> float:
        """Rounds that make ``num_tokens`` tokens at the average yield of a length."""
        return self.num_tokens / float(1.0 + np.cumprod(self.acceptance[draft, :length]).sum())

    def sending_s(self, i: int, j: int, num_bytes: float) -> float:
        """Seconds of one message, ``inf`` without a link."""
        if i == j:
            return 0.0
        rate = float(self.rate_bytes_per_s[i, j])
        return float(self.latency_s[i, j]) + num_bytes / rate if rate else math.inf

    def features(self) -> frozenset[str]:
        """Names (from :data:`STAGED_FEATURES`) of the optional features that this instance uses."""
        used = {
            "staged": True,
            "memory": bool(np.isfinite(self.memory_bytes).any()),
            "spread": self.spread_bytes > 0,
            "per_position": bool((np.diff(self.acceptance, axis=1) != 0).any()),
            "drafting_required": self.min_length > 0,
            "max_stages": self.max_stages is not None,
            "max_time": self.max_time_s is not None,
        }
        return frozenset(name for name, present in used.items() if present)


def _normalised(given: StagedSpeculative) -> dict[str, Any]:
    """Return every field in its normal form, absent arrays filled in."""
    G = whole_number("max_length", given.max_length, 1, 10_000, "give the longest draft to consider")
    prefill = amounts(
        "prefill_s", given.prefill_s, [(None, None)], "give seconds per device and element, inf: cannot", inf=True
    )
    D, L = prefill.shape
    draft = amounts("draft_s", given.draft_s, [(None, D)], "give seconds per draft and device, inf: cannot", inf=True)
    A = draft.shape[0]

    def or_else(name: str, default: Any) -> Any:
        value = getattr(given, name)
        return default if value is None else value

    square = np.zeros((D, D))
    fields: dict[str, Any] = {
        "max_length": G,
        "draft_s": draft,
        "prefill_s": prefill,
        "draft_prefill_s": amounts(
            "draft_prefill_s", given.draft_prefill_s, [(A, D)], "give seconds per draft and device", inf=True
        ),
        "draft_round_s": amounts(
            "draft_round_s", or_else("draft_round_s", np.zeros((A, D))), [(A, D)], "give seconds per draft and device"
        ),
        "verify_s": amounts(
            "verify_s", given.verify_s, [(D, G + 1, L)],
            "give seconds per device, number of positions 1..max_length + 1 and element", inf=True,
        ),
        "acceptance": within_unit(
            "acceptance", given.acceptance, [(A, G)], "give a probability from 0 to 1 per draft and position"
        ),
        "rate_bytes_per_s": amounts(
            "rate_bytes_per_s", or_else("rate_bytes_per_s", square + math.inf), [(D, D)],
            "give bytes/s per pair of devices, 0: no link", inf=True,
        ),
        "latency_s": amounts("latency_s", or_else("latency_s", square), [(D, D)], "give seconds per pair of devices"),
        "source": whole_number("source", given.source, 0, D - 1, "give the number of the prompt's device"),
        "min_length": whole_number("min_length", given.min_length, 0, G, "give the shortest draft to consider"),
        "max_time_s": optional_limit("max_time_s", given.max_time_s),
        "max_stages": None,
    }  # fmt: skip
    if given.max_stages is not None:
        fields["max_stages"] = whole_number("max_stages", given.max_stages, 1, None, "give None for no limit")
    for name in ("num_tokens", "prompt_bytes", "result_bytes", "round_bytes", "token_bytes", "spread_bytes",
                 "reply_bytes", "loop_bytes"):  # fmt: skip
        fields[name] = float(amounts(name, getattr(given, name), [()], "give a finite number >= 0"))
    for name, length, default, mend in (
        ("memory_bytes", D, math.inf, "give bytes per device, inf: unlimited"),
        ("draft_bytes", A, 0.0, "give finite bytes per draft"),
        ("resident_bytes", L, 0.0, "give finite bytes per element"),
        ("transient_bytes", L, 0.0, "give finite bytes per element"),
        ("prefill_cut_bytes", L + 1, 0.0, "give finite bytes per cut"),
        ("position_cut_bytes", L + 1, 0.0, "give finite bytes per cut"),
    ):
        fields[name] = amounts(
            name, or_else(name, np.full(length, default)), [(length,)], mend, inf=math.isinf(default)
        )
    if not fields["num_tokens"] > 0:
        raise InstanceError(f"num_tokens is {given.num_tokens!r}; give the tokens that rounds make, more than 0")
    return fields
