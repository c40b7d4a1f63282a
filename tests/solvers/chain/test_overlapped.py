"""Turns that overlap: the method against all plans of small chains, whatever limits a single stage can have."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations, permutations

import numpy as np
import pytest

from edgeopt_solvers.chain import Chain, Solution, evaluate
from edgeopt_solvers.chain.overlapped import Overlapped, least_overlapped


def drawn(seed: int) -> Overlapped:
    """Draw a chain with some limits, turns that have nothing to do with its seconds, and a weight."""
    rng = np.random.default_rng(seed)
    D, L = int(rng.integers(1, 5)), int(rng.integers(2, 7))
    rate = rng.uniform(0.5, 5.0, (D, D)) * (rng.random((D, D)) < 0.85)
    compute = rng.uniform(0.1, 2.0, (D, L))
    compute[rng.random((D, L)) < 0.05] = math.inf
    legal = rng.random(L + 1) < 0.85
    chain = Chain(
        compute_s=compute, cut_bytes=rng.uniform(0, 2, L + 1), rate_bytes_per_s=rate,
        latency_s=rng.uniform(0, 0.5, (D, D)),
        memory_bytes=rng.uniform(2, 6, D), resident_bytes=rng.uniform(0.2, 1.5, L),
        transient_bytes=rng.uniform(0, 0.5, L), source=None if rng.random() < 0.3 else 0,
        loop_bytes=float(rng.uniform(0, 1)), loop_messages=2.0, cut_messages=rng.integers(1, 4, L + 1),
        min_segment=int(rng.integers(1, 3)), cut_legal=legal,
        pins={int(rng.integers(L)): int(rng.integers(D))} if rng.random() < 0.3 else None,
    )  # fmt: skip
    transfer = rng.uniform(0, 1.5, (D, D, L + 1)) * (1 - np.eye(D))[:, :, None]
    return Overlapped(chain, rng.uniform(0.1, 1.0, (D, L)), transfer, float(rng.uniform(0, 8)))


def all_values(problem: Overlapped) -> list[float]:
    """Values of all plans that keep the limits, the latency by the checker."""
    chain, values = problem.chain, []
    for count in range(1, chain.num_devices + 1):
        for inner in combinations(range(1, chain.num_elements), count - 1):
            for devices in permutations(range(chain.num_devices), count):
                solution = Solution((*inner, chain.num_elements), devices, (0,) * count)
                found = evaluate(chain, solution)
                if found.violations or not math.isfinite(found.objective):
                    continue
                spans = zip(devices, solution.starts, solution.cuts, strict=True)
                turns = [problem.stage_s[d, start:stop].sum() for d, start, stop in spans]
                turns += [problem.transfer_s[a, b, c] for a, b, c in zip(devices, devices[1:], inner, strict=False)]
                values.append(found.objective + problem.weight * max(turns))
    return values


@pytest.mark.parametrize("seed", range(60))
def test_the_best_of_all_plans(seed):
    problem = drawn(seed)
    assert problem.is_supported
    solution, value, bound = least_overlapped(problem)
    known = all_values(problem)
    if not known:
        assert (solution, value, bound) == (None, math.inf, math.inf)
        return
    assert solution is not None
    assert value == pytest.approx(min(known), rel=1e-9)
    assert bound == value
    assert not evaluate(problem.chain, solution).violations
    assert problem.value(solution) == value


def test_without_time_there_is_a_plan_and_a_bound_that_holds():
    loose = 0
    for seed in range(60):
        problem = drawn(seed)
        if not (known := all_values(problem)):
            continue
        solution, value, bound = least_overlapped(problem, time_limit_s=0.0)
        assert solution is not None
        assert bound <= min(known) * (1 + 1e-9) <= value * (1 + 2e-9)
        loose += bound < value * (1 - 1e-9)
    assert loose > 5, "otherwise nothing was cut short"


def test_what_is_not_supported_says_so():
    problem = drawn(1)
    for change in ({"reuse": "many"}, {"max_latency_s": 1.0}, {"max_stages": 2}, {"objective": "throughput"}):
        assert not replace(problem, chain=replace(problem.chain, **change)).is_supported
