"""Which of the requests that were timed count, and at what speed of the machine they are told."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.profiler.jobs import ElementSamples

__all__ = ["WAITED", "is_calm", "spread", "undisturbed", "wake_s"]

Array = NDArray[np.float64]

#: Share of its time that an undisturbed request may wait for a core.
WAITED = 0.02
#: Where requests differ by more than this, other work disturbs them: measured again, up to as often as asked for.
_CALM = 0.1


def wake_s(found: Sequence[ElementSamples], usual_s: float | None = None) -> float | None:
    """Median over processes of each one's own median: what is compared lies in the same memory."""
    known = [
        float(np.median(process.wakes_s)) * float(np.median(factors))
        for process, factors in zip(found, _factors(found, usual_s), strict=True)
        if process.wakes_s
    ]
    return max(float(np.median(known)), 0.0) if known else None


def is_calm(found: Sequence[ElementSamples], usual_s: float | None) -> bool:
    elements_s, waited = undisturbed(found, usual_s)
    return waited <= WAITED and spread(elements_s.sum(axis=(1, 2))) < _CALM


def _factors(found: Sequence[ElementSamples], usual_s: float | None) -> list[Array]:
    """Return what makes the seconds of each process's requests those at the usual speed; ones without a yardstick."""
    took = [process.yardsticks_s for process in found]
    if not all(took):
        return [np.ones(len(process.elements_s)) for process in found]
    usual = float(np.median(np.concatenate(took))) if usual_s is None else usual_s
    return [usual / np.array(seconds) for seconds in took]


def undisturbed(found: Sequence[ElementSamples], usual_s: float | None = None) -> tuple[Array, float]:
    """Choose the requests that hardly waited for a core: what other processes take is not the device's speed.

    Nor is what the machine was slower or faster than usual by, where the yardstick told.

    Returns
    -------
    samples : (requests, rounds, elements)
        All requests that waited at most ``WAITED`` of their time; where fewer than two did, the calmest third.
    waited : float
        Largest share of its time that a chosen request waited.
    """
    elements_s = np.array([request for process in found for request in process.elements_s])
    elements_s *= np.concatenate(_factors(found, usual_s))[:, None, None]
    waited = np.concatenate([np.array(process.waited_s) / process.requests_s for process in found])
    limit = max(WAITED, float(np.sort(waited)[min(len(waited) - 1, max(1, len(waited) // 3 - 1))]))
    chosen = waited <= (WAITED if (waited <= WAITED).sum() >= 2 else limit)
    return elements_s[chosen], float(waited[chosen].max())


def spread(totals_s: ArrayLike) -> float:
    """Half the range between the quartiles, relative to the median."""
    low, middle, high = np.percentile(totals_s, [25, 50, 75])
    return float((high - low) / 2 / middle)
