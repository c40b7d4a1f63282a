"""Experts that exchange tokens between layers: every plan beside brute force, the checker by hand, large instances."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from edgeopt_solvers import InstanceError, solve
from edgeopt_solvers.errors import UnsupportedError
from edgeopt_solvers.placement import Experts, ExpertsSolution, evaluate
from tests.benchmarks.placement import exchange_at_scale, popularity_greedy, round_robin, routed
from tests.solvers.placement.exchanges import best_exchange, exchanges

# two layers of two experts on two devices; 3 tokens go 0→0, 1 goes 0→1, 2 go 1→1
PAIRS = {
    "load": [[4.0, 2.0], [3.0, 3.0]], "unit_s": [1.0, 1.0], "traffic": [[[3.0, 1.0], [0.0, 2.0]]],
    "exchange_bytes": 2.0, "rate_bytes_per_s": [[0, 4.0], [1.0, 0]], "latency_s": [[0, 0.25], [0.5, 0]],
}  # fmt: skip
APART = [[[1, 0], [0, 1]], [[1, 0], [0, 1]]]


def plan(replicas, share, route):
    return ExpertsSolution(replicas, share, route)


def assert_equal_to_brute_force(instance, result, best, close):
    if best == math.inf:
        assert result.status.reason == "infeasible"
        assert result.message
    else:
        assert result.objective == pytest.approx(best, rel=close, abs=1e-9)
        assert result.bound <= best * (1 + 1e-7) + 1e-12
        assert evaluate(instance, result.solution).violations == ()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(exchanges())
def test_equal_to_brute_force(instance):
    best = best_exchange(instance)
    result = solve(instance)
    assert_equal_to_brute_force(instance, result, best, 1e-7)
    assert result.status.reason in ("optimal", "infeasible")
    assert_equal_to_brute_force(instance, solve(instance, "pulp"), best, 1e-5)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(exchanges(wild=True))
def test_any_magnitude(instance):
    started = time.process_time()  # other work may share the machine
    result = solve(instance, time_limit_s=1)
    assert time.process_time() - started < 1.5
    assert result.status.has_solution or result.message
    if result.status.has_solution:
        assert evaluate(instance, result.solution).violations == ()


def test_the_checker_by_hand():
    # everything stays where it is but one token, from device 0 to device 1: 0.25 s + 2/4 s
    held = np.array(APART, dtype=bool)
    one = evaluate(Experts(**PAIRS), plan(held, held, [[np.eye(2)[[0, 0]], np.eye(2)[[1, 1]]]]))
    assert one.violations == ()
    assert one.objective == 4 + (3 + 0.25 + 0.5)
    # expert 1 of layer 1 on device 0: the two tokens of expert 1 cross 1→0, slowly
    back = np.array([[[1, 0], [0, 1]], [[1, 0], [1, 0]]], dtype=bool)
    two = evaluate(Experts(**PAIRS), plan(back, back, [[np.eye(2)[[0, 0]], np.eye(2)[[0, 0]]]]))
    assert two.objective == 4 + (6 + 0.5 + 2 * 2 / 1)


def test_senders_choose_among_copies():
    # the copies of expert 1 in layer 1 serve whoever is near: nothing travels
    both = np.array([[[1, 0], [0, 1]], [[1, 0], [1, 1]]], dtype=bool)
    share = [[[1, 0], [0, 1]], [[1, 0], [1 / 3, 2 / 3]]]
    near = evaluate(Experts(**PAIRS), plan(both, share, [[np.eye(2)[[0, 0]], np.eye(2)]]))
    assert near.violations == ()
    assert near.objective == 4 + 4
    # with room for that one copy the best plan has it, and shifts work to device 1 as far as that pays
    best = solve(Experts(**PAIRS, expert_bytes=1.0, memory_bytes=[3.0, 2.0]))
    assert best.objective <= 4 + 3.75
    assert best.objective == pytest.approx(best_exchange(Experts(**PAIRS, expert_bytes=1.0, memory_bytes=[3.0, 2.0])))


@pytest.mark.parametrize(
    ("share", "route", "sentence"),
    [
        ([[[1, 0], [0, 1]]] * 2, None, "decisions of shape (0,), expected (1, 2, 2, 2)"),
        ([[[1, 0], [0, 1]]] * 2, [[np.eye(2), np.eye(2)]], "device 0 serves 0, the routes bring it 0.333333333"),
        ([[[1, 0], [0, 1]]] * 2, [[np.eye(2) / 2, np.eye(2)[[1, 1]]]], "the routes from device 0 add up to 0.5"),
        ([[[1, 0], [0, 1]]] * 2, [[-np.eye(2), np.eye(2)]], "a share is below 0"),
    ],
)
def test_the_checker_names_broken_routes(share, route, sentence):
    broken = evaluate(Experts(**PAIRS), plan(np.ones((2, 2, 2), bool), share, route))
    assert any(sentence in violation for violation in broken.violations)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"traffic": None}, "traffic is missing; give both"),
        ({"exchange_bytes": None}, "exchange_bytes is missing; give both"),
        ({"traffic": [[[3.0, 1.0], [0.0, 1.0]]]}, r"traffic\[0, :, 1\] adds up to 2, load\[1, 1\] is 3 tokens; scale"),
        ({"load": [[4.0, 2.0]], "traffic": [[[1.0]]]}, "traffic needs two layers or more"),
        ({"rate_bytes_per_s": None}, "rate_bytes_per_s is missing: tokens travel .exchange_bytes."),
    ],
)
def test_refused_with_field_value_and_mend(fields, message):
    with pytest.raises(InstanceError, match=message):
        Experts(**{**PAIRS, **fields})


def test_json_and_backends():
    instance = Experts(**PAIRS)
    assert Experts.from_json(instance.to_json()) == instance
    assert "exchange" in instance.features()
    assert "exchange" not in replace(instance, exchange_bytes=0.0).features()
    with pytest.raises(UnsupportedError, match="cannot express exchange"):
        solve(instance, "ortools")


def test_without_bytes_nothing_changes():
    free = Experts(**{**PAIRS, "exchange_bytes": 0.0})
    plain = Experts(**{**PAIRS, "exchange_bytes": None, "traffic": None})
    assert solve(free).objective == solve(plain).objective == 6.0


def test_missing_links_are_named():
    # each device has room for one expert of each layer only, and tokens must cross
    fields = {**PAIRS, "rate_bytes_per_s": np.zeros((2, 2)), "expert_bytes": 1.0, "memory_bytes": [2.0, 2.0]}
    crossing = {**fields, "traffic": [[[2.0, 2.0], [1.0, 1.0]]]}
    result = solve(Experts(**crossing))
    assert result.status.reason == "infeasible"
    assert "off the 2 pairs of devices without a link; 0→1 has rate 0" in result.message
    assert solve(Experts(**{**crossing, "memory_bytes": [4.0, 4.0]})).status.reason == "optimal"


def test_larger_instances_beat_simple_rules_and_what_ignores_the_links():
    instance = exchange_at_scale(0, num_layers=6, num_experts=16, num_devices=6)
    result = solve(instance, time_limit_s=6, gap=0.02)
    assert 0 < result.bound <= result.objective
    blind = solve(replace(instance, traffic=None, exchange_bytes=None), time_limit_s=3, gap=1e-3)
    assert blind.bound <= result.bound * (1 + 1e-9)
    for other in (round_robin(instance), popularity_greedy(instance), blind.solution):
        assert result.objective < evaluate(instance, routed(instance, other)).objective
    again = solve(instance, time_limit_s=0.1, warm_start=result)
    assert again.objective <= result.objective * (1 + 1e-12)
