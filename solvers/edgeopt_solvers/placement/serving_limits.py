"""Why no routing to devices that serve first come first served keeps every limit: which one binds, by how much."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np

from edgeopt_solvers.placement.serving import Serving
from edgeopt_solvers.placement.serving_point import columns_of, least_load

__all__ = ["diagnose_serving"]


def diagnose_serving(instance: Serving, stop_at: float) -> str:
    """Name the limit that leaves no routing: what classes reach, then floors, loads and memory."""
    able = np.asarray(np.isfinite(instance.service_s).any(axis=0))
    if instance.model_bytes is not None and instance.memory_bytes is not None:
        able &= instance.model_bytes[:, None] <= instance.memory_bytes * (1 + 0.5e-9)
    reached = np.isfinite(instance.service_s) & np.isfinite(instance.network_s) & able
    arriving = instance.arrival_per_s > 0
    lost = arriving & ~reached.any(axis=(1, 2))
    if lost.any():
        return (
            f"class {int(np.argmax(lost))} reaches no model: service_s or network_s is inf everywhere, or no device "
            "has the memory for one"
        )
    best = np.where(reached.any(axis=2), instance.accuracy, -1.0).max(axis=1)
    part = instance.arrival_per_s / math.fsum(instance.arrival_per_s.tolist())
    floor = instance.min_accuracy
    if isinstance(floor, float):
        most = math.fsum((part * np.where(arriving, best, 0.0)).tolist())
        if floor > most + 1e-9:
            return (
                f"min_accuracy is {floor:.6g}, the most accurate models reach {most:.6g}, "
                f"{100 * (floor - most):.3g} points too few"
            )
    elif floor is not None:
        short = np.where(arriving, np.asarray(floor) - best, 0.0)
        if (short > 1e-9).any():
            c = int(short.argmax())
            return (
                f"min_accuracy[{c}] is {float(floor[c]):.6g}, its most accurate model reaches {float(best[c]):.6g}, "
                f"{100 * float(short[c]):.3g} points too few"
            )
    return _overloaded(instance, able, stop_at)


def _overloaded(instance: Serving, able: np.ndarray, stop_at: float) -> str:
    """Say by what factor the fullest device is too full, without the floors and with them."""
    limit, total = instance.max_load, math.fsum(instance.arrival_per_s.tolist())
    left_s = max(stop_at - time.perf_counter(), 0.05)
    options = None if math.isinf(left_s) else left_s
    for given, what in ((replace(instance, min_accuracy=None), "load"), (instance, "min_accuracy and load")):
        found = least_load(columns_of(given, able), options)
        if found is None:
            return "no routing keeps every limit; time ran out before the binding one was found"
        load = found[0]
        if load >= limit * (1 - 1e-9):
            return (
                f"{what}: the fullest device is loaded to at least {load:.6g}, max_load is {limit:.6g}; "
                f"arrivals of {total * limit / load:.6g} of the {total:.6g} queries/s are the most that fit"
            )
    assert instance.memory_bytes is not None
    v = int(np.argmin(instance.memory_bytes))
    return (
        "memory: with every model loaded a routing exists, but no choice that fits the memory keeps loads and "
        f"floors; device {v} has the least, {float(instance.memory_bytes[v]):.9g} bytes"
    )
