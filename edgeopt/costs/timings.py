"""Measured tables: where a device was measured with a model, the measurement overrides the roofline.

A table is used only inside the range it was measured in; between two measured points it is interpolated linearly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeopt.profiles.base import DType
from edgeopt.profiles.device import Device, Timing

__all__ = ["interpolate_s", "matching", "single_s"]

_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def matching(
    device: Device, model: str, phase: str, dtype: DType, batch: int, variant: str | None = None
) -> list[Timing]:
    """Return the device's timings of one model in one phase, dtype, batch and variant."""
    return [
        timing
        for timing in device.timings
        if (timing.model, timing.phase, timing.dtype, timing.batch, timing.variant)
        == (model, phase, dtype, batch, variant)
    ]


def interpolate_s(timings: Sequence[Timing], axis: str, values: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """Seconds per element at each value of ``axis`` (``tokens`` or ``context``), or ``None`` outside the tables.

    Returns
    -------
    ndarray of shape (len(values), num_elements), or None
        ``None`` when nothing was measured, or a value lies outside the measured range.
    """
    points = {getattr(t, axis): np.asarray(t.elements) * _SECONDS[t.unit] for t in timings}
    points.pop(None, None)
    if not points or values.min() < min(points) or values.max() > max(points):
        return None
    at = np.array(sorted(points))
    table = np.stack([points[x] for x in at])
    return np.stack([np.interp(values, at, column) for column in table.T], axis=1)


def single_s(timings: Sequence[Timing]) -> float | None:
    """Seconds of a phase that has one value (a denoising step, an encoder), the last measured, or ``None``."""
    return timings[-1].elements[0] * _SECONDS[timings[-1].unit] if timings else None
