"""Chain at scale: time to proof, or gap at a limit, for every row of the table; ends with one JSON line.

Run ``python tests/benchmarks/chain_scale.py [--seeds 5] [--rows NAME ...]``. Kernels are warmed up first; the time
of that first call and of the import are reported apart, and depend on whether compiled code was cached.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from edgeopt_solvers.chain import Chain, evaluate
from edgeopt_solvers.chain.large import try_solve
from edgeopt_solvers.solve import Options
from tests.benchmarks.strict import strict_json
from tests.solvers.generators import cluster


@dataclass(frozen=True)
class Row:
    """One line of the table: how to draw an instance, and what is asked of it."""

    draw: Callable[[int], Chain]
    limit_s: float
    target: str


ROWS = {
    "16x48 asymmetric": Row(lambda s: cluster(48, 16, seed=s, links="asymmetric"), 30, "optimal, median <= 0.05 s"),
    "32x80 pair": Row(lambda s: cluster(80, 32, seed=s), 30, "optimal, median <= 3 s, worst <= 10 s"),
    "64x128 pair, 10 s": Row(lambda s: cluster(128, 64, seed=s, load=0.5), 10, "gap <= 2 %"),
    "64x128 pair, 60 s": Row(lambda s: cluster(128, 64, seed=s, load=0.5), 60, "gap <= 0.5 %"),
    "throughput 64x128 pair, 16 KB cuts": Row(
        lambda s: cluster(128, 64, seed=s, hidden_bytes=16_384.0, objective="throughput"), 20, "optimal <= 2 s"
    ),
    "throughput 64x128 star": Row(
        lambda s: cluster(128, 64, seed=s, links="star", objective="throughput"), 20, "optimal <= 2 s"
    ),
    "throughput 64x128 pair": Row(lambda s: cluster(128, 64, seed=s, objective="throughput"), 20, "optimal <= 2 s"),
    "equal layers star 1000x1000": Row(
        lambda s: cluster(1000, 1000, seed=s, links="star", equal_layers=True), 60, "optimal <= 0.2 s"
    ),
    "unequal layers star 32x128": Row(lambda s: cluster(128, 32, seed=s, links="star"), 60, "optimal <= 1 s"),
    "64 devices of 6 types x 200": Row(
        lambda s: cluster(200, 64, seed=s, distinct=False, num_types=6), 60, "optimal <= 0.5 s"
    ),
    "64 devices of 6 types x 200, throughput": Row(
        lambda s: cluster(200, 64, seed=s, distinct=False, num_types=6, objective="throughput"), 20, "optimal"
    ),
}


def measure(name: str, seeds: range) -> dict[str, object]:
    """Solve one row for every seed and print its line."""
    row = ROWS[name]
    seconds, gaps, stages, optimal = [], [], [], 0
    for seed in seeds:
        chain = row.draw(seed)
        started = time.perf_counter()
        result = try_solve(chain, Options(time_limit_s=row.limit_s, seed=seed))
        seconds.append(time.perf_counter() - started)
        assert result is not None
        gaps.append(result.gap if result.solution is not None else float(result.status.reason != "infeasible"))
        optimal += result.status.reason in ("optimal", "infeasible")
        if result.solution is not None:
            assert evaluate(chain, result.solution).violations == ()
            stages.append(len(result.solution.cuts))
    line = {
        "row": name, "target": row.target, "median_s": statistics.median(seconds), "worst_s": max(seconds),
        "optimal": optimal, "seeds": len(seconds), "worst_gap": max(gaps), "stages": stages, "seconds": seconds,
    }  # fmt: skip
    print(
        f"{name:<42} median {line['median_s']:8.3f} s  worst {line['worst_s']:8.3f} s  optimal {optimal}/{len(seconds)}"
        f"  worst gap {100 * line['worst_gap']:.3f} %  stages {stages}  [{row.target}]",
        flush=True,
    )
    return line


def main() -> None:
    """Print the table, then the same figures as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", nargs="*", default=list(ROWS))
    asked = parser.parse_args()
    first = {}
    for objective in ("latency", "throughput"):
        started = time.perf_counter()
        try_solve(cluster(40, 20, seed=101, load=0.5, objective=objective), Options(time_limit_s=5.0))
        first[objective] = time.perf_counter() - started
    print("first calls (import and compile, or load from the cache):", {k: round(v, 2) for k, v in first.items()})
    rows = [measure(name, range(1, asked.seeds + 1)) for name in asked.rows]
    print(strict_json({"benchmark": "chain_scale", "first_call_s": first, "rows": rows}))


if __name__ == "__main__":
    main()
