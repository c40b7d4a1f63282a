"""Routing: the exact backend beside cvxpy and all choices of models, and its own promises."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from edgeopt_solvers import solve
from edgeopt_solvers.errors import UnsupportedError
from edgeopt_solvers.placement import Routing, evaluate
from tests.benchmarks.placement import routing_at_scale
from tests.solvers.placement.draws import loadings, routings


def assert_agree(instance, result, best):
    if best == math.inf:
        assert result.status.reason == "infeasible"
        assert result.message
    else:
        assert result.status.reason == "optimal"
        assert result.objective == pytest.approx(best, rel=2e-6)
        assert result.bound <= best * (1 + 1e-7)
        assert evaluate(instance, result.solution).violations == ()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(routings(placement=False))
def test_equal_to_cvxpy(instance):
    assert_agree(instance, solve(instance), solve(instance, "cvxpy").objective)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(routings(placement=True, most_models=2, most_classes=2))
def test_equal_to_the_best_choice_of_models(instance):
    fixed = [
        replace(instance, service_per_s=np.where(held, instance.service_per_s, 0), model_bytes=None, memory_bytes=None)
        if instance.chooses else instance
        for held in loadings(instance)
    ]  # fmt: skip
    best = min((solve(choice, "cvxpy").objective for choice in fixed), default=math.inf)
    assert_agree(instance, solve(instance), best)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(routings(wild=True))
def test_any_magnitude(instance):
    started = time.process_time()  # a wall clock would fail beside other work, and hypothesis shrink that for minutes
    result = solve(instance, time_limit_s=2)
    assert time.process_time() - started < 2.5
    assert result.status.has_solution or result.message or result.status.reason == "time_limit"
    if result.status.has_solution:
        assert evaluate(instance, result.solution).violations == ()


def test_one_queue_by_hand():
    # M/M/1 with 3 of 5 queries per second: 1 / (5 − 3) s, and 0.1 s of network
    result = solve(Routing([3.0], [[5.0]], network_s=[0.1]))
    assert result.objective == pytest.approx(0.6, rel=1e-7)
    assert result.metrics["load"] == pytest.approx(0.6)


def test_square_roots_share_two_queues():
    # the classic: ρ_s = 1 − √(level / μ_s) for queues that are used
    instance = Routing([5.0], [[4.0, 9.0]])
    result = solve(instance)
    flow = 5.0 * result.solution.fractions[0, 0]
    spare = np.array([4.0, 9.0]) - flow
    assert spare / np.sqrt([4.0, 9.0]) == pytest.approx([8 / 5, 8 / 5], rel=1e-3)
    assert result.objective == pytest.approx((flow / spare).sum() / 5, rel=1e-9)


def test_a_device_queue_adds_its_models_loads():
    # half the queries to each of two models of one device: ρ = 1/4 + 1/8, number in system ρ / (1 − ρ)
    instance = Routing([1.0, 1.0], [[4.0], [8.0]], accuracy=[[1, 0], [0, 1]], min_accuracy=[1, 1], queue="device")
    assert solve(instance).objective == pytest.approx(0.375 / 0.625 / 2, rel=1e-7)


def test_a_floor_costs_time():
    fields = {"arrival_per_s": [2.0], "service_per_s": [[10.0], [4.0]], "accuracy": [0.5, 1.0]}
    free, floored = solve(Routing(**fields)), solve(Routing(**fields, min_accuracy=0.9))
    assert floored.metrics["accuracy"] == pytest.approx(0.9, abs=1e-6)
    assert floored.objective > free.objective
    assert solve(Routing(**fields, min_accuracy=[0.9])).objective == pytest.approx(floored.objective, rel=1e-6)
    assert solve(Routing(**fields, min_accuracy=1.0)).objective == pytest.approx(1 / (4 - 2), rel=1e-6)


def test_a_class_that_never_arrives_needs_nothing():
    result = solve(Routing([0.0, 1.0], [[3.0]], accuracy=[[0.1], [0.9]], min_accuracy=[0.5, 0.5]))
    assert result.objective == pytest.approx(0.5, rel=1e-6)
    assert result.solution.fractions[0].sum() == 1


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"arrival_per_s": [6.0]}, "loaded to at least 1.2, max_load is 1: a factor of 1.2 too many"),
        ({"max_load": 0.5}, "loaded to at least 0.8, max_load is 0.5: a factor of 1.6 too many"),
        ({"accuracy": [0.7, 0.8], "min_accuracy": 0.9}, "the most accurate models reach 0.8, 10 points too few"),
        ({"accuracy": [0.7, 0.8], "min_accuracy": [0.85]}, "min_accuracy[0] is 0.85, its most accurate model"),
        ({"accuracy": [0.7, 0.8], "min_accuracy": 0.8}, "a factor of 2 too many queries for the accurate models"),
        ({"network_s": [math.inf]}, "class 0 reaches no model"),
        ({"model_bytes": [3.0, 3.0], "memory_bytes": [5.0]}, "memory: with every model loaded a routing exists"),
        ({"model_bytes": [3.0, 3.0], "memory_bytes": [2.0]}, "class 0 reaches no model"),
    ],
)
def test_infeasible_names_the_limit_and_by_how_much(fields, sentence):
    result = solve(Routing(**{"arrival_per_s": [4.0], "service_per_s": [[3.0], [2.0]], **fields}))
    assert result.status.reason == "infeasible"
    assert sentence in result.message


@pytest.mark.parametrize("more", [{}, {"queue": "device"}, {"min_accuracy": 0.82}, {"max_load": 0.8}])
def test_at_scale_the_prices_prove_it(more):
    result = solve(routing_at_scale(0, num_classes=60, num_models=20, num_devices=8, **more))
    assert result.status.reason == "optimal"
    assert result.gap <= 1e-6


def test_models_to_choose_at_a_time_limit():
    instance = routing_at_scale(1, num_classes=10, num_models=8, num_devices=4)
    instance = replace(instance, model_bytes=np.ones(8), memory_bytes=np.full(4, 3.0))
    result = solve(instance, time_limit_s=1.5)
    assert result.status.has_solution
    assert 0 < result.bound <= result.objective
    assert result.solution.loaded.sum(axis=0).max() <= 3


def test_threads_and_repeats_agree():
    instances = [routing_at_scale(seed, num_classes=10, num_models=6, num_devices=3) for seed in range(8)]

    def call(instance):
        result = solve(instance)
        return result.objective, result.bound, result.solution.fractions.tolist()

    alone = [call(instance) for instance in instances]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(call, instances * 2)) == alone * 2


def test_cvxpy_refuses_to_choose_models():
    instance = Routing([1.0], [[3.0]], model_bytes=[1.0], memory_bytes=[1.0])
    with pytest.raises(UnsupportedError, match="cannot express placement"):
        solve(instance, "cvxpy")


def test_a_load_limit_exactly_full_has_a_plan_and_an_honest_gap():
    # no interior is left: the linear program for the least load gives the plan, the interior point the bound
    instance = Routing([4.0, 4.0], [[4.0, 6.0]], network_s=[[0.3, 0.1]] * 2, max_load=0.8)
    result = solve(instance)
    assert result.objective == pytest.approx((3.2 * 0.3 + 4.8 * 0.1 + 4 + 4) / 8, rel=1e-8)
    assert result.bound <= result.objective
    assert result.gap <= 1e-3
