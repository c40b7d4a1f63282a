"""What an instance refuses, how it is written, and what the checker says about wrong decisions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings

from edgeopt_solvers import InstanceError, solve
from edgeopt_solvers.bandwidth import FEATURES, Bandwidth, Solution, evaluate
from tests.solvers.bandwidth.draws import problems


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size_bytes": []}, "size_bytes is empty"),
        ({"size_bytes": "many"}, "size_bytes is not an array of numbers"),
        ({"size_bytes": [[1.0]]}, r"size_bytes has shape \(1, 1\)"),
        ({"size_bytes": [1.0, -2.0]}, r"size_bytes\[1\] is -2.0; give finite bytes >= 0"),
        ({"size_bytes": [1.0, math.nan]}, r"size_bytes\[1\] is nan"),
        ({"size_bytes": [1.0, math.inf]}, r"size_bytes\[1\] is inf"),
        ({"size_bytes": [1.0, 1e200]}, r"size_bytes\[1\] is 1e\+200; .*between 1e-40 and 1e\+40, or 0"),
        ({"rate_bytes_per_s": [1.0]}, r"rate_bytes_per_s has shape \(1,\), expected \(2,\)"),
        ({"rate_bytes_per_s": None}, "rate_bytes_per_s is missing: flow 0 is on medium 0 with fixed rates"),
        ({"band_hz": [1e6]}, "snr is missing: flow 0 is on radio medium 0"),
        ({"band_hz": [1e6, 1e6], "budget": [1.0]}, "budget has 1 media, band_hz has 2"),
        ({"medium": [0, 0.5]}, r"medium\[1\] is 0.5"),
        ({"medium": [0, -1]}, r"medium\[1\] is -1"),
        ({"medium": [0, 2], "budget": [1.0, 1.0]}, r"medium\[1\] is 2; .*0..1"),
        ({"medium": [0, 1e18]}, r"medium\[1\] is 1e\+18"),
        ({"budget": [1.5]}, r"budget\[0\] is 1.5; shares are fractions"),
        ({"min_share": [0.0, 0.6], "max_share": [1.0, 0.5]}, r"min_share\[1\] is 0.6, above max_share\[1\] = 0.5"),
        ({"deadline_s": [1.0, -1.0]}, r"deadline_s\[1\] is -1.0"),
        ({"fixed_s": [math.inf, 0.0]}, r"fixed_s\[0\] is inf"),
        ({"objective": "median"}, "objective is 'median'; choose one of sum, max"),
    ],
)
def test_refused_with_field_value_and_mend(fields, message):
    with pytest.raises(InstanceError, match=message):
        Bandwidth(**{"size_bytes": [1.0, 2.0], "rate_bytes_per_s": [1.0, 1.0], **fields})


@settings(max_examples=60, deadline=None)
@given(problems(wild=True))
def test_json_round_trip(instance):
    again = Bandwidth.from_json(instance.to_json())
    assert again == instance
    assert hash(again) == hash(instance)
    assert again.features() == instance.features() <= FEATURES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON document"),
        ("[]", "expected a JSON object"),
        ('{"family": "chain"}', "expected a JSON object"),
        ('{"family": "bandwidth"}', "missing field 'size_bytes'"),
        ('{"family": "bandwidth", "size_bytes": [1], "speed": [1]}', "unknown field 'speed'"),
    ],
)
def test_json_refused(text, message):
    with pytest.raises(InstanceError, match=message):
        Bandwidth.from_json(text)


def test_arrays_are_copies_and_read_only():
    size = np.array([1.0, 2.0])
    instance = Bandwidth(size, [1.0, 1.0])
    size[0] = 99.0
    assert instance.size_bytes[0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        instance.size_bytes[0] = 2.0


def test_features_name_what_is_used():
    assert Bandwidth([1.0], [1.0]).features() == frozenset()
    everything = Bandwidth(
        [1.0, 1.0], medium=[0, 1], band_hz=[1.0, 1.0], snr=[1.0, 1.0], fixed_s=[1.0, 0.0], weight=[1.0, 2.0],
        objective="max", deadline_s=[9.0, math.inf], min_share=[0.1, 0.0], max_share=[0.9, 1.0], budget=[0.9, 1.0],
    )  # fmt: skip
    assert everything.features() == FEATURES


@pytest.mark.parametrize(
    ("shares", "sentence"),
    [
        ([0.5], "1 shares for 2 flows"),
        ([0.5, -0.1], "the share of flow 1 is -0.1, below 0"),
        ([0.7, 0.4], "medium 0: the shares add up to 1.1, its budget is 1"),
        ([0.1, 0.8], "flow 0: share 0.1 is below min_share 0.2"),
        ([0.2, 0.8], "flow 1: share 0.8 is above max_share 0.75"),
        ([0.9, 0.05], "flow 1 on medium 0 ends after 20 s, its deadline is 10 s"),
        ([0.9, 0.0], "flow 1 on medium 0 ends after inf s"),
    ],
)
def test_checker_names_broken_rules(shares, sentence):
    instance = Bandwidth(
        [1.0, 1.0], [1.0, 1.0], min_share=[0.2, 0.0], max_share=[1.0, 0.75], deadline_s=[math.inf, 10.0]
    )
    assert any(sentence in violation for violation in evaluate(instance, Solution(shares)).violations)


def test_checker_adds_up():
    instance = Bandwidth([2.0, 8.0], [1.0, 2.0], fixed_s=[1.0, 2.0], weight=[1.0, 3.0])
    evaluation = evaluate(instance, Solution([0.5, 0.5]))
    assert evaluation.objective == 1 * (1 + 4) + 3 * (2 + 8)
    assert evaluation.terms == {"fixed_s": 7.0, "transfer_s": 28.0}
    assert evaluation.metrics == {"weighted_sum_s": 35.0, "weighted_max_s": 30.0, "latest_s": 10.0, "share[0]": 1.0}
    latest = Bandwidth([2.0, 8.0], [1.0, 2.0], fixed_s=[1.0, 2.0], weight=[1.0, 3.0], objective="max")
    assert evaluate(latest, Solution([0.5, 0.5])).terms == {"fixed_s": 6.0, "transfer_s": 24.0}


def test_an_endless_flow_that_counts_is_a_violation():
    evaluation = evaluate(Bandwidth([1.0], [1.0]), Solution([0.0]))
    assert evaluation.objective == math.inf
    assert "never ends" in evaluation.violations[0]
    assert evaluate(Bandwidth([1.0], [1.0], weight=[0.0]), Solution([0.0])).violations == ()


def test_metrics_come_from_the_checker():
    result = solve(Bandwidth([1.0, 4.0], [1.0, 1.0], medium=[0, 1]))
    assert result.metrics["share[1]"] == 1.0
    assert result.metrics["latest_s"] == 4.0
