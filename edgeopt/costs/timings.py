"""Measured tables: where a device was measured with a model, the measurement overrides the roofline.

A table is used only inside the range it was measured in. Between two measured points it is interpolated linearly:
first along tokens (prefill) or context (decode), then between the nearest batches below and above that cover the
point. Linear is what a layer's cost is in each of them, up to attention's square (a chord lies above a convex curve)
and up to libraries that switch kernels, which no interpolation can know: measure the batches that will be run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgeopt.profiles.base import DType
from edgeopt.profiles.device import Device, Timing
from edgeopt.units import SECONDS_PER

__all__ = ["between_batches", "interpolate_s", "matching"]

Array = NDArray[np.float64]


def matching(device: Device, model: str, phase: str, dtype: DType, variant: str | None = None) -> list[Timing]:
    """Return the device's timings of one model in one phase, dtype and variant, at any batch."""
    return [
        timing
        for timing in device.timings
        if (timing.model, timing.phase, timing.dtype, timing.variant) == (model, phase, dtype, variant)
    ]


def interpolate_s(
    timings: Sequence[Timing], batch: int, axis: str | None = None, values: NDArray[np.int64] | None = None
) -> Array | None:
    """Seconds per element at a batch and at each value of ``axis`` (``tokens`` or ``context``).

    Parameters
    ----------
    timings
        Of one model, phase, dtype and variant. Of two rows for the same point the later one counts.
    axis, values
        ``None`` for phases that have one value (a denoising step, an encoder).

    Returns
    -------
    ndarray of shape (len(values), num_elements), or None
        ``None`` when nothing was measured, or a value or the batch lies outside the measured range.
    """
    wanted = np.zeros(1, np.int64) if values is None else values
    tables = {}
    for size in {timing.batch for timing in timings}:
        points = {getattr(t, axis) if axis else 0: _seconds(t) for t in timings if t.batch == size}
        points.pop(None, None)
        if points and min(points) <= wanted.min() and wanted.max() <= max(points):
            tables[size] = _along(points, wanted)
    below, above = [b for b in tables if b <= batch], [b for b in tables if b >= batch]
    if not below or not above:
        return None
    low, high = max(below), min(above)
    share = (batch - low) / (high - low) if high > low else 0.0
    return (1 - share) * tables[low] + share * tables[high]


def between_batches(device: Device, model: str, dtype: DType, batches: Mapping[str, int]) -> bool:
    """Whether tables serve a phase at a batch that none of their rows was measured at; ``batches`` by phase."""
    known: dict[tuple[str, str | None], set[int]] = {}
    for timing in device.timings:
        if (timing.model, timing.dtype) == (model, dtype) and timing.phase in batches:
            known.setdefault((timing.phase, timing.variant), set()).add(timing.batch)
    return any(batches[phase] not in measured for (phase, _), measured in known.items())


def _seconds(timing: Timing) -> Array:
    return np.asarray(timing.elements) * SECONDS_PER[timing.unit]


def _along(points: dict[int, Array], values: NDArray[np.int64]) -> Array:
    at = sorted(points)
    return np.stack([np.interp(values, at, column) for column in np.stack([points[x] for x in at]).T], axis=1)
