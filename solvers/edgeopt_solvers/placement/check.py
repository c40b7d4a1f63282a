"""What a placement costs and whether it is allowed, recomputed from its decisions alone.

Plain loops, straight from the definitions; nothing here is shared with any solver.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeopt_solvers.placement.instance import (
    LIMIT_TOLERANCE,
    Deployment,
    DeploymentSolution,
    Experts,
    ExpertsSolution,
    Routing,
    RoutingSolution,
    Serving,
)
from edgeopt_solvers.placement.serving_check import serving_terms

__all__ = ["Evaluation", "evaluate"]

#: Shares of one whole may miss it by this much.
WHOLE = 1e-9

#: Violations listed before the rest is only counted.
MOST_LISTED = 8


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Cost and feasibility of one solution.

    Attributes
    ----------
    objective
        Experts: sum of the layers' makespans. Routing, serving and deployment: mean seconds per query.
    metrics
        Experts: ``makespan_s``, ``slowest_layer_s``, ``num_replicas``, ``memory_bytes``. Routing and serving:
        ``response_s``, ``network_s``, ``waiting_s`` (queue and service), ``accuracy``, ``load`` (of the fullest queue).
        Deployment: ``response_s``, ``quality``, ``memory_bytes``, and the fractions ``local``, ``neighbour``,
        ``downloaded``.
    violations
        One sentence for each broken rule, with names, amounts and units; empty when feasible.
    terms
        Experts: ``layer``, ``device`` and ``seconds`` of the slowest device of the slowest layer.
    """

    objective: float
    metrics: dict[str, float]
    violations: tuple[str, ...]
    terms: dict[str, float] = field(default_factory=dict)


def evaluate(instance: Any, solution: Any) -> Evaluation:
    """Recompute every metric of ``solution`` and list every rule it breaks.

    Parameters
    ----------
    instance
        An :class:`Experts`, :class:`Routing`, :class:`Serving` or :class:`Deployment`.
    solution
        The solution type of that problem; malformed ones are reported as violations.
    """
    if isinstance(instance, Experts) and isinstance(solution, ExpertsSolution):
        shape = (instance.num_layers, instance.num_experts, instance.num_devices)
        wrong = _wrong_shape(shape, solution.replicas, solution.share)
        if instance.exchanges and not wrong:
            G, E, D = shape
            route = np.zeros(0) if solution.route is None else solution.route
            wrong = _wrong_shape((G - 1, E, D, D), route)
        return wrong or _experts(instance, solution)
    if isinstance(instance, Routing) and isinstance(solution, RoutingSolution):
        shape = (instance.num_classes, instance.num_models, instance.num_devices)
        wrong = _wrong_shape(shape, solution.fractions) or _wrong_shape(shape[1:], solution.loaded)
        return wrong or _routing(instance, solution)
    if isinstance(instance, Serving) and isinstance(solution, RoutingSolution):
        shape = (instance.num_classes, instance.num_models, instance.num_devices)
        wrong = _wrong_shape(shape, solution.fractions) or _wrong_shape(shape[1:], solution.loaded)
        if wrong:
            return wrong
        metrics, broken = serving_terms(instance, solution)
        return Evaluation(metrics["response_s"], metrics, _listed(broken))
    if isinstance(instance, Deployment) and isinstance(solution, DeploymentSolution):
        J, N = instance.num_variants, instance.num_nodes
        wrong = _wrong_shape((J, N), solution.kept) or _wrong_shape((N, J, N), solution.served)
        return wrong or _wrong_shape((N, J), solution.downloaded) or _deployment(instance, solution)
    return Evaluation(math.inf, {}, (f"a {type(solution).__name__} is no solution of a {type(instance).__name__}",))


def _wrong_shape(shape: tuple[int, ...], *arrays: Any) -> Evaluation | None:
    for array in arrays:
        if array.shape != shape:
            return Evaluation(math.inf, {}, (f"decisions of shape {array.shape}, expected {shape}",))
        if array.dtype == np.float64 and not (array >= 0).all():
            return Evaluation(math.inf, {}, ("a share is below 0 or not a number",))
    return None


def _listed(broken: list[str]) -> tuple[str, ...]:
    rest = len(broken) - MOST_LISTED
    return (*broken[:MOST_LISTED], f"and {rest} more") if rest > 0 else tuple(broken)


