"""Speculative decoding with a target in stages: exact beside brute force and whole targets, by hand, and refusals."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from edgeopt_solvers import InstanceError, solve
from edgeopt_solvers.policy import FEATURES, Speculative, StagedSolution, StagedSpeculative, evaluate
from edgeopt_solvers.policy.stages import WEIGHTS, Candidate, chain_of
from tests.solvers.policy.policies import brute_force_speculative
from tests.solvers.policy.stagings import brute_force_staged, pipelines, stagings


@settings(max_examples=25, deadline=None)
@given(stagings())
def test_equal_to_brute_force_or_within_the_gap_that_it_states(instance):
    result, best = solve(instance), brute_force_staged(instance)
    if not result.status.has_solution:
        assert result.status.reason == "infeasible"
        assert best == math.inf
        assert result.message
        return
    assert result.bound <= best * (1 + 1e-9)
    assert best <= result.objective * (1 + 1e-12)
    if result.status.reason == "optimal":
        assert result.objective == pytest.approx(best, rel=1e-8)
    else:
        assert result.gap < 0.2
    assert evaluate(instance, result.solution).violations == ()


def test_nearly_all_are_proven():
    """What goes on beside the target is rarely the longer for some pipelines only; then a gap is stated."""
    rng, reasons = np.random.default_rng(0), []
    for _ in range(5):
        D, L, G = 3, 4, 3
        each = rng.lognormal(0, 0.5, (D, 1, L))
        instance = StagedSpeculative(
            draft_s=rng.lognormal(-2, 0.5, (2, D)), draft_prefill_s=rng.lognormal(-1, 0.5, (2, D)),
            prefill_s=rng.lognormal(0, 0.5, (D, L)), verify_s=each * (1 + 0.1 * np.arange(G + 1)[:, None]),
            acceptance=rng.uniform(0.5, 1, (2, G)), max_length=G, num_tokens=20,
            rate_bytes_per_s=rng.lognormal(2, 1, (D, D)), latency_s=rng.uniform(0, 0.1, (D, D)),
            position_cut_bytes=np.ones(L + 1), prefill_cut_bytes=np.ones(L + 1), spread_bytes=0.5,
            memory_bytes=[3.0, 3.0, 3.0], resident_bytes=np.ones(L), draft_bytes=[0.5, 0.2],
        )  # fmt: skip
        result = solve(instance)
        assert result.objective == pytest.approx(brute_force_staged(instance), rel=1e-9)
        reasons.append(result.status.reason)
    assert reasons.count("optimal") >= 4


@settings(max_examples=8, deadline=None)
@given(stagings())
def test_every_chain_is_a_bound(instance):
    """At any weights, for any pipeline; at weight 1 it is the request's time wherever nothing beside it is longer."""
    from edgeopt_solvers.chain import Solution
    from edgeopt_solvers.chain import evaluate as evaluate_chain

    free = replace(instance, max_time_s=None)
    for cuts, devices in pipelines(instance.num_elements, instance.num_devices):
        for length in range(max(1, instance.min_length), instance.max_length + 1):
            found = evaluate(free, StagedSolution(0, 0, length, cuts, devices))
            if found.violations:
                continue
            for weights in WEIGHTS:
                chain, constant = chain_of(free, Candidate(0, 0, length), *weights)
                value = evaluate_chain(chain, Solution(cuts, devices, (0,) * len(cuts))).objective + constant
                assert value <= found.objective * (1 + 1e-9)


