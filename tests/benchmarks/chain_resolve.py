"""Solving again after a change, from the plan at hand and from nothing: processor seconds; ends with one JSON line.

Run ``python tests/benchmarks/chain_resolve.py [--seeds 5] [--sizes 16x48 32x80] [--limit 20]``. Three changes: the
device with most elements leaves, the link that carries most bytes halves, the load rises by 20 % (compute, bytes and
residents). ``warm`` is given the previous plan carried over (its time counts); ``priced`` also charges what devices
must load newly, at a second per gigabyte. Moved gigabytes are those of the new plan against the previous one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from edgeopt_solvers import Result, WarmStart, solve
from edgeopt_solvers.chain import Chain, Solution, carried_start, evaluate, held_by, without
from tests.solvers.generators import cluster

__all__ = ["CHANGES", "measure"]

#: Size → (num_devices, num_elements).
SIZES = {"16x48": (16, 48), "32x80": (32, 80)}

#: Objective per newly loaded byte: a second per gigabyte, shared by a thousand requests until the next change.
LOAD_COST = 1e-9 / 1e3

Changed = tuple[Chain, list[int | None]]


def _device_leaves(chain: Chain, plan: Solution) -> Changed:
    lengths = np.diff([0, *plan.cuts])
    return without(chain, [plan.devices[int(lengths.argmax())]])


def _link_halves(chain: Chain, plan: Solution) -> Changed:
    rate = chain.rate_bytes_per_s.copy()
    moved = [(float(chain.cut_bytes[cut]), k) for k, cut in enumerate(plan.cuts[:-1])]
    if moved:
        k = max(moved)[1]
        rate[plan.devices[k], plan.devices[k + 1]] /= 2
    return replace(chain, rate_bytes_per_s=rate), list(range(chain.num_devices))


def _load_rises(chain: Chain, plan: Solution) -> Changed:
    grown = {name: 1.2 * getattr(chain, name) for name in ("compute_s", "cut_bytes", "resident_bytes")}
    return replace(chain, **grown), list(range(chain.num_devices))


CHANGES: dict[str, Callable[[Chain, Solution], Changed]] = {
    "device leaves": _device_leaves, "link halves": _link_halves, "load +20 %": _load_rises,
}  # fmt: skip


def _timed(chain: Chain, limit_s: float, start: WarmStart | None = None) -> tuple[float, Result]:
    before = time.process_time()
    result = solve(chain, time_limit_s=limit_s, warm_start=start)
    return time.process_time() - before, result


def measure(size: str, change: str, num_seeds: int, limit_s: float) -> dict[str, object]:
    """Solve before and after a change for several draws; medians of seconds and moved gigabytes."""
    num_devices, num_elements = SIZES[size]
    seconds: dict[str, list[float]] = {"cold": [], "carry": [], "warm": [], "priced": []}
    moved: dict[str, list[float]] = {"warm": [], "priced": []}
    start_gap, proven = [], 0
    for seed in range(num_seeds):
        chain = cluster(num_elements, num_devices, seed=seed, links="asymmetric")
        result = solve(chain, time_limit_s=limit_s)
        plan = result.solution
        if plan is None:
            continue
        after, index = CHANGES[change](chain, plan)
        spent, cold = _timed(after, limit_s)
        seconds["cold"].append(spent)
        before = time.process_time()
        start = carried_start(after, result, index)
        seconds["carry"].append(time.process_time() - before)
        spent, warm = _timed(after, limit_s, start)
        seconds["warm"].append(seconds["carry"][-1] + spent)
        kept = held_by(chain, plan)[[old for old, new in enumerate(index) if new is not None]]
        priced = replace(after, held=kept, load_cost=LOAD_COST)
        spent, moderate = _timed(priced, limit_s, start)
        seconds["priced"].append(seconds["carry"][-1] + spent)
        for name, result in (("warm", warm), ("priced", moderate)):
            if result.solution is not None:
                moved[name].append(evaluate(priced, result.solution).metrics["moved_bytes"] / 1e9)
        if start.solution is not None and cold.solution is not None:
            start_gap.append(evaluate(after, start.solution).objective / cold.objective - 1)
        reasons = {cold.status.reason, warm.status.reason, moderate.status.reason}
        if reasons == {"optimal"}:
            proven += 1
            assert abs(cold.objective - warm.objective) <= 1e-9 * cold.objective, "a warm start changed the optimum"
    return {
        "size": size, "change": change, "seeds": num_seeds, "proven": proven, "carried": len(start_gap),
        **{f"{name}_cpu_s": statistics.median(values) for name, values in seconds.items()},
        **{f"{name}_moved_gb": statistics.median(values) if values else None for name, values in moved.items()},
        "start_above_optimum": statistics.median(start_gap) if start_gap else None,
    }  # fmt: skip


def main() -> None:
    """Print a line per size and change, then the same figures as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES))
    parser.add_argument("--limit", type=float, default=20.0)
    asked = parser.parse_args()
    for equal in (False, True):  # imports and compiled code are not what is compared
        solve(cluster(40, 20, seed=101, load=0.5, links="star", equal_layers=equal))
        solve(cluster(40, 20, seed=101, load=0.5, equal_layers=equal))
    rows = []
    for size in asked.sizes:
        for change in CHANGES:
            row = measure(size, change, asked.seeds, asked.limit)
            rows.append(row)
            print(" ".join(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
                           for key, value in row.items()), flush=True)  # fmt: skip
    print(json.dumps({"benchmark": "chain_resolve", "rows": rows}, allow_nan=False))


if __name__ == "__main__":
    main()
