"""Every backend and every restated planner on the same instances: time to proof, gap at a limit, distance to the best.

Run ``python tests/benchmarks/solvers.py [--seeds 3] [--limits 1 10 60] [--rows NAME ...] [--write PAGE]``. Each backend
gets the same instances and limits in the same process; a longer limit is skipped once a shorter one proved every
instance, and general backends are asked only up to the row's own largest limit. A gap is measured from the best bound
that any backend proved, so that no backend is judged by its own word. With ``--resume FILE`` rows that the file holds
are not measured again. Ends with one JSON line.

A family adds rows by one entry in :data:`FAMILIES`: a function of the seed for each row, and how far its general
backends go.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from edgeopt_solvers import SolverError, solve
from edgeopt_solvers.chain import evaluate
from edgeopt_solvers.result import relative_gap
from tests.benchmarks import divisible, placement, policy
from tests.benchmarks.baselines import BASELINES
from tests.instances import library
from tests.solvers.fleet.draws import population
from tests.solvers.generators import cluster

__all__ = ["FAMILIES", "Row", "measure", "table"]


@dataclass(frozen=True)
class Row:
    """One size: how to draw it, the longest limit that our own and general backends get (0: none)."""

    draw: Callable[[int], Any]
    general_s: float = math.inf
    exact_s: float = math.inf
    planners: bool = False


def _chain(num_devices: int, num_elements: int, **fields: Any) -> Callable[[int], Any]:
    return lambda seed: cluster(num_elements, num_devices, seed=seed, source=False, **fields)


CHAIN = {
    "latency, 4 x 32": Row(_chain(4, 32, links="asymmetric"), planners=True),
    "latency, 8 x 32": Row(_chain(8, 32, links="asymmetric"), planners=True),
    "latency, 16 x 48": Row(_chain(16, 48, links="asymmetric"), planners=True),
    "latency, 32 x 80": Row(_chain(32, 80, links="asymmetric"), general_s=0, planners=True),
    "latency, star, 32 x 128": Row(_chain(32, 128, links="star"), general_s=0),
    "latency, equal layers, star, 16 x 48": Row(_chain(16, 48, links="star", equal_layers=True), general_s=10),
    "latency, equal layers, star, 1000 x 1000": Row(_chain(1000, 1000, links="star", equal_layers=True), general_s=0),
    "latency, 6 types, 64 x 200": Row(_chain(64, 200, distinct=False, num_types=6), general_s=0),
    "throughput, 4 x 32": Row(_chain(4, 32, links="asymmetric", objective="throughput"), planners=True),
    "throughput, 16 x 48": Row(
        _chain(16, 48, links="asymmetric", objective="throughput"), general_s=10, planners=True
    ),
    "joint with shares, 6 x 16": Row(lambda seed: library.joint(seed, 16, 6)),
    "joint with shares, 16 x 48": Row(lambda seed: library.joint(seed, 48, 16), general_s=10),
    "latency and energy, 8 x 32": Row(lambda seed: library.energy(seed, 32, 8), general_s=10),
    "diffusion, 3 denoisers, 3 x 20": Row(lambda seed: library.diffusion(seed, 20, 3), general_s=10),
}  # fmt: skip

BANDWIDTH = {
    f"{objective}, {flows} flows": Row(
        lambda seed, flows=flows, objective=objective: library.bandwidth(seed, flows, max(1, flows // 15), objective)
    )
    for objective in ("sum", "max")
    for flows in (60, 200)
}

FLEET = {
    "10 users x 4 servers": Row(lambda seed: population(10, 4, 2, seed), general_s=10),
    "100 users x 10 servers": Row(lambda seed: population(100, 10, 3, seed), general_s=10, exact_s=10),
    "1000 users x 100 servers": Row(lambda seed: population(1000, 100, 10, seed), general_s=0, exact_s=10),
}

DIVISIBLE = {
    "8 devices x 64 units": Row(lambda seed: divisible.instance(seed, 8, 64)),
    "8 devices x 64 units, private links": Row(lambda seed: divisible.instance(seed, 8, 64, shared=False)),
    "64 devices x 512 units": Row(lambda seed: divisible.instance(seed, 64, 512), general_s=10),
    "64 devices x 512 units, at most 10": Row(
        lambda seed: divisible.instance(seed, 64, 512, max_devices=10), general_s=10
    ),
    "64 devices x 512 units, makespan and energy": Row(
        lambda seed: divisible.instance(seed, 64, 512, objective={"makespan": 1.0, "energy": 0.01}), general_s=10
    ),
}

POLICY = {
    "speculative": Row(library.speculative),
    "speculative, 8 x 4 x 20 devices, length 32": Row(policy.speculative),
    "cascade, 300 queries": Row(lambda seed: library.cascade(seed, 300)),
    "cascade, 5 models, 100,000 queries": Row(lambda seed: policy.cascade(seed, min_accuracy=0.76), general_s=0),
    "cascade, 5 models, 10,000 queries, any threshold": Row(
        lambda seed: policy.cascade(seed, 10_000, min_accuracy=0.76, num_levels=None), general_s=0
    ),
}

PLACEMENT = {
    "experts, 4 layers x 8 on 4 devices": Row(
        lambda seed: placement.experts_at_scale(seed, 4, 8, 4), general_s=10, exact_s=10
    ),
    "experts, 32 layers x 64 on 16 devices": Row(placement.experts_at_scale, exact_s=10),
    "experts, little room, 32 layers x 64 on 16 devices": Row(
        lambda seed: placement.experts_at_scale(seed, room=1.02), general_s=10, exact_s=10
    ),
    "experts with exchange, 3 layers x 4 on 3 devices": Row(
        lambda seed: placement.exchange_at_scale(seed, 3, 4, 3), general_s=10, exact_s=10
    ),
    "experts with exchange, 32 layers x 64 on 16 devices": Row(placement.exchange_at_scale, general_s=0, exact_s=10),
    "routing, 200 classes, 50 models, 20 devices": Row(placement.routing_at_scale),
    "routing with a floor, 200 classes, 50 models, 20 devices": Row(
        lambda seed: placement.routing_at_scale(seed, min_accuracy=0.82)
    ),
    "deployment, 6 tasks, 18 variants, 8 nodes": Row(placement.deployment_at_scale, general_s=10, exact_s=10),
}

#: Family → its rows.
FAMILIES: dict[str, dict[str, Row]] = {
    "chain": CHAIN, "bandwidth": BANDWIDTH, "fleet": FLEET, "divisible": DIVISIBLE, "policy": POLICY,
    "placement": PLACEMENT,
}  # fmt: skip

Run = tuple[float, float, float]  # seconds, objective, bound


def backends(instance: Any) -> list[str]:
    """Return the backends that can express an instance, ours first."""
    capabilities = importlib.import_module(f"edgeopt_solvers.{instance.family}").CAPABILITIES
    return [name for name, able in capabilities.items() if instance.features() <= able]


def measure(family: str, name: str, seeds: Sequence[int], limits: Sequence[float]) -> list[dict[str, Any]]:
    """Solve a row by everything: a line per backend and limit, and one per planner."""
    row = FAMILIES[family][name]
    instances = [row.draw(seed) for seed in seeds]
    runs: dict[tuple[str, float], list[Run]] = {}
    for backend in backends(instances[0]):
        for limit in sorted(limits):
            if limit > (row.exact_s if backend == "exact" else row.general_s):
                break
            runs[backend, limit] = [_run(instance, backend, limit) for instance in instances]
            if all(relative_gap(objective, bound) <= 1e-6 for _, objective, bound in runs[backend, limit]):
                break  # a longer limit would show the same
    bounds = [max(run[i][2] for run in runs.values()) for i in range(len(instances))]
    best = [min(run[i][1] for run in runs.values()) for i in range(len(instances))]
    lines = [_line(family, name, *key, outcome, bounds) for key, outcome in runs.items()]
    planners = BASELINES if row.planners else ()
    return lines + [_planner_line(family, name, planner, instances, best) for planner in planners]


def _run(instance: Any, backend: str, limit_s: float) -> Run:
    started = time.perf_counter()
    try:
        result = solve(instance, backend=backend, time_limit_s=limit_s)
    except SolverError as error:
        print(f"{backend} failed: {error}", file=sys.stderr)
        return time.perf_counter() - started, math.inf, -math.inf
    return time.perf_counter() - started, result.objective, result.bound


def _line(
    family: str, name: str, backend: str, limit_s: float, outcome: Sequence[Run], bounds: Sequence[float]
) -> dict[str, Any]:
    gaps = [relative_gap(objective, bound) for (_, objective, _), bound in zip(outcome, bounds, strict=True)]
    return {
        "family": family,
        "size": name,
        "method": backend,
        "limit_s": limit_s,
        "median_s": statistics.median(spent for spent, _, _ in outcome),
        "worst_s": max(spent for spent, _, _ in outcome),
        "proven": sum(relative_gap(objective, bound) <= 1e-6 for _, objective, bound in outcome),
        "of": len(outcome),
        "median_gap": _finite(statistics.median(gaps)),
        "worst_gap": _finite(max(gaps)),
    }


def _planner_line(
    family: str, name: str, planner: str, instances: Sequence[Any], best: Sequence[float]
) -> dict[str, Any]:
    """How far above the best known plan a restated planner's plan is, where it has one."""
    above, spent = [], []
    for chain, value in zip(instances, best, strict=True):
        started = time.perf_counter()
        plan = BASELINES[planner](chain)
        spent.append(time.perf_counter() - started)
        if plan is not None and not (judged := evaluate(chain, plan)).violations:
            above.append(judged.objective / value - 1)
            assert above[-1] > -1e-9, f"{planner} beats us on {name}: report it"
    return {
        "family": family,
        "size": name,
        "method": planner,
        "limit_s": None,
        "median_s": statistics.median(spent),
        "worst_s": max(spent),
        "fits": len(above),
        "of": len(instances),
        "median_gap": statistics.median(above) if above else None,
        "worst_gap": max(above) if above else None,
    }


