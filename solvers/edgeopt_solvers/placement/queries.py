"""Fields that every instance of queries sent to models on devices has, whatever its queues are."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeopt_solvers.chain.arrays import Array, optional_limit
from edgeopt_solvers.errors import InstanceError
from edgeopt_solvers.policy.validate import amounts, within_unit

__all__ = ["arrivals", "query_fields"]


def arrivals(value: Any) -> Array:
    """Return queries per second of each class, (C,), of which one at least has some."""
    arrival = amounts("arrival_per_s", value, [(None,)], "give finite queries/s >= 0 per class")
    if not arrival.any():
        raise InstanceError("arrival_per_s is 0 for every class; give queries per second")
    return arrival


def query_fields(given: Any, num_classes: int, num_models: int, num_devices: int, *, per_model: bool) -> dict[str, Any]:
    """Return what an instance says of networks, accuracy, loads and memory, checked and in full shape.

    Parameters
    ----------
    given
        The instance as it was given: ``network_s``, ``accuracy``, ``min_accuracy``, ``max_load``, ``model_bytes`` and
        ``memory_bytes``.
    per_model
        Whether ways to a device may differ from model to model: ``network_s`` is (C, M, V) then, else (C, V).

    Raises
    ------
    InstanceError
        A shape or number is wrong, or of two fields that go together one is missing.
    """
    C, M, V = num_classes, num_models, num_devices
    network = np.zeros(V) if given.network_s is None else given.network_s
    shapes: list[tuple[int | None, ...]] = [(V,), (C, V)]
    mend = "give seconds >= 0 per device, or class and device"
    if per_model:
        shapes, mend = [*shapes, (C, M, V)], f"{mend}, or class, model and device"
    network = amounts("network_s", network, shapes, mend, inf=True)
    if per_model and network.ndim == 2:
        network = network[:, None, :]
    accuracy = np.ones(M) if given.accuracy is None else given.accuracy
    mend = "give one from 0 to 1 per model, or class and model"
    accuracy = within_unit("accuracy", accuracy, [(M,), (C, M)], mend)
    fields: dict[str, Any] = {
        "network_s": np.array(np.broadcast_to(network, (C, M, V) if per_model else (C, V))),
        "accuracy": np.array(np.broadcast_to(accuracy, (C, M))),
        "min_accuracy": _floor(given, C),
        "max_load": _most(given.max_load),
    }
    for name in ("network_s", "accuracy"):
        fields[name].flags.writeable = False
    if (given.model_bytes is None) != (given.memory_bytes is None):
        missing = "model_bytes" if given.model_bytes is None else "memory_bytes"
        raise InstanceError(f"{missing} is missing; give both, or neither when every model is loaded everywhere")
    if given.model_bytes is not None:
        mend = "give bytes >= 0 per device, inf: unlimited"
        fields["model_bytes"] = amounts("model_bytes", given.model_bytes, [(M,)], "give finite bytes >= 0 per model")
        fields["memory_bytes"] = amounts("memory_bytes", given.memory_bytes, [(V,)], mend, inf=True)
    return fields


def _floor(given: Any, C: int) -> float | Array | None:
    if given.min_accuracy is None:
        return None
    if given.accuracy is None:
        raise InstanceError("accuracy is missing: min_accuracy sets a floor; give one per model, or class and model")
    floor = within_unit("min_accuracy", given.min_accuracy, [(), (C,)], "give a mean from 0 to 1, or one per class")
    return floor if floor.ndim else float(floor)


def _most(load: Any) -> float:
    most = optional_limit("max_load", load)
    if most is None or not 1e-9 <= most <= 1:
        raise InstanceError(f"max_load is {load!r}; give a load above 0 and at most 1 (1: no limit but its own)")
    return most
