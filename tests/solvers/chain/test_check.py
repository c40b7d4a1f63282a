"""The checker against the brute force's own costs, plan by plan, and its sentences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeopt_solvers.chain import Chain, Solution, evaluate
from tests.solvers.chain.brute import metrics_of
from tests.solvers.chain.draws import chains


def _stages(dev, var) -> Solution:
    ends = [k for k in range(1, len(dev)) if (dev[k], var[k]) != (dev[k - 1], var[k - 1])] + [len(dev)]
    return Solution(tuple(ends), tuple(dev[k - 1] for k in ends), tuple(var[k - 1] for k in ends))


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(chains(), st.integers(0, 2**32 - 1))
def test_every_plan_costs_what_the_brute_force_says(chain, seed):
    rng = np.random.default_rng(seed)
    # runs rather than noise, so that many of the plans are feasible
    dev, var = (np.sort(rng.integers(0, n, chain.num_elements)) for n in (chain.num_devices, chain.num_variants))
    dev, var = rng.permutation(chain.num_devices)[dev], rng.permutation(chain.num_variants)[var]
    evaluation = evaluate(chain, _stages(dev, var))
    metrics, ok = metrics_of(chain, dev[None], var[None])
    assert (evaluation.violations == ()) == bool(ok[0]), evaluation.violations
    if ok[0]:
        expected = {"latency_s": "latency", "period_s": "throughput", "quality_loss": "quality", "energy_j": "energy"}
        for ours, theirs in expected.items():
            if ours in evaluation.metrics:
                assert evaluation.metrics[ours] == pytest.approx(metrics[theirs][0], rel=1e-12, abs=1e-12)
        assert sum(evaluation.terms.values()) == pytest.approx(evaluation.metrics["latency_s"])


BASE = {
    "compute_s": [[1.0, 2.0, 4.0], [0.5, 1.0, 2.0], [9.0, 9.0, 9.0]],
    "cut_bytes": [10.0, 20.0, 40.0, 80.0],
    "rate_bytes_per_s": [[0, 10.0, 10.0], [20.0, 0, 0.0], [10.0, 10.0, 0]],
    "latency_s": np.full((3, 3), 0.5),
}


def test_a_hand_computed_plan():
    chain = Chain(**BASE, loop_bytes=40.0, loop_messages=3, power_w=[1, 10, 0], send_power_w=[2, 3, 0])
    evaluation = evaluate(chain, Solution((1, 3), (0, 1), (0, 0)))
    # no input (source 0 starts); compute 1 + 1 + 2; cut 1: 0.5 + 2; loop 1->0: 1.5 + 2; result 1->0: 0.5 + 4
    assert evaluation.terms == {"input_s": 0.0, "compute_s": 4.0, "transfer_s": 2.5, "loop_s": 3.5, "output_s": 4.5}
    assert evaluation.metrics["latency_s"] == 14.5
    assert evaluation.metrics["period_s"] == 8.0  # loop and result share the link 1->0
    assert evaluation.metrics["energy_j"] == 1 * 1 + 3 * 10 + 2.5 * 2 + 8.0 * 3
    assert evaluation.metrics["busy_s[1]"] == 3.0
    assert evaluation.violations == ()


def test_shared_bytes_count_once_per_device_and_variant_and_the_largest_transient_once():
    chain = Chain(
        compute_s=np.ones((2, 2, 4)), cut_bytes=np.zeros(5), rate_bytes_per_s=np.ones((2, 2)),
        latency_s=np.zeros((2, 2)), reuse="many", resident_bytes=[1, 1, 1, 1], shared_bytes=[100, 1000],
        transient_bytes=[[7, 0, 5, 0], [3, 9, 3, 3]],
    )  # fmt: skip
    metrics = evaluate(chain, Solution((1, 2, 3, 4), (0, 1, 0, 0), (0, 0, 0, 1))).metrics
    assert metrics["memory_bytes[0]"] == 3 + 100 + 1000 + 7
    assert metrics["memory_bytes[1]"] == 1 + 100


@pytest.mark.parametrize(
    ("options", "solution", "sentence"),
    [
        ({}, Solution((1, 3), (1, 2), (0, 0)), "no link from device 1 to device 2 for cut 1"),
        ({}, Solution((1, 2, 3), (0, 1, 0), (0, 0, 0)), "device 0 holds 2 stages, and reuse is 'once'"),
        ({"max_stages": 1}, Solution((1, 3), (0, 1), (0, 0)), "2 stages, and max_stages is 1"),
        ({"min_segment": 2}, Solution((1, 3), (0, 1), (0, 0)), "stage 0..1 has 1 elements, and min_segment is 2"),
        ({"pins": {2: 0}}, Solution((1, 3), (0, 1), (0, 0)), "element 2 runs on device 1, and is pinned to device 0"),
        ({"cut_legal": [1, 0, 1, 1]}, Solution((1, 3), (0, 1), (0, 0)), "begins at element 1, where cut_legal forbids"),
        ({"max_latency_s": 5}, Solution((3,), (0,), (0,)), "latency_s is 7 s, and max_latency_s is 5 s"),
        ({"max_period_s": 5}, Solution((3,), (0,), (0,)), "period_s is 7 s, and max_period_s is 5 s"),
        (
            {"memory_bytes": [4e9, 9e9, 9e9], "resident_bytes": [2e9, 2e9, 1.1e9]},
            Solution((3,), (0,), (0,)),
            "device 0 needs 5.1e+09 bytes of memory, has 4e+09 bytes",
        ),
        ({}, Solution((2,), (0,), (0,)), "the last cut is 2, the chain has 3 elements"),
        ({}, Solution((3,), (5,), (0,)), "device 5 does not exist"),
        ({}, Solution((3,), (0,), (1,)), "variant 1 does not exist"),
        ({}, Solution((2, 1, 3), (0, 1, 2), (0, 0, 0)), "must increase"),
        ({}, Solution((), (), ()), "at least one stage"),
        ({}, Solution((1, 3), (0, 0), (0, 0)), "the stages on both sides of cut 1 are one"),
    ],
)
def test_each_broken_rule_is_a_sentence(options, solution, sentence):
    violations = evaluate(Chain(**BASE, **options), solution).violations
    assert any(sentence in violation for violation in violations), violations


def test_memory_that_is_exactly_full_despite_rounding_is_allowed():
    chain = Chain(
        compute_s=np.ones((1, 3)), cut_bytes=np.zeros(4), rate_bytes_per_s=[[0]], latency_s=[[0]],
        resident_bytes=[0.1, 0.2, 0.3], memory_bytes=[0.6],
    )  # fmt: skip
    assert 0.1 + 0.2 + 0.3 > 0.6
    assert evaluate(chain, Solution((3,), (0,), (0,))).violations == ()
