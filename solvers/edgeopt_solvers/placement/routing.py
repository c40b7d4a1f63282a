"""Queries routed to models on devices, as data: arrival and service rates, accuracies, network delays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.data import JsonInstance
from edgeopt_solvers.errors import InstanceError
from edgeopt_solvers.placement.queries import arrivals, query_fields
from edgeopt_solvers.policy.validate import amounts

__all__ = ["QUEUES", "ROUTING_FEATURES", "Routing", "RoutingSolution"]

QUEUES = ("server", "device")

_ABSENT: Any = None

ROUTING_FEATURES = frozenset({"routing", "network", "device_queue", "min_accuracy", "class_floors", "placement"})


@dataclass(frozen=True, eq=False)
class RoutingSolution:
    """Decisions of a routing.

    Attributes
    ----------
    fractions : (C, M, V)
        Part of each class's queries that each model on each device answers; sums to 1.
    loaded : (M, V) of bool
        Which models each device holds.
    """

    fractions: Array
    loaded: NDArray[np.bool_]

    def __post_init__(self) -> None:
        for name, dtype in (("fractions", np.float64), ("loaded", np.bool_)):
            array = np.array(getattr(self, name), dtype=dtype)
            array.flags.writeable = False
            object.__setattr__(self, name, array)


@dataclass(frozen=True, eq=False)
class Routing(JsonInstance):
    """Split the queries of each class among models on devices, at the least mean response time.

    C classes, M models, V devices. With flows λ_cmd = arrival_per_s[c] fractions[c,m,d] and loads
    ρ_s = Σ λ_cmd / service_per_s[m,d] over what a queue s serves,

        mean response = (Σ λ_cmd network_s[c,d] + Σ_s ρ_s / (1 − ρ_s)) / Σ_c arrival_per_s[c].

    ``queue="server"``: each model on each device is an M/M/1 queue of its own, with response 1 / (μ − λ).
    ``queue="device"``: the models of a device share it (processor sharing), with response 1 / (μ (1 − ρ)).

    Parameters
    ----------
    arrival_per_s : (C,)
        Queries per second of each class.
    service_per_s : (M, V)
        Queries per second that a model alone on a device can answer; 0: cannot run there.
    network_s : (V,) or (C, V), optional
        Seconds to the device and back; ``inf``: unreachable.
    accuracy : (M,) or (C, M), optional
        Measured accuracy, from 0 to 1.
    min_accuracy : float or (C,), optional
        Floor on the mean accuracy over all queries, or on that of each class.
    queue : {"server", "device"}
        What waits in line.
    max_load : float
        Largest ρ of any queue, in (0, 1]; a queue is never loaded to 1.
    model_bytes : (M,), optional
        Memory of each model; with it, which models each device holds is a decision.
    memory_bytes : (V,), optional
        Usable memory of each device.

    Raises
    ------
    InstanceError
        A shape, sign, magnitude or reference is wrong; the message names the field, the value and the mend.
    """

    family: ClassVar[str] = "placement"
    problem: ClassVar[str] = "routing"

    arrival_per_s: Array
    service_per_s: Array
    network_s: Array = _ABSENT
    accuracy: Array = _ABSENT
    min_accuracy: float | Array | None = None
    queue: str = "server"
    max_load: float = 1.0
    model_bytes: Array | None = None
    memory_bytes: Array | None = None

    def __post_init__(self) -> None:
        for name, value in _normalised(self).items():
            object.__setattr__(self, name, value)

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.arrival_per_s.shape[0])

    @property
    def num_models(self) -> int:
        """M."""
        return int(self.service_per_s.shape[0])

    @property
    def num_devices(self) -> int:
        """V."""
        return int(self.service_per_s.shape[1])

    @property
    def chooses(self) -> bool:
        """Whether memory limits which models a device holds."""
        return self.memory_bytes is not None and bool(np.isfinite(self.memory_bytes).any())

    def features(self) -> frozenset[str]:
        """Names (from :data:`ROUTING_FEATURES`) of the optional features that this instance uses."""
        used = {
            "routing": True,
            "network": bool(self.network_s.any()),
            "device_queue": self.queue == "device",
            "min_accuracy": isinstance(self.min_accuracy, float),
            "class_floors": isinstance(self.min_accuracy, np.ndarray),
            "placement": self.chooses,
        }
        return frozenset(name for name, present in used.items() if present)


def _normalised(given: Routing) -> dict[str, Any]:
    arrival = arrivals(given.arrival_per_s)
    mend = "give finite queries/s >= 0 per model and device, 0: cannot run there"
    service = amounts("service_per_s", given.service_per_s, [(None, None)], mend)
    if given.queue not in QUEUES:
        raise InstanceError(f"queue is {given.queue!r}; choose one of {', '.join(QUEUES)}")
    shared = query_fields(given, arrival.shape[0], *service.shape, per_model=False)
    return {"arrival_per_s": arrival, "service_per_s": service, **shared}
