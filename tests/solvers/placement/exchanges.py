"""Experts that exchange tokens between layers: drawn by hypothesis, and the best plan found by trying all copies."""

from __future__ import annotations

import itertools
import math
from dataclasses import fields, replace

import numpy as np
from hypothesis import strategies as st

from edgeopt_solvers.placement import Experts
from tests.solvers.placement.draws import costs, experts


def with_traffic(instance, rng, exchange_bytes=1.0, **more):
    """Return the instance with tokens between its layers, drawn, and links."""
    G, E, D = instance.num_layers, instance.num_experts, instance.num_devices
    origin = rng.dirichlet(np.full(E, 0.5), (G - 1, E))  # (G-1, receiver, sender)
    given = {field.name: getattr(instance, field.name) for field in fields(instance)} | more
    given |= {"traffic": np.swapaxes(origin, 1, 2) * instance.load[1:, None, :], "exchange_bytes": exchange_bytes}
    if not given["rate_bytes_per_s"].any():
        given["rate_bytes_per_s"] = rng.lognormal(0.7, 0.7, (D, D))
    return Experts(**given)


@st.composite
def exchanges(draw, wild=False):
    """Draw an instance with traffic; some have links with latency, some none at all between some devices."""
    instance = draw(st.one_of(experts(wild, 2, 2, 3), experts(wild, 3, 2, 2)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if instance.num_layers == 1:
        instance = replace(
            instance, load=np.tile(instance.load, (2, 1)), unit_s=np.tile(instance.unit_s, (2, 1)),
            expert_bytes=np.tile(instance.expert_bytes, (2, 1)), dispatch_bytes=np.tile(instance.dispatch_bytes, 2),
            combine_bytes=np.tile(instance.combine_bytes, 2),
        )  # fmt: skip
    D, used = instance.num_devices, draw(st.sets(st.sampled_from(["latency", "by_layer", "cut off"])))
    more = {}
    if "latency" in used and not instance.dispatch_bytes.any():
        more["latency_s"] = rng.lognormal(0.5, 0.7, (D, D))
    if "cut off" in used:
        more["rate_bytes_per_s"] = np.where(rng.random((D, D)) < 0.3, 0.0, rng.lognormal(0.7, 0.7, (D, D)))
    size = rng.lognormal(0, 1, instance.num_layers - 1) if "by_layer" in used else float(rng.lognormal(0, 1))
    return with_traffic(instance, rng, size, **more)


def best_exchange(instance):
    """Return the least sum of makespans, ``inf`` if there is no plan.

    All sets of copies that fit and that no larger set contains; for each, a mixed-integer program in the tokens of
    every pair of experts and every pair of devices, written down from the definition.
    """
    G, E = instance.load.shape
    D = instance.num_devices
    subsets = [s for r in range(1, D + 1) for s in itertools.combinations(range(D), r)]
    subsets = [s for s in subsets if instance.max_replicas is None or len(s) <= instance.max_replicas]
    room = instance.memory_bytes * (1 + 1e-9) - instance.reserved_bytes
    best = math.inf
    for chosen in itertools.product(subsets, repeat=G * E):
        held = np.zeros((G * E, D), dtype=bool)
        for k, s in enumerate(chosen):
            held[k, list(s)] = True
        left = room - instance.expert_bytes.ravel() @ held
        more = ~held & (instance.expert_bytes.ravel()[:, None] <= left)
        if instance.max_replicas is not None:
            more &= (held.sum(axis=1) < instance.max_replicas)[:, None]
        if (left >= 0).all() and not more.any():
            best = min(best, _split(instance, held.reshape(G, E, D)))
    return best


def _split(instance, held):
    from scipy.optimize import Bounds, LinearConstraint, milp

    G, E, D = held.shape
    names = {}

    def column(*name):
        return names.setdefault(name, len(names))

    rows = []  # (terms, lower, upper)
    for g in range(G):
        unit, fixed = costs(instance, g)
        for e in range(E):
            able = [d for d in range(D) if held[g, e, d] and math.isfinite(unit[d])]
            if not able:
                return math.inf
            rows.append(({column("v", g, e, d): 1.0 for d in able}, 1.0, 1.0))
        for d in range(D):
            level = {column("T", g): -1.0}
            for e in range(E):
                if ("v", g, e, d) not in names or instance.load[g, e] == 0:
                    continue
                v = column("v", g, e, d)
                level[v] = instance.load[g, e] * unit[d]
                if fixed[d] > 0:
                    level[column("u", g, d)] = fixed[d]
                    rows.append(({v: 1.0, column("u", g, d): -1.0}, -math.inf, 0.0))
            for e, f, i in itertools.product(range(E), range(E), range(D)) if g > 0 else ():
                z = ("z", g, e, f, i, d)
                if (
                    not all(n in names for n in (("v", g - 1, e, i), ("v", g, f, d)))
                    or not instance.traffic[g - 1, e, f]
                ):
                    continue
                tokens, each = instance.traffic[g - 1, e, f], instance.exchange_bytes[g - 1]
                if i == d or each == 0:
                    column(*z)
                elif instance.rate_bytes_per_s[i, d] > 0:
                    level[column(*z)] = tokens * each / instance.rate_bytes_per_s[i, d]
                    if instance.latency_s[i, d] > 0:
                        level[column("x", g, i, d)] = instance.latency_s[i, d]
                        rows.append(({column(*z): 1.0, column("x", g, i, d): -1.0}, -math.inf, 0.0))
            rows.append((level, -math.inf, 0.0))
        for f in range(E) if g > 0 else ():
            senders = [e for e in range(E) if instance.traffic[g - 1, e, f] > 0]
            for e, i in itertools.product(senders, range(D)):
                if ("v", g - 1, e, i) in names:
                    out = {names["z", g, e, f, i, j]: 1.0 for j in range(D) if ("z", g, e, f, i, j) in names}
                    rows.append(({**out, names["v", g - 1, e, i]: -1.0}, 0.0, 0.0))
            came = instance.traffic[g - 1, :, f].sum()
            for d in range(D):
                if senders and ("v", g, f, d) in names:
                    into = {
                        names["z", g, e, f, i, d]: instance.traffic[g - 1, e, f] / came
                        for e in senders for i in range(D) if ("z", g, e, f, i, d) in names
                    }  # fmt: skip
                    rows.append(({**into, names["v", g, f, d]: -1.0}, 0.0, 0.0))
    n = len(names)
    matrix = np.zeros((len(rows), n))
    for k, (terms, _, _) in enumerate(rows):
        for c, value in terms.items():
            matrix[k, c] += value
    cost, high, whole = np.zeros(n), np.ones(n), np.zeros(n)
    for name, c in names.items():
        if name[0] == "T":
            cost[c], high[c] = 1.0, math.inf
        whole[c] = name[0] in "ux"
    limits = LinearConstraint(matrix, [low for _, low, _ in rows], [high for _, _, high in rows])
    answer = milp(cost, constraints=limits, bounds=Bounds(0, high), integrality=whole, options={"mip_rel_gap": 0})
    return float(answer.fun) if answer.status == 0 else math.inf
