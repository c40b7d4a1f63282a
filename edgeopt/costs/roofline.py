"""Roofline by group of kernels: each takes the longer of its arithmetic and its memory traffic, and they take turns.

Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009, https://doi.org/10.1145/1498765.1498785. Kernels of a layer
run one after the other, so one roofline over the whole layer would hide the traffic of its element-wise operations
under the arithmetic of its matrix products. A layer is therefore a sum over three groups and the launches:

    matrix products   max(flop / (e(rows) peak), weights / (e_m bandwidth))
    attention         max(flop / (e_c peak), cache bytes / (e_m bandwidth))
    everything else   bytes / (e_m bandwidth)
    launches          kernels * launch_overhead

``e(rows)`` is what products of few rows reach of the peak where that was measured (``efficiency.compute_by_rows``), and
e_c elsewhere: libraries reach their rate only with many rows, which decides what a small batch gains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.costs.terms import Terms
from edgeopt.errors import Finding, InputError
from edgeopt.profiles.base import DType
from edgeopt.profiles.device import Device

__all__ = ["Work", "peak_flop_per_s", "roofline"]

Array = NDArray[np.float64]


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


@dataclass(frozen=True, slots=True)
class Work:
    """What one call does; arrays that broadcast.

    Attributes
    ----------
    flop, weights
        Operations of its matrix products, and bytes of the weights they read.
    rows
        Rows that share one reading of the weights (tokens times batch); ``None``: as many as one likes.
    activations
        Bytes that operations read and write beside weights and cache.
    attention_flop, cache
        Operations of attention, and bytes of the KV cache that are moved.
    kernels
        Operations launched.
    """

    flop: ArrayLike
    weights: ArrayLike
    rows: ArrayLike | None = None
    activations: ArrayLike = 0.0
    attention_flop: ArrayLike = 0.0
    cache: ArrayLike = 0.0
    kernels: ArrayLike = 1


def roofline(device: Device, dtype: DType, work: Work) -> Terms:
    """Return the seconds of one call by term, in the broadcast shape of what ``work`` holds.

    Matrix products count as ``compute`` where the peak bounds them and as ``memory`` where reading weights does.

    Raises
    ------
    InputError
        The device has no rate for the dtype.
    """
    peak = peak_flop_per_s(device, dtype)
    per_byte = 1 / (device.efficiency.memory_bandwidth * device.memory_bandwidth)
    flop, weights = np.asarray(work.flop, float), np.asarray(work.weights, float)
    arithmetic, reading = flop / (device.efficiency.compute * peak), weights * per_byte
    products = np.maximum(flop / (_efficiency(device, work.rows) * peak), reading)
    attention = np.maximum(
        np.asarray(work.attention_flop, float) / (device.efficiency.compute * peak),
        np.asarray(work.cache, float) * per_byte,
    )
    busy = arithmetic >= reading
    values = (
        np.where(busy, products, 0.0),
        np.where(busy, 0.0, products) + np.asarray(work.activations, float) * per_byte,
        attention,
        np.asarray(work.kernels, float) * device.launch_overhead,
    )
    compute, memory, attention, launch, measured = np.broadcast_arrays(*values, 0.0)
    return Terms(compute, memory, attention, launch, measured)


def _efficiency(device: Device, rows: ArrayLike | None) -> Array:
    """Share of the peak that products of so many rows reach: linear in seconds per row between measured points.

    Seconds of a product are what is measured at ``efficiency.rows``; they are interpolated, so that one more row never
    makes it faster or slower than its neighbours say. Beyond the last point the rate is that of the last point.
    """
    known = device.efficiency
    if rows is None or not known.rows:
        return np.asarray(known.compute)
    at, share = np.array(known.rows, float), np.array(known.compute_by_rows)
    wanted = np.maximum(np.asarray(rows, float), 1.0)
    inside = np.clip(wanted, at[0], at[-1])
    return np.asarray(inside / np.interp(inside, at, at / share))
