"""Placement family: experts and routing at full size, beside simple rules, CP-SAT and cvxpy.

Run ``python tests/benchmarks/placement.py`` (``--quick``: two seeds, references for 5 s). The last line is one JSON
document; a reference that found nothing has null figures.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from dataclasses import replace

import numpy as np

from edgeopt_solvers import solve
from edgeopt_solvers.placement import Deployment, Experts, ExpertsSolution, Routing, evaluate

EXPERT_BYTES = 25e6


def experts_at_scale(
    seed: int, num_layers: int = 32, num_experts: int = 64, num_devices: int = 16, room: float = 1.25
) -> Experts:
    """Draw skewed gate frequencies on unequal devices whose memory holds ``room`` copies of every expert on average."""
    rng = np.random.default_rng(seed)
    rank = np.arange(1, num_experts + 1)
    load = np.stack([rng.permutation(1 / rank ** rng.uniform(0.5, 1.0)) for _ in range(num_layers)])
    load *= rng.lognormal(0, 0.2, load.shape)
    memory = rng.lognormal(0, 0.4, num_devices)
    memory = np.floor(memory / memory.sum() * num_layers * num_experts * room) * EXPERT_BYTES
    pairs = (num_devices, num_devices)
    return Experts(
        load=4096 * load / load.sum(axis=1, keepdims=True), unit_s=2e-5 / rng.lognormal(0, 0.5, num_devices),
        expert_bytes=EXPERT_BYTES, memory_bytes=memory, dispatch_bytes=8192, combine_bytes=8192,
        rate_bytes_per_s=rng.lognormal(math.log(1e9), 0.5, pairs), latency_s=rng.uniform(5e-5, 5e-4, pairs),
    )  # fmt: skip


def exchange_at_scale(
    seed: int, num_layers: int = 32, num_experts: int = 64, num_devices: int = 16, room: float = 1.25
) -> Experts:
    """Draw tokens that go from experts straight to those of the next layer, ten times likelier within eight groups."""
    plain = experts_at_scale(seed, num_layers, num_experts, num_devices, room)
    rng = np.random.default_rng(seed + 1_000)
    group = rng.integers(0, 8, (num_layers, num_experts))
    traffic = rng.gamma(0.5, 1.0, (num_layers - 1, num_experts, num_experts)) * plain.load[:-1, :, None]
    traffic *= np.where(group[:-1, :, None] == group[1:, None, :], 1.0, 0.1)
    traffic *= (plain.load[1:] / traffic.sum(axis=1))[:, None, :]
    return replace(plain, traffic=traffic, exchange_bytes=8192.0, dispatch_bytes=0.0, combine_bytes=0.0)


def routed(instance: Experts, solution: ExpertsSolution) -> ExpertsSolution:
    """Add routes: every token goes to the quickest copy."""
    from edgeopt_solvers.placement.exchange import exchange_of, forward

    return forward(instance, exchange_of(instance), solution.replicas, solution.share, None)


def routing_at_scale(
    seed: int, num_classes: int = 200, num_models: int = 50, num_devices: int = 20, **more: object
) -> Routing:
    """Draw models on 60 % of the devices, faster ones less accurate, with half of all capacity asked for."""
    rng = np.random.default_rng(seed)
    shape = (num_models, num_devices)
    service = rng.lognormal(2, 0.5, (num_models, 1)) * rng.lognormal(0, 0.5, num_devices)
    service *= rng.random(shape) < 0.6
    accuracy = 0.95 - 0.05 * np.log1p(service.max(axis=1)) + rng.normal(0, 0.03, (num_classes, num_models))
    arrival = rng.lognormal(0, 1, num_classes)
    capacity = service.sum() if more.get("queue", "server") == "server" else service.max(axis=0).sum()
    return Routing(
        0.5 * capacity * arrival / arrival.sum(), service, rng.uniform(0.002, 0.05, (num_classes, num_devices)),
        np.clip(accuracy, 0.3, 1.0), **more,
    )  # fmt: skip


def deployment_at_scale(seed: int, num_tasks: int = 6, num_nodes: int = 8) -> Deployment:
    """Draw three variants per task, larger ones better and slower, at nodes that hold a few, with links and a store."""
    rng = np.random.default_rng(seed)
    task = np.repeat(np.arange(num_tasks), 3)
    size = np.tile([1e9, 3e9, 8e9], num_tasks) * rng.lognormal(0, 0.2, len(task))
    pairs = (num_nodes, num_nodes)
    return Deployment(
        task, size, 1e-10 * size[:, None] * rng.lognormal(0, 0.4, num_nodes),
        request_per_s=rng.lognormal(0, 1, (num_tasks, num_nodes)),
        memory_bytes=rng.uniform(6e9, 2e10, num_nodes), quality=np.tile([0.6, 0.75, 0.85], num_tasks), min_quality=0.72,
        download_bytes_per_s=rng.lognormal(20, 0.5, num_nodes), rate_bytes_per_s=rng.lognormal(17, 0.7, pairs),
        latency_s=rng.uniform(1e-3, 3e-2, pairs), request_bytes=1e6, reply_bytes=2e5,
    )  # fmt: skip


def _one_copy(instance: Experts, order: list[tuple[int, int]], balanced: bool) -> ExpertsSolution:
    """Give each expert one device: the next with room, or the one that the layer then waits for least."""
    G, E, D = instance.num_layers, instance.num_experts, instance.num_devices
    held, room, turn = np.zeros((G, E, D)), instance.memory_bytes - instance.reserved_bytes, 0
    seconds = np.zeros((G, D))
    for g, e in order:
        fits = room >= instance.expert_bytes[g, e]
        if balanced:
            d = int(np.where(fits, seconds[g] + instance.load[g, e] * instance.unit_s[g], np.inf).argmin())
        else:
            d = next(k % D for k in range(turn, turn + D) if fits[k % D])
            turn = d + 1
        held[g, e, d] = 1.0
        room[d] -= instance.expert_bytes[g, e]
        seconds[g, d] += instance.load[g, e] * instance.unit_s[g, d]
    return ExpertsSolution(held > 0, held)


def round_robin(instance: Experts) -> ExpertsSolution:
    """Deal experts to devices in turn, as engines do by default."""
    order = [(g, e) for g in range(instance.num_layers) for e in range(instance.num_experts)]
    return _one_copy(instance, order, balanced=False)


def popularity_greedy(instance: Experts) -> ExpertsSolution:
    """Place the most used experts first, each where its layer's computing then ends first."""
    order = sorted(np.ndindex(instance.load.shape), key=lambda pair: -float(instance.load[pair]))
    return _one_copy(instance, [(int(g), int(e)) for g, e in order], balanced=True)


