"""Deployment: the exact backend beside brute force and the MILP, and by hand."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings

from edgeopt_solvers import solve
from edgeopt_solvers.placement import Deployment, deployment_exact, evaluate
from edgeopt_solvers.placement.deployment_search import Neighbourhood
from edgeopt_solvers.placement.deployment_ways import ways_of
from edgeopt_solvers.solve import Options
from tests.benchmarks.placement import deployment_at_scale
from tests.solvers.placement.draws import best_deployment, deployments


def assert_equal_to_brute_force(instance, result, best):
    if best == math.inf:
        assert result.status.reason == "infeasible"
        assert result.message
    else:
        assert result.status.reason == "optimal"
        assert result.objective == pytest.approx(best, rel=2e-6, abs=1e-12)
        assert result.bound <= best * (1 + 1e-6) + 1e-12
        assert evaluate(instance, result.solution).violations == ()


@settings(max_examples=120, deadline=None, derandomize=True)
@given(deployments())
def test_equal_to_brute_force(instance):
    assert_equal_to_brute_force(instance, solve(instance), best_deployment(instance))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(deployments())
def test_pulp_agrees(instance):
    best = solve(instance).objective
    assert_equal_to_brute_force(instance, solve(instance, "pulp"), best)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(deployments(wild=True))
def test_any_magnitude(instance):
    started = time.process_time()  # a wall clock would fail beside other work, and hypothesis shrink that for minutes
    result = solve(instance, time_limit_s=2)
    assert time.process_time() - started < 2.5
    assert result.status.has_solution or result.message
    assert not result.status.has_solution or evaluate(instance, result.solution).violations == ()


def two_nodes(**more):
    fields = {
        "task": [0, 1], "variant_bytes": [4.0, 4.0], "run_s": [1.0, 1.0], "request_per_s": [[3.0, 0.0], [0.0, 1.0]],
        "memory_bytes": [4.0, 0.0], "download_bytes_per_s": [1.0, 1.0],
    }  # fmt: skip
    return Deployment(**{**fields, **more})


def test_keep_ask_or_download_by_hand():
    # node 0 keeps its own task; node 1 has no memory and loads the other for 4 s every time
    assert solve(two_nodes()).objective == pytest.approx((3 * 1 + 1 * 5) / 4)
    # over a fast link it asks node 0, once that has room for both
    links = {"rate_bytes_per_s": [[0, 8.0], [4.0, 0]], "latency_s": [[0, 0.5], [0.25, 0]], "request_bytes": 4.0}
    linked = solve(two_nodes(memory_bytes=[8.0, 0.0], reply_bytes=[0.0, 2.0], **links))
    assert linked.objective == pytest.approx((3 * 1 + 1 * (1 + 0.75 + 1.0 + 0.25)) / 4)
    assert linked.metrics["neighbour"] == 0.25


def test_a_quality_floor_mixes_variants():
    fields = {"task": [0, 0], "variant_bytes": [1.0, 1.0], "run_s": [1.0, 3.0], "request_per_s": [[2.0]]}
    mixed = solve(Deployment(**fields, quality=[0.5, 1.0], min_quality=0.75))
    assert mixed.objective == pytest.approx(2.0)
    assert mixed.metrics["quality"] == pytest.approx(0.75)
    assert solve(Deployment(**fields, quality=[0.5, 1.0], min_quality=0.5)).objective == 1.0


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"run_s": [math.inf, 1.0]}, "task 0 at node 0 has no variant"),
        ({"download_bytes_per_s": None}, "needs variant 1 of 4 bytes, node 1 has 0, 4 too few"),
        ({"quality": [0.2, 0.4], "min_quality": 0.5}, "min_quality is 0.5, the best variants reach 0.25"),
    ],
)
def test_infeasible_names_the_limit_and_by_how_much(fields, sentence):
    for backend in ("exact", "pulp"):
        result = solve(two_nodes(**fields), backend)
        assert result.status.reason == "infeasible"
        assert sentence in result.message


def test_memory_shared_by_two_tasks():
    result = solve(Deployment([0, 1], [4.0, 4.0], [1.0, 1.0], [[1.0], [1.0]], memory_bytes=[4.0]))
    assert result.status.reason == "infeasible"
    assert "no choice of variants that fits the memory serves all" in result.message
    floor = Deployment([0, 0], [4.0, 9.0], 1.0 + np.zeros(2), [[1.0]], [4.0], quality=[0.5, 1.0], min_quality=0.8)
    assert "min_quality is 0.8" in solve(floor).message


def test_a_plan_that_is_searched_locally_only_gets_better() -> None:
    instance = deployment_at_scale(1, num_tasks=3, num_nodes=4)
    ways = ways_of(instance)
    at = np.where(ways.node >= 0, ways.variant * instance.num_nodes + ways.node, -1)
    near = Neighbourhood(instance, ways, at, instance.memory_bytes, seed=0)
    optimum = solve(instance).objective
    for seed in range(6):
        kept = np.zeros((instance.num_variants, instance.num_nodes), bool)
        for j, n in np.random.default_rng(seed).permutation(np.argwhere(~kept)).tolist():
            kept[j, n] = (
                instance.variant_bytes[kept[:, n]].sum() + instance.variant_bytes[j] <= instance.memory_bytes[n]
            )
        kept = near.kicked(kept)
        better = near.improve(kept, math.inf)
        assert (instance.variant_bytes @ better <= instance.memory_bytes).all()
        assert optimum * (1 - 1e-9) <= near.value(better) <= near.value(kept)
    assert near.value(better) < 1.1 * optimum


def test_what_highs_may_not_finish_is_branched_on(monkeypatch) -> None:
    monkeypatch.setattr(deployment_exact.Program, "whole", lambda *_: (-math.inf, None))
    instance = deployment_at_scale(1, num_tasks=3, num_nodes=3)
    ours = deployment_exact.solve_deployment(instance, Options())
    assert ours.statistics["num_nodes"] > 1
    assert ours.objective == pytest.approx(solve(instance, "pulp").objective, rel=1e-6)
