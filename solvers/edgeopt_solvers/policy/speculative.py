"""Speculative decoding as data: a draft model guesses γ tokens, a target model checks them in one pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgeopt_solvers.chain.arrays import Array, optional_limit, whole_number
from edgeopt_solvers.data import WeightedInstance
from edgeopt_solvers.errors import InstanceError
from edgeopt_solvers.policy.validate import amounts, objective_of, within_unit

__all__ = ["OBJECTIVES", "SPECULATIVE_FEATURES", "Speculative", "SpeculativeSolution"]

OBJECTIVES = ("time", "energy", "cost")

#: Absent optional arrays; validation fills in arrays that say the same.
_ABSENT: Any = None

SPECULATIVE_FEATURES = frozenset(
    {
        "speculative", "per_position", "verify_curve", "drafting_required", "memory", "energy", "cost", "weighted",
        "max_time_per_token", "max_energy_per_token", "max_cost_per_token", "start", "draft_round",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SpeculativeSolution:
    """Decisions of a speculative plan.

    Attributes
    ----------
    draft, draft_device
        Draft model and its device; -1 when nothing is drafted.
    target, target_device
        Target model and its device.
    length
        Tokens drafted per round, γ; 0: the target decodes alone.
    """

    draft: int
    draft_device: int
    target: int
    target_device: int
    length: int


@dataclass(frozen=True, eq=False)
class Speculative(WeightedInstance):
    """Choose draft, target, their devices and the draft length.

    A draft models, B target models, D devices, lengths up to G. A round of length γ takes γ draft steps, sends the
    tokens to the target's device, checks them in one pass over γ + 1 positions, and sends the answer back; it yields
    1 + Σ_{i<=γ} Π_{j<=i} α_j tokens on average. With γ = 0 the target decodes alone: one pass, one token, no transfer.

    Parameters
    ----------
    draft_s : (A, D)
        Seconds of one draft step; ``inf``: cannot run there.
    draft_round_s : (A, D), optional
        Seconds that a draft takes in each round beside its steps (waking up, taking in what was right). Default: none.
    verify_s : (B, D) or (B, D, G + 1)
        Seconds of a target pass, the same for all lengths or by number of positions 1..G + 1; ``inf``: cannot run.
    acceptance : (A, B) or (A, B, G)
        Measured probability that a drafted token is accepted: the same at all positions (geometric), or at position
        1..G given that all before it were.
    max_length : int
        G.
    rate_bytes_per_s, latency_s : (D, D), optional
        Directed links; the diagonal is ignored (i to i is free). Rate 0: no link. Default: all free.
    round_bytes, token_bytes, reply_bytes : float
        Bytes sent up per round and per drafted token, and sent down per round.
    memory_bytes : (D,), draft_bytes : (A,), target_bytes : (B,), optional
        Usable memory and what the models hold; a device with both models needs both.
    power_w, byte_j, price_per_s : (D,), optional
        Power while computing, joules per byte sent, and price of a second of computing.
    objective : {"time", "energy", "cost"} or mapping
        Per token; or weights over the three.
    start_s : (A, D, B, D), optional
        Seconds per token of what comes before the rounds (a prompt's prefill, over the tokens of a request), by draft,
        its device, target and its device; they cost time only. Default: none.
    alone_start_s : (B, D), optional
        The same where the target decodes alone.
    min_length : int
        Smallest length allowed; 1 forbids that the target decodes alone. Default 0.
    max_time_per_token_s, max_energy_per_token_j, max_cost_per_token : float, optional
        Budgets.

    Raises
    ------
    InstanceError
        A shape, sign, magnitude or reference is wrong; the message names the field, the value and the mend.
    """

    family: ClassVar[str] = "policy"
    problem: ClassVar[str] = "speculative"

    draft_s: Array
    verify_s: Array
    acceptance: Array
    max_length: int
    rate_bytes_per_s: Array = _ABSENT
    latency_s: Array = _ABSENT
    round_bytes: float = 0.0
    token_bytes: float = 0.0
    reply_bytes: float = 0.0
    memory_bytes: Array = _ABSENT
    draft_bytes: Array = _ABSENT
    target_bytes: Array = _ABSENT
    power_w: Array = _ABSENT
    byte_j: Array = _ABSENT
    price_per_s: Array = _ABSENT
    draft_round_s: Array = _ABSENT
    start_s: Array = _ABSENT
    alone_start_s: Array = _ABSENT
    objective: str | Mapping[str, float] = "time"
    min_length: int = 0
    max_time_per_token_s: float | None = None
    max_energy_per_token_j: float | None = None
    max_cost_per_token: float | None = None

    def __post_init__(self) -> None:
        for name, value in _normalised(self).items():
            object.__setattr__(self, name, value)

    @property
    def num_drafts(self) -> int:
        """A."""
        return int(self.draft_s.shape[0])

    @property
    def num_targets(self) -> int:
        """B."""
        return int(self.verify_s.shape[0])

    @property
    def num_devices(self) -> int:
        """D."""
        return int(self.draft_s.shape[1])

    def features(self) -> frozenset[str]:
        """Names (from :data:`SPECULATIVE_FEATURES`) of the optional features that this instance uses."""
        weights = self.weights
        used = {
            "speculative": True,
            "per_position": bool((np.diff(self.acceptance, axis=2) != 0).any()),
            "verify_curve": bool((self.verify_s != self.verify_s[:, :, :1]).any()),
            "draft_round": bool(self.draft_round_s.any()),
            "start": bool(self.start_s.any() or self.alone_start_s.any()),
            "drafting_required": self.min_length > 0,
            "memory": bool(np.isfinite(self.memory_bytes).any()),
            "energy": "energy" in weights,
            "cost": "cost" in weights,
            "weighted": set(weights.values()) != {1.0} or len(weights) > 1,
            "max_time_per_token": self.max_time_per_token_s is not None,
            "max_energy_per_token": self.max_energy_per_token_j is not None,
            "max_cost_per_token": self.max_cost_per_token is not None,
        }
        return frozenset(name for name, present in used.items() if present)


def _normalised(given: Speculative) -> dict[str, Any]:
    """Return every field in its normal form: curves over all lengths, absent arrays filled in."""
    G = whole_number("max_length", given.max_length, 1, 10_000, "give the longest draft to consider")
    draft = amounts(
        "draft_s", given.draft_s, [(None, None)], "give seconds per draft and device, inf: cannot", inf=True
    )
    A, D = draft.shape
    verify = amounts(
        "verify_s", given.verify_s, [(None, D), (None, D, G + 1)],
        "give seconds per target and device, or by number of positions 1..max_length + 1", inf=True,
    )  # fmt: skip
    B = verify.shape[0]
    accept = within_unit(
        "acceptance", given.acceptance, [(A, B), (A, B, G)],
        "give a probability from 0 to 1 per draft and target, or by position 1..max_length",
    )  # fmt: skip
    square = np.zeros((D, D))

    def or_else(name: str, default: Any) -> Any:
        value = getattr(given, name)
        return default if value is None else value

    fields: dict[str, Any] = {
        "max_length": G,
        "draft_s": draft,
        "verify_s": _frozen(verify[:, :, None].repeat(G + 1, axis=2)) if verify.ndim == 2 else verify,
        "acceptance": _frozen(accept[:, :, None].repeat(G, axis=2)) if accept.ndim == 2 else accept,
        "rate_bytes_per_s": amounts(
            "rate_bytes_per_s", or_else("rate_bytes_per_s", square + math.inf), [(D, D)],
            "give bytes/s per pair of devices, 0: no link", inf=True,
        ),
        "latency_s": amounts("latency_s", or_else("latency_s", square), [(D, D)], "give seconds per pair of devices"),
        "draft_round_s": amounts(
            "draft_round_s", or_else("draft_round_s", np.zeros((A, D))), [(A, D)],
            "give finite seconds per round for each draft and device",
        ),
        "start_s": amounts(
            "start_s", or_else("start_s", np.zeros((A, D, B, D))), [(A, D, B, D)],
            "give seconds per token by draft, its device, target and its device, inf: cannot", inf=True,
        ),
        "alone_start_s": amounts(
            "alone_start_s", or_else("alone_start_s", np.zeros((B, D))), [(B, D)],
            "give seconds per token by target and device, inf: cannot", inf=True,
        ),
        "objective": objective_of(given.objective, OBJECTIVES),
        "min_length": whole_number("min_length", given.min_length, 0, G, "give the shortest draft to consider"),
    }  # fmt: skip
    for name in ("round_bytes", "token_bytes", "reply_bytes"):
        fields[name] = float(amounts(name, getattr(given, name), [()], "give bytes >= 0"))
    for name, length, default, mend in (
        ("memory_bytes", D, math.inf, "give bytes per device, inf: unlimited"),
        ("draft_bytes", A, 0.0, "give finite bytes per draft"),
        ("target_bytes", B, 0.0, "give finite bytes per target"),
        ("power_w", D, 0.0, "give finite watts per device"),
        ("byte_j", D, 0.0, "give finite joules per byte for each device"),
        ("price_per_s", D, 0.0, "give a finite price per second for each device"),
    ):
        fields[name] = amounts(
            name, or_else(name, np.full(length, default)), [(length,)], mend, inf=default == math.inf
        )
    for name in ("max_time_per_token_s", "max_energy_per_token_j", "max_cost_per_token"):
        fields[name] = optional_limit(name, getattr(given, name))
    _refuse_missing(given, fields)
    return fields


def _refuse_missing(given: Speculative, fields: dict[str, Any]) -> None:
    objective = fields["objective"]
    asked = {objective} if isinstance(objective, str) else {name for name, weight in objective.items() if weight > 0}
    energy = "energy" in asked or fields["max_energy_per_token_j"] is not None
    if energy and given.power_w is None and given.byte_j is None:
        raise InstanceError("power_w and byte_j are missing: energy counts; give watts or joules per byte per device")
    if ("cost" in asked or fields["max_cost_per_token"] is not None) and given.price_per_s is None:
        raise InstanceError("price_per_s is missing: cost counts; give a price per second for each device")


def _frozen(array: Array) -> Array:
    array.flags.writeable = False
    return array
