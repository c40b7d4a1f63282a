"""Checking what a caller gives to :class:`~edgeopt_solvers.divisible.instance.Divisible`, and filling in defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.bandwidth.validate import Array, vector
from edgeopt_solvers.chain.arrays import boolean_array, optional_limit, whole_number
from edgeopt_solvers.errors import InstanceError

if TYPE_CHECKING:
    from edgeopt_solvers.divisible.instance import Divisible

__all__ = ["OBJECTIVES", "normalised"]

OBJECTIVES = ("makespan", "energy")
EXCHANGES = ("synchronous", "overlapped", "pairwise")

#: Units times devices are kept in matrices; more than this is a unit chosen too small.
MOST_CELLS = 20_000_000


def normalised(given: Divisible) -> dict[str, Any]:
    """Return every field of ``given`` in its normal form.

    Raises
    ------
    InstanceError
        At the first field that makes no sense.
    """
    num_units = whole_number("num_units", given.num_units, 1, None, "give the number of units to share out")
    unit_s = vector("unit_s", given.unit_s, None, "give seconds per unit >= 0, inf: cannot take part", inf=True)
    num_devices = unit_s.shape[0]
    if num_devices == 0:
        raise InstanceError("unit_s is empty; give at least one device")
    if num_units * num_devices > MOST_CELLS:
        raise InstanceError(
            f"num_units is {num_units} for {num_devices} devices; give larger units: at most {MOST_CELLS} in all"
        )
    if given.exchange not in EXCHANGES:
        raise InstanceError(f"exchange is {given.exchange!r}; choose one of {', '.join(EXCHANGES)}")

    def per_device(name: str, default: float, mend: str, inf: bool = False) -> Array:
        value = getattr(given, name)
        return vector(name, np.full(num_devices, default) if value is None else value, num_devices, mend, inf=inf)

    shared = given.shared
    if shared is None or isinstance(shared, bool | np.bool_):
        shared = np.full(num_devices, bool(shared))
    fields: dict[str, Any] = {
        "num_units": num_units,
        "unit_s": unit_s,
        "fixed_s": per_device("fixed_s", 0.0, "give seconds >= 0 per device, inf: cannot take part", inf=True),
        "fixed_bytes": per_device("fixed_bytes", 0.0, "give finite bytes >= 0 per device"),
        "unit_bytes": per_device("unit_bytes", 0.0, "give finite bytes >= 0 per unit, for each device"),
        "rate_bytes_per_s": per_device("rate_bytes_per_s", 0.0, "give bytes/s >= 0 per device, 0: no link", inf=True),
        "latency_s": per_device("latency_s", 0.0, "give finite seconds >= 0 per device"),
        "shared": boolean_array("shared", shared, num_devices),
        "num_steps": _positive(per_device("num_steps", 1.0, "give a positive number of steps per device")),
        "lead_s": per_device("lead_s", 0.0, "give finite seconds >= 0 per device"),
        "lead_unit_s": per_device("lead_unit_s", 0.0, "give finite seconds >= 0 per unit, for each device"),
        "memory_bytes": per_device("memory_bytes", math.inf, "give bytes >= 0 per device, inf: unlimited", inf=True),
        "fixed_memory_bytes": per_device("fixed_memory_bytes", 0.0, "give finite bytes >= 0 per device"),
        "unit_memory_bytes": per_device("unit_memory_bytes", 0.0, "give finite bytes >= 0 per unit, for each device"),
        "min_units": _min_units(given.min_units, num_devices),
        "power_w": per_device("power_w", 0.0, "give finite watts >= 0 per device"),
        "byte_j": per_device("byte_j", 0.0, "give finite joules per byte >= 0 for each device"),
        "objective": _objective(given.objective),
        "max_makespan_s": optional_limit("max_makespan_s", given.max_makespan_s),
        "max_energy_j": optional_limit("max_energy_j", given.max_energy_j),
        "max_devices": None,
    }
    if given.max_devices is not None:
        fields["max_devices"] = whole_number("max_devices", given.max_devices, 1, None, "give None for no limit")
    _refuse_contradictions(given, fields)
    return fields


def _positive(steps: Array) -> Array:
    if (steps == 0).any():
        d = int(np.argmin(steps))
        raise InstanceError(f"num_steps[{d}] is 0.0; give a positive number of steps per device")
    return steps


def _min_units(value: Any, num_devices: int) -> NDArray[np.int64]:
    mend = "give whole units per device, 1: no limit"
    array = vector("min_units", np.ones(num_devices) if value is None else value, num_devices, mend)
    bad = (array != np.floor(array)) | (array < 1) | (array > 2**53)
    if bad.any():
        d = int(np.argmax(bad))
        raise InstanceError(f"min_units[{d}] is {array[d]:g}; {mend}")
    whole = array.astype(np.int64)
    whole.flags.writeable = False
    return whole


def _objective(given: Any) -> str | dict[str, float]:
    if isinstance(given, str):
        if given not in OBJECTIVES:
            raise InstanceError(f"objective is {given!r}; choose one of {', '.join(OBJECTIVES)}, or weights over them")
        return given
    if not isinstance(given, Mapping) or not given:
        raise InstanceError(f"objective is {given!r}; choose one of {', '.join(OBJECTIVES)}, or weights over them")
    weights = {}
    for name, weight in given.items():
        if name not in OBJECTIVES:
            raise InstanceError(f"objective weighs {name!r}; choose among {', '.join(OBJECTIVES)}")
        limit = optional_limit(f"objective[{name!r}]", weight)
        if limit is None or limit > 1e40:
            raise InstanceError(f"objective[{name!r}] is {weight!r}; give a finite weight >= 0")
        weights[name] = limit
    if not any(weights.values()):
        raise InstanceError("objective has no positive weight; give one to makespan or energy")
    return weights


def _refuse_contradictions(given: Divisible, fields: dict[str, Any]) -> None:
    sends = (fields["fixed_bytes"] > 0) | (fields["unit_bytes"] > 0)
    if given.rate_bytes_per_s is None and sends.any():
        d = int(np.argmax(sends))
        raise InstanceError(f"rate_bytes_per_s is missing: device {d} exchanges bytes; give bytes/s per device")
    weighs = not isinstance(fields["objective"], str) and fields["objective"].get("energy", 0) > 0
    needs = weighs or fields["objective"] == "energy" or fields["max_energy_j"] is not None
    if needs and given.power_w is None and given.byte_j is None:
        raise InstanceError("power_w and byte_j are missing: energy counts; give watts or joules per byte per device")
    if given.exchange == "pairwise":
        leads = fields["lead_s"].any() or fields["lead_unit_s"].any()
        shares = (fields["shared"] & sends).any()
        if needs or shares or leads:
            what = "energy counts" if needs else "devices share a medium" if shares else "lead_s is given"
            raise InstanceError(f"exchange is 'pairwise', for makespans over links of one's own alone, and {what}")
    leads = fields["lead_s"].any() or fields["lead_unit_s"].any()
    if leads and (needs or (fields["shared"] & sends).any()):
        what = "energy counts" if needs else "devices share a medium"
        raise InstanceError(f"lead_s is for makespans over links of one's own, and here {what}; leave one out")
