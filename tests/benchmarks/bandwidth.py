"""Bandwidth family: seconds and proven gaps of the exact backend, and the same instances through cvxpy.

Run ``python tests/benchmarks/bandwidth.py`` (``--quick`` for fewer and smaller cases). The last line is one JSON
document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

import numpy as np

from edgeopt_solvers import solve
from edgeopt_solvers.bandwidth import Bandwidth


def instance(kind: str, objective: str, num_flows: int, num_media: int, seed: int, limits: bool = False) -> Bandwidth:
    """Draw flows of a cell (``radio``: 20 MHz, log-normal signal-to-noise ratios) or of access points (``fixed``)."""
    rng = np.random.default_rng(seed)
    per_medium = num_flows / num_media
    fields = {
        "size_bytes": rng.lognormal(13, 1, num_flows),
        "medium": np.arange(num_flows) % num_media,
        "weight": rng.uniform(0.5, 2, num_flows),
        "fixed_s": rng.lognormal(-2, 1, num_flows),
        "objective": objective,
    }
    if kind == "radio":
        fields |= {"band_hz": np.full(num_media, 20e6), "snr": rng.lognormal(0, 1.5, num_flows)}
    else:
        fields |= {"rate_bytes_per_s": rng.lognormal(16, 1, num_flows)}
    if limits:
        fields["min_share"] = np.where(rng.random(num_flows) < 0.3, 0.5 / per_medium, 0.0)
        fields["max_share"] = np.where(rng.random(num_flows) < 0.3, 2.0 / per_medium, 1.0)
        latest = solve(Bandwidth(**fields)).metrics["latest_s"]
        fields["deadline_s"] = np.where(rng.random(num_flows) < 0.3, 1.1 * latest, np.inf)
    return Bandwidth(**fields)


def timed(problem: Bandwidth, backend: str, repeats: int) -> tuple[float, float, float]:
    """Return the median seconds of ``repeats`` calls, the objective and the gap."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = solve(problem, backend)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), result.objective, result.gap


def cold_call_s() -> float:
    """Seconds of a fresh Python that imports the family and solves one small radio instance."""
    code = (
        "from edgeopt_solvers import solve\nfrom edgeopt_solvers.bandwidth import Bandwidth\n"
        "solve(Bandwidth([1e6, 2e6], band_hz=[2e7], snr=[1.0, 2.0]))"
    )
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - started


def main() -> None:
    """Print one line per case, then everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    seeds = range(2 if quick else 5)
    rows = []
    print(f"{'case':34} {'exact ms':>9} {'worst ms':>9} {'gap':>8} {'cvxpy ms':>9} {'ratio':>7} {'difference':>10}")
    cases = [
        (kind, objective, num_flows, num_media, limits)
        for num_flows, num_media in ([(200, 4)] if quick else [(50, 1), (200, 4), (1_000, 10)]) + [(10_000, 100)]
        for kind in ("fixed", "radio")
        for objective in ("sum", "max")
        for limits in (False, True)
    ] + ([] if quick else [("radio", "sum", 100_000, 1_000, False), ("radio", "sum", 10_000, 1, False)])
    for kind, objective, num_flows, num_media, limits in cases:
        exact, worst, gaps, reference, difference = [], 0.0, [], [], []
        for seed in seeds:
            problem = instance(kind, objective, num_flows, num_media, seed, limits)
            seconds, value, gap = timed(problem, "exact", 5)
            exact.append(seconds)
            gaps.append(gap)
            if num_flows <= 200 or (num_flows <= 1_000 and objective == "sum"):
                solve(instance(kind, objective, 2, 1, 0), "cvxpy")  # imports it
                cone_s, cone_value, _ = timed(problem, "cvxpy", 1)
                reference.append(cone_s)
                difference.append(cone_value / value - 1)
        worst = max(exact)
        row = {
            "kind": kind, "objective": objective, "num_flows": num_flows, "num_media": num_media, "limits": limits,
            "exact_s": statistics.median(exact), "exact_worst_s": worst, "gap": max(gaps),
            "cvxpy_s": statistics.median(reference) if reference else None,
            "cvxpy_relative_difference": max(difference, key=abs) if difference else None,
        }  # fmt: skip
        rows.append(row)
        name = f"{kind} {objective} {num_flows}/{num_media}{' limits' if limits else ''}"
        line = f"{name:34} {1e3 * row['exact_s']:9.2f} {1e3 * worst:9.2f} {row['gap']:8.0e}"
        if reference:
            ratio = row["cvxpy_s"] / row["exact_s"]
            line += f" {1e3 * row['cvxpy_s']:9.0f} {ratio:7.0f} {row['cvxpy_relative_difference']:10.1e}"
        print(line, flush=True)
    cold = statistics.median(cold_call_s() for _ in seeds)
    print(f"cold first call, Python start included: {1e3 * cold:.0f} ms")
    print(
        json.dumps({"benchmark": "bandwidth", "seeds": len(seeds), "cold_call_s": cold, "rows": rows}, allow_nan=False)
    )


if __name__ == "__main__":
    main()