def _link_s(instance: Experts | Deployment, i: int, j: int, num_bytes: float) -> float:
    """Seconds of the bytes alone on link i→j."""
    rate = float(instance.rate_bytes_per_s[i, j])
    if num_bytes == 0 or i == j or rate == math.inf:
        return 0.0
    return num_bytes / rate if rate > 0 else math.inf


# ── experts ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _experts(instance: Experts, solution: ExpertsSolution) -> Evaluation:
    G, E, D = solution.share.shape
    share, held = solution.share.tolist(), solution.replicas.tolist()
    load, sizes = instance.load.tolist(), instance.expert_bytes.tolist()
    broken: list[str] = []
    makespans: list[float] = []
    slowest = (-1.0, -1, -1)
    for g in range(G):
        came = _arrivals(instance, solution, g, broken) if g > 0 and instance.exchanges else [[0.0] * D] * D
        device_s = [
            _device_s(instance, g, d, math.fsum(load[g][e] * share[g][e][d] for e in range(E)))
            + _received_s(instance, g, d, [came[i][d] for i in range(D)])
            for d in range(D)
        ]
        makespans.append(max(device_s))
        slowest = max(slowest, (makespans[-1], -g, -device_s.index(makespans[-1])))
        for e in range(E):
            whole = math.fsum(share[g][e])
            if abs(whole - 1) > WHOLE:
                broken.append(f"layer {g}, expert {e}: its shares add up to {whole:.12g}")
            for d in range(D):
                if share[g][e][d] > 0 and not held[g][e][d]:
                    broken.append(f"layer {g}, expert {e}: device {d} serves it without holding it")
            copies = sum(held[g][e])
            if instance.max_replicas is not None and copies > instance.max_replicas:
                broken.append(f"layer {g}, expert {e}: {copies} replicas, max_replicas is {instance.max_replicas}")
    total = 0.0
    for d in range(D):
        need = math.fsum([float(instance.reserved_bytes[d])] + [
            sizes[g][e] for g in range(G) for e in range(E) if held[g][e][d]
        ])  # fmt: skip
        total += need
        room = float(instance.memory_bytes[d])
        if need > room * (1 + LIMIT_TOLERANCE):
            broken.append(f"device {d} holds {need:.9g} bytes, its memory is {room:.9g} ({need - room:.6g} too much)")
    objective = math.fsum(makespans) if math.inf not in makespans else math.inf
    if objective == math.inf:
        broken.append(f"layer {-slowest[1]} never ends: device {-slowest[2]} cannot compute or has no link")
    metrics = {
        "makespan_s": objective,
        "slowest_layer_s": max(makespans),
        "num_replicas": float(solution.replicas.sum()),
        "memory_bytes": total,
    }
    terms = {"layer": float(-slowest[1]), "device": float(-slowest[2]), "seconds": slowest[0]}
    return Evaluation(objective, metrics, _listed(broken), terms)


def _device_s(instance: Experts, g: int, d: int, tokens: float) -> float:
    """Seconds of device d in layer g when it serves ``tokens``."""
    if tokens == 0:
        return 0.0
    seconds = [tokens * float(instance.unit_s[g, d])]
    out, back = float(instance.dispatch_bytes[g]), float(instance.combine_bytes[g])
    for h in range(instance.num_devices):
        part = float(instance.home[h])
        if h == d or part == 0:
            continue
        if out > 0:
            seconds.append(float(instance.latency_s[h, d]) + _link_s(instance, h, d, tokens * part * out))
        if back > 0:
            seconds.append(float(instance.latency_s[d, h]) + _link_s(instance, d, h, tokens * part * back))
    return math.fsum(seconds) if math.inf not in seconds else math.inf


