"""What a routing to devices that serve first come first served costs, and whether it is allowed: plain loops."""

from __future__ import annotations

import math

import numpy as np

from edgeopt_solvers.placement.instance import LIMIT_TOLERANCE
from edgeopt_solvers.placement.routing import RoutingSolution
from edgeopt_solvers.placement.serving import Serving

__all__ = ["serving_terms"]

#: Fractions of one whole may miss it by this much.
WHOLE = 1e-9


def serving_terms(instance: Serving, solution: RoutingSolution) -> tuple[dict[str, float], list[str]]:
    """Return the metrics ``response_s``, ``network_s``, ``waiting_s``, ``accuracy`` and ``load``, and what is broken.

    ``waiting_s`` is time in a device's queue and service; ``load`` that of the fullest device.
    """
    C, M, V = solution.fractions.shape
    arrival, share = instance.arrival_per_s.tolist(), solution.fractions.tolist()
    total = math.fsum(arrival)
    broken: list[str] = []
    network: list[float] = []
    right: list[float] = []
    number: list[float] = []
    fullest = 0.0
    for c in range(C):
        whole = math.fsum(share[c][m][v] for m in range(M) for v in range(V))
        if abs(whole - 1) > WHOLE:
            broken.append(f"class {c}: its fractions add up to {whole:.12g}")
    for v in range(V):
        flows: list[float] = []
        loads: list[float] = []
        squares: list[float] = []
        for m in range(M):
            for c in range(C):
                if not share[c][m][v] > 0:
                    continue
                if not solution.loaded[m, v]:
                    broken.append(f"class {c} uses model {m} on device {v}, which does not hold it")
                flow = arrival[c] * share[c][m][v]
                if flow > 0:
                    flows.append(flow)
                    loads.append(flow * float(instance.service_s[c, m, v]))
                    squares.append(flow * float(instance.square_s2[c, m, v]))
                    network.append(flow * float(instance.network_s[c, m, v]))
                    right.append(flow * float(instance.accuracy[c, m]))
        load = math.fsum(loads) if math.inf not in loads else math.inf
        fullest = max(fullest, load)
        if load > instance.max_load * (1 + LIMIT_TOLERANCE) or load >= 1:
            broken.append(f"device {v} has load {load:.9g}, the limit is {instance.max_load:.9g}")
            number.append(math.inf)
        elif flows:
            number.append(load + math.fsum(flows) * math.fsum(squares) / (2 * (1 - load)))
        if instance.memory_bytes is not None and instance.model_bytes is not None:
            need = math.fsum(float(instance.model_bytes[m]) for m in range(M) if solution.loaded[m, v])
            room = float(instance.memory_bytes[v])
            if need > room * (1 + LIMIT_TOLERANCE):
                broken.append(
                    f"device {v} holds {need:.9g} bytes, its memory is {room:.9g} ({need - room:.6g} too much)"
                )
    delay = math.fsum(network) / total if math.inf not in network else math.inf
    waiting = math.fsum(number) / total if math.inf not in number else math.inf
    accuracy = math.fsum(right) / total
    if delay == math.inf:
        broken.append("a class uses a device that it cannot reach (network_s is inf)")
    floor = instance.min_accuracy
    if isinstance(floor, float) and accuracy < floor - LIMIT_TOLERANCE:
        broken.append(f"the mean accuracy is {accuracy:.9g}, the floor is {floor:.9g}")
    if isinstance(floor, np.ndarray):
        for c in range(C):
            mine = math.fsum(share[c][m][v] * float(instance.accuracy[c, m]) for m in range(M) for v in range(V))
            if arrival[c] > 0 and mine < floor[c] - LIMIT_TOLERANCE:
                broken.append(f"class {c} has accuracy {mine:.9g}, its floor is {floor[c]:.9g}")
    metrics = {"response_s": delay + waiting, "network_s": delay, "waiting_s": waiting}
    return metrics | {"accuracy": accuracy, "load": fullest}, broken
