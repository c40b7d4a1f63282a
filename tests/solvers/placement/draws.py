"""Placements drawn by hypothesis, and the best of small ones found by trying all."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import strategies as st

from edgeopt_solvers.placement import Deployment, Experts, Routing


def _numbers(rng, centre, size, wild):
    if not wild:
        return centre * rng.lognormal(0, 0.7, size)
    return np.where(rng.random(size) < 0.1, 0.0, 10.0 ** rng.uniform(-12, 18, size))


@st.composite
def experts(draw, wild=False, most_layers=2, most_experts=3, most_devices=3):
    """Draw an instance; ``wild`` draws magnitudes from 1e-12 to 1e18, zeros, and devices that cannot run."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    G, E, D = (draw(st.integers(1, n)) for n in (most_layers, most_experts, most_devices))
    names = ["memory", "full", "reserved", "links", "latency", "homes", "max_replicas", "by_layer", "broken"]
    used = draw(st.sets(st.sampled_from(names)))
    fields = {
        "load": np.where(rng.random((G, E)) < 0.1, 0.0, _numbers(rng, 10.0, (G, E), wild)),
        "unit_s": _numbers(rng, 1.0, (G, D) if "by_layer" in used else D, wild),
        "expert_bytes": _numbers(rng, 1.0, (G, E), wild),
    }
    if "broken" in used:
        fields["unit_s"] = np.where(rng.random(fields["unit_s"].shape) < 0.3, math.inf, fields["unit_s"])
    if "memory" in used:
        fields["memory_bytes"] = _numbers(rng, 1.2 * G * E / D, D, wild)
        if "full" in used:  # every byte is needed by some assignment
            homes = rng.integers(0, D, (G, E))
            fields["memory_bytes"] = np.array([fields["expert_bytes"][homes == d].sum() for d in range(D)])
        if "reserved" in used:
            fields["reserved_bytes"] = 0.3 * np.where(np.isinf(fields["memory_bytes"]), 0, fields["memory_bytes"])
    if "links" in used:
        fields |= {"dispatch_bytes": float(_numbers(rng, 1.0, (), wild)), "combine_bytes": 0.5}
        fields["rate_bytes_per_s"] = np.where(rng.random((D, D)) < 0.1, 0.0, _numbers(rng, 2.0, (D, D), wild))
        if "latency" in used:
            fields["latency_s"] = _numbers(rng, 3.0, (D, D), wild)
        if "homes" in used:
            fields["home"] = rng.dirichlet(np.ones(D))
    if "max_replicas" in used:
        fields["max_replicas"] = int(rng.integers(1, D + 1))
    return Experts(**fields)


def best_experts(instance):
    """Return the least sum of makespans over all replicas, ``inf`` if none fit: levels by bisection, from the
    definition.
    """
    G, E = instance.load.shape
    D = instance.num_devices
    subsets = [s for r in range(1, D + 1) for s in itertools.combinations(range(D), r)]
    subsets = [s for s in subsets if instance.max_replicas is None or len(s) <= instance.max_replicas]
    room = instance.memory_bytes * (1 + 1e-9) - instance.reserved_bytes
    sums, memory = np.zeros(1), np.zeros((1, D))
    for g in range(G):
        levels, sizes, known = [], [], {}
        for held in itertools.product(subsets, repeat=E):
            size = np.zeros(D)
            for e, s in enumerate(held):
                size[list(s)] += instance.expert_bytes[g, e]
            if (size <= room).all():
                levels.append(_layer(instance, g, held, known))
                sizes.append(size)
        if not levels:
            return math.inf
        sums = (sums[:, None] + np.array(levels)).ravel()
        memory = (memory[:, None, :] + np.array(sizes)).reshape(-1, D)
        keep = (memory <= room).all(axis=1)
        sums, memory = sums[keep], memory[keep]
    return float(sums.min(initial=math.inf))


def costs(instance, g):
    """Seconds per token, and latencies, of every device in layer ``g``."""
    D = instance.num_devices
    unit, fixed = instance.unit_s[g].copy(), np.zeros(D)
    for d in range(D):
        for h in range(D):
            if h == d or instance.home[h] == 0:
                continue
            for size, i, j in ((instance.dispatch_bytes[g], h, d), (instance.combine_bytes[g], d, h)):
                if size > 0:
                    rate = instance.rate_bytes_per_s[i, j]
                    unit[d] += instance.home[h] * size / rate if rate > 0 else math.inf
                    fixed[d] += instance.latency_s[i, j]
    return unit, fixed


