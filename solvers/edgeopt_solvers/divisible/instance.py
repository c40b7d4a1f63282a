"""The divisible-load problem as data: arrays in SI units, validated once, immutable afterwards.

Devices 0..D-1 share ``num_units`` equal units of work. A decision is a whole number of units per device (0: not used)
and, on the shared medium, a share of it per device. What decisions cost is computed in ``check.py``, nowhere here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.bandwidth.validate import Array
from edgeopt_solvers.data import WeightedInstance
from edgeopt_solvers.divisible.validate import OBJECTIVES, normalised

__all__ = ["FEATURES", "LIMIT_TOLERANCE", "OBJECTIVES", "Divisible", "Solution"]

#: A memory limit or budget counts as kept up to this fraction of itself, so that "exactly full" survives rounding.
LIMIT_TOLERANCE = 1e-9

#: What an optional array defaults to; validation fills in an array that says the same (zeros, ones, inf).
_ABSENT: Any = None

#: Optional features; backends state which of them they can express.
FEATURES = frozenset(
    {
        "choice", "transfer", "shared", "overlapped", "pairwise", "memory", "min_units", "steps", "lead", "energy",
        "weighted", "max_makespan", "max_energy", "max_devices",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Solution:
    """Decisions of a divisible-load plan.

    Attributes
    ----------
    loads
        Units on each device; 0: not used.
    shares
        Share of the medium that each device holds; 1 on a private link, 0 where nothing is sent or the device is idle.
    """

    loads: tuple[int, ...]
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "loads", tuple(int(i) for i in self.loads))
        object.__setattr__(self, "shares", tuple(float(i) for i in self.shares))


@dataclass(frozen=True, eq=False)
class Divisible(WeightedInstance):
    """Share a load among devices that work at the same time.

    D devices. A device with h > 0 units computes ``num_steps * (fixed_s + unit_s * h)`` seconds, and its exchange of
    ``num_steps * (fixed_bytes + unit_bytes * h)`` bytes takes ``num_steps * latency_s + bytes / (share * rate)``.

    Parameters
    ----------
    num_units : int
        Units to share out, H.
    unit_s : (D,)
        Seconds per unit and step; ``inf``: cannot take part.
    fixed_s : (D,), optional
        Seconds per step that a used device needs whatever its load.
    fixed_bytes, unit_bytes : (D,), optional
        Bytes exchanged per step by a used device, and per unit on it.
    rate_bytes_per_s : (D,), optional
        Rate of the link, or of the whole medium as seen from the device; 0: no link, ``inf``: free.
    latency_s : (D,), optional
        Seconds that every exchange takes besides its bytes.
    shared : bool or (D,) of bool
        Whether a device sends over the shared medium (shares sum to at most 1) or over a link of its own.
    exchange : {"synchronous", "overlapped", "pairwise"}
        ``synchronous``: a device is done after compute + exchange; ``overlapped``: after the longer of the two.
        ``pairwise``: of many steps each waits for what the others computed in the one before, which travels as soon as
        it is there; the makespan is the longest compute, or the mean of the two largest compute + exchange if that is
        more (one used device: its own compute + exchange). Only for the makespan, over links of one's own.
    num_steps : (D,), optional
        Steps a device runs (slow devices may run fewer); positive, default 1.
    lead_s, lead_unit_s : (D,), optional
        Seconds of a first part, of a used device and per unit on it: whoever is done with it waits until all are. Only
        for the makespan, over links of one's own.
    memory_bytes : (D,), optional
        Usable memory; ``inf``: unlimited.
    fixed_memory_bytes, unit_memory_bytes : (D,), optional
        Bytes held by a used device, and per unit on it.
    min_units : (D,), optional
        Least units of a device that is used, at least 1 (default).
    power_w, byte_j : (D,), optional
        Power while computing, and joules per byte exchanged. At a fixed spectral efficiency the power sent is
        proportional to the share, so that the energy of a byte does not depend on the share.
    objective : {"makespan", "energy"} or mapping
        Latest end of any device, total energy, or weights over both (the weighted sum).
    max_makespan_s, max_energy_j : float, optional
        Budgets.
    max_devices : int, optional
        Most devices used.

    Raises
    ------
    InstanceError
        A shape, sign, magnitude or reference is wrong; the message names the field, the value and the mend.
    """

    family: ClassVar[str] = "divisible"

    num_units: int
    unit_s: Array
    fixed_s: Array = _ABSENT
    fixed_bytes: Array = _ABSENT
    unit_bytes: Array = _ABSENT
    rate_bytes_per_s: Array = _ABSENT
    latency_s: Array = _ABSENT
    shared: NDArray[np.bool_] = _ABSENT
    exchange: str = "synchronous"
    num_steps: Array = _ABSENT
    lead_s: Array = _ABSENT
    lead_unit_s: Array = _ABSENT
    memory_bytes: Array = _ABSENT
    fixed_memory_bytes: Array = _ABSENT
    unit_memory_bytes: Array = _ABSENT
    min_units: NDArray[np.int64] = _ABSENT
    power_w: Array = _ABSENT
    byte_j: Array = _ABSENT
    objective: str | Mapping[str, float] = "makespan"
    max_makespan_s: float | None = None
    max_energy_j: float | None = None
    max_devices: int | None = None

    def __post_init__(self) -> None:
        for name, value in normalised(self).items():
            object.__setattr__(self, name, value)

    @property
    def num_devices(self) -> int:
        """D."""
        return int(self.unit_s.shape[0])

    @property
    def loads_are_given(self) -> bool:
        """Whether ``min_units`` and memory leave one load to every device, and these add up to all units."""
        with np.errstate(divide="ignore", invalid="ignore"):
            room = (self.memory_bytes * (1 + 0.5 * LIMIT_TOLERANCE) - self.fixed_memory_bytes) / self.unit_memory_bytes
        most = np.minimum(np.where(self.unit_memory_bytes > 0, np.floor(room), math.inf), self.num_units)
        return bool((most == self.min_units).all()) and int(self.min_units.sum()) == self.num_units

    def features(self) -> frozenset[str]:
        """Names (from :data:`FEATURES`) of the optional features that this instance uses."""
        weights = self.weights
        sends = (self.fixed_bytes > 0) | (self.unit_bytes > 0)
        used = {
            "choice": not self.loads_are_given,
            "transfer": bool(sends.any() or self.latency_s.any()),
            "shared": bool((self.shared & sends).any()),
            "overlapped": self.exchange == "overlapped",
            "pairwise": self.exchange == "pairwise",
            "memory": bool(np.isfinite(self.memory_bytes).any()),
            "min_units": bool((self.min_units > 1).any()),
            "steps": bool((self.num_steps != 1).any()),
            "lead": bool(self.lead_s.any() or self.lead_unit_s.any()),
            "energy": "energy" in weights,
            "weighted": set(weights.values()) != {1.0} or len(weights) > 1,
            "max_makespan": self.max_makespan_s is not None,
            "max_energy": self.max_energy_j is not None,
            "max_devices": self.max_devices is not None,
        }
        return frozenset(name for name, present in used.items() if present)
