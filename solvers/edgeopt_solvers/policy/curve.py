"""Objective against accuracy: every cascade that no other beats in both."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.errors import InstanceError
from edgeopt_solvers.policy.grid import MOST_CELLS, Grid, grid_of, num_cells
from edgeopt_solvers.policy.instance import Cascade, CascadeSolution
from edgeopt_solvers.policy.traces import subsequences, traces_of

__all__ = ["Frontier", "frontier"]


@dataclass(frozen=True, slots=True)
class Frontier:
    """Points of the frontier, cheapest first; the accuracy rises from each to the next.

    Attributes
    ----------
    objective, accuracy : (P,)
        Mean objective and accuracy of each point.
    solutions
        Decisions of each point.
    """

    objective: Array
    accuracy: Array
    solutions: tuple[CascadeSolution, ...]


def frontier(instance: Cascade) -> Frontier:
    """Return the frontier over all choices of models and thresholds that the instance allows.

    ``min_accuracy`` is left aside; budgets and ``max_models`` are kept.

    Raises
    ------
    InstanceError
        Too many thresholds to list them all; the message says how to have fewer.
    """
    traces = traces_of(instance)
    choices = subsequences(instance, traces)
    largest = max(choices, key=lambda models: num_cells(traces, models))
    if num_cells(traces, largest) > MOST_CELLS:
        raise InstanceError(
            f"num_levels is {instance.num_levels}: models {largest} have {num_cells(traces, largest)} threshold "
            f"vectors, the frontier lists at most {MOST_CELLS}; lower num_levels or max_models"
        )
    values, scores, places = [], [], []
    for number, models in enumerate(choices):
        grid = grid_of(traces, models)
        index = _undominated(grid)
        values.append(grid.value.ravel()[index])
        scores.append(grid.correct.ravel()[index])
        levels = np.stack(np.unravel_index(index, grid.value.shape)) + 1 if len(models) > 1 else None
        places += [(number, levels, k) for k in range(len(index))]
    value, score = np.concatenate(values), np.concatenate(scores)
    kept = _rising(value, score)
    none = np.zeros(0, dtype=np.int64)
    solutions = []
    for at in kept.tolist():
        number, levels, k = places[at]
        solutions.append(traces.solution(choices[number], none if levels is None else levels[:, k]))
    N = instance.num_queries
    return Frontier(value[kept] / N, score[kept] / N, tuple(solutions))


def _undominated(grid: Grid) -> NDArray[np.int64]:
    """Return flat indices of the cells of one grid that no other beats."""
    value, score = grid.value.ravel(), grid.correct.ravel()
    if grid.allowed is not None:
        score = np.where(grid.allowed.ravel(), score, -math.inf)
    if len(value) > 100_000:
        # best score by slices of the value first: most cells are beaten by a cheaper slice, and need no sorting
        edges = np.quantile(value[:: len(value) // 4096], np.linspace(0, 1, 513)[1:-1])
        part = np.searchsorted(edges, value)
        best = np.full(len(edges) + 1, -math.inf)
        np.maximum.at(best, part, score)
        cheaper = np.append(-math.inf, np.maximum.accumulate(best)[:-1])
        index = np.flatnonzero(score > cheaper[part])
        left: NDArray[np.int64] = index[_rising(value[index], score[index])]
        return left
    return _rising(value, score)


def _rising(value: Array, score: Array) -> NDArray[np.int64]:
    """Return the indices, by rising value, of points whose score exceeds that of every cheaper one."""
    order = np.lexsort((-score, value))
    sorted_score = score[order]
    before = np.append(-math.inf, np.maximum.accumulate(sorted_score)[:-1])
    kept: NDArray[np.int64] = order[sorted_score > before]
    return kept
