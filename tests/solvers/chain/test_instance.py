"""Validation, normal form, features and JSON of a chain."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from edgeopt_solvers import InstanceError
from edgeopt_solvers.chain import FEATURES, Chain
from tests.solvers.chain.draws import chains

BASE = {
    "compute_s": [[1.0, 2.0], [0.5, math.inf]],
    "cut_bytes": [10.0, 20.0, 40.0],
    "rate_bytes_per_s": [[math.nan, 10.0], [20.0, -1.0]],  # the diagonal is ignored
    "latency_s": [[0.0, 0.5], [0.25, 0.0]],
}


def test_absent_fields_become_neutral_arrays():
    chain = Chain(**BASE)
    assert (chain.num_devices, chain.num_variants, chain.num_elements) == (2, 1, 2)
    assert chain.compute_s.shape == (2, 1, 2)
    assert chain.resident_bytes.shape == chain.transient_bytes.shape == chain.quality_loss.shape == (1, 2)
    assert np.isinf(chain.memory_bytes).all()
    assert (chain.cut_messages == 1).all()
    assert chain.cut_legal.all()
    assert chain.weights == {"latency": 1.0}
    assert chain.features() == frozenset()
    assert not chain.has_energy


def test_arrays_are_copies_and_read_only():
    given_array = np.ones((1, 2))
    chain = Chain(given_array, np.ones(3), [[0]], [[0]])
    given_array[0, 0] = 5
    assert chain.compute_s[0, 0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        chain.compute_s[0, 0, 0] = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        chain.source = None


def test_transfers():
    chain = Chain(**BASE, cut_messages=[1, 0, 4], loop_bytes=20, loop_messages=2)
    assert chain.transfer_s(0, 1, 0) == 0.5 + 1.0
    assert chain.transfer_s(1, 0, 2) == 4 * 0.25 + 2.0
    assert chain.transfer_s(1, 1, 2) == 0
    assert chain.loop_s(1, 0) == 2 * 0.25 + 1.0
    for cut in range(3):
        for i in range(2):
            for j in range(2):
                assert chain.transfer_matrix(cut)[i, j] == chain.transfer_s(i, j, cut)
    unlinked = dataclasses.replace(chain, rate_bytes_per_s=np.zeros((2, 2)), cut_bytes=[0, 0, 0])
    assert unlinked.transfer_s(0, 1, 0) == math.inf  # a message, but no link
    assert unlinked.transfer_s(0, 1, 1) == 0  # neither byte nor message
    assert np.array_equal(unlinked.transfer_matrix(1), np.zeros((2, 2)))


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("compute_s", [[1, math.nan], [1, 1]], r"compute_s\[0, 1\] is nan; give seconds"),
        ("compute_s", [[1, -2], [1, 1]], r"compute_s\[0, 1\] is -2.0"),
        ("compute_s", [], r"compute_s has shape \(0,\)"),
        ("compute_s", [[], []], r"compute_s has shape \(2, 0\)"),
        ("compute_s", [[1, 2], [3]], "compute_s is no array of numbers"),
        ("compute_s", "fast", "compute_s is no array of numbers"),
        ("cut_bytes", [1, 2], r"cut_bytes has shape \(2,\), expected \(3,\); give bytes >= 0 for each of the 3 cuts"),
        ("cut_bytes", [1, 2, math.inf], r"cut_bytes\[2\] is inf"),
        ("cut_messages", [1, 2, -1], r"cut_messages\[2\] is -1"),
        ("rate_bytes_per_s", [[0, -1], [1, 0]], r"rate_bytes_per_s\[0, 1\] is -1.0; give bytes/s >= 0"),
        ("rate_bytes_per_s", [[0, 1]], r"expected \(2, 2\)"),
        ("latency_s", [[0, math.inf], [1, 0]], r"latency_s\[0, 1\] is inf; .* set its rate to 0"),
        ("memory_bytes", [1, math.nan], r"memory_bytes\[1\] is nan; give usable bytes"),
        ("memory_bytes", [1, 2, 3], r"expected \(2,\)"),
        ("resident_bytes", [[1, 2], [1, 2]], r"resident_bytes has shape \(2, 2\), expected \(1, 2\) or \(2,\)"),
        ("resident_bytes", [1, math.inf], r"resident_bytes\[1\] is inf"),
        ("transient_bytes", [1, -1], r"transient_bytes\[1\] is -1"),
        ("shared_bytes", [1, 2], r"shared_bytes has shape"),
        ("source", 2, r"source is 2, expected a whole number 0..1; name the device"),
        ("source", -1, "source is -1"),
        ("source", 0.5, "source is 0.5"),
        ("source", True, "source is True"),
        ("reuse", "twice", "reuse is 'twice'; choose 'once'"),
        ("objective", "speed", "objective is 'speed'; choose one of latency"),
        ("objective", {"latency": -1}, r"objective\['latency'\] is -1"),
        ("objective", {"latency": 0}, "at least one weight > 0"),
        ("objective", {"speed": 1}, "objective weighs 'speed'"),
        ("objective", 3, "objective is 3"),
        ("objective", "energy", "power_w is missing, and the objective 'energy' needs it"),
        ("objective", "quality", "quality_loss is missing"),
        ("max_energy_j", 3, "power_w is missing, and max_energy_j needs it"),
        ("max_quality_loss", 3, "quality_loss is missing, and max_quality_loss needs it"),
        ("power_w", [1, -1], r"power_w\[1\] is -1.0; give watts"),
        ("loop_bytes", -1, "loop_bytes is -1.0; give bytes"),
        ("loop_messages", math.nan, "loop_messages is nan"),
        ("quality_loss", [[0, math.inf]], r"quality_loss\[0, 1\] is inf"),
        ("handoff_loss", [[[0, -math.inf, 0]]], r"handoff_loss\[0, 0, 1\] is -inf"),
        ("max_latency_s", -1, "max_latency_s is -1; give a number >= 0, or None"),
        ("max_period_s", math.nan, "max_period_s is nan"),
        ("max_stages", 0, "max_stages is 0, expected a whole number >= 1"),
        ("min_segment", 0, "min_segment is 0"),
        ("min_segment", 1.5, "min_segment is 1.5"),
        ("pins", {2: 0}, "pins: element is 2, expected a whole number 0..1; elements count from 0"),
        ("pins", {0: 7}, r"pins\[0\] is 7, expected a whole number 0..1; devices count from 0"),
        ("pins", [1], "pins is"),
        ("cut_legal", [True], "cut_legal must be 3 booleans"),
        ("cut_legal", [0, 2, 1], "cut_legal must be 3 booleans"),
    ],
)
def test_each_wrong_field_is_named_with_value_and_mend(field, value, complaint):
    with pytest.raises(InstanceError, match=complaint):
        Chain(**{**BASE, field: value})


def test_infinite_budgets_are_none():
    assert Chain(**BASE, max_latency_s=math.inf).max_latency_s is None


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(chains())
def test_json_pickle_and_replace_give_the_same_chain(chain):
    text = chain.to_json()
    assert "Infinity" not in text
    again = Chain.from_json(text)
    assert again == chain
    assert hash(again) == hash(chain)
    assert again.to_json() == text
    assert pickle.loads(pickle.dumps(chain)) == chain
    assert dataclasses.replace(chain) == chain
    assert chain.features() <= FEATURES
    assert again.features() == chain.features()


def test_a_changed_number_is_another_chain():
    assert Chain(**BASE) != Chain(**BASE, loop_bytes=1)
    assert Chain(**BASE) != "chain"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("not json", "no JSON document"),
        ("[" * 100_000, "no JSON document"),
        ("[1, 2]", "expected a JSON object"),
        ('{"family": "fleet"}', 'with "family": "chain"'),
        ('{"family": "chain", "speed": 1}', "unknown field 'speed'; known fields: compute_s"),
        ('{"family": "chain", "compute_s": [[1]]}', "missing field 'cut_bytes'"),
    ],
)
def test_foreign_json_is_refused(text, complaint):
    with pytest.raises(InstanceError, match=complaint):
        Chain.from_json(text)


def test_pins_with_foreign_keys_are_refused():
    content = json.loads(Chain(**BASE).to_json()) | {"pins": {"first": 0}}
    with pytest.raises(InstanceError, match="pins"):
        Chain.from_json(json.dumps(content))
