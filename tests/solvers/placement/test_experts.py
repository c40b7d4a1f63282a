"""Experts: the exact backend beside brute force, the MILP and CP-SAT, and its own promises."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings

from edgeopt_solvers import solve
from edgeopt_solvers.placement import Experts, ExpertsSolution, evaluate
from edgeopt_solvers.placement.levels import fluid_level, fluid_levels, layer_split, table_of
from tests.benchmarks.placement import experts_at_scale
from tests.solvers.placement.draws import best_experts, experts


def assert_equal_to_brute_force(instance, result, best, close=1e-8):
    if best == math.inf:
        assert result.status.reason == "infeasible"
        assert result.message
    else:
        assert result.objective == pytest.approx(best, rel=close, abs=1e-12)
        assert result.bound <= best * (1 + 1e-9) + 1e-12
        assert evaluate(instance, result.solution).violations == ()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(experts())
def test_equal_to_brute_force(instance):
    result = solve(instance)
    assert_equal_to_brute_force(instance, result, best_experts(instance))
    assert result.status.reason in ("optimal", "infeasible")


@settings(max_examples=30, deadline=None, derandomize=True)
@given(experts())
def test_pulp_agrees(instance):
    assert_equal_to_brute_force(instance, solve(instance, "pulp"), best_experts(instance), 2e-6)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(experts())
def test_ortools_agrees(instance):
    best = best_experts(instance)
    result = solve(instance, "ortools", time_limit_s=20)
    assert_equal_to_brute_force(instance, result, best, 2e-3)
    assert result.gap <= 3e-3 or not result.status.has_solution


def test_ortools_closes_what_it_once_searched_without_an_end():
    # with seconds a hundred times finer and no first plan, CP-SAT found nothing here in 15 s
    instance = Experts([[5.58081031, 20.93152642, 5.88525267]], [1.36612435, 1.31876644, 0.33766789])
    result = solve(instance, "ortools", time_limit_s=20)
    assert result.objective == pytest.approx(solve(instance).objective, rel=1e-3)
    assert result.status.reason == "gap_reached"
    assert result.gap <= 2e-3


@settings(max_examples=60, deadline=None, derandomize=True)
@given(experts(wild=True))
def test_any_magnitude(instance):
    started = time.process_time()  # a wall clock would fail beside other work, and hypothesis shrink that for minutes
    result = solve(instance, time_limit_s=1)
    assert time.process_time() - started < 1.5
    assert result.status.has_solution or result.message
    if result.status.has_solution:
        assert evaluate(instance, result.solution).violations == ()
        assert result.bound <= result.objective


def test_fluid_level_by_hand():
    # two devices, 1 and 2 s per token, the second 3 s away: alone 4 s for 4 tokens, together 4 + (T-3)/2 ...
    assert fluid_level(2.0, np.array([1.0, 2.0]), np.array([0.0, 3.0])) == 2.0
    assert fluid_level(6.0, np.array([1.0, 2.0]), np.array([0.0, 3.0])) == pytest.approx(5.0)
    assert fluid_level(6.0, np.array([1.0, math.inf]), np.array([0.0, 0.0])) == 6.0
    assert fluid_level(6.0, np.array([1.0, 0.0]), np.array([0.0, 3.0])) == 3.0
    assert fluid_level(6.0, np.array([math.inf]), np.array([0.0])) == math.inf


def test_layer_split_by_hand():
    # experts 0 and 1 share device 0, expert 1 may also use device 1: all three devices' worth of load levels out
    held = np.array([[True, False], [True, True]])
    level, share = layer_split(np.array([3.0, 3.0]), held, np.ones(2), np.zeros(2))
    assert level == 3.0
    assert share.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    level, share = layer_split(np.array([1.0, 3.0]), held, np.ones(2), np.zeros(2))
    assert level == 2.0
    assert share[1] == pytest.approx([1 / 3, 2 / 3])


@pytest.mark.parametrize("seed", range(12))
def test_layer_split_is_a_linear_program(seed):
    from scipy.optimize import linprog

    rng = np.random.default_rng(seed)
    E, D = 20, 8
    load, unit = rng.lognormal(0, 1, E), rng.lognormal(0, 0.7, D)
    held = rng.random((E, D)) < 0.2
    held[np.arange(E), rng.integers(0, D, E)] = True
    e, d = np.nonzero(held)
    n = len(e)
    below = np.zeros((D, n + 1))
    below[d, np.arange(n)] = unit[d]
    below[:, n] = -1
    one = np.zeros((E, n + 1))
    one[e, np.arange(n)] = 1
    answer = linprog(np.eye(n + 1)[n], below, np.zeros(D), one, load)
    level, share = layer_split(load, held, unit, np.zeros(D))
    assert level == pytest.approx(answer.fun, rel=1e-9)
    assert share.sum(axis=1) == pytest.approx(np.ones(E))


def test_replicas_level_the_devices_and_memory_forbids_them():
    fields = {"load": [[6.0, 2.0]], "unit_s": [1.0, 1.0], "expert_bytes": 1.0}
    assert solve(Experts(**fields)).objective == 4.0
    assert solve(Experts(**fields, memory_bytes=[1.0, 1.0])).objective == 6.0
    assert solve(Experts(**fields, max_replicas=1)).objective == 6.0
    assert solve(Experts(**fields, memory_bytes=[1.0, 2.0])).objective == 4.0
    assert solve(Experts(**fields, memory_bytes=[2.0, 2.0], reserved_bytes=[1.0, 1.0])).objective == 6.0


def test_tokens_pay_for_their_way_unless_they_live_there():
    links = {"dispatch_bytes": 2.0, "combine_bytes": 1.0, "rate_bytes_per_s": [[0, 4.0], [2.0, 0]]}
    links["latency_s"] = [[0, 0.25], [0.5, 0]]
    # on device 1: 4 tokens × (1 s + 2/4 + 1/2 s) + 0.75 s; on device 0, where they live: 4 tokens × 3 s
    one = Experts([[4.0]], [3.0, 1.0], max_replicas=1, **links)
    assert solve(one).objective == 8.75
    both = solve(Experts([[4.0]], [3.0, 1.0], **links))
    assert both.objective == pytest.approx(both.solution.share[0, 0, 0] * 12)
    assert both.objective == pytest.approx(0.75 + (4 - both.objective / 3) * 2)
    assert solve(Experts([[4.0]], [3.0, 1.0], max_replicas=1, home=[0, 1], **links)).objective == 4.0


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"memory_bytes": [1.0, 1.5]}, "needs 3 bytes, all devices have room for 2.5, 0.5 too few"),
        ({"memory_bytes": [1.0, 5.0], "expert_bytes": [[1.0, 1.0, 7.0]]}, "expert 2 of layer 0 needs 7 bytes"),
        ({"memory_bytes": [1.5, 1.5]}, "no assignment of whole experts fits"),
        ({"memory_bytes": [5.0, 2.0], "reserved_bytes": [0.0, 3.0]}, "reserved_bytes takes 3, 1 too much"),
        ({"unit_s": [math.inf, math.inf]}, "layer 0: no device can run its experts"),
        ({"unit_s": [math.inf, 1.0], "dispatch_bytes": 1.0, "rate_bytes_per_s": np.zeros((2, 2))}, "no device can run"),
    ],
)
def test_infeasible_names_the_limit_and_by_how_much(fields, sentence):
    if fields.get("memory_bytes") == [1.5, 1.5]:
        fields = {**fields, "load": [[1.0, 1.0]], "expert_bytes": [[0.9, 2.0]], "memory_bytes": [1.5, 1.5]}
        sentence = "expert 1 of layer 0 needs 2 bytes"
    given_fields = {"load": [[1.0, 1.0, 1.0]], "unit_s": [1.0, 1.0], "expert_bytes": 1.0, **fields}
    for backend in ("exact", "pulp"):
        result = solve(Experts(**given_fields), backend)
        assert result.status.reason == "infeasible"
        assert sentence in result.message


def test_whole_experts_that_do_not_fit_are_proven_not_to():
    packing = Experts(np.ones((1, 3)), [1.0, 1.0], expert_bytes=[[2.0, 2.0, 2.0]], memory_bytes=[3.0, 3.0])
    result = solve(packing)
    assert result.status.reason == "infeasible"
    assert "no assignment of whole experts fits every device" in result.message


def test_at_scale_the_gap_is_small_and_simple_rules_are_beaten():
    from tests.benchmarks.placement import popularity_greedy, round_robin

    instance = experts_at_scale(0)
    result = solve(instance, time_limit_s=60, gap=0.01)  # seconds alone; other work may share the machine
    assert result.gap <= 0.01
    assert result.bound >= fluid_levels(instance, table_of(instance)).sum() * (1 - 1e-9)
    for rule in (round_robin, popularity_greedy):
        assert result.objective <= evaluate(instance, rule(instance)).objective


def test_memory_exactly_full():
    instance = experts_at_scale(3, num_layers=4, num_experts=8, num_devices=4, room=1.0)
    full = Experts(
        instance.load, instance.unit_s, instance.expert_bytes, memory_bytes=np.full(4, 8 * 25e6), dispatch_bytes=8192,
        rate_bytes_per_s=instance.rate_bytes_per_s,
    )  # fmt: skip
    result = solve(full, time_limit_s=5, gap=0.5)
    assert result.status.has_solution
    assert result.metrics["num_replicas"] == 32


def test_warm_start_is_never_lost():
    instance = experts_at_scale(1, num_layers=4, num_experts=8, num_devices=4)
    best = solve(instance, time_limit_s=5, gap=1e-4)
    again = solve(instance, time_limit_s=0.05, warm_start=best)
    assert again.objective <= best.objective * (1 + 1e-12)


def test_threads_and_repeats_agree():
    instances = [experts_at_scale(seed, num_layers=2, num_experts=6, num_devices=3) for seed in range(8)]

    def call(instance):
        result = solve(instance, gap=0.1)
        return result.objective, result.bound, result.solution.share.tolist()

    alone = [call(instance) for instance in instances]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(call, instances * 2)) == alone * 2


def test_bounds_are_never_above_any_placement():
    rng = np.random.default_rng(0)
    for seed in range(5):
        instance = experts_at_scale(seed, num_layers=2, num_experts=6, num_devices=3, room=1.5)
        bound = solve(instance, time_limit_s=0.5).bound
        for _ in range(50):
            held = np.zeros((2, 6, 3), dtype=bool)
            np.put_along_axis(held, rng.integers(0, 3, (2, 6, 1)), True, axis=2)
            evaluation = evaluate(instance, ExpertsSolution(held, held.astype(float)))
            assert evaluation.violations or evaluation.objective >= bound * (1 - 1e-9)