def test_one_stage_is_what_whole_targets_are():
    rng = np.random.default_rng(3)
    for _ in range(4):
        D, G = 3, 4
        draft_s, verify = rng.lognormal(-1, 0.5, (2, D)), rng.lognormal(0, 0.5, (D, G + 1, 1))
        links = {"rate_bytes_per_s": rng.lognormal(1, 1, (D, D)), "latency_s": rng.uniform(0, 0.3, (D, D))}
        accept = rng.uniform(0.3, 1, (2, G))
        amounts = {"round_bytes": 0.3, "token_bytes": 0.5, "reply_bytes": 0.7}
        memory = {"memory_bytes": rng.uniform(1, 4, D), "draft_bytes": [0.5, 0.7]}
        whole = Speculative(
            draft_s, verify[None, :, :, 0], accept[:, None], G, target_bytes=[1.0], **links, **amounts, **memory
        )
        staged = StagedSpeculative(
            draft_s=draft_s, draft_prefill_s=np.zeros((2, D)), prefill_s=np.zeros((D, 1)), verify_s=verify,
            acceptance=accept, max_length=G, num_tokens=1.0, resident_bytes=[1.0], **links, **amounts, **memory,
        )  # fmt: skip
        found = solve(staged)
        # Reading the prompt takes nothing, so that the first round waits for one reply at most.
        reply = staged.sending_s(found.solution.devices[-1], found.solution.draft_device, 0.7)
        before = (found.solution.length > 0) * reply + staged.sending_s(0, found.solution.devices[0], 0.0)
        before += staged.sending_s(found.solution.devices[-1], 0, 0.0)
        assert found.objective >= brute_force_speculative(whole) - 1e-12
        assert found.metrics["round_s"] / found.metrics["tokens_per_round"] == pytest.approx(found.objective - before)


def by_hand(**fields):
    """Two devices, three elements; the draft is on the first."""
    return StagedSpeculative(
        **{
            "draft_s": [[0.1, 0.2]], "draft_prefill_s": [[0.5, 0.5]], "prefill_s": np.full((2, 3), 1.0),
            "verify_s": np.broadcast_to(np.array([0.3, 0.4, 0.5])[:, None], (2, 3, 3)), "acceptance": [[0.5, 0.5]],
            "max_length": 2, "num_tokens": 7.0, "rate_bytes_per_s": np.full((2, 2), 100.0),
            "latency_s": np.full((2, 2), 0.05), "prompt_bytes": 10.0, "result_bytes": 20.0,
            "prefill_cut_bytes": np.full(4, 8.0), "position_cut_bytes": np.full(4, 4.0), "round_bytes": 2.0,
            "token_bytes": 1.0, "reply_bytes": 3.0, "loop_bytes": 1.0, "memory_bytes": [2.5, 2.5],
            "resident_bytes": np.ones(3), "draft_bytes": [0.5], **fields,
        }
    )  # fmt: skip


def test_by_hand():
    instance = by_hand()
    found = evaluate(instance, StagedSolution(0, 0, 2, (1, 3), (0, 1)))
    first = 1.0 + (0.05 + 0.08) + 2.0
    assert found.metrics["ttft_s"] == pytest.approx(first)
    # The draft reads after the first stage, which is on its device: at 1.5 s, long before the first token.
    assert found.metrics["start_s"] == pytest.approx(first + 0.05 + 0.03)
    round_s = 2 * 0.1 + 0.5 + (0.05 + (3 * 4 + 2 + 2 * 1) / 100) + 2 * 0.5 + (0.05 + 0.03)
    assert found.metrics["round_s"] == pytest.approx(round_s)
    assert found.metrics["tokens_per_round"] == 1.75
    assert found.objective == pytest.approx(first + 0.08 + 4 * round_s + 0.05 + 0.2)
    assert found.violations == ()
    alone = evaluate(instance, StagedSolution(-1, -1, 0, (1, 3), (0, 1)))
    assert alone.metrics["round_s"] == pytest.approx(0.9 + 0.05 + 0.04 + 0.05 + 0.01)
    # Distributions go straight to the last stage, and are waited for where they take longer than the stages.
    spread = evaluate(by_hand(spread_bytes=100.0), StagedSolution(0, 0, 2, (1, 3), (0, 1)))
    assert spread.metrics["round_s"] == pytest.approx(2 * 0.1 + (0.05 + 204 / 100) + 0.08)
    # The draft's device reads for the last stage first, then for the draft.
    last = evaluate(instance, StagedSolution(0, 1, 2, (1, 3), (0, 1)))
    assert last.metrics["start_s"] == pytest.approx(first + 0.5)
    slow = evaluate(by_hand(draft_round_s=[[0.25, 0.0]]), StagedSolution(0, 0, 2, (1, 3), (0, 1)))
    assert slow.metrics["round_s"] == pytest.approx(round_s + 0.25)
    assert solve(instance).objective == pytest.approx(brute_force_staged(instance), rel=1e-12)


