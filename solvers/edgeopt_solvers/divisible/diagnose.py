"""Why no division keeps every limit: the one that binds, and by how much."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np

from edgeopt_solvers.divisible.feasible import few_devices
from edgeopt_solvers.divisible.instance import Divisible
from edgeopt_solvers.divisible.table import Table

__all__ = ["diagnose"]

#: How far from the number of units others are tried.
NEAR = 100


def diagnose(instance: Divisible, time_limit_s: float | None = None) -> str:
    """Name the limit that leaves no division, with values and units.

    Limits are looked at from the most basic on: devices that can take part, memory, number of devices, least units,
    then the deadline and the energy budget, each beside the best that the other limits allow.
    """
    stop_at = math.inf if time_limit_s is None else time.perf_counter() + time_limit_s
    try:
        return _counted(instance) or _solved(instance, stop_at)
    except TimeoutError:
        return "no division keeps every limit; time ran out before the binding one was found"


def _counted(instance: Divisible) -> str:
    """Say what counting alone shows; empty: nothing."""
    H = instance.num_units
    most = np.array([_most_units(instance, d) for d in range(instance.num_devices)], dtype=np.int64)
    if not most.any():
        return f"no device can take a unit: {_why_not(instance, 0)}" + (
            f" (and {instance.num_devices - 1} more)" if instance.num_devices > 1 else ""
        )
    if most.sum() < H:
        tight = int(np.argmin(np.where(most > 0, most, H + 1)))
        return (
            f"memory: all devices together hold {int(most.sum())} units of {H}, {H - int(most.sum())} too few; "
            f"device {tight} holds {int(most[tight])} in {float(instance.memory_bytes[tight]):.9g} bytes"
        )
    if instance.max_devices is not None:
        held = int(np.sort(most)[::-1][: instance.max_devices].sum())
        if held < H:
            return (
                f"max_devices: the {instance.max_devices} largest devices hold {held} units of {H}, {H - held} too few"
            )
    return ""


def _solved(instance: Divisible, stop_at: float) -> str:
    """Say what the best divisions without one of the limits show."""
    free = replace(instance, objective="makespan", max_makespan_s=None, max_energy_j=None)
    fastest = _best(free, stop_at)
    if math.isinf(fastest):
        limit = f" on at most {instance.max_devices} devices" if instance.max_devices is not None else ""
        return (
            f"min_units: no loads between min_units and what memory holds add up to {instance.num_units} units{limit}; "
            f"min_units goes from {int(instance.min_units.min())} to {int(instance.min_units.max())}"
            + _nearest(instance, stop_at)
        )
    if instance.max_makespan_s is not None and fastest > instance.max_makespan_s:
        return (
            f"max_makespan_s is {instance.max_makespan_s:.9g} s, the fastest division takes {fastest:.9g} s, "
            f"{fastest - instance.max_makespan_s:.6g} s too long"
        )
    limit_j = instance.max_energy_j
    if limit_j is None:
        return ""
    least = _best(replace(free, objective="energy"), stop_at)
    if least > limit_j:
        return (
            f"max_energy_j is {limit_j:.9g} J, the least energy of any division is {least:.9g} J, "
            f"{least - limit_j:.6g} J too much"
        )
    within = _best(replace(free, objective="energy", max_makespan_s=instance.max_makespan_s), stop_at)
    return (
        f"max_energy_j is {limit_j:.9g} J, within max_makespan_s = {instance.max_makespan_s:.9g} s at least "
        f"{within:.9g} J are needed, {within - limit_j:.6g} J too much"
    )


def _nearest(instance: Divisible, stop_at: float) -> str:
    """Say which numbers of units near the instance's own could be shared; empty: none is that near."""
    table, H = Table(instance), instance.num_units
    most_devices = instance.max_devices or instance.num_devices
    found = []
    for word, totals in (("fewer", range(H - 1, max(H - NEAR, 0), -1)), ("more", range(H + 1, H + NEAR))):
        for total in totals:
            if time.perf_counter() > stop_at:
                raise TimeoutError
            if few_devices(table.least, table.most, total, most_devices) is not None:
                found.append(f"{total} ({abs(H - total)} {word})")
                break
    return f"; possible are {' or '.join(found)}" if found else ""


def _best(instance: Divisible, stop_at: float) -> float:
    from edgeopt_solvers.divisible.exact import solve
    from edgeopt_solvers.solve import Options

    left = stop_at - time.perf_counter()
    if left <= 0:
        raise TimeoutError
    result = solve(instance, Options(None if math.isinf(left) else left))
    if result.status.reason == "time_limit":
        raise TimeoutError
    return result.objective


def _most_units(instance: Divisible, device: int) -> int:
    """Return the most units a device can hold, 0 if fewer than its least."""
    if _why_not(instance, device):
        return 0
    room = float(instance.memory_bytes[device]) - float(instance.fixed_memory_bytes[device])
    unit = float(instance.unit_memory_bytes[device])
    fits = room / unit * (1 + 1e-9) if unit > 0 else math.inf
    return min(instance.num_units, math.floor(fits)) if math.isfinite(fits) else instance.num_units


def _why_not(instance: Divisible, device: int) -> str:
    """Say why a device can never be used; empty if it can."""
    if math.isinf(instance.unit_s[device]) or math.isinf(instance.fixed_s[device]):
        return f"device {device} cannot compute (its seconds are inf)"
    units = max(1, int(instance.min_units[device]))
    if units > instance.num_units:
        return f"min_units[{device}] is {units}, above num_units = {instance.num_units}"
    num_bytes = float(instance.fixed_bytes[device]) + units * float(instance.unit_bytes[device])
    if num_bytes > 0 and instance.rate_bytes_per_s[device] == 0:
        return f"device {device} has no link for its {num_bytes:.9g} bytes"
    need = float(instance.fixed_memory_bytes[device]) + units * float(instance.unit_memory_bytes[device])
    limit = float(instance.memory_bytes[device])
    if need > limit * (1 + 1e-9):
        return f"device {device} needs {need:.9g} bytes for {units} units, its memory is {limit:.9g} bytes"
    return ""
