"""Stored instances and what is known about them: best value, best bound, and who proved it.

``index.json`` has one entry per instance: its family, either ``file`` (the instance itself, beside the index) or
``draw`` (a generator of the tests with its arguments, for instances too large to store), ``best`` and ``bound``, and
``proved_by``: the backends that closed the gap on their own. ``python -m tests.instances.library`` draws the files and
solves everything again; it never makes a known value worse.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt_solvers import solve
from edgeopt_solvers.bandwidth import Bandwidth
from edgeopt_solvers.chain import Chain
from edgeopt_solvers.divisible import Divisible
from edgeopt_solvers.policy import Cascade, Speculative
from tests.benchmarks import placement
from tests.solvers.fleet.draws import population
from tests.solvers.generators import cluster

__all__ = [
    "INDEX", "STORED", "Known", "bandwidth", "cascade", "diffusion", "energy", "joint", "load", "names", "read_index",
    "speculative",
]  # fmt: skip

HERE = Path(__file__).parent
INDEX = HERE / "index.json"

#: Relative gap that counts as proven.
PROVEN = 1e-6

Known = dict[str, Any]


def diffusion(seed: int, steps: int = 20, devices: int = 3) -> Chain:
    """Denoising steps with three denoisers, a floor on quality, and weights that count once per device."""
    rng = np.random.default_rng(seed)
    size = np.array([4e9, 1.8e9, 0.7e9])
    pace = np.array([1.0, 0.45, 0.2])[None, :, None] * rng.uniform(0.05, 0.4, (devices, 1, 1))
    loss = np.array([0.0, 1.0, 2.5])[:, None] * rng.uniform(0.2, 1.0, (3, steps)) / steps
    latent = np.full(steps + 1, 131_072.0)
    latent[0] = 1_000.0
    return Chain(
        np.broadcast_to(pace, (devices, 3, steps)), latent, rng.uniform(2e6, 5e7, (devices, devices)),
        rng.uniform(1e-3, 1e-2, (devices, devices)), memory_bytes=rng.uniform(3e9, 8e9, devices), shared_bytes=size,
        quality_loss=loss, max_quality_loss=float(0.5 * loss[1].sum()), reuse="many",
    )  # fmt: skip


def joint(seed: int, elements: int, devices: int) -> Chain:
    chain = cluster(elements, devices, seed=seed, source=False)
    fields = {name: getattr(chain, name) for name in ("compute_s", "cut_bytes", "rate_bytes_per_s", "latency_s")}
    return Chain(
        **fields, memory_bytes=chain.memory_bytes, resident_bytes=chain.resident_bytes, source=None,
        medium=np.zeros((devices, devices), int), media=["reserved"],
    )  # fmt: skip


def energy(seed: int, elements: int, devices: int) -> Chain:
    rng = np.random.default_rng(seed)
    watts = rng.uniform(5, 60, devices)
    return cluster(
        elements, devices, seed=seed, source=False, objective={"latency": 1.0, "energy": 0.02}, power_w=watts,
        send_power_w=0.2 * watts, receive_power_w=0.1 * watts,
    )  # fmt: skip


def bandwidth(seed: int, flows: int, media: int, objective: str) -> Bandwidth:
    rng = np.random.default_rng(seed)
    return Bandwidth(
        rng.lognormal(13, 1, flows), medium=rng.integers(0, media, flows), objective=objective,
        band_hz=np.where(np.arange(media) % 2, 2e7, 0.0), rate_bytes_per_s=rng.lognormal(16, 1, flows),
        snr=rng.lognormal(2, 1.5, flows), weight=rng.uniform(0.5, 2, flows), fixed_s=rng.uniform(0, 0.3, flows),
    )  # fmt: skip


def _divisible(seed: int, devices: int, units: int, **more: Any) -> Divisible:
    rng = np.random.default_rng(seed)
    return Divisible(
        units, rng.uniform(0.01, 0.2, devices), fixed_s=rng.uniform(0, 0.3, devices),
        fixed_bytes=rng.uniform(0, 1e5, devices), unit_bytes=rng.uniform(1e3, 1e5, devices),
        rate_bytes_per_s=rng.uniform(1e6, 2e7, devices), shared=np.ones(devices, dtype=bool),
        memory_bytes=rng.uniform(0.3, 1.5, devices) * units, unit_memory_bytes=np.ones(devices), **more,
    )  # fmt: skip


def speculative(seed: int) -> Speculative:
    rng = np.random.default_rng(seed)
    return Speculative(
        rng.uniform(0.002, 0.02, (3, 4)), rng.uniform(0.03, 0.2, (2, 4)), rng.uniform(0.5, 0.9, (3, 2)), max_length=12,
        rate_bytes_per_s=rng.uniform(1e6, 1e8, (4, 4)), latency_s=rng.uniform(1e-3, 2e-2, (4, 4)), round_bytes=64.0,
        token_bytes=4.0, reply_bytes=8.0,
    )  # fmt: skip


def cascade(seed: int, queries: int) -> Cascade:
    rng = np.random.default_rng(seed)
    skill = np.array([0.6, 0.75, 0.9])
    correct = rng.random((queries, 3)) < skill
    return Cascade(
        confidence=np.clip(0.25 * rng.standard_normal((queries, 3)) + np.where(correct, 0.75, 0.45), 0, 1).round(3),
        correct=correct, seconds=[0.02, 0.1, 0.6], cost=[1.0, 4.0, 30.0], min_accuracy=0.8, num_levels=20,
    )  # fmt: skip


#: Name → how to draw an instance that is stored.
STORED: dict[str, Callable[[], Any]] = {
    "chain_latency_12x4": lambda: cluster(12, 4, seed=1),
    "chain_latency_24x8": lambda: cluster(24, 8, seed=2, links="asymmetric"),
    "chain_latency_48x16": lambda: cluster(48, 16, seed=3, links="asymmetric"),
    "chain_latency_star_32x12": lambda: cluster(32, 12, seed=4, links="star"),
    "chain_latency_equal_32x10": lambda: cluster(32, 10, seed=5, links="star", equal_layers=True),
    "chain_latency_types_40x16": lambda: cluster(40, 16, seed=6, distinct=False, num_types=4),
    "chain_throughput_16x4": lambda: cluster(16, 4, seed=7, objective="throughput"),
    "chain_throughput_32x8": lambda: cluster(32, 8, seed=8, objective="throughput", hidden_bytes=16_384.0),
    "chain_energy_16x5": lambda: energy(9, 16, 5),
    "chain_energy_32x10": lambda: energy(10, 32, 10),
    "chain_joint_16x6": lambda: joint(11, 16, 6),
    "chain_joint_32x10": lambda: joint(12, 32, 10),
    "chain_diffusion_20x3": lambda: diffusion(13),
    "chain_diffusion_30x4": lambda: diffusion(14, 30, 4),
    "bandwidth_sum_60": lambda: bandwidth(15, 60, 4, "sum"),
    "bandwidth_max_60": lambda: bandwidth(16, 60, 4, "max"),
    "fleet_10x4": lambda: population(10, 4, 2, 17),
    "fleet_40x10": lambda: population(40, 10, 3, 18),
    "divisible_5x64": lambda: _divisible(19, 5, 64),
    "divisible_12x256": lambda: _divisible(20, 12, 256),
    "placement_experts_4x8x4": lambda: placement.experts_at_scale(23, 4, 8, 4),
    "placement_experts_full_2x6x3": lambda: placement.experts_at_scale(24, 2, 6, 3, room=1.2),
    "placement_exchange_3x4x3": lambda: placement.exchange_at_scale(25, 3, 4, 3),
    "placement_routing_20x8x4": lambda: placement.routing_at_scale(26, 20, 8, 4),
    "placement_routing_floor_20x8x4": lambda: placement.routing_at_scale(27, 20, 8, 4, min_accuracy=0.8),
    "placement_routing_device_20x8x4": lambda: placement.routing_at_scale(28, 20, 8, 4, queue="device"),
    "placement_deployment_3x4": lambda: placement.deployment_at_scale(29, 3, 4),
    "divisible_12x96_weighted": lambda: _divisible(
        23, 12, 96, power_w=np.linspace(4, 40, 12), objective={"makespan": 1.0, "energy": 0.02}
    ),
    "policy_speculative": lambda: speculative(21),
    "policy_cascade_300": lambda: cascade(22, 300),
}

#: Name → (generator, arguments) of instances that are drawn when asked for.
DRAWN: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "chain_latency_80x32": ("tests.solvers.generators:cluster", [80, 32], {"seed": 1}),
    "chain_latency_128x32_star": ("tests.solvers.generators:cluster", [128, 32], {"seed": 1, "links": "star"}),
    "chain_equal_1000x1000": (
        "tests.solvers.generators:cluster", [1000, 1000], {"seed": 1, "links": "star", "equal_layers": True},
    ),
    "chain_types_200x64": (
        "tests.solvers.generators:cluster", [200, 64], {"seed": 1, "distinct": False, "num_types": 6},
    ),
    "placement_experts_32x64x16": ("tests.benchmarks.placement:experts_at_scale", [1], {}),
    "placement_exchange_32x64x16": ("tests.benchmarks.placement:exchange_at_scale", [1], {}),
    "placement_routing_200x50x20": ("tests.benchmarks.placement:routing_at_scale", [1], {}),
    "divisible_64x512": ("tests.benchmarks.divisible:instance", [0, 64, 512], {}),
    "divisible_64x512_of_10": ("tests.benchmarks.divisible:instance", [0, 64, 512], {"max_devices": 10}),
    "policy_speculative_8x4x20": ("tests.benchmarks.policy:speculative", [0], {}),
    "policy_cascade_100000": ("tests.benchmarks.policy:cascade", [0, 100_000], {"min_accuracy": 0.76}),
    "policy_cascade_10000_any_threshold": (
        "tests.benchmarks.policy:cascade", [0, 10_000], {"min_accuracy": 0.76, "num_levels": None},
    ),
}  # fmt: skip


def read_index() -> dict[str, Known]:
    """Return what is known about every instance, by name."""
    content: dict[str, Known] = json.loads(INDEX.read_text(encoding="utf-8"))
    return content


def names(*, stored: bool = True) -> list[str]:
    """Return the names of the instances that are stored (or drawn)."""
    return [name for name, known in read_index().items() if ("file" in known) == stored]


def load(name: str) -> Any:
    """Read or draw an instance."""
    known = read_index()[name]
    if "draw" in known:
        module, _, function = known["draw"].partition(":")
        return getattr(importlib.import_module(module), function)(*known["arguments"], **known["keywords"])
    text = (HERE / known["file"]).read_text(encoding="utf-8")
    kind = getattr(importlib.import_module(f"edgeopt_solvers.{known['family']}"), known["kind"])
    return kind.from_json(text)


def _backends(instance: Any) -> list[str]:
    capabilities = importlib.import_module(f"edgeopt_solvers.{instance.family}").CAPABILITIES
    return [backend for backend, able in capabilities.items() if instance.features() <= able]


def _known(instance: Any, limit_s: float, general: bool) -> Known:
    """Solve by everything that can; every plan and bound counts, a proof is whoever closes the gap alone."""
    best, bound, proved_by = math.inf, -math.inf, []
    for backend in _backends(instance):
        if backend != "exact" and not general:
            continue
        started = time.perf_counter()
        result = solve(instance, backend, time_limit_s=limit_s)
        best, bound = min(best, result.objective), max(bound, result.bound)
        if result.gap <= PROVEN:
            proved_by.append(backend)
        print(f"  {backend}: {result.objective:.9g} >= {result.bound:.9g} in {time.perf_counter() - started:.2f} s")
    return {"best": best, "bound": min(bound, best), "proved_by": proved_by}


def _kept(old: Known | None, new: Known) -> Known:
    """Never let a known value get worse."""
    if old is None or new["best"] < old["best"] * (1 - 1e-12):
        return new
    merged = {**new, "best": min(old["best"], new["best"]), "bound": max(old["bound"], new["bound"])}
    merged["proved_by"] = sorted({*old["proved_by"], *new["proved_by"]})
    return merged


def main() -> None:
    """Draw, store, solve, and write the index."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, default=10.0)
    parser.add_argument("--only", nargs="*")
    asked = parser.parse_args()
    index = read_index() if INDEX.exists() else {}
    for name in [*STORED, *DRAWN]:
        if asked.only and name not in asked.only:
            continue
        print(name)
        old = index.get(name)
        if name in STORED:
            path = HERE / f"{name}.json"
            if not path.exists():
                path.write_text(STORED[name]().to_json() + "\n", encoding="utf-8")
            drawn = STORED[name]()
            entry: Known = {"family": drawn.family, "kind": type(drawn).__name__, "file": path.name}
            instance = type(drawn).from_json(path.read_text(encoding="utf-8"))
        else:
            generator, arguments, keywords = DRAWN[name]
            module, _, function = generator.partition(":")
            instance = getattr(importlib.import_module(module), function)(*arguments, **keywords)
            entry = {"family": instance.family, "draw": generator, "arguments": arguments, "keywords": keywords}
        index[name] = {**entry, **_kept(old, _known(instance, asked.limit, name in STORED))}
        INDEX.write_text(json.dumps(index, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
