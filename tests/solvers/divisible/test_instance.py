"""What an instance refuses, how it is written, and what the checker says about wrong decisions."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings

from edgeopt_solvers import InstanceError, solve
from edgeopt_solvers.divisible import FEATURES, Divisible, Solution, evaluate
from tests.solvers.divisible.draws import problems


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_units": 0}, "num_units is 0, expected a whole number >= 1"),
        ({"num_units": 2.5}, "num_units is 2.5"),
        ({"num_units": 10**9}, "num_units is 1000000000 for 2 devices; give larger units"),
        ({"unit_s": []}, "unit_s is empty"),
        ({"unit_s": [1.0, -1.0]}, r"unit_s\[1\] is -1.0; give seconds per unit >= 0"),
        ({"unit_s": [1.0, math.nan]}, r"unit_s\[1\] is nan"),
        ({"fixed_s": [1.0]}, r"fixed_s has shape \(1,\), expected \(2,\)"),
        ({"fixed_bytes": [1.0, 0.0]}, "rate_bytes_per_s is missing: device 0 exchanges bytes"),
        ({"exchange": "sometimes"}, "exchange is 'sometimes'; choose one of synchronous, overlapped"),
        ({"num_steps": [1.0, 0.0]}, r"num_steps\[1\] is 0.0; give a positive"),
        ({"min_units": [0, 1]}, r"min_units\[0\] is 0; give whole units"),
        ({"min_units": [1, 1.5]}, r"min_units\[1\] is 1.5"),
        ({"shared": [True]}, "shared must be 2 booleans"),
        ({"objective": "speed"}, "objective is 'speed'; choose one of makespan, energy"),
        ({"objective": {"speed": 1.0}}, "objective weighs 'speed'"),
        ({"objective": {"makespan": -1.0}}, r"objective\['makespan'\] is -1.0"),
        ({"objective": {"makespan": 0.0}}, "objective has no positive weight"),
        ({"objective": "energy"}, "power_w and byte_j are missing"),
        ({"max_energy_j": 1.0}, "power_w and byte_j are missing"),
        ({"max_makespan_s": -1.0}, "max_makespan_s is -1.0"),
        ({"max_devices": 0}, "max_devices is 0"),
        ({"lead_s": [1.0, -1.0]}, r"lead_s\[1\] is -1.0; give finite seconds"),
        (
            {"lead_s": [1.0, 0.0], "shared": True, "unit_bytes": [1.0, 1.0], "rate_bytes_per_s": [1.0, 1.0]},
            "here devices share a medium",
        ),
        ({"lead_unit_s": [1.0, 0.0], "objective": "energy", "power_w": [1.0, 1.0]}, "here energy counts"),
    ],
)
def test_refused_with_field_value_and_mend(fields, message):
    with pytest.raises(InstanceError, match=message):
        Divisible(**{"num_units": 4, "unit_s": [1.0, 2.0], **fields})


@settings(max_examples=60, deadline=None)
@given(problems(wild=True))
def test_json_round_trip(instance):
    again = Divisible.from_json(instance.to_json())
    assert again == instance
    assert hash(again) == hash(instance)
    assert again.features() == instance.features() <= FEATURES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON document"),
        ('{"family": "chain"}', "expected a JSON object"),
        ('{"family": "divisible", "num_units": 3}', "missing field 'unit_s'"),
        ('{"family": "divisible", "num_units": 3, "unit_s": [1], "speed": [1]}', "unknown field 'speed'"),
    ],
)
def test_json_refused(text, message):
    with pytest.raises(InstanceError, match=message):
        Divisible.from_json(text)


def test_features_name_what_is_used():
    assert Divisible(1, [1.0]).features() == frozenset()
    everything = Divisible(
        9, [1.0, 1.0], fixed_bytes=[1.0, 1.0], rate_bytes_per_s=[1.0, 1.0], shared=True, exchange="overlapped",
        memory_bytes=[9.0, 9.0], min_units=[1, 2], num_steps=[1, 2], power_w=[1.0, 1.0], max_devices=2,
        objective={"makespan": 1.0, "energy": 1.0}, max_makespan_s=99.0, max_energy_j=99.0,
    )  # fmt: skip
    assert everything.features() == FEATURES - {"lead", "pairwise"}
    assert Divisible(1, [1.0], exchange="pairwise").features() == {"pairwise"}
    assert Divisible(1, [1.0], lead_s=[1.0]).features() == {"lead"}
    assert Divisible(1, [1.0], lead_unit_s=[0.0]).features() == frozenset()


@pytest.mark.parametrize(
    ("loads", "shares", "sentence"),
    [
        ((4,), (0.5,), "1 loads and 1 shares for 2 devices"),
        ((5, -1), (0.5, 0.5), "device 1 has load -1"),
        ((2, 1), (0.5, 0.5), "add up to 3 units, the instance has 4"),
        ((4, 0), (0.5, 0.5), "device 0 needs 4 bytes, its memory is 3"),
        ((3, 1), (0.5, 0.5), "device 1 is used with 1 units, its min_units is 2"),
        ((2, 2), (0.7, 0.5), "the shares of the medium add up to 1.2, above 1"),
        ((2, 2), (1.0, 0.0), "device 1 never ends"),
        ((2, 2), (0.5, 0.5), "makespan_s is 6 s, max_makespan_s is 5 s"),
        ((2, 2), (0.5, 0.5), "2 devices are used, max_devices is 1"),
        ((2, 2), (0.5, 0.5), "energy_j is 4 J, max_energy_j is 3 J"),
    ],
)
def test_checker_names_broken_rules(loads, shares, sentence):
    instance = Divisible(
        4, [1.0, 1.0], fixed_bytes=[2.0, 2.0], rate_bytes_per_s=[1.0, 1.0], shared=True, min_units=[1, 2],
        memory_bytes=[3.0, 4.0], unit_memory_bytes=[1.0, 1.0], max_makespan_s=5.0, max_devices=1,
        power_w=[1.0, 1.0], max_energy_j=3.0,
    )  # fmt: skip
    assert any(sentence in violation for violation in evaluate(instance, Solution(loads, shares)).violations)


def test_checker_adds_up():
    instance = Divisible(
        5, [1.0, 2.0], fixed_s=[1.0, 0.0], fixed_bytes=[4.0, 0.0], unit_bytes=[1.0, 0.0], rate_bytes_per_s=[2.0, 1.0],
        shared=[True, False], power_w=[3.0, 5.0], byte_j=[0.5, 0.0], num_steps=[2.0, 1.0], objective="energy",
    )  # fmt: skip
    evaluation = evaluate(instance, Solution((2, 3), (0.5, 1.0)))
    assert evaluation.terms == {"compute_s": 6.0, "exchange_s": 12.0, "device": 0.0, "lead_s": 0.0}
    assert evaluation.metrics == {"makespan_s": 18.0, "energy_j": 18.0 + 6.0 + 30.0, "num_devices": 2.0, "share": 0.5}
    assert evaluation.objective == 54.0


def test_metrics_come_from_the_checker():
    result = solve(Divisible(5, [1.0, 2.0]))
    assert result.metrics["makespan_s"] == result.objective == 4.0


def test_arrays_are_copies_and_read_only():
    seconds = np.array([1.0, 2.0])
    instance = Divisible(3, seconds)
    seconds[0] = 99.0
    assert instance.unit_s[0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        instance.unit_s[0] = 2.0


def test_numpy_is_all_that_is_imported():
    code = (
        "import sys\nfrom edgeopt_solvers import solve\nfrom edgeopt_solvers.divisible import Divisible\n"
        "solve(Divisible(5, [1.0, 2.0]))\n"
        "assert not {'scipy', 'pulp', 'ortools', 'cvxpy', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