def _finite(values: list[float]) -> float | None:
    middle = statistics.median(values)
    return middle if math.isfinite(middle) else None


def bench_experts(seeds: range, limit: float, reference: float) -> dict[str, object]:
    """Compare at full size; objectives of others are given as multiples of ours."""
    gaps, seconds, cpu, others = [], [], [], {"round_robin": [], "popularity_greedy": [], "ortools": []}
    for seed in seeds:
        instance = experts_at_scale(seed)
        started = time.process_time()
        ours = solve(instance, time_limit_s=limit, gap=1e-3)
        cpu.append(time.process_time() - started)
        gaps.append(ours.gap)
        seconds.append(ours.runtime_s)
        for name, rule in (("round_robin", round_robin), ("popularity_greedy", popularity_greedy)):
            others[name].append(evaluate(instance, rule(instance)).objective / ours.objective)
        if reference > 0:
            theirs = solve(instance, "ortools", time_limit_s=reference)
            others["ortools"].append(theirs.objective / ours.objective)
        ratios = ", ".join(f"{name} {values[-1]:.2f}x" for name, values in others.items() if values)
        print(f"experts seed {seed}: gap {100 * gaps[-1]:.3f} % in {seconds[-1]:.2f} s; {ratios}", flush=True)
    row: dict[str, object] = {"case": "experts 32 x 64 on 16", "gap": statistics.median(gaps), "worst_gap": max(gaps)}
    row |= {"seconds": statistics.median(seconds), "processor_s": statistics.median(cpu), "reference_s": reference}
    return row | {f"{name}_ratio": _finite(values) if values else None for name, values in others.items()}


def bench_routing(seeds: range, case: str, reference: bool, **more: object) -> dict[str, object]:
    """Compare at full size with cvxpy."""
    gaps, seconds, cpu, apart, theirs_s = [], [], [], [], []
    for seed in seeds:
        instance = routing_at_scale(seed, **more)
        started = time.process_time()
        ours = solve(instance)
        cpu.append(time.process_time() - started)
        gaps.append(ours.gap)
        seconds.append(ours.runtime_s)
        if reference:
            theirs = solve(instance, "cvxpy")
            apart.append(ours.objective / theirs.objective - 1)
            theirs_s.append(theirs.runtime_s)
        print(f"routing {case}, seed {seed}: gap {gaps[-1]:.1e} in {seconds[-1]:.2f} s, {cpu[-1]:.2f} s processor")
    row: dict[str, object] = {"case": f"routing 200 x 50 x 20 {case}", "gap": statistics.median(gaps)}
    row |= {"worst_gap": max(gaps), "seconds": statistics.median(seconds), "processor_s": statistics.median(cpu)}
    row |= {"above_cvxpy": max(apart) if apart else None, "cvxpy_s": statistics.median(theirs_s) if theirs_s else None}
    return row


def main() -> None:
    """Print one line per instance, then everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-references", action="store_true")
    given = parser.parse_args()
    seeds = range(2 if given.quick else 5)
    reference = 0.0 if given.no_references else 5.0 if given.quick else 60.0
    solve(Routing([1.0], [[2.0]]))  # imports what the first solve loads
    rows = [bench_experts(seeds, 10.0, reference)]
    rows.append(bench_routing(seeds, "one queue per model", not given.no_references))
    rows.append(bench_routing(seeds, "with a floor", not given.no_references, min_accuracy=0.82))
    rows.append(bench_routing(seeds, "one queue per device", False, queue="device"))
    print(json.dumps({"benchmark": "placement", "seeds": len(seeds), "rows": rows}, allow_nan=False))


if __name__ == "__main__":
    main()
