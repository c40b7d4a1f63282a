"""Policy family: seconds for speculative decoding at full size, and for cascades on traces of 100,000 queries.

Run ``python tests/benchmarks/policy.py`` (``--quick`` for fewer seeds). The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edgeopt_solvers import solve
from edgeopt_solvers.policy import Cascade, Speculative, frontier
from tests.benchmarks.strict import strict_json


def speculative(seed: int, num_drafts: int = 8, num_targets: int = 4, num_devices: int = 20) -> Speculative:
    """Draw drafts and targets on unequal devices with links of some megabytes per second."""
    rng = np.random.default_rng(seed)
    pairs = (num_devices, num_devices)
    return Speculative(
        draft_s=rng.lognormal(-4, 0.6, (num_drafts, num_devices)),
        verify_s=rng.lognormal(-2.5, 0.5, (num_targets, num_devices))[:, :, None] * (1 + 0.02 * np.arange(33)),
        acceptance=rng.uniform(0.5, 0.9, (num_drafts, num_targets)), max_length=32,
        rate_bytes_per_s=rng.lognormal(16, 1, pairs), latency_s=rng.uniform(1e-3, 2e-2, pairs),
        round_bytes=100, token_bytes=4, reply_bytes=100, memory_bytes=rng.uniform(2e9, 2e10, num_devices),
        draft_bytes=rng.uniform(5e8, 3e9, num_drafts), target_bytes=rng.uniform(5e9, 1.8e10, num_targets),
    )  # fmt: skip


def cascade(seed: int, num_queries: int = 100_000, num_models: int = 5, **more: object) -> Cascade:
    """Draw queries of unequal difficulty and models of rising skill whose confidence follows it with noise."""
    rng = np.random.default_rng(seed)
    logit = 1.5 * (np.linspace(-0.3, 1.8, num_models) - rng.normal(0, 1, num_queries)[:, None])
    correct = rng.random(logit.shape) < 1 / (1 + np.exp(-logit))
    confidence = 1 / (1 + np.exp(-logit - rng.normal(0, 0.7, logit.shape)))
    return Cascade(confidence, correct, 0.02 * 2.2 ** np.arange(num_models), **more)


def median_s(call: Callable[[], object], repeats: int) -> float:
    """Return the median seconds of ``repeats`` calls."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def main() -> None:
    """Print one line per case, then everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    seeds = range(2 if quick else 5)
    rows = []

    def report(case: str, seconds: list[float], **more: float) -> None:
        rows.append({"case": case, "median_s": statistics.median(seconds), "worst_s": max(seconds), **more})
        extra = " ".join(f"{name} {value:.3g}" for name, value in more.items())
        print(f"{case:44} {1e3 * rows[-1]['median_s']:9.1f} ms {1e3 * max(seconds):9.1f} ms  {extra}", flush=True)

    problems = [speculative(seed) for seed in seeds]
    times = [median_s(lambda p=p: solve(p), 9) for p in problems]
    report("speculative, 8 x 4 x 20 devices, length <= 32", times, num_candidates=8 * 4 * 400 * 32 + 80)
    traces = [cascade(seed) for seed in seeds]
    curves = [frontier(trace) for trace in traces]
    times = [median_s(lambda t=t: frontier(t), 3) for t in traces]
    report("cascade frontier, 5 models, 100,000 queries", times, num_points=min(len(c.solutions) for c in curves))
    floors = [cascade(seed, min_accuracy=0.76) for seed in seeds]
    times = [median_s(lambda p=p: solve(p), 3) for p in floors]
    report("cascade with a floor, 32 quantiles", times, gap=max(solve(p).gap for p in floors))
    limit = 2.0 if quick else 10.0
    fine = [solve(cascade(seed, min_accuracy=0.76, num_levels=None), time_limit_s=limit) for seed in seeds]
    gained = [1 - f.objective / solve(p).objective for f, p in zip(fine, floors, strict=True)]
    report(
        f"the same, any thresholds, {limit:g} s", [f.runtime_s for f in fine], gap=max(f.gap for f in fine),
        gained=statistics.median(gained),
    )  # fmt: skip
    print(strict_json({"benchmark": "policy", "seeds": len(seeds), "rows": rows}))


if __name__ == "__main__":
    main()
