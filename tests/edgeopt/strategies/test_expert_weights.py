"""Bits of a mixture as decisions: what they lose by hand and at most, choices against brute force, refusals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from edgeopt import planner
from edgeopt.costs.experts import ExpertCosts, trunk_model
from edgeopt.errors import InputError, NoPlanError
from edgeopt.profiles.problem import TextWorkload
from edgeopt.strategies.expert_weights import loss, most_lost, narrowed
from edgeopt.strategies.experts import Experts
from edgeopt_solvers.placement import ExpertsSolution, evaluate
from tests.edgeopt.expert_cases import EXPERT, REST, gates, in_bits, mixture, problem
from tests.edgeopt.factories import device, network

FREQUENCY = [0.5, 0.3, 0.15, 0.05]


def tight(**fields):
    """The desk holds the trunk and one expert as they are; the box holds one, or four of 8 bits."""
    devices = [device("desk", gflops=10, memory=2.3e6), device("box", gflops=10, memory=1.1e6)]
    return problem(**{"model": in_bits(mixture(gates=gates([FREQUENCY]))), "devices": devices, **fields})


def test_bytes_of_trunk_and_experts_add_up_to_the_layer():
    model = in_bits(mixture(4, 2))
    trunk = trunk_model(model)
    assert trunk.layers[1].weights_by_dtype == {"int8": EXPERT / 2, "int4": EXPERT / 4}
    costs = ExpertCosts(model, TextWorkload(prompt_tokens=5, new_tokens=6), "int8", {"d": "int4"})
    assert costs.trunk_bytes == pytest.approx(0.5 * EXPERT + 2 * REST + 2 * 5 * 1000)
    assert costs.bytes_in("int4") == pytest.approx([EXPERT / 8])
    # Reading the weights bounds one token, arithmetic many.
    slow = device("d", gflops=10, memory_bandwidth=1e6)
    each, _, measured = costs.expert_s(slow, 0, np.array([1.0, 30.0]))
    assert each == pytest.approx([EXPERT / 8 / 1e6 + 0.002, 3.0 + 0.06])
    assert not measured


def test_what_was_measured_in_the_models_own_dtype_corrects_the_roofline():
    def row(ms, dtype=None):
        return {"model": "toy", "phase": "expert", "dtype": "float32", "batch": 1, "tokens": 1, "unit": "ms",
                "elements": [ms], "variant": dtype, "repeats": 3, "source": "made for a test"}  # fmt: skip

    costs = ExpertCosts(in_bits(mixture()), TextWorkload(prompt_tokens=5, new_tokens=6), None, {"d": "int8"})
    one = np.ones(1)
    bare = device("d", gflops=10, memory_bandwidth=1e6)
    known = device("d", gflops=10, memory_bandwidth=1e6, timings=[row(2004.0)])
    found, call, measured = costs.expert_s(known, 0, one)
    assert found == pytest.approx(2 * costs.expert_s(bare, 0, one)[0])
    assert (call, measured) == (0.0, False)
    told = device("d", gflops=10, timings=[row(2000.0), row(700.0, "int8")])
    assert costs.expert_s(told, 0, one)[0] == pytest.approx([0.7])
    assert costs.expert_s(told, 0, one)[2]


def test_experts_go_where_they_fit_in_fewer_bits():
    with pytest.raises(NoPlanError, match="one copy of every expert needs 4000000 bytes"):
        planner.solve(tight())
    with pytest.raises(NoPlanError, match="one copy of every expert needs 4000000 bytes"):
        planner.solve(tight(constraints={"quality": 0.001, "experts": {"trunk": "desk"}}))
    plan = planner.solve(tight(constraints={"quality": 0.006, "experts": {"trunk": "desk"}}))
    # Experts are half of what works on a token, and lose half of the 0.01 that the block does in 8 bits.
    assert plan.decisions["weights"] == {"box": "int8"}
    assert plan.decisions["experts"]["block"] == [{"desk": 1.0}, {"box": 1.0}, {"box": 1.0}, {"box": 1.0}]
    assert plan.quality == pytest.approx(0.5 * 0.01 * 0.5)
    assert [(stage.variant, stage.memory_bytes) for stage in plan.stages] == [
        (None, pytest.approx(1.2e6 + 1e4 + 1e6)), ("int8", pytest.approx(0.75e6 + 1e4)),
    ]  # fmt: skip
    assert planner.verify(plan) == []
    # More may be lost: the trunk shrinks too, and holds the experts that are chosen most.
    plan = planner.solve(tight(constraints={"quality": 0.01, "experts": {"trunk": "desk"}}))
    assert plan.decisions["experts"]["block"] == [{"desk": 1.0}] * 4
    assert plan.decisions["weights"]["desk"] == "int8"
    assert plan.quality == pytest.approx(0.01)
    assert planner.solve(plan.problem).objective == pytest.approx(plan.objective)


def test_formats_that_are_named_are_taken():
    formats = {"desk": "int8", "box": "int4"}
    plan = planner.solve(tight(constraints={"experts": {"trunk": "desk", "weights": formats}}))
    assert {stage.device: stage.variant for stage in plan.stages}.items() <= formats.items()
    assert plan.quality == pytest.approx(0.01)  # all experts fit on the desk
    assert planner.verify(plan) == []
    changed = plan.model_copy(update={"decisions": {**plan.decisions, "weights": {"desk": "int4"}}})
    assert "decisions.weights is {'desk': 'int4'}" in planner.verify(changed)[0]


@pytest.mark.parametrize("seed", range(4))
def test_no_placement_loses_more_than_is_said(seed):
    rng = np.random.default_rng(seed)
    frequencies = rng.dirichlet(np.full(4, 0.7), 2).round(4)
    frequencies[:, 0] += 1 - frequencies.sum(axis=1)
    devices = [device(f"d{i}", gflops=10, memory=3.3e6 + 1e6 * int(rng.integers(3)) / 4) for i in range(3)]
    model = in_bits(mixture(4, layers=2, gates=gates(frequencies.tolist())), *rng.random(2).round(3).tolist())
    case = problem(model=model, devices=devices)
    formats = {f"d{i}": dtype for i in range(3) if (dtype := (None, "int8", "int4")[int(rng.integers(3))])}
    request = narrowed(case, "d0", formats)
    holds = np.floor(request.room / EXPERT * (1 + 1e-9))
    worst = 0.0
    for homes in itertools.product(range(3), repeat=8):
        if (np.bincount(homes, minlength=3) <= holds).all():
            found = loss(request, np.eye(3)[list(homes)].reshape(2, 4, 3))
            assert found is not None
            worst = max(worst, found)
    assert worst <= most_lost(request) + 1e-12
    everywhere = narrowed(case, "d0", {f"d{i}": "int4" for i in range(3)})
    assert most_lost(everywhere) == pytest.approx(sum(model.quality.loss["int4"]))


@pytest.mark.parametrize("limit", [0.0, 0.012, 0.06, 0.3])
def test_the_choice_is_the_best_of_all_formats_and_placements(limit):
    rng = np.random.default_rng(5)
    frequencies = rng.dirichlet(np.full(3, 0.7), 2).round(4)
    frequencies[:, 0] += 1 - frequencies.sum(axis=1)
    devices = [device(name, gflops=rate, memory=memory, memory_bandwidth=1e7)
               for name, rate, memory in (("desk", 30, 3.6e6), ("box", 10, 3.1e6), ("far", 60, 2.4e6))]  # fmt: skip
    case = problem(
        model=in_bits(mixture(3, layers=2, gates=gates(frequencies.tolist()))), devices=devices,
        network=network(rate=1e6, latency=0.01), workload={"kind": "text", "prompt_tokens": 3, "new_tokens": 4},
        constraints={"quality": limit, "experts": {"trunk": "desk"}},
    )  # fmt: skip
    best, technique = math.inf, Experts()
    for each in itertools.product([None, "int8", "int4"], repeat=3):
        formats = {name: dtype for name, dtype in zip(("desk", "box", "far"), each, strict=True) if dtype}
        request = narrowed(case, "desk", formats)
        if most_lost(request) > limit or (request.room < 0).any():
            continue
        instance = technique.build(request.problem)
        for homes in itertools.product(range(3), repeat=6):
            held = np.eye(3, dtype=bool)[list(homes)].reshape(*instance.load.shape, 3)
            found = evaluate(instance, ExpertsSolution(held, held.astype(float)))
            if not found.violations:
                best = min(best, found.objective + request.trunk_s)
    if best == math.inf:
        with pytest.raises(NoPlanError):
            planner.solve(case)
        return
    plan = planner.solve(case)
    assert plan.objective == pytest.approx(best, rel=1e-9)
    assert plan.status == "optimal"
    assert plan.quality <= limit
    assert planner.verify(plan) == []


@pytest.mark.parametrize(
    ("constraints", "error", "why"),
    [
        ({"experts": {"weights": {"box": "bfloat16"}}}, InputError, "weights.box: no layer says its size in bfloat16; "
         "use int4 or int8"),
        ({"quality": 0.001, "experts": {"weights": {"box": "int4"}}}, NoPlanError, "may lose more than .* 0.001; r"),
    ],
)  # fmt: skip
def test_formats_that_cannot_be_are_refused(constraints, error, why):
    with pytest.raises(error, match=why):
        planner.solve(tight(constraints=constraints))
