"""A cascade of models as data: measured traces of every model of a pool on the same queries."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array, checked_array, optional_limit, whole_number
from edgeopt_solvers.data import WeightedInstance
from edgeopt_solvers.errors import InstanceError
from edgeopt_solvers.policy.validate import amounts, objective_of, within_unit

__all__ = ["CASCADE_FEATURES", "OBJECTIVES", "Cascade", "CascadeSolution"]

OBJECTIVES = ("latency", "cost")

#: More choices of models than this are not tried one by one; all those among 12 models are fewer.
MOST_CHOICES = 4096

_ABSENT: Any = None

_SECONDS = "give finite seconds per model, or per query and model"

CASCADE_FEATURES = frozenset(
    {
        "cascade", "per_query", "graded", "grid", "full_resolution", "cost", "weighted", "min_accuracy", "max_latency",
        "max_cost", "max_models", "max_busy", "conflicts",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CascadeSolution:
    """Decisions of a cascade.

    Attributes
    ----------
    models
        Models in the order they are asked, increasing.
    thresholds
        One per model but the last: a query stops there if its confidence is at least the threshold.
    """

    models: tuple[int, ...]
    thresholds: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "models", tuple(int(m) for m in self.models))
        object.__setattr__(self, "thresholds", tuple(float(t) for t in self.thresholds))
        for k, threshold in enumerate(self.thresholds):
            if not 0 <= threshold <= 1:
                raise InstanceError(f"thresholds[{k}] is {threshold}; give a confidence from 0 to 1")
        if len(self.thresholds) != max(len(self.models) - 1, 0):
            raise InstanceError(
                f"thresholds has {len(self.thresholds)} entries for {len(self.models)} models; "
                "give one per model but the last"
            )


@dataclass(frozen=True, eq=False)
class Cascade(WeightedInstance):
    """Choose models and thresholds at the least mean latency or cost that reaches an accuracy.

    M models, N queries. A query asks the chosen models in the order of the pool until one is confident enough; the last
    answers in any case. What it takes is the sum over the models it asked; its answer is that of the model it ended at.
    A model on another device is another entry of the pool.

    Parameters
    ----------
    confidence : (N, M)
        From 0 to 1.
    correct : (N, M)
        Whether each answer is right: 0 or 1, or a score between them.
    seconds : (M,) or (N, M)
        Latency of each model, transfers included, on average or per query.
    cost : (M,) or (N, M), optional
        What an answer costs, in any unit.
    objective : {"latency", "cost"} or mapping
        Means over the queries, or a weighted sum of both.
    min_accuracy : float, optional
        Least mean of ``correct``.
    max_latency_s, max_cost : float, optional
        Budgets on the means.
    num_levels : int or None
        Thresholds are searched over this many quantiles of each model's confidence (default 32). ``None``: over every
        confidence in the trace (exact for any thresholds).
    grid : sequence of M sequences, optional
        Thresholds to choose from for each model, in place of quantiles.
    max_models : int, optional
        Most models in the cascade.
    device : (M,), optional
        Number of the device that each model runs on; models of one device share its time.
    busy_s : (M,) or (N, M), optional
        Seconds that the device is busy with an answer (default ``seconds``): transfers take none of its time.
    max_busy_s : float, optional
        Most seconds of any one device per query, on average: at λ queries/s a device keeps up below 1/λ. Needs
        ``device``.
    conflicts : sequence of sequences of models
        Sets of which not all may be in the cascade, such as models that one memory does not hold together.

    Raises
    ------
    InstanceError
        A shape, sign, magnitude or reference is wrong; the message names the field, the value and the mend.
    """

    family: ClassVar[str] = "policy"
    problem: ClassVar[str] = "cascade"

    confidence: Array
    correct: Array
    seconds: Array
    cost: Array = _ABSENT
    objective: str | Mapping[str, float] = "latency"
    min_accuracy: float | None = None
    max_latency_s: float | None = None
    max_cost: float | None = None
    num_levels: int | None = 32
    grid: Sequence[Sequence[float]] | None = None
    max_models: int | None = None
    device: NDArray[np.int64] | None = None
    busy_s: Array = _ABSENT
    max_busy_s: float | None = None
    conflicts: Sequence[Sequence[int]] = ()

    def __post_init__(self) -> None:
        for name, value in _normalised(self).items():
            object.__setattr__(self, name, value)

    @property
    def num_queries(self) -> int:
        """N."""
        return int(self.confidence.shape[0])

    @property
    def num_models(self) -> int:
        """M."""
        return int(self.confidence.shape[1])

    def may_ask(self, models: Sequence[int]) -> bool:
        """Whether no conflict is among the models."""
        return not any(set(conflict) <= set(models) for conflict in self.conflicts)

    def features(self) -> frozenset[str]:
        """Names (from :data:`CASCADE_FEATURES`) of the optional features that this instance uses."""
        weights = self.weights
        used = {
            "cascade": True,
            "per_query": bool((self.seconds != self.seconds[:1]).any() or (self.cost != self.cost[:1]).any()),
            "graded": not bool(((self.correct == 0) | (self.correct == 1)).all()),
            "grid": self.grid is not None,
            "full_resolution": self.grid is None and self.num_levels is None,
            "cost": "cost" in weights,
            "weighted": set(weights.values()) != {1.0} or len(weights) > 1,
            "min_accuracy": self.min_accuracy is not None,
            "max_latency": self.max_latency_s is not None,
            "max_cost": self.max_cost is not None,
            "max_models": self.max_models is not None,
            "max_busy": self.max_busy_s is not None,
            "conflicts": bool(self.conflicts),
        }
        return frozenset(name for name, present in used.items() if present)


def _normalised(given: Cascade) -> dict[str, Any]:
    confidence = within_unit("confidence", given.confidence, [(None, None)], "give one from 0 to 1 per query and model")
    N, M = confidence.shape
    found = np.shape(given.correct)
    if len(found) == 2 and found[0] == N and found[1] != M:
        missing = f"model {found[1]} has none" if found[1] < M else "some have no model"
        raise InstanceError(f"correct has {found[1]} columns, confidence has {M}: {missing}; give one column per model")
    correct = within_unit("correct", given.correct, [(N, M)], "give 0 or 1 (or a score between) per query and model")
    shapes: list[tuple[int | None, ...]] = [(M,), (N, M)]
    seconds = amounts("seconds", given.seconds, shapes, _SECONDS)
    cost = np.zeros(M) if given.cost is None else given.cost
    fields: dict[str, Any] = {
        "confidence": confidence,
        "correct": correct,
        "seconds": _per_query(seconds, N),
        "cost": _per_query(amounts("cost", cost, shapes, "give finite costs per model, or per query and model"), N),
        "objective": objective_of(given.objective, OBJECTIVES),
        "min_accuracy": optional_limit("min_accuracy", given.min_accuracy),
        "max_latency_s": optional_limit("max_latency_s", given.max_latency_s),
        "max_cost": optional_limit("max_cost", given.max_cost),
        "grid": None if given.grid is None else _grid(given.grid, M),
        "num_levels": None,
        "max_models": None,
        "max_busy_s": optional_limit("max_busy_s", given.max_busy_s),
        "device": None if given.device is None else _devices(given.device, M),
        "busy_s": None if given.busy_s is None else _per_query(amounts("busy_s", given.busy_s, shapes, _SECONDS), N),
        "conflicts": _conflicts(given.conflicts, M),
    }
    if fields["max_busy_s"] is not None and fields["device"] is None:
        raise InstanceError("device is missing: max_busy_s limits each; give the number of each model's device")
    if fields["min_accuracy"] is not None and fields["min_accuracy"] > 1:
        raise InstanceError(f"min_accuracy is {fields['min_accuracy']:g}; give a fraction from 0 to 1, not per cent")
    if given.num_levels is not None:
        mend = "give the number of quantiles, or None for every confidence in the trace"
        fields["num_levels"] = whole_number("num_levels", given.num_levels, 2, None, mend)
    if given.max_models is not None:
        fields["max_models"] = whole_number("max_models", given.max_models, 1, None, "give None for no limit")
    _refuse_too_many(M, min(M, fields["max_models"] or M))
    objective = fields["objective"]
    weighs_cost = objective == "cost" or (not isinstance(objective, str) and objective.get("cost", 0) > 0)
    if (weighs_cost or fields["max_cost"] is not None) and given.cost is None:
        raise InstanceError("cost is missing: it counts; give it per model, or per query and model")
    return fields


def _refuse_too_many(num_models: int, most: int) -> None:
    choices = list(itertools.accumulate(math.comb(num_models, size) for size in range(1, most + 1)))
    if choices[-1] > MOST_CHOICES:
        raise InstanceError(
            f"confidence has {num_models} columns: up to {most} models can be chosen in {choices[-1]} ways, at most "
            f"{MOST_CHOICES} are tried; set max_models to {max(1, sum(c <= MOST_CHOICES for c in choices))}, or leave "
            "out models"
        )


def _devices(given: Any, num_models: int) -> NDArray[np.int64]:
    mend = "give the number of each model's device"
    array = checked_array("device", given, [(num_models,)], mend)
    devices = np.array([whole_number(f"device[{m}]", d, 0, None, mend) for m, d in enumerate(array.tolist())], np.int64)
    devices.setflags(write=False)
    return devices


def _conflicts(given: Any, num_models: int) -> tuple[tuple[int, ...], ...]:
    mend = "give numbers of models of which not all may be asked"
    sets = []
    for k, conflict in enumerate(given):
        models = sorted({whole_number(f"conflicts[{k}]", m, 0, num_models - 1, mend) for m in conflict})
        if len(models) < 2:
            raise InstanceError(f"conflicts[{k}] names {len(models)} model(s); leave a model out instead, or name two")
        sets.append(tuple(models))
    return tuple(sets)


def _per_query(array: Array, num_queries: int) -> Array:
    """Return (N, M) as a read-only view where the amount is the same for all queries."""
    return array if array.ndim == 2 else np.broadcast_to(array, (num_queries, array.shape[0]))


def _grid(given: Any, num_models: int) -> tuple[tuple[float, ...], ...]:
    if not isinstance(given, Sequence | np.ndarray) or isinstance(given, str) or len(given) != num_models:
        raise InstanceError(f"grid must hold one list of thresholds for each of {num_models} models")
    rows = []
    for m, row in enumerate(given):
        values = within_unit(f"grid[{m}]", row, [(None,), (0,)], "give thresholds from 0 to 1")
        rows.append(tuple(sorted(set(values.tolist()))))
    return tuple(rows)
