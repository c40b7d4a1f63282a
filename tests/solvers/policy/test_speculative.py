"""Speculative decoding: exact beside brute force, by hand, and what is refused."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings

from edgeopt_solvers import InstanceError, solve
from edgeopt_solvers.errors import UnsupportedError
from edgeopt_solvers.policy import FEATURES, Speculative, SpeculativeSolution, evaluate
from tests.solvers.policy.policies import brute_force_speculative, speculatives


@settings(max_examples=250, deadline=None)
@given(speculatives())
def test_equal_to_brute_force(instance):
    result, best = solve(instance), brute_force_speculative(instance)
    if not result.status.has_solution:
        assert result.status.reason == "infeasible"
        assert best == math.inf
        assert result.message
        return
    assert result.status.reason == "optimal"
    assert result.objective == pytest.approx(best, rel=1e-12)
    assert result.bound <= best * (1 + 1e-12)


@settings(max_examples=200, deadline=None)
@given(speculatives(wild=True))
def test_any_magnitude(instance):
    result = solve(instance)
    assert result.status.reason in ("optimal", "infeasible")
    assert result.status.has_solution or result.message


@settings(max_examples=50, deadline=None)
@given(speculatives(wild=True))
def test_json_round_trip(instance):
    again = Speculative.from_json(instance.to_json())
    assert again == instance
    assert hash(again) == hash(instance)
    assert again.features() == instance.features() <= FEATURES


def test_by_hand():
    # α = 1/2, γ = 2: 1 + 1/2 + 1/4 tokens in 2 · 0.1 + (0.05 + 12/100) + 1 + (0.05 + 8/100)
    instance = Speculative(
        [[0.1, math.inf]], [[math.inf, 1.0]], [[0.5]], 2, rate_bytes_per_s=[[0, 100.0], [100.0, 0]],
        latency_s=[[0, 0.05], [0.05, 0]], round_bytes=4.0, token_bytes=4.0, reply_bytes=8.0,
        power_w=[2.0, 10.0], byte_j=[0.5, 0.25], price_per_s=[0.0, 3.0],
    )  # fmt: skip
    evaluation = evaluate(instance, SpeculativeSolution(0, 0, 0, 1, 2))
    assert evaluation.metrics["tokens_per_round"] == 1.75
    assert evaluation.metrics["round_s"] == pytest.approx(0.2 + 0.17 + 1.0 + 0.13)
    assert evaluation.metrics["energy_per_token_j"] == pytest.approx((0.4 + 10 + 12 * 0.5 + 8 * 0.25) / 1.75)
    assert evaluation.metrics["cost_per_token"] == pytest.approx(3 / 1.75)
    assert evaluation.objective == pytest.approx(1.5 / 1.75)
    assert solve(instance).solution == SpeculativeSolution(0, 0, 0, 1, 2)


def test_geometric_is_the_closed_form():
    for alpha in (0.0, 0.3, 0.9):
        instance = Speculative([[0.01]], [[1.0]], [[alpha]], 7, min_length=7)
        expected = (1 - alpha**8) / (1 - alpha)
        assert solve(instance).metrics["tokens_per_round"] == pytest.approx(expected, rel=1e-12)


def test_a_draft_that_does_not_pay_is_left_out():
    result = solve(Speculative([[0.9]], [[1.0]], [[0.2]], 4))
    assert result.solution == SpeculativeSolution(-1, -1, 0, 0, 0)
    assert result.objective == 1.0
    assert solve(Speculative([[0.9]], [[1.0]], [[0.2]], 4, min_length=1)).solution.length == 1


def test_positions_cut_the_length():
    # the second guess is never right: longer drafts only cost
    result = solve(Speculative([[0.1]], [[1.0]], [[[0.9, 0.0, 1.0]]], 3))
    assert result.solution.length == 1


def test_what_comes_before_the_rounds_counts_once_per_token():
    fields = {"draft_s": [[0.1, 0.1]], "verify_s": [[1.0, 0.9]], "acceptance": [[0.9]], "max_length": 1}
    start = np.zeros((1, 2, 1, 2))
    start[:, :, :, 1] = 0.3  # the faster target takes long to begin
    result = solve(Speculative(**fields, start_s=start, alone_start_s=[[0.0, 0.3]]))
    assert result.solution == SpeculativeSolution(0, 0, 0, 0, 1)
    assert result.objective == pytest.approx(1.1 / 1.9)
    slow = evaluate(Speculative(**fields, start_s=start), SpeculativeSolution(0, 0, 0, 1, 1))
    assert slow.objective == pytest.approx(1.0 / 1.9 + 0.3)


def test_what_a_round_takes_beside_its_steps_makes_drafts_longer():
    fields = {"draft_s": [[0.1]], "verify_s": [[1.0]], "acceptance": [[0.8]], "max_length": 16}
    short = solve(Speculative(**fields)).solution.length
    dear = solve(Speculative(**fields, draft_round_s=[[0.5]]))
    assert dear.solution.length > short
    tokens = (1 - 0.8 ** (dear.solution.length + 1)) / 0.2
    assert dear.objective == pytest.approx((0.5 + 0.1 * dear.solution.length + 1.0) / tokens)


def test_one_device_needs_memory_for_both():
    fields = {"draft_s": [[0.1, 0.1]], "verify_s": [[1.0, 9.0]], "acceptance": [[0.9]], "max_length": 4}
    memory = {"memory_bytes": [3.0, 1.0], "draft_bytes": [1.0], "target_bytes": [2.5]}
    assert solve(Speculative(**fields)).solution.draft_device == 0
    assert solve(Speculative(**fields, **memory)).solution.draft_device == 1


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"memory_bytes": [3.0], "target_bytes": [4.0]},
            "target 0, the smallest, needs 4 bytes, the largest memory is 3",
        ),
        (
            {"memory_bytes": [3.0], "draft_bytes": [5.0], "min_length": 1},
            "draft 0, the smallest, needs 5 bytes, the largest memory is 3 bytes on device 0, 2 too few",
        ),
        ({"memory_bytes": [3.0], "draft_bytes": [2.0], "target_bytes": [2.0], "min_length": 1}, "memory: no draft"),
        ({"draft_s": [[math.inf]], "min_length": 1}, "links: no draft and target"),
        (
            {"max_time_per_token_s": 0.1},
            "max_time_per_token_s is 0.1 s, the least of any policy is 0.6 s, 0.5 s too much",
        ),
        (
            {"max_energy_per_token_j": 0.1, "power_w": [1.0]},
            "max_energy_per_token_j is 0.1 J, the least of any policy is 0.6 J",
        ),
    ],
)
def test_infeasible_names_the_limit_and_by_how_much(fields, sentence):
    base = {"draft_s": [[0.2]], "verify_s": [[1.0]], "acceptance": [[1.0]], "max_length": 1}
    result = solve(Speculative(**{**base, **fields}))
    assert result.status.reason == "infeasible"
    assert sentence in result.message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_length": 0}, "max_length is 0"),
        ({"acceptance": [[1.5]]}, r"acceptance\[0, 0\] is 1.5; give a probability"),
        ({"acceptance": [[0.5, 0.5]]}, r"acceptance has shape \(1, 2\), expected \(1, 1\) or \(1, 1, 4\)"),
        ({"verify_s": [[[1.0]]]}, r"verify_s has shape \(1, 1, 1\)"),
        ({"draft_s": [[-1.0]]}, r"draft_s\[0, 0\] is -1.0; give seconds"),
        ({"draft_s": [[1e99]]}, r"draft_s\[0, 0\] is 1e\+99; .*between 1e-40 and 1e\+40"),
        ({"rate_bytes_per_s": [1.0]}, r"rate_bytes_per_s has shape \(1,\)"),
        ({"token_bytes": -1.0}, "token_bytes is -1.0; give bytes"),
        ({"objective": "speed"}, "objective is 'speed'; choose one of time, energy, cost"),
        ({"objective": "energy"}, "power_w and byte_j are missing"),
        ({"max_cost_per_token": 1.0}, "price_per_s is missing"),
        ({"min_length": 5}, "min_length is 5, expected a whole number 0..4"),
    ],
)
def test_refused_with_field_value_and_mend(fields, message):
    base = {"draft_s": [[0.2]], "verify_s": [[1.0]], "acceptance": [[0.5]], "max_length": 4}
    with pytest.raises(InstanceError, match=message):
        Speculative(**{**base, **fields})


@pytest.mark.parametrize(
    ("solution", "sentence"),
    [
        (SpeculativeSolution(0, 0, 0, 0, 9), "the draft length is 9, allowed are 0..4"),
        (SpeculativeSolution(1, 0, 0, 0, 1), "draft 1 is not in 0..0"),
        (SpeculativeSolution(0, 0, 0, 2, 1), "target_device 2 is not in 0..1"),
        (SpeculativeSolution(0, 0, 0, 0, 1), "device 0 needs 4 bytes, its memory is 3"),
        (SpeculativeSolution(0, 0, 0, 1, 1), "a round never ends"),
    ],
)
def test_checker_names_broken_rules(solution, sentence):
    instance = Speculative(
        [[0.1, 0.1]], [[1.0, 1.0]], [[0.5]], 4, rate_bytes_per_s=np.zeros((2, 2)), memory_bytes=[3.0, 9.0],
        draft_bytes=[2.0], target_bytes=[2.0],
    )  # fmt: skip
    assert any(sentence in violation for violation in evaluate(instance, solution).violations)


def test_full_size_in_time():
    rng = np.random.default_rng(0)
    instance = Speculative(
        rng.lognormal(-4, 0.6, (8, 20)), rng.lognormal(-2.5, 0.5, (4, 20)), rng.uniform(0.5, 0.9, (8, 4)), 32,
        rate_bytes_per_s=rng.lognormal(16, 1, (20, 20)), latency_s=rng.uniform(1e-3, 2e-2, (20, 20)), token_bytes=4.0,
    )  # fmt: skip
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        result = solve(instance)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.1  # ten times the target: other work may share the machine
    assert result.statistics["num_candidates"] == 8 * 4 * 20 * 20 * 32 + 80


def test_a_program_is_refused():
    with pytest.raises(UnsupportedError, match="cannot express speculative"):
        solve(Speculative([[0.1]], [[1.0]], [[0.5]], 2), "pulp")
