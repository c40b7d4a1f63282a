"""The chain problem as data: arrays in SI units, validated once, immutable afterwards.

Elements 0..L-1 run in order. A *cut* c lies before element c: cut 0 is the input, cut L the result, so
``cut_bytes`` has L + 1 entries. A solution is a list of *stages*: maximal runs of elements on one device with one
variant. Everything that depends on decisions is computed in ``check.py``, nowhere here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.chain.validate import OBJECTIVES, normalised
from edgeopt_solvers.data import WeightedInstance
from edgeopt_solvers.errors import InstanceError

__all__ = ["FEATURES", "LIMIT_TOLERANCE", "OBJECTIVES", "Chain", "Solution"]

#: A memory limit or budget is kept up to this fraction of itself, so that "exactly full" survives rounding.
LIMIT_TOLERANCE = 1e-9

#: What an optional array defaults to. Validation turns it into an array that says the same (zeros, ones, inf), so
#: that no solver meets ``None``; the fields are typed as what they then hold.
_ABSENT: Any = None

#: Optional features; backends state which of them they can express.
FEATURES = frozenset(
    {
        "variants", "memory", "shared", "transient", "free_ends", "reuse_many", "messages", "loop",
        "throughput", "energy", "quality", "handoff", "weighted", "max_latency", "max_period", "max_energy",
        "max_quality_loss", "max_stages", "min_segment", "pins", "cut_legal",
        "time_shared", "reserved", "radio", "reserved_period", "reserved_conflict", "movement",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Solution:
    """Decisions of a chain plan.

    Attributes
    ----------
    cuts
        Segment ends, increasing; the last equals ``num_elements``.
    devices
        Device index of each stage.
    variants
        Variant index of each stage (all 0 without variants).
    shares
        Where a medium is reserved: one share per transfer between two devices, in the order input, cuts, loop,
        result; 1 for transfers over links that reserve nothing. Solvers return them, and
        :func:`~edgeopt_solvers.chain.shares.with_shares` fills in the best ones for any decisions.
    """

    cuts: tuple[int, ...]
    devices: tuple[int, ...]
    variants: tuple[int, ...]
    shares: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("cuts", "devices", "variants"):
            object.__setattr__(self, name, tuple(int(i) for i in getattr(self, name)))
        if self.shares is not None:
            object.__setattr__(self, "shares", tuple(float(share) for share in self.shares))

    @property
    def starts(self) -> tuple[int, ...]:
        """First element of each stage."""
        return (0, *self.cuts[:-1])


@dataclass(frozen=True, eq=False)
class Chain(WeightedInstance):
    """Place a chain of elements on devices in contiguous stages.

    D devices, V variants, L elements. ``inf`` in ``compute_s``: cannot run there. Rate 0: no link.

    Parameters
    ----------
    compute_s : (D, L) or (D, V, L)
        Seconds of each element on each device, per request.
    cut_bytes : (L + 1,)
        Bytes crossing each cut per request, over all messages; ``[0]`` comes from the source, ``[-1]`` returns to it.
    rate_bytes_per_s, latency_s : (D, D)
        Directed links; the diagonal is ignored (i to i is free).
    memory_bytes : (D,), optional
        Usable memory; ``None``: unlimited.
    resident_bytes : (L,) or (V, L), optional
        Bytes an element keeps on its device, summed over what the device holds.
    shared_bytes : (V,), optional
        Bytes counted once per device and variant, however many elements it runs there.
    transient_bytes : (L,) or (V, L), optional
        Working memory while an element runs; the largest on a device counts once.
    source : int or None
        Device that owns input and result; ``None``: both are free.
    reuse : {"once", "many"}
        ``once``: a device holds at most one stage; ``many``: it may hold several.
    objective : str or mapping
        ``latency`` (sum), ``throughput`` (the period: the largest busy time of any device or directed link),
        ``energy``, ``quality`` (loss), or weights over these names (minimised weighted sum; throughput weighs the
        period).
    cut_messages : (L + 1,), optional
        Messages that make up ``cut_bytes``; each pays the link's latency. Default 1.
    loop_bytes, loop_messages : float
        What returns from the last stage's device to the first's over the whole request (sampled tokens, latents).
    power_w, send_power_w, receive_power_w : (D,), optional
        Power while computing, sending, receiving; energy = sum of power times time.
    quality_loss : (V, L), optional
        Loss added by running an element with a variant (any sign).
    handoff_loss : (V, V, L + 1), optional
        Loss added at cut c when variant v hands to w (also between equal variants at a stage boundary);
        ``inf`` forbids it.
    max_latency_s, max_period_s, max_energy_j, max_quality_loss : float, optional
        Budgets.
    max_stages : int, optional
    min_segment : int
        Fewest elements in a stage.
    pins : mapping of element to device, optional
        Elements that must run on a given device.
    cut_legal : (L + 1,) of bool, optional
        Where a stage may begin (entries 0 and L are ignored).
    medium : (D, D) of int, optional
        Index into ``media`` of the medium (an access point, a cell) that a directed link is part of; -1 (default): the
        link is its own.
    media : sequence of {"time_shared", "reserved"}, optional
        How each medium is divided. ``time_shared``: whoever sends has all of it. ``reserved``: every transfer over it
        holds a share for the whole session, and shares add up to at most 1.
    band_hz : (G,), optional
        Bandwidth of each radio medium; 0 (default) where rates are fixed.
    snr : (D, D), optional
        On links of radio media: received power over the noise in the WHOLE band, a ratio (not dB); 0: no link.
    held : (D, V, L) of bool, optional
        What each device already keeps: the resident bytes of that element for that variant, and with any element the
        variant's shared bytes. ``None`` (default): nothing. :func:`~edgeopt_solvers.chain.movement.held_by` reads it
        off an earlier plan. (D, L) will do with one variant.
    load_cost : (D,) or number, optional
        Added to the objective for every byte that a device has to load newly, in the objective's unit per byte (for
        a latency: seconds per byte, over the requests until the next change of plan). Default 0.

    Notes
    -----
    With a share b a link of a reserved medium sends at ``b * rate`` or, by radio, at ``b * B * log2(1 + snr / b) / 8``
    bytes/s. On radio media ``rate_bytes_per_s`` is ignored and replaced by that rate at b = 1. A medium that is
    time-shared is busy for the sum of its transfers; with shares every transfer has a channel of its own, busy as long
    as it lasts. Latency and energy count the seconds that transfers take with their shares.

    A transfer i→j at cut c takes ``cut_messages[c] * latency[i, j] + cut_bytes[c] / rate[i, j]`` seconds, 0 for
    i = j, and also 0 when there is neither a byte nor a message. Two neighbouring stages differ in device or variant.

    Raises
    ------
    InstanceError
        A shape, sign or reference is wrong; the message names the field, the value and the mend.
    """

    family: ClassVar[str] = "chain"

    compute_s: Array
    cut_bytes: Array
    rate_bytes_per_s: Array
    latency_s: Array
    memory_bytes: Array = _ABSENT
    resident_bytes: Array = _ABSENT
    shared_bytes: Array = _ABSENT
    source: int | None = 0
    reuse: str = "once"
    objective: str | Mapping[str, float] = "latency"
    cut_messages: Array = _ABSENT
    loop_bytes: float = 0.0
    loop_messages: float = 0.0
    transient_bytes: Array = _ABSENT
    power_w: Array | None = None
    send_power_w: Array | None = None
    receive_power_w: Array | None = None
    quality_loss: Array = _ABSENT
    handoff_loss: Array = _ABSENT
    max_latency_s: float | None = None
    max_period_s: float | None = None
    max_energy_j: float | None = None
    max_quality_loss: float | None = None
    max_stages: int | None = None
    min_segment: int = 1
    pins: Mapping[int, int] = _ABSENT
    cut_legal: NDArray[np.bool_] = _ABSENT
    medium: NDArray[np.int64] = _ABSENT
    media: Sequence[str] = ()
    band_hz: Array = _ABSENT
    snr: Array = _ABSENT
    held: NDArray[np.bool_] | None = None
    load_cost: Array = _ABSENT

    def __post_init__(self) -> None:
        for name, value in normalised(self).items():
            object.__setattr__(self, name, value)

    # ── what the arrays say ──────────────────────────────────────────────────────────────────────────────────

    @property
    def num_devices(self) -> int:
        """D."""
        return int(self.compute_s.shape[0])

    @property
    def num_variants(self) -> int:
        """V."""
        return int(self.compute_s.shape[1])

    @property
    def num_elements(self) -> int:
        """L."""
        return int(self.compute_s.shape[2])

    def links_of(self, mode: str) -> NDArray[np.bool_]:
        """Which directed links are part of a medium of this mode, (D, D)."""
        modes = np.array([*self.media, "private"])  # index -1 finds the last
        return np.asarray(modes[self.medium] == mode)

    @property
    def is_radio(self) -> NDArray[np.bool_]:
        """Which directed links are part of a radio medium, (D, D)."""
        return np.asarray(np.append(self.band_hz, 0.0)[self.medium] > 0)

    @property
    def has_energy(self) -> bool:
        """Whether any power was given, so that ``energy_j`` means something."""
        return self.power_w is not None

    @property
    def charges_loads(self) -> bool:
        """Whether bytes that a device must load newly cost anything."""
        return bool(self.load_cost.any()) and bool(self.resident_bytes.any() or self.shared_bytes.any())

    def transfer_s(self, i: int, j: int, cut: int) -> float:
        """Seconds to move what crosses ``cut`` from device ``i`` to ``j``; ``inf`` without a link."""
        return self._link_s(i, j, float(self.cut_bytes[cut]), float(self.cut_messages[cut]))

    def loop_s(self, i: int, j: int) -> float:
        """Seconds of the loop term when the last stage is on ``i`` and the first on ``j``."""
        return self._link_s(i, j, self.loop_bytes, self.loop_messages)

    def transfer_matrix(self, cut: int) -> Array:
        """Return :meth:`transfer_s` for all pairs of devices at once, (D, D)."""
        return self._link_matrix(float(self.cut_bytes[cut]), float(self.cut_messages[cut]))

    def loop_matrix(self) -> Array:
        """Return :meth:`loop_s` for all pairs (last, first) at once, (D, D)."""
        return self._link_matrix(self.loop_bytes, self.loop_messages)

    def _link_s(self, i: int, j: int, num_bytes: float, messages: float) -> float:
        if i == j or (num_bytes == 0 and messages == 0):
            return 0.0
        rate = float(self.rate_bytes_per_s[i, j])
        if rate == 0:
            return math.inf
        return messages * float(self.latency_s[i, j]) + num_bytes / rate

    def _link_matrix(self, num_bytes: float, messages: float) -> Array:
        if num_bytes == 0 and messages == 0:
            return np.zeros_like(self.rate_bytes_per_s)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            seconds = messages * self.latency_s + num_bytes / self.rate_bytes_per_s
        seconds[self.rate_bytes_per_s == 0] = math.inf  # 0 bytes over no link is 0/0: still no link
        np.fill_diagonal(seconds, 0.0)
        return seconds

    def allowance(self, limit: float, scale: float = 0.0) -> float:
        """Largest value that still counts as keeping ``limit``: sums of floats may exceed it by rounding alone.

        ``scale`` is the size of the summed terms where they can cancel (quality losses of both signs).
        """
        return limit + LIMIT_TOLERANCE * max(abs(limit), scale)

    @property
    def quality_scale(self) -> float:
        """Sum of the largest absolute losses of each element and cut: how far rounding can move a sum of them."""
        handoff = np.where(np.isinf(self.handoff_loss), 0.0, np.abs(self.handoff_loss))
        return float(np.abs(self.quality_loss).max(axis=0).sum() + handoff.max(axis=(0, 1)).sum())

    def features(self) -> frozenset[str]:
        """Names (from :data:`FEATURES`) of the optional features that this instance uses."""
        weights = self.weights
        limited = bool(np.isfinite(self.memory_bytes).any())
        used = {
            "variants": self.num_variants > 1,
            "memory": limited,
            "shared": limited and bool(self.shared_bytes.any()),
            "transient": limited and bool(self.transient_bytes.any()),
            "free_ends": self.source is None,
            "reuse_many": self.reuse == "many",
            "messages": bool((self.cut_messages != 1).any()),
            "loop": self.loop_bytes > 0 or self.loop_messages > 0,
            "throughput": "throughput" in weights,
            "energy": "energy" in weights,
            "quality": "quality" in weights,
            "handoff": bool(self.handoff_loss.any()),
            "weighted": set(weights.values()) != {1.0} or len(weights) > 1,
            "max_latency": self.max_latency_s is not None,
            "max_period": self.max_period_s is not None,
            "max_energy": self.max_energy_j is not None,
            "max_quality_loss": self.max_quality_loss is not None,
            "max_stages": self.max_stages is not None,
            "min_segment": self.min_segment > 1,
            "pins": bool(self.pins),
            "cut_legal": not self.cut_legal[1:-1].all(),
            "time_shared": bool(self.links_of("time_shared").any()),
            "reserved": bool(self.links_of("reserved").any()),
            "radio": bool(self.is_radio.any()),
            "movement": self.charges_loads,
        }
        if used["reserved"]:
            goals = self.share_goals()
            used["reserved_period"] = goals == {"period"}
            used["reserved_conflict"] = len(goals) > 1
        return frozenset(name for name, present in used.items() if present)

    def share_goals(self) -> frozenset[str]:
        """Return what shares of reserved media are to serve: one goal has shares of its own, two pull on the same ones.

        ``latency``, ``energy``, ``mix`` (both, weighted) or ``period``, from the objective and the budgets.
        """
        weights = self.weights
        goals = {
            "latency": self.max_latency_s is not None,
            "energy": self.max_energy_j is not None,
            "period": "throughput" in weights or self.max_period_s is not None,
        }
        named = {name for name, present in goals.items() if present}
        if "latency" in weights or "energy" in weights:
            named.add(
                "mix" if {"latency", "energy"} <= set(weights) else "latency" if "latency" in weights else "energy"
            )
        if "throughput" in weights and (len(weights) > 1 or self.charges_loads):
            named.add("mix")
        return frozenset(named)

    @classmethod
    def _decoded(cls, content: dict[str, Any]) -> dict[str, Any]:
        """JSON keys are text: read the elements of ``pins`` as numbers."""
        if isinstance(content.get("pins"), dict):
            try:
                content["pins"] = {int(element): device for element, device in content["pins"].items()}
            except ValueError as error:
                raise InstanceError(f"pins: {error}; give element → device numbers") from None
        return content