def _layer(instance, g, held, known):
    """Largest over sets of experts of the least level at which the devices that hold them can serve them."""
    unit, fixed = costs(instance, g)
    if any(all(math.isinf(unit[d]) for d in s) for s in held):
        return math.inf
    E, worst = len(held), 0.0
    for r in range(1, E + 1):
        for chosen in itertools.combinations(range(E), r):
            tokens = sum(instance.load[g, e] for e in chosen)
            devices = tuple(sorted(d for d in set().union(*(held[e] for e in chosen)) if math.isfinite(unit[d])))
            if tokens > 0:
                if (chosen, devices) not in known:
                    known[chosen, devices] = _level(tokens, unit[list(devices)], fixed[list(devices)])
                worst = max(worst, known[chosen, devices])
    return worst


def _level(tokens, unit, fixed):
    low, high = 0.0, float((fixed + unit * tokens).min())

    def served(level):
        on = level > fixed
        return math.inf if (on & (unit == 0)).any() else float(((level - fixed)[on] / unit[on]).sum())

    if (unit == 0).any():
        high = min(high, float(fixed[unit == 0].min()))
    for _ in range(200):
        middle = 0.5 * (low + high)
        if served(middle) >= tokens:
            high = middle
        else:
            low = middle
    return high


@st.composite
def routings(draw, wild=False, placement=None, most_classes=3, most_models=3, most_devices=2):
    """Draw an instance; loads range from idle to hopeless."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    C, M, V = (draw(st.integers(1, n)) for n in (most_classes, most_models, most_devices))
    used = draw(st.sets(st.sampled_from(
        ["network", "by_class", "far", "floor", "class_floors", "max_load", "device", "absent", "idle"])))  # fmt: skip
    choose = draw(st.booleans()) if placement is None else placement
    service = _numbers(rng, 10.0, (M, V), wild)
    if "absent" in used:
        service = np.where(rng.random((M, V)) < 0.3, 0.0, service)
    arrival = _numbers(rng, 1.0, C, wild)
    if not wild:
        arrival *= rng.choice([0.1, 0.4, 0.75, 1.3]) * max(service.sum(), 1.0) / arrival.sum()
    if "idle" in used and C > 1:
        arrival[0] = 0.0
    if not arrival.any():
        arrival[:] = 1.0
    fields = {"arrival_per_s": arrival, "service_per_s": service}
    if "network" in used:
        fields["network_s"] = _numbers(rng, 0.1, (C, V) if "by_class" in used else V, wild)
        if "far" in used:
            fields["network_s"] = np.where(rng.random(fields["network_s"].shape) < 0.2, math.inf, fields["network_s"])
    if used & {"floor", "class_floors"}:
        fields["accuracy"] = rng.choice([0.5, 0.6, 0.75, 0.9, 1.0], (C, M))
        fields["min_accuracy"] = float(rng.choice([0.0, 0.6, 0.7, 0.9]))
        if "class_floors" in used:
            fields["min_accuracy"] = rng.choice([0.0, 0.5, 0.7, 0.9], C)
    if "max_load" in used:
        fields["max_load"] = float(rng.choice([0.5, 0.8, 0.95]))
    if "device" in used:
        fields["queue"] = "device"
    if choose:
        fields |= {"model_bytes": _numbers(rng, 1.0, M, wild), "memory_bytes": _numbers(rng, 3.0, V, wild)}
    return Routing(**fields)


def loadings(instance):
    """Return every choice of models that fits the memory, (M, V) each."""
    able = np.argwhere(instance.service_per_s > 0).tolist()
    for bits in itertools.product((False, True), repeat=len(able)):
        held = np.zeros(instance.service_per_s.shape, dtype=bool)
        for (m, v), bit in zip(able, bits, strict=True):
            held[m, v] = bit
        if (np.where(held, instance.model_bytes[:, None], 0).sum(axis=0) <= instance.memory_bytes * (1 + 1e-9)).all():
            yield held


@st.composite
def deployments(draw, wild=False, most_tasks=2, most_variants=4, most_nodes=2):
    """Draw an instance; some have no way to serve a request."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    K, J, N = (draw(st.integers(1, n)) for n in (most_tasks, most_variants, most_nodes))
    used = draw(st.sets(st.sampled_from(["by_node", "memory", "quality", "download", "links", "reply", "broken"])))
    request = np.where(rng.random((K, N)) < 0.2, 0.0, _numbers(rng, 1.0, (K, N), wild))
    request[0, 0] = request[0, 0] or 1.0
    fields = {
        "task": rng.integers(0, K, J), "variant_bytes": _numbers(rng, 1.0, J, wild),
        "run_s": _numbers(rng, 1.0, (J, N) if "by_node" in used else J, wild), "request_per_s": request,
    }  # fmt: skip
    if "broken" in used:
        fields["run_s"] = np.where(rng.random(fields["run_s"].shape) < 0.2, math.inf, fields["run_s"])
    if "memory" in used:
        fields["memory_bytes"] = _numbers(rng, 1.5, N, wild)
    if "quality" in used:
        fields |= {"quality": rng.choice([0.4, 0.6, 0.8, 1.0], J), "min_quality": float(rng.choice([0.5, 0.7, 0.9]))}
    if "download" in used:
        fields["download_bytes_per_s"] = np.where(rng.random(N) < 0.2, 0.0, _numbers(rng, 1.0, N, wild))
    if "links" in used:
        fields |= {"rate_bytes_per_s": _numbers(rng, 2.0, (N, N), wild), "latency_s": _numbers(rng, 0.2, (N, N), wild)}
        fields["request_bytes"] = float(_numbers(rng, 1.0, (), wild))
        if "reply" in used:
            fields["reply_bytes"] = _numbers(rng, 1.0, K, wild)
    return Deployment(**fields)