def _finite(value: float) -> float | None:
    """JSON has no infinity: a backend without a plan, or without a bound, has no gap."""
    return value if math.isfinite(value) else None


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as Markdown."""
    lines = [
        "| family | instance | method | limit | median s | worst s | proven or fits | median gap | worst gap |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        limit = f"{row['limit_s']:g} s" if row["limit_s"] else "–"
        count = row["proven"] if "proven" in row else row["fits"]
        gaps = [f"{100 * row[key]:.2f} %" if row[key] is not None else "–" for key in ("median_gap", "worst_gap")]
        lines.append(
            f"| {row['family']} | {row['size']} | {row['method']} | {limit} | {row['median_s']:.3f} "
            f"| {row['worst_s']:.3f} | {count} of {row['of']} | {gaps[0]} | {gaps[1]} |"
        )
    return "\n".join(lines)


def page(rows: Sequence[dict[str, Any]], arguments: argparse.Namespace) -> str:
    """Return the page of the documentation: what was run, where, when, and what came out."""
    limits = " ".join(f"{limit:g}" for limit in arguments.limits)
    command = f"python tests/benchmarks/solvers.py --seeds {arguments.seeds} --limits {limits}"
    return (
        "# Solvers side by side\n\n"
        f"{datetime.datetime.now(datetime.UTC).date()}, {platform.machine()}, {cpu_name()}, "
        f"Python {platform.python_version()}; `{command}` (part of `make bench`).\n\n"
        "Sizes of chains are devices x elements; `tests/solvers/generators.py` draws them (devices distinct, "
        "asymmetric links, weights 0.4 of the memory, unless said), the same for every method. For backends the gap is "
        "the distance of the returned plan from the best bound that any backend proved; for restated planners "
        "(`tests/benchmarks/baselines.py`) it is how far their plan costs above the best known one, on the instances "
        "where it fits. A dash: no plan. A longer limit is left out where a shorter one proved every instance.\n\n"
        + table(rows)
        + "\n"
    )


def cpu_name() -> str:
    """Model name of the processor, as the kernel says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else "unknown processor"


