"""Checks that the two instances of this family share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeopt_solvers.chain.arrays import Array, checked_array, optional_limit
from edgeopt_solvers.errors import InstanceError

__all__ = ["LIMIT_TOLERANCE", "amounts", "objective_of", "within_unit"]

#: A budget or floor counts as kept up to this fraction of itself, so that "exactly reached" survives rounding.
LIMIT_TOLERANCE = 1e-9

#: Positive numbers outside this range are unit errors, and their products would leave the range of floats.
SMALLEST, LARGEST = 1e-40, 1e40


def amounts(name: str, value: Any, shapes: list[tuple[int | None, ...]], mend: str, *, inf: bool = False) -> Array:
    """Return ``value`` as a read-only array of amounts >= 0 of plausible magnitude.

    Raises
    ------
    InstanceError
        Not numeric, wrong shape, NaN, negative, infinite (unless ``inf``), or out of range.
    """
    array = checked_array(name, value, shapes, mend, allow_inf=inf)
    bad = (array > 0) & np.isfinite(array) & ((array < SMALLEST) | (array > LARGEST))
    if bad.any():
        index = ", ".join(map(str, np.argwhere(bad)[0].tolist()))
        raise InstanceError(
            f"{name}[{index}] is {float(array[bad][0])}; {mend}, between {SMALLEST:g} and {LARGEST:g}, or 0"
        )
    return array


def within_unit(name: str, value: Any, shapes: list[tuple[int | None, ...]], mend: str) -> Array:
    """Return ``value`` as a read-only array of numbers from 0 to 1."""
    array = checked_array(name, value, shapes, mend)
    if (array > 1).any():
        index = ", ".join(map(str, np.argwhere(array > 1)[0].tolist()))
        raise InstanceError(f"{name}[{index}] is {float(array[array > 1][0])}; {mend}")
    return array


def objective_of(given: Any, names: tuple[str, ...]) -> str | dict[str, float]:
    """Return a name, or a dict of weights over the names."""
    wanted = f"choose one of {', '.join(names)}, or weights over them"
    if isinstance(given, str):
        if given not in names:
            raise InstanceError(f"objective is {given!r}; {wanted}")
        return given
    if not isinstance(given, Mapping) or not given:
        raise InstanceError(f"objective is {given!r}; {wanted}")
    weights = {}
    for name, weight in given.items():
        if name not in names:
            raise InstanceError(f"objective weighs {name!r}; choose among {', '.join(names)}")
        number = optional_limit(f"objective[{name!r}]", weight)
        if number is None or number > LARGEST:
            raise InstanceError(f"objective[{name!r}] is {weight!r}; give a finite weight >= 0")
        weights[name] = number
    if not any(weights.values()):
        raise InstanceError(f"objective has no positive weight; give one to {' or '.join(names)}")
    return weights
