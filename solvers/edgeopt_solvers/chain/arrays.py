"""Turning what a caller passes into checked, read-only arrays; messages name field, index, value and mend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.errors import InstanceError

__all__ = ["Array", "boolean_array", "checked_array", "optional_limit", "whole_number"]

Array = NDArray[np.float64]


def checked_array(
    name: str,
    value: Any,
    shapes: Sequence[tuple[int | None, ...]],
    mend: str,
    *,
    low: float = 0.0,
    allow_inf: bool = False,
) -> Array:
    """Return ``value`` as a read-only float64 array of one of the given shapes.

    Parameters
    ----------
    name
        Field name for messages.
    value
        Anything :func:`numpy.asarray` takes.
    shapes
        Accepted shapes; ``None`` accepts any length >= 1 of that axis.
    mend
        What the caller should give instead, appended to every message.
    low
        Smallest accepted entry; ``-inf`` for any sign (``-inf`` itself is still refused).
    allow_inf
        Whether ``inf`` is a meaningful entry.

    Raises
    ------
    InstanceError
        Not numeric, wrong shape, NaN, below ``low``, or infinite where that means nothing.
    """
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InstanceError(f"{name} is no array of numbers ({error}); {mend}") from None
    if not any(_fits(array.shape, shape) for shape in shapes):
        wanted = " or ".join(_shape_text(shape) for shape in shapes)
        raise InstanceError(f"{name} has shape {_shape_text(array.shape)}, expected {wanted}; {mend}")
    bad = np.isnan(array) | (array < low) | (array == -math.inf)
    if not allow_inf:
        bad |= np.isinf(array)
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        where = f"[{', '.join(map(str, index))}]" if index else ""
        raise InstanceError(f"{name}{where} is {float(array[index])}; {mend}")
    array += 0.0  # turns -0.0 into 0.0: divisions and JSON then see one zero
    array.flags.writeable = False
    return array


def boolean_array(name: str, value: Any, length: int) -> NDArray[np.bool_]:
    """Return ``value`` as a read-only vector of ``length`` booleans."""
    array = np.array(value)
    if array.shape != (length,) or not (array.dtype == np.bool_ or np.isin(array, (0, 1)).all()):
        raise InstanceError(f"{name} must be {length} booleans, got {array.dtype} of shape {_shape_text(array.shape)}")
    array = array.astype(np.bool_)
    array.flags.writeable = False
    return array


def optional_limit(name: str, value: Any, *, low: float = 0.0) -> float | None:
    """Return a budget as a float, ``None`` when absent or infinite."""
    if value is None:
        return None
    try:
        limit = float(value)
    except (TypeError, ValueError):
        limit = math.nan
    if math.isnan(limit) or limit < low or limit == -math.inf:
        raise InstanceError(f"{name} is {value!r}; give a number{' >= 0' if low == 0 else ''}, or None for no limit")
    return None if math.isinf(limit) else limit


def whole_number(name: str, value: Any, low: int, high: int | None, mend: str) -> int:
    """Return ``value`` as an int in ``low..high``; 2.0 is accepted, 2.5 and True are not."""
    ok = not isinstance(value, bool | np.bool_)
    try:
        number = int(value)
        ok = ok and number == value
    except (TypeError, ValueError, OverflowError):
        ok, number = False, 0
    if not ok or number < low or (high is not None and number > high):
        span = f"{low}..{high}" if high is not None else f">= {low}"
        raise InstanceError(f"{name} is {value!r}, expected a whole number {span}; {mend}")
    return number


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    if len(shape) != len(wanted):
        return False
    return all(n >= 1 if w is None else n == w for n, w in zip(shape, wanted, strict=True))


def _shape_text(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("any" if n is None else str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"