def _arrivals(instance: Experts, solution: ExpertsSolution, g: int, broken: list[str]) -> list[list[float]]:
    """Return the tokens from device i to device j before layer g, and note routes that do not bring the shares."""
    assert instance.traffic is not None
    assert solution.route is not None
    D = instance.num_devices
    came = np.zeros((D, D))
    for f in range(instance.num_experts):
        tokens = float(instance.load[g, f])
        if tokens == 0:
            continue
        sent = instance.traffic[g - 1, :, f] / instance.traffic[g - 1, :, f].sum()
        stand = sent @ solution.share[g - 1]  # part of the tokens for f on each device
        route = solution.route[g - 1, f]
        for i in np.flatnonzero(stand > 0).tolist():
            whole = math.fsum(route[i].tolist())
            if abs(whole - 1) > WHOLE:
                broken.append(f"layer {g}, expert {f}: the routes from device {i} add up to {whole:.12g}")
        moved = stand[:, None] * route
        for j in np.flatnonzero(np.abs(moved.sum(axis=0) - solution.share[g, f]) > WHOLE).tolist():
            part, served = float(moved[:, j].sum()), float(solution.share[g, f, j])
            broken.append(f"layer {g}, expert {f}: device {j} serves {served:.12g}, the routes bring it {part:.12g}")
        came += tokens * moved
    listed: list[list[float]] = came.tolist()
    return listed


def _received_s(instance: Experts, g: int, d: int, came: list[float]) -> float:
    """Seconds in which device d receives the tokens that come from the devices of the layer before."""
    if instance.exchange_bytes is None or g == 0:
        return 0.0
    each = float(instance.exchange_bytes[g - 1])
    if each == 0:
        return 0.0
    seconds = [
        float(instance.latency_s[i, d]) + _link_s(instance, i, d, came[i] * each)
        for i in range(len(came))
        if i != d and came[i] > 0
    ]
    return math.fsum(seconds) if math.inf not in seconds else math.inf


# ── routing ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _routing(instance: Routing, solution: RoutingSolution) -> Evaluation:
    C, M, V = solution.fractions.shape
    arrival, share = instance.arrival_per_s.tolist(), solution.fractions.tolist()
    broken: list[str] = []
    network: list[float] = []
    right: list[float] = []
    flow = [[[0.0] * C for _ in range(V)] for _ in range(M)]
    for c in range(C):
        whole = math.fsum(share[c][m][v] for m in range(M) for v in range(V))
        if abs(whole - 1) > WHOLE:
            broken.append(f"class {c}: its fractions add up to {whole:.12g}")
        for m in range(M):
            for v in range(V):
                part = arrival[c] * share[c][m][v]
                if share[c][m][v] > 0:
                    if not solution.loaded[m, v]:
                        broken.append(f"class {c} uses model {m} on device {v}, which does not hold it")
                    flow[m][v][c] = part
                    if part > 0:
                        network.append(part * float(instance.network_s[c, v]))
                        right.append(part * float(instance.accuracy[c, m]))
    loads: dict[str, list[float]] = {}
    for m in range(M):
        for v in range(V):
            served = math.fsum(flow[m][v])
            if served > 0:
                rate = float(instance.service_per_s[m, v])
                name = f"model {m} on device {v}" if instance.queue == "server" else f"device {v}"
                loads.setdefault(name, []).append(served / rate if rate > 0 else math.inf)
    number, fullest = [], 0.0
    for name, parts in loads.items():
        load = math.fsum(parts) if math.inf not in parts else math.inf
        fullest = max(fullest, load)
        number.append(load / (1 - load) if load < 1 else math.inf)
        if load > instance.max_load * (1 + LIMIT_TOLERANCE) or load >= 1:
            broken.append(f"{name} has load {load:.9g}, the limit is {instance.max_load:.9g}")
    if solution.loaded.any() and instance.memory_bytes is not None and instance.model_bytes is not None:
        for v in range(V):
            need = math.fsum(float(instance.model_bytes[m]) for m in range(M) if solution.loaded[m, v])
            room = float(instance.memory_bytes[v])
            if need > room * (1 + LIMIT_TOLERANCE):
                broken.append(
                    f"device {v} holds {need:.9g} bytes, its memory is {room:.9g} ({need - room:.6g} too much)"
                )
    total = math.fsum(arrival)
    delay = math.fsum(network) / total if math.inf not in network else math.inf
    waiting = math.fsum(number) / total if math.inf not in number else math.inf
    accuracy = math.fsum(right) / total
    if delay == math.inf:
        broken.append("a class uses a device that it cannot reach (network_s is inf)")
    if isinstance(instance.min_accuracy, float) and accuracy < instance.min_accuracy - LIMIT_TOLERANCE:
        broken.append(f"the mean accuracy is {accuracy:.9g}, the floor is {instance.min_accuracy:.9g}")
    if isinstance(instance.min_accuracy, np.ndarray):
        for c in range(C):
            mine = math.fsum(share[c][m][v] * float(instance.accuracy[c, m]) for m in range(M) for v in range(V))
            if arrival[c] > 0 and mine < instance.min_accuracy[c] - LIMIT_TOLERANCE:
                broken.append(f"class {c} has accuracy {mine:.9g}, its floor is {instance.min_accuracy[c]:.9g}")
    metrics = {"response_s": delay + waiting, "network_s": delay, "waiting_s": waiting}
    metrics |= {"accuracy": accuracy, "load": fullest}
    return Evaluation(metrics["response_s"], metrics, _listed(broken))


