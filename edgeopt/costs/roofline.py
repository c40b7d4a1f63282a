"""Roofline: an element takes the longer of its arithmetic and its memory traffic, plus a launch.

Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009, https://doi.org/10.1145/1498765.1498785.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.errors import Finding, InputError
from edgeopt.profiles.base import DType
from edgeopt.profiles.device import Device

__all__ = ["peak_flop_per_s", "roofline_s"]


def peak_flop_per_s(device: Device, dtype: DType) -> float:
    """Return the device's peak rate for a dtype.

    Raises
    ------
    InputError
        The profile holds no rate for this dtype; nothing is assumed in its place.
    """
    if dtype not in device.compute:
        known = ", ".join(device.compute)
        raise InputError(
            [
                Finding(
                    field=f"devices.{device.name}.compute.{dtype}",
                    message=f"device {device.name!r} has no compute rate for {dtype} (it has {known})",
                    mend=f"add `{dtype}: … TFLOP/s` with its source, or use a model in another dtype",
                )
            ]
        )
    return device.compute[dtype]


def roofline_s(device: Device, dtype: DType, flop: ArrayLike, traffic_bytes: ArrayLike) -> NDArray[np.float64]:
    """Seconds of one call: ``max(flop / (e_c * peak), bytes / (e_m * bandwidth)) + launch_overhead``.

    Parameters
    ----------
    flop, traffic_bytes : array_like, broadcastable
        Floating point operations and bytes read and written from memory.

    Returns
    -------
    ndarray
        Seconds, broadcast shape. Efficiencies e_c and e_m are the profile's own, measured or assumed.
    """
    arithmetic = np.asarray(flop, float) / (device.efficiency.compute * peak_flop_per_s(device, dtype))
    traffic = np.asarray(traffic_bytes, float) / (device.efficiency.memory_bandwidth * device.memory_bandwidth)
    return np.maximum(arithmetic, traffic) + device.launch_overhead