def best_deployment(instance):
    """Return the least mean seconds over all sets of kept variants, each a linear program over plain lists of ways."""
    from scipy.optimize import linprog

    J, N = instance.num_variants, instance.num_nodes
    demands = np.argwhere(instance.request_per_s > 0).tolist()
    total = instance.request_per_s.sum()
    best = math.inf
    for bits in itertools.product((False, True), repeat=J * N):
        kept = np.array(bits).reshape(J, N)
        if (np.where(kept, instance.variant_bytes[:, None], 0).sum(axis=0) > instance.memory_bytes * (1 + 1e-9)).any():
            continue
        cost, right, row = [], [], []
        for i, (k, n) in enumerate(demands):
            for seconds, quality in _ways(instance, kept, k, n):
                cost.append(seconds * instance.request_per_s[k, n] / total)
                right.append(quality * instance.request_per_s[k, n] / total)
                row.append(i)
        if len(set(row)) < len(demands):
            continue
        one = np.array([[float(r == i) for r in row] for i in range(len(demands))])
        limit = {} if instance.min_quality is None else {"A_ub": [[-q for q in right]], "b_ub": [-instance.min_quality]}
        unit = max(cost) or 1.0
        answer = linprog(np.array(cost) / unit, A_eq=one, b_eq=np.ones(len(demands)), **limit)
        if answer.status == 0:
            best = min(best, answer.fun * unit)
    return best


def _ways(instance, kept, k, n):
    for j in np.flatnonzero(instance.task == k).tolist():
        for m in range(instance.num_nodes):
            seconds = instance.run_s[j, m]
            if m != n:
                there, back = instance.rate_bytes_per_s[n, m], instance.rate_bytes_per_s[m, n]
                if there == 0 or back == 0:
                    continue
                seconds += instance.latency_s[n, m] + instance.latency_s[m, n]
                seconds += instance.request_bytes[k] / there + instance.reply_bytes[k] / back
            if kept[j, m] and math.isfinite(seconds):
                yield seconds, instance.quality[j]
        rate = instance.download_bytes_per_s[n]
        if rate > 0 and math.isfinite(instance.run_s[j, n]):
            yield instance.variant_bytes[j] / rate + instance.run_s[j, n], instance.quality[j]