def _warm_up() -> None:
    """Imports and compiled code are not what is compared."""
    quick = {"objective": "throughput", "hidden_bytes": 16_384.0}
    for fields in ({}, quick, {"links": "star", "equal_layers": True}):
        solve(cluster(40, 20, seed=99, load=0.5, **fields), time_limit_s=31)
    solve(library.joint(99, 40, 12), time_limit_s=31)


def main() -> None:
    """Run, print, and write the page if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limits", type=float, nargs="+", default=[1.0, 10.0, 60.0])
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--rows", nargs="*", help="names of rows; all by default")
    parser.add_argument("--resume", type=Path, help="JSON lines of rows measured before, and where new ones go")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    known: dict[str, list[dict[str, Any]]] = {}
    if arguments.resume and arguments.resume.exists():
        for text in arguments.resume.read_text(encoding="utf-8").splitlines():
            entry = json.loads(text)
            known[entry["row"]] = entry["lines"]
    _warm_up()
    rows: list[dict[str, Any]] = []
    for family in arguments.families:
        for name in FAMILIES[family]:
            if arguments.rows and name not in arguments.rows:
                continue
            key = f"{family}: {name} ({arguments.seeds} seeds, {arguments.limits})"
            if key not in known:
                known[key] = measure(family, name, range(arguments.seeds), arguments.limits)
                if arguments.resume:
                    with arguments.resume.open("a", encoding="utf-8") as file:
                        file.write(json.dumps({"row": key, "lines": known[key]}, allow_nan=False) + "\n")
            print(table(known[key]), flush=True)
            rows += known[key]
    if arguments.write:
        arguments.write.write_text(page(rows, arguments), encoding="utf-8")
    print(json.dumps({"benchmark": "solvers", "rows": rows}, allow_nan=False))


if __name__ == "__main__":
    main()
