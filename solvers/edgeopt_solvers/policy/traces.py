"""Traces in levels: the thresholds a model may have, and where each query lies between them.

A model with thresholds θ_1 < ... < θ_L gives a query the code #{θ <= confidence}, 0..L. With threshold θ_t the query
goes on exactly if its code is below t. Codes are all that a search over thresholds needs.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.policy.instance import LIMIT_TOLERANCE, Cascade, CascadeSolution

__all__ = ["Traces", "coarser", "subsequences", "traces_of"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Traces:
    """Codes and amounts of every query and model.

    Attributes
    ----------
    thresholds
        Per model: its thresholds, rising.
    codes : (M, N)
    value, correct : (M, N)
        What the objective adds up, and the answers' scores.
    limits
        Pairs of (amounts (M, N), largest sum over the queries).
    floor
        Least sum of the scores; ``-inf``: none.
    """

    thresholds: tuple[Array, ...]
    codes: Ints
    value: Array
    correct: Array
    limits: tuple[tuple[Array, float], ...]
    floor: float

    @property
    def num_queries(self) -> int:
        """N."""
        return int(self.codes.shape[1])

    def solution(self, models: tuple[int, ...], levels: Ints) -> CascadeSolution:
        """Return the decisions for threshold numbers 1..L of all models but the last."""
        picked = (float(self.thresholds[m][t - 1]) for m, t in zip(models, levels.tolist(), strict=False))
        return CascadeSolution(models, tuple(picked))


def traces_of(instance: Cascade) -> Traces:
    """Return the traces with the thresholds that the instance allows."""
    return _coded(instance, tuple(_thresholds(instance, m) for m in range(instance.num_models)))


def coarser(instance: Cascade, traces: Traces, most: int) -> Traces:
    """Return the traces with at most ``most`` of the thresholds of each model, spread evenly."""
    picked = []
    for values in traces.thresholds:
        index = np.unique(np.linspace(0, max(len(values) - 1, 0), most).round().astype(np.int64))
        picked.append(values[index] if len(values) > most else values)
    return _coded(instance, tuple(picked))


def subsequences(instance: Cascade, traces: Traces) -> list[tuple[int, ...]]:
    """Return every choice of models without a conflict, short ones first; models before the last have a threshold."""
    M = instance.num_models
    most = min(M, instance.max_models or M)
    return [
        models
        for size in range(1, most + 1)
        for models in itertools.combinations(range(M), size)
        if all(len(traces.thresholds[m]) for m in models[:-1]) and instance.may_ask(models)
    ]


def _thresholds(instance: Cascade, model: int) -> Array:
    """Thresholds at which some query goes on: others do what leaving out a model does."""
    confidence = instance.confidence[:, model]
    if instance.grid is not None:
        values = np.array(instance.grid[model], dtype=np.float64)
    elif instance.num_levels is None or instance.num_levels >= instance.num_queries:
        values = np.unique(confidence)
    else:
        ranks = np.arange(1, instance.num_levels) * instance.num_queries // instance.num_levels
        values = np.unique(np.partition(confidence, ranks)[ranks])
    rising: Array = values[values > confidence.min()]
    return rising


def _coded(instance: Cascade, thresholds: tuple[Array, ...]) -> Traces:
    codes = np.stack(
        [np.searchsorted(values, instance.confidence[:, m], side="right") for m, values in enumerate(thresholds)]
    )
    weights, keep = instance.weights, 0.5 * LIMIT_TOLERANCE
    value = np.zeros((instance.num_models, instance.num_queries))
    for name, amounts in (("latency", instance.seconds), ("cost", instance.cost)):
        if name in weights:
            value += weights[name] * amounts.T
    N = instance.num_queries
    budgets = [(instance.seconds, instance.max_latency_s), (instance.cost, instance.max_cost)]
    if instance.max_busy_s is not None and instance.device is not None:
        busy = instance.seconds if instance.busy_s is None else instance.busy_s
        budgets += [(busy * (instance.device == d), instance.max_busy_s) for d in np.unique(instance.device)]
    limits = tuple(
        (np.ascontiguousarray(amounts.T), limit * N * (1 + keep)) for amounts, limit in budgets if limit is not None
    )
    floor = -math.inf if instance.min_accuracy is None else instance.min_accuracy * N * (1 - keep)
    return Traces(thresholds, codes, value, np.ascontiguousarray(instance.correct.T), limits, floor)
