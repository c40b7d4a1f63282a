"""Chains with one reserved medium: time to proof at scale, and the same optimum as the cone reference at 8 × 32.

Run ``python tests/benchmarks/chain_joint.py [--seeds 5] [--limit 60] [--reference 5]``. Kernels are warmed up first.
Times are wall and processor seconds of ``try_solve``. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from edgeopt_solvers import solve
from edgeopt_solvers.chain import Chain, evaluate
from edgeopt_solvers.chain.large import try_solve
from edgeopt_solvers.solve import Options
from tests.benchmarks.strict import strict_json
from tests.solvers.chain.test_joint import reserved
from tests.solvers.generators import cluster


def timed(chain: Chain, limit_s: float) -> dict[str, object]:
    """Solve one instance and return what came of it."""
    started, busy = time.perf_counter(), time.process_time()
    result = try_solve(chain, Options(time_limit_s=limit_s))
    wall_s, processor_s = time.perf_counter() - started, time.process_time() - busy
    assert result is not None
    if result.solution is not None:
        assert evaluate(chain, result.solution).violations == ()
    return {
        "reason": result.status.reason, "wall_s": wall_s, "processor_s": processor_s, "gap": result.gap,
        "objective": result.objective, "stages": len(result.solution.cuts) if result.solution else 0,
    }  # fmt: skip


def compare(seed: int, limit_s: float) -> dict[str, object]:
    """The engine and the cone reference on the same 8 × 32."""
    chain = reserved(cluster(32, 8, seed=seed))
    ours = timed(chain, limit_s)
    busy = time.process_time()
    cones = solve(chain, "cvxpy", time_limit_s=limit_s)
    return {
        "seed": seed, "exact_s": ours["processor_s"], "cones_s": time.process_time() - busy,
        "cones_reason": cones.status.reason, "cones_gap": cones.gap,
        "relative_difference": cones.objective / float(np.asarray(ours["objective"])) - 1,
    }  # fmt: skip


def main() -> None:
    """Print a line per instance, then everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds per instance")
    parser.add_argument("--reference", type=int, default=5, help="seeds of the comparison at 8 × 32")
    asked = parser.parse_args()
    try_solve(reserved(cluster(40, 20, seed=101)), Options(time_limit_s=30.0))
    rows = []
    for load in (0.15, 0.4, 0.5):
        found = [timed(reserved(cluster(128, 64, seed=s, load=load)), asked.limit) for s in range(1, asked.seeds + 1)]
        middle = {key: statistics.median(row[key] for row in found) for key in ("wall_s", "processor_s")}
        rows.append({"case": f"64x128, load {load}", **middle, "seeds": found})
        print(f"64x128, load {load}: median {middle['wall_s']:.2f} s ({middle['processor_s']:.2f} s of processor)")
        for row in found:
            print("   ", {k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    reference = [compare(seed, 4 * asked.limit) for seed in range(asked.reference)]
    for row in reference:
        print("8x32", {k: float(f"{v:.3g}") if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    print(strict_json({"benchmark": "chain_joint", "rows": rows, "reference_8x32": reference}))


if __name__ == "__main__":
    main()
