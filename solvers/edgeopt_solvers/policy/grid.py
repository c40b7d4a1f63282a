"""All thresholds of a choice of models at once, from joint histograms.

Let R_j[x](t_1..t_j) be the sum of x over the queries with code_i < t_i for all i <= j: those that go on after model j.
A histogram over the codes, summed up along every axis, gives R_j for all thresholds together, and

    value   = Σ value_1 + Σ_{j>=1} R_j[value_{j+1}]
    correct = Σ correct_1 + Σ_{j>=1} R_j[correct_{j+1} − correct_j]

so that every threshold vector of k models costs a few additions. Scores of 0 and 1 are added without rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.policy.traces import Traces

__all__ = ["MOST_CELLS", "Grid", "grid_of", "num_cells"]

#: Larger tables are not built; the search by boxes takes over.
MOST_CELLS = 2_000_000


def num_cells(traces: Traces, models: tuple[int, ...]) -> int:
    """Return the number of cells of the joint histogram of a choice of models."""
    return math.prod(len(traces.thresholds[m]) + 1 for m in models[:-1])


@dataclass(frozen=True, slots=True)
class Grid:
    """Sums over the queries for every threshold vector of ``models``; axis i has the thresholds of models[i]."""

    models: tuple[int, ...]
    value: Array
    correct: Array
    allowed: NDArray[np.bool_] | None

    def levels(self, index: int) -> NDArray[np.int64]:
        """Return threshold numbers 1..L of a flat index."""
        return np.array(np.unravel_index(index, self.value.shape), dtype=np.int64) + 1


def grid_of(traces: Traces, models: tuple[int, ...]) -> Grid:
    """Build the tables of a choice of models."""
    lengths = [len(traces.thresholds[m]) for m in models[:-1]]
    first = models[0]
    shape = (1,) * len(lengths)
    value = np.full(shape, traces.value[first].sum())
    correct = np.full(shape, traces.correct[first].sum())
    others = [np.full(shape, amounts[first].sum()) for amounts, _ in traces.limits]
    index = np.zeros(traces.num_queries, dtype=np.int64)
    for j in range(1, len(models)):
        before, after = models[j - 1], models[j]
        index = index * (lengths[j - 1] + 1) + traces.codes[before]
        axes = tuple(length + 1 for length in lengths[:j])

        def going_on(amounts: Array, index: NDArray[np.int64] = index, axes: tuple[int, ...] = axes) -> Array:
            table: Array = (
                np.bincount(index, weights=amounts, minlength=math.prod(axes)).astype(np.float64).reshape(axes)
            )
            for axis in range(len(axes)):
                np.cumsum(table, axis=axis, out=table)
            table = table[tuple(slice(0, length - 1) for length in axes)]
            wide: Array = table.reshape(table.shape + (1,) * (len(lengths) - len(axes)))
            return wide

        value = value + going_on(traces.value[after])
        correct = correct + going_on(traces.correct[after] - traces.correct[before])
        others = [other + going_on(amounts[after]) for other, (amounts, _) in zip(others, traces.limits, strict=True)]
    allowed = None
    for other, (_, limit) in zip(others, traces.limits, strict=True):
        allowed = (other <= limit) if allowed is None else allowed & (other <= limit)
    return Grid(models, value, correct, allowed)
