"""Every backend and every restated planner on the same chains: time to proof, gap at a limit, distance from the best.

Run ``python tests/benchmarks/solvers.py [--seeds 5] [--limits 1 10] [--write docs/measurements/solvers.md]``. Each
backend gets the same instances and limits in the same process; a gap is measured from the best bound that any backend
proved, so that no backend is judged by its own word. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from edgeopt_solvers import solve
from edgeopt_solvers.chain import Chain, evaluate
from edgeopt_solvers.result import relative_gap
from tests.benchmarks.baselines import BASELINES
from tests.solvers.generators import cluster

#: Name → (num_elements, num_devices, objective, largest size that the general backends are given).
SIZES: dict[str, tuple[int, int, str]] = {
    "latency, 4 devices x 32": (32, 4, "latency"),
    "latency, 8 devices x 32": (32, 8, "latency"),
    "latency, 16 devices x 48": (48, 16, "latency"),
    "latency, 32 devices x 80": (80, 32, "latency"),
    "throughput, 4 devices x 32": (32, 4, "throughput"),
    "throughput, 16 devices x 48": (48, 16, "throughput"),
}
BACKENDS = ("exact", "pulp", "ortools")
#: Columns of the MILP grow with D * L^2: beyond this product a general backend is not asked (it would only build).
GENERAL_LIMIT = 16 * 48


def instances(size: str, seeds: Sequence[int]) -> list[Chain]:
    """Draw one chain per seed: distinct devices, asymmetric links, weights at 0.4 of the memory."""
    num_elements, num_devices, objective = SIZES[size]
    return [
        cluster(num_elements, num_devices, seed=seed, links="asymmetric", source=False, objective=objective)
        for seed in seeds
    ]


def measure(size: str, seeds: Sequence[int], limits: Sequence[float]) -> list[dict[str, object]]:
    """Solve a size by everything; one row per backend and limit, and one per baseline."""
    chains = instances(size, seeds)
    runs: dict[tuple[str, float], list[tuple[float, float, float]]] = {}
    for backend in BACKENDS:
        if backend != "exact" and SIZES[size][0] * SIZES[size][1] > GENERAL_LIMIT:
            continue
        for limit in limits:
            for chain in chains:
                started = time.perf_counter()
                result = solve(chain, backend=backend, time_limit_s=limit)
                spent = time.perf_counter() - started
                runs.setdefault((backend, limit), []).append((spent, result.objective, result.bound))
            if all(spent < 0.9 * limit for spent, _, _ in runs[backend, limit]):
                break  # a longer limit would show the same
    bounds = [max(run[i][2] for run in runs.values()) for i in range(len(chains))]
    best = [min(run[i][1] for run in runs.values()) for i in range(len(chains))]
    rows = []
    for (backend, limit), outcome in runs.items():
        gaps = [relative_gap(objective, bound) for (_, objective, _), bound in zip(outcome, bounds, strict=True)]
        rows.append(
            {
                "size": size,
                "method": backend,
                "limit_s": limit,
                "median_s": statistics.median(spent for spent, _, _ in outcome),
                "worst_s": max(spent for spent, _, _ in outcome),
                "proven": sum(relative_gap(objective, bound) <= 1e-6 for _, objective, bound in outcome),
                "median_gap": statistics.median(gaps),
                "worst_gap": max(gaps),
            }
        )
    return rows + [baseline_row(size, name, chains, best) for name in BASELINES]


def baseline_row(size: str, name: str, chains: Sequence[Chain], best: Sequence[float]) -> dict[str, object]:
    """How far above the best known plan a restated planner's plan is, where it has one."""
    above, spent = [], []
    for chain, value in zip(chains, best, strict=True):
        started = time.perf_counter()
        plan = BASELINES[name](chain)
        spent.append(time.perf_counter() - started)
        if plan is not None and not (judged := evaluate(chain, plan)).violations:
            above.append(judged.objective / value - 1)
            assert above[-1] > -1e-9, f"{name} beats us on {size}: report it"
    return {
        "size": size,
        "method": name,
        "limit_s": None,
        "median_s": statistics.median(spent),
        "worst_s": max(spent),
        "fits": len(above),
        "median_gap": statistics.median(above) if above else None,
        "worst_gap": max(above) if above else None,
    }


def table(rows: Sequence[dict[str, object]], num_seeds: int) -> str:
    """Rows as Markdown."""
    lines = [
        "| instance | method | limit | median s | worst s | proven or fits | median gap | worst gap |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        limit = f"{row['limit_s']:g} s" if row["limit_s"] else "–"
        count = row["proven"] if "proven" in row else row["fits"]
        gaps = [f"{100 * row[key]:.2f} %" if row[key] is not None else "–" for key in ("median_gap", "worst_gap")]
        lines.append(
            f"| {row['size']} | {row['method']} | {limit} | {row['median_s']:.3f} | {row['worst_s']:.3f} "
            f"| {count} of {num_seeds} | {gaps[0]} | {gaps[1]} |"
        )
    return "\n".join(lines)


def page(rows: Sequence[dict[str, object]], arguments: argparse.Namespace) -> str:
    """Return the page of the documentation: what was run, where, when, and what came out."""
    command = f"python tests/benchmarks/solvers.py --seeds {arguments.seeds} --limits " + " ".join(
        f"{limit:g}" for limit in arguments.limits
    )
    return (
        "# Solvers side by side\n\n"
        f"{datetime.datetime.now(datetime.UTC).date()}, {platform.machine()}, {cpu_name()}, "
        f"Python {platform.python_version()}; `{command}` (part of `make bench`).\n\n"
        "Chains are drawn by `tests/solvers/generators.py` (all devices distinct, asymmetric links, weights 0.4 of the "
        "memory), the same for every method. For backends the gap is the distance of the returned plan from the best "
        "bound that any backend proved; for restated planners (`tests/benchmarks/baselines.py`) it is how far their "
        "plan costs above the best known one, on the instances where it fits.\n\n" + table(rows, arguments.seeds) + "\n"
    )


def cpu_name() -> str:
    """Model name of the processor, as the kernel says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else "unknown processor"


def main() -> None:
    """Run, print, and write the page if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--limits", type=float, nargs="+", default=[1.0, 10.0])
    parser.add_argument("--sizes", nargs="*", default=list(SIZES))
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    solve(instances(arguments.sizes[0], [99])[0])  # imports and compiled code are not what is compared
    rows: list[dict[str, object]] = []
    for size in arguments.sizes:
        fresh = measure(size, range(arguments.seeds), arguments.limits)
        print(table(fresh, arguments.seeds), flush=True)
        rows += fresh
    if arguments.write:
        arguments.write.write_text(page(rows, arguments), encoding="utf-8")
    print(json.dumps({"benchmark": "solvers", "rows": rows}))


if __name__ == "__main__":
    main()