def test_devices_that_only_slow_things_down_are_dropped():
    roomy = by_hand(memory_bytes=[9.0, 9.0])
    assert len(solve(roomy).solution.devices) == 1
    assert len(solve(by_hand()).solution.devices) == 2


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"memory_bytes": [1.2, 1.5]}, "needs 3 bytes, the memory of all that can run it is 2.7 bytes, 0.3 too few"),
        ({"draft_bytes": [9.0], "min_length": 1}, "the smallest draft needs 9 bytes, the largest memory is 2.5 bytes"),
        ({"max_time_s": 1.0}, "max_time_s is 1 s, the least of any request is"),
        ({"rate_bytes_per_s": np.zeros((2, 2)), "memory_bytes": [9.0, 9.0], "prefill_s": np.full((2, 3), np.inf)},
         "memory: the target"),
        ({"rate_bytes_per_s": np.zeros((2, 2))}, "memory: no cut of the target fits"),
    ],
)  # fmt: skip
def test_infeasible_names_the_limit_and_by_how_much(fields, sentence):
    result = solve(by_hand(**fields))
    assert result.status.reason == "infeasible"
    assert sentence in result.message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_length": 0}, "max_length is 0"),
        ({"acceptance": [[0.5, 1.5]]}, r"acceptance\[0, 1\] is 1.5; give a probability"),
        ({"verify_s": np.ones((2, 2, 3))}, r"verify_s has shape \(2, 2, 3\), expected \(2, 3, 3\)"),
        ({"num_tokens": 0.0}, "num_tokens is 0.0; give the tokens"),
        ({"source": 2}, r"source is 2, expected a whole number 0..1"),
        ({"position_cut_bytes": [1.0]}, r"position_cut_bytes has shape \(1,\)"),
        ({"spread_bytes": -1.0}, "spread_bytes is -1.0"),
    ],
)
def test_refused_with_field_value_and_mend(fields, message):
    with pytest.raises(InstanceError, match=message):
        by_hand(**fields)


@pytest.mark.parametrize(
    ("solution", "sentence"),
    [
        (StagedSolution(0, 0, 9, (3,), (0,)), "the draft length is 9, allowed are 0..2"),
        (StagedSolution(1, 0, 1, (1, 3), (0, 1)), "draft 1 is not in 0..0"),
        (StagedSolution(0, 0, 1, (1, 3), (0, 2)), "devices 2 is not in 0..1"),
        (StagedSolution(0, 0, 1, (1, 2), (0, 1)), "no increasing ends"),
        (StagedSolution(0, 0, 1, (1, 3), (0, 0)), "hold more than one stage"),
        (StagedSolution(0, 0, 1, (3,), (0,)), "device 0 needs 3.5 bytes, its memory is 2.5"),
    ],
)
def test_checker_names_broken_rules(solution, sentence):
    assert any(sentence in violation for violation in evaluate(by_hand(), solution).violations)


def test_json_round_trip_and_limits_of_time():
    instance = by_hand(max_stages=2)
    assert StagedSpeculative.from_json(instance.to_json()) == instance
    assert instance.features() <= FEATURES
    start = StagedSolution(-1, -1, 0, (1, 3), (0, 1))
    found = solve(instance, time_limit_s=1e-9, warm_start=start)
    assert (found.status.reason, found.solution) == ("time_limit", start)
    assert 0 < found.bound < found.objective
    one = solve(by_hand(max_stages=1, memory_bytes=[9.0, 9.0])).solution
    assert len(one.devices) == 1
