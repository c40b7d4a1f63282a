"""Queries served first come first served by one server per device, as data: seconds of service by class and model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.data import JsonInstance
from edgeopt_solvers.errors import InstanceError
from edgeopt_solvers.placement.queries import arrivals, query_fields
from edgeopt_solvers.placement.routing import RoutingSolution
from edgeopt_solvers.policy.validate import amounts

__all__ = ["SERVING_FEATURES", "Serving", "ServingSolution"]

_ABSENT: Any = None

SERVING_FEATURES = frozenset({"serving", "serving_placement"})

#: Fractions by class, model and device, and what each device holds: as of a routing.
ServingSolution = RoutingSolution


@dataclass(frozen=True, eq=False)
class Serving(JsonInstance):
    """Split the queries of each class among models on devices that serve one query at a time, in order of arrival.

    C classes, M models, V devices. Arrivals are Poisson and what becomes of a query is chosen at random, so that each
    device is an M/G/1 queue. With flows λ_cm = arrival_per_s[c] fractions[c,m,v] to device v, its load
    R = Σ λ_cm service_s and the mean square Q = Σ λ_cm square_s2 (Pollaczek and Khinchine),

        number on device v = R + (Σ λ_cm) Q / (2 (1 − R)),
        mean response = (Σ λ_cmv network_s[c,m,v] + Σ_v number on device v) / Σ_c arrival_per_s[c].

    Parameters
    ----------
    arrival_per_s : (C,)
        Queries per second of each class.
    service_s : (C, M, V)
        Mean seconds that a model on a device takes for a query of a class; ``inf``: cannot run there.
    square_s2 : (C, M, V), optional
        Mean square of these seconds, at least the square of the mean; default: that, for service that never varies.
    network_s : (V,) or (C, V) or (C, M, V), optional
        Seconds to the device and back, outside its queue; ``inf``: unreachable.
    accuracy : (M,) or (C, M), optional
        Measured accuracy, from 0 to 1.
    min_accuracy : float or (C,), optional
        Floor on the mean accuracy over all queries, or on that of each class.
    max_load : float
        Largest R of any device, in (0, 1]; a device is never loaded to 1.
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
    problem: ClassVar[str] = "serving"

    arrival_per_s: Array
    service_s: Array
    square_s2: Array = _ABSENT
    network_s: Array = _ABSENT
    accuracy: Array = _ABSENT
    min_accuracy: float | Array | None = None
    max_load: float = 1.0
    model_bytes: Array | None = None
    memory_bytes: Array | None = None

    def __post_init__(self) -> None:
        for name, value in _normalised(self).items():
            object.__setattr__(self, name, value)

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.service_s.shape[0])

    @property
    def num_models(self) -> int:
        """M."""
        return int(self.service_s.shape[1])

    @property
    def num_devices(self) -> int:
        """V."""
        return int(self.service_s.shape[2])

    def features(self) -> frozenset[str]:
        """Names (from :data:`SERVING_FEATURES`) of the optional features that this instance uses."""
        return frozenset({"serving"} if self.memory_bytes is None else SERVING_FEATURES)


def _normalised(given: Serving) -> dict[str, Any]:
    arrival = arrivals(given.arrival_per_s)
    C = arrival.shape[0]
    mend = "give seconds > 0 per class, model and device, inf: cannot run there"
    service = amounts("service_s", given.service_s, [(C, None, None)], mend, inf=True)
    if (service == 0).any():
        raise InstanceError(f"service_s is 0 somewhere; {mend}")
    square = service * service if given.square_s2 is None else given.square_s2
    square = amounts("square_s2", square, [service.shape], "give square seconds per class, model and device", inf=True)
    low = np.isfinite(service) & (square < service * service * (1 - 1e-9))
    if low.any():
        c, m, v = np.argwhere(low)[0].tolist()
        raise InstanceError(
            f"square_s2[{c}, {m}, {v}] is {square[c, m, v]:.6g}, below the square of service_s, "
            f"{service[c, m, v] ** 2:.6g}; give the mean of the squares"
        )
    square = np.where(np.isfinite(service), square, np.inf)
    square.flags.writeable = False
    shared = query_fields(given, *service.shape, per_model=True)
    return {"arrival_per_s": arrival, "service_s": service, "square_s2": square, **shared}
