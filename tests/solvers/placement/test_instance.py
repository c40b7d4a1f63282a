"""What instances refuse, how they are written, and what the checker says about wrong decisions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt_solvers import InstanceError
from edgeopt_solvers.errors import UnsupportedError
from edgeopt_solvers.placement import (
    CAPABILITIES,
    FEATURES,
    Deployment,
    DeploymentSolution,
    Experts,
    ExpertsSolution,
    Routing,
    RoutingSolution,
    evaluate,
)
from edgeopt_solvers.solve import solve
from tests.solvers.placement.draws import deployments, experts, routings

EXPERTS = {"load": [[1.0, 2.0]], "unit_s": [1.0, 2.0]}
ROUTING = {"arrival_per_s": [1.0], "service_per_s": [[2.0]]}
DEPLOYMENT = {"task": [0], "variant_bytes": [1.0], "run_s": [1.0], "request_per_s": [[1.0]]}


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (Experts, {"load": [[1.0, -2.0]]}, r"load\[0, 1\] is -2.0; give finite tokens"),
        (Experts, {"unit_s": [math.nan, 1.0]}, r"unit_s\[0\] is nan"),
        (Experts, {"memory_bytes": [1.0]}, r"memory_bytes has shape \(1,\), expected \(2,\)"),
        (Experts, {"dispatch_bytes": 8.0}, "rate_bytes_per_s is missing: tokens travel"),
        (Experts, {"home": [0.5, 0.4]}, "home adds up to 0.9; give shares"),
        (Experts, {"max_replicas": 0}, "max_replicas is 0, expected a whole number >= 1"),
        (Experts, {"expert_bytes": 1e41}, "between 1e-40 and 1e"),
        (Routing, {"arrival_per_s": [0.0]}, "arrival_per_s is 0 for every class"),
        (Routing, {"queue": "line"}, "queue is 'line'; choose one of server, device"),
        (Routing, {"max_load": 1.5}, "max_load is 1.5; give a load above 0 and at most 1"),
        (Routing, {"min_accuracy": 0.5}, "accuracy is missing: min_accuracy sets a floor"),
        (Routing, {"accuracy": [1.5]}, r"accuracy\[0\] is 1.5"),
        (Routing, {"model_bytes": [1.0]}, "memory_bytes is missing; give both"),
        (Deployment, {"task": [1]}, r"task\[0\] is 1; give the index of a task, whole numbers 0..0"),
        (Deployment, {"request_per_s": [[0.0]]}, "request_per_s is 0 everywhere"),
        (Deployment, {"min_quality": 0.5}, "quality is missing: min_quality sets a floor"),
    ],
)
def test_refused_with_field_value_and_mend(kind, fields, message):
    base = {Experts: EXPERTS, Routing: ROUTING, Deployment: DEPLOYMENT}[kind]
    with pytest.raises(InstanceError, match=message):
        kind(**{**base, **fields})


@settings(max_examples=90, deadline=None, derandomize=True)
@given(st.one_of(experts(wild=True), routings(wild=True), deployments(wild=True)))
def test_json_round_trip(instance):
    again = type(instance).from_json(instance.to_json())
    assert again == instance
    assert hash(again) == hash(instance)
    assert again.features() == instance.features() <= FEATURES


def test_json_of_another_problem_is_refused():
    with pytest.raises(InstanceError, match='"problem": "routing"'):
        Routing.from_json(Experts(**EXPERTS).to_json())
    with pytest.raises(InstanceError, match="missing field 'unit_s'"):
        Experts.from_json('{"family": "placement", "problem": "experts", "load": [[1]]}')


@pytest.mark.parametrize(
    ("replicas", "share", "sentence"),
    [
        ([[[1, 0], [1, 0]]], [[[1, 0], [0.5, 0]]], "expert 1: its shares add up to 0.5"),
        ([[[1, 0], [1, 0]]], [[[1, 0], [0, 1]]], "device 1 serves it without holding it"),
        ([[[1, 0], [1, 0]]], [[[1, 0], [1, 0]]], "device 0 holds 2 bytes, its memory is 1.5 (0.5 too much)"),
        ([[[1, 1], [0, 1]]], [[[1, 0], [0, 1]]], "2 replicas, max_replicas is 1"),
        ([[[1, 0]]], [[[1, 0]]], "decisions of shape (1, 1, 2), expected (1, 2, 2)"),
        ([[[1, 0], [0, 1]]], [[[1, 0], [0, -1]]], "a share is below 0"),
    ],
)
def test_checker_names_broken_rules_of_experts(replicas, share, sentence):
    instance = Experts(**EXPERTS, expert_bytes=1.0, memory_bytes=[1.5, 3.0], max_replicas=1)
    assert any(sentence in violation for violation in evaluate(instance, ExpertsSolution(replicas, share)).violations)


def test_checker_adds_up_experts():
    instance = Experts([[4.0, 2.0], [1.0, 0.0]], [1.0, 0.5], dispatch_bytes=3.0, rate_bytes_per_s=[[0, 6.0], [1.0, 0]],
                       latency_s=[[0, 0.25], [9.0, 0]])  # fmt: skip
    held = np.ones((2, 2, 2), dtype=bool)
    evaluation = evaluate(instance, ExpertsSolution(held, [[[0.5, 0.5], [0, 1]], [[1, 0], [0, 1]]]))
    assert evaluation.violations == ()
    assert evaluation.objective == (4 * 0.5 + 4 * 3 / 6 + 0.25) + 1.0
    assert evaluation.terms == {"layer": 0.0, "device": 1.0, "seconds": 4.25}


@pytest.mark.parametrize(
    ("fractions", "loaded", "sentence"),
    [
        ([[[0.5], [0.0]]], [[1], [1]], "its fractions add up to 0.5"),
        ([[[1.0], [0.0]]], [[0], [1]], "uses model 0 on device 0, which does not hold it"),
        ([[[0.0], [1.0]]], [[0], [1]], "model 1 on device 0 has load 1.5, the limit is 0.9"),
        ([[[1.0], [0.0]]], [[1], [0]], "the mean accuracy is 0.5, the floor is 0.6"),
        ([[[1.0], [0.0]]], [[1], [1]], "device 0 holds 3 bytes, its memory is 2 (1 too much)"),
    ],
)
def test_checker_names_broken_rules_of_routing(fractions, loaded, sentence):
    instance = Routing(
        [3.0], [[6.0], [2.0]], accuracy=[0.5, 0.9], min_accuracy=0.6, max_load=0.9, model_bytes=[1.0, 2.0],
        memory_bytes=[2.0],
    )  # fmt: skip
    assert any(sentence in one for one in evaluate(instance, RoutingSolution(fractions, loaded)).violations)


def test_checker_names_broken_rules_of_deployment():
    instance = Deployment(**DEPLOYMENT, memory_bytes=[0.5], quality=[0.5], min_quality=0.7)
    kept = evaluate(instance, DeploymentSolution([[True]], [[[1.0]]], [[0.0]])).violations
    assert any("node 0 keeps 1 bytes, its memory is 0.5" in one for one in kept)
    assert any("the mean quality is 0.5, the floor is 0.7" in one for one in kept)
    other = evaluate(instance, DeploymentSolution([[False]], [[[0.25]]], [[0.5]])).violations
    assert any("which does not keep it" in one for one in other)
    assert any("0.75 of its requests are served" in one for one in other)
    assert any("over no link" in one for one in other)
    assert evaluate(instance, ExpertsSolution([[[1]]], [[[1]]])).violations


def test_capabilities_are_features_and_others_are_refused():
    assert all(supported <= FEATURES for supported in CAPABILITIES.values())
    with pytest.raises(UnsupportedError, match="cannot express routing"):
        solve(Routing(**ROUTING), "pulp")
    with pytest.raises(UnsupportedError, match="cannot express experts"):
        solve(Experts(**EXPERTS), "cvxpy")
    with pytest.raises(UnsupportedError, match="cannot express deployment"):
        solve(Deployment(**DEPLOYMENT), "ortools")


def test_arrays_are_copies_and_read_only():
    seconds = np.array([1.0, 2.0])
    instance = Experts([[1.0]], seconds)
    seconds[0] = 99.0
    assert instance.unit_s[0, 0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        instance.unit_s[0, 0] = 2.0
