"""The bandwidth problem as data: arrays in SI units, validated once, immutable afterwards.

Flows 0..K-1 share media 0..G-1. A decision is one share per flow; everything that depends on decisions is computed in
``check.py``, nowhere here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.bandwidth.validate import Array, normalised, vector
from edgeopt_solvers.data import JsonInstance
from edgeopt_solvers.errors import InstanceError

__all__ = ["FEATURES", "LIMIT_TOLERANCE", "OBJECTIVES", "Bandwidth", "Solution"]

OBJECTIVES = ("sum", "max")

#: A budget, share limit or deadline counts as kept up to this fraction of itself, so that "exactly full" survives
#: rounding.
LIMIT_TOLERANCE = 1e-9

#: What an optional array defaults to; validation fills in an array that says the same (zeros, ones, inf).
_ABSENT: Any = None

#: Optional features; backends state which of them they can express.
FEATURES = frozenset(
    {"radio", "max", "weighted", "fixed_time", "deadline", "min_share", "max_share", "budget", "several_media"}
)


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """Decisions of a bandwidth allocation.

    Attributes
    ----------
    shares : (K,)
        Fraction of its medium that each flow holds.
    """

    shares: Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "shares", vector("shares", self.shares, None, "give one share per flow", signed=True))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Solution):
            return NotImplemented
        return np.array_equal(self.shares, other.shares)

    def __hash__(self) -> int:
        return hash(self.shares.tobytes())


@dataclass(frozen=True, eq=False)
class Bandwidth(JsonInstance):
    """Divide media among flows.

    K flows, G media. Flow k on medium g with share b sends at

    - ``b * rate_bytes_per_s[k]`` where the medium has a fixed spectral efficiency, or
    - ``b * band_hz[g] * log2(1 + snr[k] / b) / 8`` bytes/s where ``band_hz[g] > 0`` (radio),

    and is done after ``fixed_s[k] + size_bytes[k] / rate`` seconds.

    Parameters
    ----------
    size_bytes : (K,)
        Bytes to move; a flow with 0 bytes needs no share and is done after ``fixed_s``.
    rate_bytes_per_s : (K,), optional
        Rate with the whole medium; 0: no link, ``inf``: free. Ignored for flows on a radio medium.
    medium : (K,), optional
        Medium of each flow, 0..G-1; default: all on medium 0.
    band_hz : (G,), optional
        Bandwidth of each radio medium; 0 where the medium has fixed rates.
    snr : (K,), optional
        Received power over the noise in the WHOLE band, p·g/(N0·B), a ratio (not dB); 0: no link. Ignored for flows
        on a medium with fixed rates.
    fixed_s : (K,), optional
        Seconds before or after sending that no share changes (compute, latency).
    weight : (K,), optional
        Weights >= 0 of the flows in the objective, default 1. A flow of weight 0 counts only through its limits, and
        without limits it may be left without a share (and then never ends).
    objective : {"sum", "max"}
        Minimise the sum, or the largest, of ``weight * (fixed_s + transfer time)``.
    deadline_s : (K,), optional
        Latest end of each flow, counted from 0 as ``fixed_s`` is; ``inf``: none.
    min_share, max_share : (K,), optional
        Limits on each share; ``inf``: no upper limit.
    budget : (G,), optional
        What the shares on each medium may add up to, at most 1 (default).

    Raises
    ------
    InstanceError
        A shape, sign, magnitude or reference is wrong; the message names the field, the value and the mend.
    """

    family: ClassVar[str] = "bandwidth"

    size_bytes: Array
    rate_bytes_per_s: Array = _ABSENT
    medium: NDArray[np.int64] = _ABSENT
    band_hz: Array = _ABSENT
    snr: Array = _ABSENT
    fixed_s: Array = _ABSENT
    weight: Array = _ABSENT
    objective: str = "sum"
    deadline_s: Array = _ABSENT
    min_share: Array = _ABSENT
    max_share: Array = _ABSENT
    budget: Array = _ABSENT

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise InstanceError(f"objective is {self.objective!r}; choose one of {', '.join(OBJECTIVES)}")
        for name, value in normalised(self).items():
            object.__setattr__(self, name, value)

    @property
    def num_flows(self) -> int:
        """K."""
        return int(self.size_bytes.shape[0])

    @property
    def num_media(self) -> int:
        """G."""
        return int(self.budget.shape[0])

    @property
    def is_radio(self) -> NDArray[np.bool_]:
        """Whether each flow is on a radio medium, (K,)."""
        return self.band_hz[self.medium] > 0

    def features(self) -> frozenset[str]:
        """Names (from :data:`FEATURES`) of the optional features that this instance uses."""
        used = {
            "radio": bool((self.band_hz > 0).any()),
            "max": self.objective == "max",
            "weighted": bool((self.weight != 1).any()),
            "fixed_time": bool(self.fixed_s.any()),
            "deadline": bool(np.isfinite(self.deadline_s).any()),
            "min_share": bool(self.min_share.any()),
            "max_share": bool((self.max_share < 1).any()),
            "budget": bool((self.budget != 1).any()),
            "several_media": self.num_media > 1,
        }
        return frozenset(name for name, present in used.items() if present)