# ── deployment ───────────────────────────────────────────────────────────────────────────────────────────────────


def _deployment(instance: Deployment, solution: DeploymentSolution) -> Evaluation:
    J, N = instance.num_variants, instance.num_nodes
    request, task = instance.request_per_s.tolist(), instance.task.tolist()
    total = math.fsum(math.fsum(row) for row in request)
    broken: list[str] = []
    seconds: list[float] = []
    quality: list[float] = []
    way = {"local": 0.0, "neighbour": 0.0, "downloaded": 0.0}
    whole = [[0.0] * N for _ in range(instance.num_tasks)]

    def add(name: str, j: int, n: int, part: float, each_s: float) -> None:
        whole[task[j]][n] += part
        rate = request[task[j]][n] * part
        if rate > 0:
            seconds.append(rate * each_s)
            quality.append(rate * float(instance.quality[j]))
            way[name] += rate / total

    for n in range(N):
        for j in range(J):
            for m in np.flatnonzero(solution.served[n, j]).tolist():
                if not solution.kept[j, m]:
                    broken.append(f"node {n} is served by variant {j} at node {m}, which does not keep it")
                name = "local" if m == n else "neighbour"
                add(name, j, n, float(solution.served[n, j, m]), _served_s(instance, n, j, m))
            if solution.downloaded[n, j] > 0:
                rate = float(instance.download_bytes_per_s[n])
                load_s = float(instance.variant_bytes[j]) / rate if rate > 0 else math.inf
                add("downloaded", j, n, float(solution.downloaded[n, j]), load_s + float(instance.run_s[j, n]))
    for k in range(instance.num_tasks):
        for n in range(N):
            if request[k][n] > 0 and abs(whole[k][n] - 1) > WHOLE:
                broken.append(f"task {k} at node {n}: {whole[k][n]:.12g} of its requests are served")
    memory = 0.0
    for n in range(N):
        need = math.fsum(float(instance.variant_bytes[j]) for j in range(J) if solution.kept[j, n])
        memory += need
        room = float(instance.memory_bytes[n])
        if need > room * (1 + LIMIT_TOLERANCE):
            broken.append(f"node {n} keeps {need:.9g} bytes, its memory is {room:.9g} ({need - room:.6g} too much)")
    mean_s = math.fsum(seconds) / total if math.inf not in seconds else math.inf
    mean_q = math.fsum(quality) / total
    if mean_s == math.inf:
        broken.append("a request is served where it cannot run, or over no link")
    if instance.min_quality is not None and mean_q < instance.min_quality * (1 - LIMIT_TOLERANCE):
        broken.append(f"the mean quality is {mean_q:.9g}, the floor is {instance.min_quality:.9g}")
    metrics = {"response_s": mean_s, "quality": mean_q, "memory_bytes": memory, **way}
    return Evaluation(mean_s, metrics, _listed(broken))


def _served_s(instance: Deployment, n: int, j: int, m: int) -> float:
    """Seconds of a request at node n that variant j kept at node m serves."""
    run = float(instance.run_s[j, m])
    if n == m:
        return run
    out, back = float(instance.request_bytes[instance.task[j]]), float(instance.reply_bytes[instance.task[j]])
    if instance.rate_bytes_per_s[n, m] == 0 or instance.rate_bytes_per_s[m, n] == 0:
        return math.inf  # no link, however little is sent
    links = float(instance.latency_s[n, m]) + float(instance.latency_s[m, n])
    return run + links + _link_s(instance, n, m, out) + _link_s(instance, m, n, back)
