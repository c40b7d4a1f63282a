"""The first call of a fresh process with no compiled code anywhere: what a user of each family waits for once.

Run ``python tests/benchmarks/cold.py [--repeats 5]``. Every figure is the wall time of a new Python process that
imports a family, takes one instance and solves it, with an empty folder as numba's cache; medians. ``start`` is Python
and numpy alone. Chains beyond the general engine wait for the compiler once per machine, unless their time limit
forbids it (``chain, 32 x 80, 10 s``). Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks import divisible, placement, policy
from tests.benchmarks.strict import strict_json
from tests.instances import library
from tests.solvers.fleet.draws import population
from tests.solvers.generators import cluster

RUN = """
import pickle, sys
import numpy
if len(sys.argv) > 1:
    from edgeopt_solvers import solve
    with open(sys.argv[1], "rb") as file:
        instance = pickle.load(file)
    limit = float(sys.argv[2])
    result = solve(instance, time_limit_s=None if limit == 0 else limit)
    assert result.solution is not None
"""


def cases() -> dict[str, tuple[Any, float]]:
    """Name → instance and time limit (0: none)."""
    return {
        "chain, 4 x 32": (cluster(32, 4, seed=1, links="asymmetric"), 0),
        "chain, 4 x 32, throughput": (cluster(32, 4, seed=1, links="asymmetric", objective="throughput"), 0),
        "chain, 6 x 16, shares": (library.joint(1, 16, 6), 0),
        "chain, 32 x 80, 10 s": (cluster(80, 32, seed=1, links="asymmetric"), 10),
        "chain, 32 x 80, compiling": (cluster(80, 32, seed=1, links="asymmetric"), 0),
        "bandwidth, 60 flows": (library.bandwidth(1, 60, 4, "sum"), 0),
        "fleet, 100 x 10, 2 s": (population(100, 10, 3, 1), 2),
        "divisible, 64 x 512": (divisible.instance(1, 64, 512), 0),
        "speculative, 8 x 4 x 20": (policy.speculative(1), 0),
        "cascade, 300 queries": (library.cascade(1, 300), 0),
        "routing, 200 x 50 x 20, 10 s": (placement.routing_at_scale(1), 10),
        "deployment, 6 tasks": (placement.deployment_at_scale(1), 10),
    }


def wall_s(*words: str) -> float:
    """Seconds of one fresh process."""
    with tempfile.TemporaryDirectory() as cache:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", RUN, *words], check=True, env={**os.environ, "NUMBA_CACHE_DIR": cache})
        return time.perf_counter() - started


def main() -> None:
    """Print a line per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    rows = {"start": statistics.median(wall_s() for _ in range(asked.repeats))}
    with tempfile.TemporaryDirectory() as folder:
        for name, (instance, limit_s) in cases().items():
            path = Path(folder) / "instance.pickle"
            path.write_bytes(pickle.dumps(instance))
            repeats = 1 if limit_s == 0 and "compiling" in name else asked.repeats
            rows[name] = statistics.median(wall_s(str(path), str(limit_s)) for _ in range(repeats))
            print(f"{name:<34}{rows[name]:8.2f} s", flush=True)
    print(strict_json({"benchmark": "cold", "seconds": rows}))


if __name__ == "__main__":
    main()
