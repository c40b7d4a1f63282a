"""Divisible family: seconds to the proven optimum, and the same model through PuLP.

Run ``python tests/benchmarks/divisible.py`` (``--quick``: fewer seeds and a shorter PuLP limit). The last line is one
JSON document. Where PuLP reaches its limit the ratio is a lower bound.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edgeopt_solvers import solve
from edgeopt_solvers.divisible import Divisible
from tests.benchmarks.strict import strict_json


def instance(seed: int, num_devices: int = 64, num_units: int = 512, **more: object) -> Divisible:
    """Draw unequal devices on one access point: rows of a latent per denoising step, halo bytes, memory for rows."""
    rng = np.random.default_rng(seed)
    fields = {
        "num_units": num_units,
        "unit_s": 2e-3 / rng.lognormal(0, 0.8, num_devices),
        "fixed_s": rng.uniform(1e-3, 2e-2, num_devices),
        "fixed_bytes": rng.uniform(2e4, 2e5, num_devices),
        "unit_bytes": rng.uniform(1e3, 8e3, num_devices),
        "rate_bytes_per_s": rng.lognormal(18, 0.6, num_devices),
        "latency_s": rng.uniform(1e-3, 5e-3, num_devices),
        "shared": True,
        "memory_bytes": rng.uniform(10e6, 120e6, num_devices),
        "fixed_memory_bytes": np.full(num_devices, 5e6),
        "unit_memory_bytes": np.full(num_devices, 1e6),
        "power_w": rng.uniform(3, 40, num_devices),
        "byte_j": rng.uniform(1e-8, 1e-6, num_devices),
    }
    return Divisible(**{**fields, **more})


CASES: dict[str, dict[str, object]] = {
    "synchronous": {},
    "overlapped": {"exchange": "overlapped"},
    "private links": {"shared": False},
    "at most 10 devices": {"max_devices": 10},
    "energy": {"objective": "energy"},
    "energy, deadline 0.15 s": {"objective": "energy", "max_makespan_s": 0.15},
    "weighted, private links": {"objective": {"makespan": 1.0, "energy": 0.01}, "shared": False},
    "weighted": {"objective": {"makespan": 1.0, "energy": 0.01}},
}


def main() -> None:
    """Print one line per case, then everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--pulp-limit", type=float, default=None, help="seconds per instance")
    parser.add_argument("--skip-pulp", action="store_true")
    given = parser.parse_args()
    seeds = range(2 if given.quick else 5)
    limit = given.pulp_limit or (10.0 if given.quick else 60.0)
    rows = []
    print(f"{'64 devices, 512 units':26} {'exact ms':>9} {'worst ms':>9} {'gap':>8} {'devices':>8}")
    for name, fields in CASES.items():
        seconds, gaps, used = [], [], []
        for seed in seeds:
            problem = instance(seed, **fields)
            repeats = []
            while len(repeats) < 3 and sum(repeats) < 1:
                started = time.perf_counter()
                result = solve(problem, time_limit_s=60)
                repeats.append(time.perf_counter() - started)
            seconds.append(statistics.median(repeats))
            gaps.append(result.gap)
            used.append(result.metrics["num_devices"])
        row = {
            "case": name, "exact_s": statistics.median(seconds), "exact_worst_s": max(seconds), "gap": max(gaps),
            "num_devices": statistics.median(used),
        }  # fmt: skip
        rows.append(row)
        print(
            f"{name:26} {1e3 * row['exact_s']:9.1f} {1e3 * row['exact_worst_s']:9.1f} {row['gap']:8.0e} "
            f"{row['num_devices']:8.0f}",
            flush=True,
        )
    pulp = None
    if not given.skip_pulp:
        theirs, gaps, objectives = [], [], []
        for seed in seeds:
            problem = instance(seed)
            ours = solve(problem).objective
            started = time.perf_counter()
            result = solve(problem, "pulp", time_limit_s=limit)
            theirs.append(time.perf_counter() - started)
            gaps.append(result.gap)
            objectives.append(result.objective / ours - 1)
            print(
                f"pulp, seed {seed}: {result.status.reason} after {theirs[-1]:.1f} s, {objectives[-1]:+.1e} from ours, "
                f"gap {result.gap:.1e}",
                flush=True,
            )
        ratio = statistics.median(theirs) / rows[0]["exact_s"]
        pulp = {"limit_s": limit, "seconds": theirs, "gaps": gaps, "ratio_at_least": ratio}
        print(f"pulp takes at least {ratio:.0f} times as long (limit {limit:g} s per instance)")
    print(strict_json({"benchmark": "divisible", "seeds": len(seeds), "rows": rows, "pulp": pulp}))


if __name__ == "__main__":
    main()
