"""A prediction split by what takes the time; the parts add up to the prediction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Terms"]

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Terms:
    """Seconds by cause, arrays of one shape.

    Attributes
    ----------
    compute
        Matrix products that arithmetic bounds.
    memory
        Matrix products that reading their weights bounds, and the activations that all operations read and write.
    attention
        All that grows with the context: scores and weighted sums, or reading and extending the KV cache.
    launch
        Starting operations.
    measured
        From a table of measurements, which says how long and not why.
    """

    compute: Array
    memory: Array
    attention: Array
    launch: Array
    measured: Array

    @classmethod
    def from_table(cls, seconds: ArrayLike) -> Terms:
        """Wrap measured seconds."""
        table = np.asarray(seconds, float)
        nought = np.zeros_like(table)
        return cls(nought, nought, nought, nought, table)

    def __iter__(self) -> Iterator[tuple[str, Array]]:
        """Names and values, in the order in which tables show them."""
        return ((field.name, getattr(self, field.name)) for field in fields(self))

    def __add__(self, other: Terms) -> Terms:
        """Add term by term."""
        return Terms(**{name: value + getattr(other, name) for name, value in self})

    def sum(self, axis: int | None = None) -> Terms:
        """Add up along an axis, or altogether."""
        return Terms(**{name: np.asarray(value.sum(axis=axis)) for name, value in self})

    def __getitem__(self, where: object) -> Terms:
        """Take some elements, as of an array."""
        return Terms(**{name: np.asarray(value[where]) for name, value in self})  # type: ignore[index]

    @property
    def total(self) -> Array:
        """The prediction."""
        return np.asarray(sum(value for _, value in self), float)
