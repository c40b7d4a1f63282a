"""Why no placement keeps every limit: the one that binds, and by how much."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np

from edgeopt_solvers.placement.deployment_ways import cheapest, ways_of
from edgeopt_solvers.placement.instance import Deployment, Experts, Routing, Serving
from edgeopt_solvers.placement.levels import table_of
from edgeopt_solvers.placement.routing_flows import Flows
from edgeopt_solvers.placement.serving_limits import diagnose_serving

__all__ = ["diagnose"]


def diagnose(instance: Any, time_limit_s: float | None = None) -> str:
    """Name the limit that leaves no placement, with values and units: devices, memory, floors, then loads."""
    stop_at = math.inf if time_limit_s is None else time.perf_counter() + max(time_limit_s, 0.0)
    if isinstance(instance, Experts):
        return _experts(instance)
    if isinstance(instance, Routing):
        return _routing(instance, stop_at)
    if isinstance(instance, Serving):
        return diagnose_serving(instance, stop_at)
    return _deployment(instance, stop_at)


def _experts(instance: Experts) -> str:
    able = np.isfinite(table_of(instance).unit_s)
    if not able.any(axis=1).all():
        g = int(np.argmin(able.any(axis=1)))
        return f"layer {g}: no device can run its experts (unit_s is inf, or there is no link to the tokens' homes)"
    room = instance.memory_bytes - instance.reserved_bytes
    if (room < 0).any():
        d = int(np.argmin(room))
        return (
            f"memory: device {d} has {float(instance.memory_bytes[d]):.9g} bytes, reserved_bytes takes "
            f"{float(instance.reserved_bytes[d]):.9g}, {-float(room[d]):.6g} too much"
        )
    largest = np.where(able, room, -math.inf).max(axis=1)
    over = instance.expert_bytes - largest[:, None]
    if (over > 0).any():
        g, e = (int(i) for i in np.unravel_index(int(over.argmax()), over.shape))
        return (
            f"memory: expert {e} of layer {g} needs {float(instance.expert_bytes[g, e]):.9g} bytes, the largest device "
            f"that can run it has room for {float(largest[g]):.9g}, {float(over[g, e]):.6g} too few"
        )
    need, total = math.fsum(instance.expert_bytes.ravel().tolist()), float(room[able.any(axis=0)].sum())
    tight = int(np.argmin(room))
    missing = np.argwhere((instance.rate_bytes_per_s == 0) & ~np.eye(len(room), dtype=np.bool_))
    if instance.exchanges and len(missing) and need <= total:
        i, j = missing[0].tolist()
        return (
            f"links: one copy of every expert needs {need:.9g} of {total:.9g} bytes, but no assignment that fits keeps "
            f"the tokens between layers off the {len(missing)} pairs of devices without a link; {i}→{j} has rate 0"
        )
    if need > total:
        return (
            f"memory: one copy of every expert needs {need:.9g} bytes, all devices have room for {total:.9g}, "
            f"{need - total:.6g} too few; device {tight} has the least, {float(room[tight]):.9g}"
        )
    return (
        f"memory: one copy of every expert needs {need:.9g} of {total:.9g} bytes, but no assignment of whole experts "
        f"fits every device; device {tight} has the least room, {float(room[tight]):.9g}"
    )


def _routing(instance: Routing, stop_at: float) -> str:
    able = instance.service_per_s > 0
    if instance.chooses and instance.model_bytes is not None and instance.memory_bytes is not None:
        able = able & (instance.model_bytes[:, None] <= instance.memory_bytes * (1 + 1e-9))
    flows = Flows(replace(instance, min_accuracy=None, model_bytes=None, memory_bytes=None), able)
    reached = flows.allowed.any(axis=(1, 2))
    if not reached.all():
        c = int(flows.classes[int(np.argmin(reached))])
        return f"class {c} reaches no model: no service rate, no memory for any, or network_s is inf everywhere"
    best = np.where(flows.allowed.any(axis=2), flows.accuracy, -1.0).max(axis=1)
    floor = instance.min_accuracy
    if isinstance(floor, float):
        most = math.fsum((flows.part * best).tolist())
        if floor > most:
            return (
                f"min_accuracy is {floor:.9g}, the most accurate models reach {most:.9g}, "
                f"{100 * (floor - most):.3g} points too few"
            )
    elif floor is not None:
        short = np.asarray(floor)[flows.classes] - best
        if (short > 0).any():
            i = int(short.argmax())
            return (
                f"min_accuracy[{int(flows.classes[i])}] is {float(floor[flows.classes[i]]):.9g}, its most accurate "
                f"model reaches {float(best[i]):.9g}, {100 * float(short[i]):.3g} points too few"
            )
    return _overloaded(instance, flows, able, stop_at)


def _overloaded(instance: Routing, flows: Flows, able: Any, stop_at: float) -> str:
    """Say by what factor the fullest queue is too full, without the floors and with them."""
    from edgeopt_solvers.placement.routing_load import least_load

    limit = instance.max_load
    free = least_load(flows, stop_at)
    if free is None:
        return "no routing keeps every limit; time ran out before the binding one was found"
    if free[0] >= limit * (1 - 1e-12):
        return (
            f"load: the fullest queue is loaded to at least {free[0]:.9g}, max_load is {limit:.9g}: "
            f"a factor of {free[0] / limit:.6g} too many queries"
        )
    full = Flows(replace(instance, model_bytes=None, memory_bytes=None), able)
    floored = least_load(full, stop_at)
    if instance.min_accuracy is not None and floored is not None and floored[0] >= limit * (1 - 1e-12):
        return (
            f"min_accuracy and load: within the floor the fullest queue is loaded to at least {floored[0]:.9g}, "
            f"max_load is {limit:.9g}: a factor of {floored[0] / limit:.6g} too many queries for the accurate models"
        )
    if instance.memory_bytes is not None:
        v = int(np.argmin(instance.memory_bytes))
        return (
            "memory: with every model loaded a routing exists, but no choice that fits the memory keeps loads and "
            f"floors; device {v} has the least, {float(instance.memory_bytes[v]):.9g} bytes"
        )
    return f"load: a routing keeps max_load = {limit:.9g} only within rounding; lower the arrivals a little"


def _deployment(instance: Deployment, stop_at: float) -> str:
    ways = ways_of(instance)
    counts = np.bincount(ways.demand, minlength=ways.num_demands)
    if (counts == 0).any():
        i = int(np.argmin(counts))
        return f"task {int(ways.task[i])} at node {int(ways.origin[i])} has no variant that any node can run and reach"
    fits = (ways.node < 0) | (
        instance.variant_bytes[ways.variant] <= instance.memory_bytes[np.maximum(ways.node, 0)] * (1 + 1e-9)
    )
    for i in range(ways.num_demands):
        mine = ways.demand == i
        if not (mine & fits).any():
            w = np.flatnonzero(mine)
            over = instance.variant_bytes[ways.variant[w]] - instance.memory_bytes[ways.node[w]]
            k = int(over.argmin())
            return (
                f"memory: task {int(ways.task[i])} at node {int(ways.origin[i])} needs variant "
                f"{int(ways.variant[w[k]])} of {float(instance.variant_bytes[ways.variant[w[k]]]):.9g} bytes, "
                f"node {int(ways.node[w[k]])} has "
                f"{float(instance.memory_bytes[ways.node[w[k]]]):.9g}, {float(over[k]):.6g} too few"
            )
    if instance.min_quality is not None:
        best = np.zeros(ways.num_demands)
        np.maximum.at(best, ways.demand[fits], ways.quality[fits])
        most = math.fsum((ways.weight * best).tolist())
        if cheapest(ways, fits, instance.min_quality) is None:
            return (
                f"min_quality is {instance.min_quality:.9g}, the best variants reach {most:.9g}, "
                f"{instance.min_quality - most:.6g} too little"
            )
        best_q = _best_quality(instance, stop_at)
        if best_q is not None:
            return (
                f"min_quality is {instance.min_quality:.9g}, variants that fit the memory together reach {best_q:.9g}, "
                f"{instance.min_quality - best_q:.6g} too little"
            )
    m = int(np.argmin(instance.memory_bytes))
    return (
        "memory: every request could be served, but no choice of variants that fits the memory serves all; "
        f"node {m} has the least, {float(instance.memory_bytes[m]):.9g} bytes"
    )


def _best_quality(instance: Deployment, stop_at: float) -> float | None:
    """Return the best mean quality within the memory, by bisection; ``None``: not even without a floor."""
    from edgeopt_solvers.placement.deployment_exact import solve_deployment
    from edgeopt_solvers.solve import Options

    low, high = 0.0, float(instance.min_quality or 0.0)
    reached = None
    for _ in range(12):
        left = stop_at - time.perf_counter()
        if left <= 0.05:
            break
        result = solve_deployment(
            replace(instance, min_quality=low if reached is None else 0.5 * (low + high)),
            Options(None if math.isinf(left) else left / 4, gap=1.0),
        )
        if result.solution is None:
            if reached is None:
                return None
            high = 0.5 * (low + high)
        else:
            from edgeopt_solvers.placement.check import evaluate

            low = max(low, evaluate(instance, result.solution).metrics["quality"])
            reached = low
    return reached
