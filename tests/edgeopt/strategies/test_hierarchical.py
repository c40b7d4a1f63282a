"""Cascades of levels against every plan there is, counted by hand."""

from __future__ import annotations

from itertools import product

import pytest

from edgeopt import planner
from edgeopt.costs.cascade import CascadeCosts
from edgeopt.errors import InputError, NoPlanError
from edgeopt.profiles.model import Sampler
from edgeopt.questions.terms import element_names, latency_terms, variant_names
from tests.edgeopt.factories import CASCADE_RUNS, cascade_model, cascade_problem, device, image_problem, network

GFLOP = {"large": 4, "small": 1, "sharp": 8, "quick": 2}
IMAGE = {"low": 10_000, "high": 40_000}
CONDITIONING = 5_000


def _least_latency(speeds, rate, latency, floor):
    """Return the least seconds of any run of that quality over all ways to place its steps, from device 0 and back."""

    def hop(a, b, num_bytes):
        return latency + num_bytes / rate if a != b else 0.0

    best = float("inf")
    for (below, above), (low, high), quality in CASCADE_RUNS:
        if quality > floor:
            continue
        work = [GFLOP[below]] * low + [GFLOP[above]] * high
        inside = [IMAGE["low"] + CONDITIONING] * (low - 1)
        between = [IMAGE["low"] + CONDITIONING]
        upper = [IMAGE["high"] + IMAGE["low"] + CONDITIONING] * (high - 1)
        crossing = inside + between + upper
        for places in product(range(len(speeds)), repeat=low + high):
            seconds = sum(gflop / speeds[d] for gflop, d in zip(work, places, strict=True))
            seconds += hop(0, places[0], 100) + hop(places[-1], 0, IMAGE["high"])
            seconds += sum(hop(a, b, q) for a, b, q in zip(places, places[1:], crossing, strict=False))
            best = min(best, seconds)
    return best


@pytest.mark.parametrize("floor", [1.0, 2.0, 2.5, 4.0, 8.0])
@pytest.mark.parametrize(("rate", "latency"), [(1e6, 0.01), (2e5, 0.001), (3e4, 0.2)])
def test_the_plan_is_the_best_of_all(floor, rate, latency):
    problem = cascade_problem(network=network(rate=rate, latency=latency), constraints={"quality": floor})
    plan = planner.solve(problem)
    assert plan.latency_s == pytest.approx(_least_latency([10, 100], rate, latency, floor), rel=1e-6)
    assert plan.quality <= floor + 1e-9
    assert plan.status == "optimal"
    assert planner.verify(plan) == []
    # What the plan says of itself is one of the runs that were measured.
    runs = {stage.variant for stage in plan.stages}
    steps = (plan.metrics["steps_low"], plan.metrics["steps_high"])
    assert len(runs) == 2
    assert any({f"{n}@{s}" for n, s in zip(*run[:2], strict=True)} == runs and run[1] == steps for run in CASCADE_RUNS)


def test_memory_parts_the_levels():
    small = [device("phone", gflops=10, memory=1.5e9), device("tablet", gflops=10, memory=1.5e9)]
    plan = planner.solve(cascade_problem(devices=small, constraints={"quality": 1.0}))
    assert [(s.device, s.variant, s.elements) for s in plan.stages] == [
        ("tablet", "large@3", "low.step.0 … low.step.2"),
        ("phone", "sharp@2", "high.step.0 … high.step.1"),
    ]
    # The other way round the large image would have to come back.
    assert [(t.purpose, t.bytes) for t in plan.transfers] == [("input", 100.0), ("cut", 15_000.0)]
    assert [s.memory_bytes for s in plan.stages] == [1e9 + 1e6] * 2


def test_a_level_is_shared_where_two_devices_are_faster_by_turns():
    pins = {"low.step.0": "phone", "low.step.2": "server"}
    plan = planner.solve(cascade_problem(constraints={"quality": 1.0, "pin": pins}))
    assert [(s.device, s.variant) for s in plan.stages] == [
        ("phone", "large@3"), ("server", "large@3"), ("server", "sharp@2"),
    ]  # fmt: skip


def test_a_short_run_says_which_steps_it_takes():
    plan = planner.solve(cascade_problem(constraints={"quality": 8.0}, devices=[device("phone", gflops=10)]))
    assert [(s.variant, s.elements) for s in plan.stages] == [
        ("small@2", "low.step.0 … low.step.1"), ("quick@1", "high.step.0"),
    ]  # fmt: skip
    assert plan.latency_s == pytest.approx(0.1 * (1 + 1 + 2), rel=1e-6)
    causes = [sum(term.causes.values()) for term in latency_terms(plan)]
    assert causes == pytest.approx([0.2, 0.2], rel=1e-6)


def test_nothing_is_handed_over_behind_the_last_step():
    problem = cascade_problem(constraints={"quality": 2.0})
    chain = planner.choose_strategy(problem, "hierarchical").build(problem)
    row = variant_names(problem).index("large@2") + 1
    assert chain.handoff_loss[row, row].tolist() == [0, 0, float("inf"), 0, 0, 0]
    # Cuts 2 and 3 cost the same: the plan takes the one between the levels, where the table of runs stands.
    plan = planner.solve(problem)
    assert [stage.stop for stage in plan.stages if stage.variant == "large@2"][-1] == 3


def test_given_steps_leave_only_runs_of_these_steps():
    plan = planner.solve(cascade_problem(workload={"kind": "cascade", "steps": [3, 1]}, constraints={"quality": 9.0}))
    assert ({s.variant for s in plan.stages}, plan.quality) == ({"large@3", "quick@1"}, 2.5)
    with pytest.raises(InputError, match=r"no run of \[7, 1\] steps was measured.*\[2, 1\], \[3, 1\], \[3, 2\]"):
        planner.solve(cascade_problem(workload={"kind": "cascade", "steps": [7, 1]}))


def test_without_quality_steps_are_given_and_denoisers_mix_freely():
    model = cascade_model(None)
    with pytest.raises(InputError, match=r"no measured runs to choose from.*steps: \[20, 20\]"):
        planner.solve(cascade_problem(model=model))
    asked = {"kind": "cascade", "steps": [3, 2]}
    plan = planner.solve(cascade_problem(model=model, workload=asked))
    assert {s.variant for s in plan.stages} == {"small@3", "quick@2"}
    assert plan.quality is None
    with pytest.raises(InputError, match="no quality profile"):
        planner.solve(cascade_problem(model=model, workload=asked, objective="quality"))


def test_a_floor_out_of_reach():
    with pytest.raises(NoPlanError, match="quality"):
        planner.solve(cascade_problem(constraints={"quality": 0.9}))


def test_best_quality_is_that_of_the_best_run():
    plan = planner.solve(cascade_problem(objective="quality"))
    assert (plan.quality, plan.objective) == (1.0, 1.0)


def test_guidance_doubles_the_work():
    one, two = (
        planner.solve(cascade_problem(workload={"kind": "cascade", "guidance": g}, devices=[device("phone")]))
        for g in (1.0, 2.0)
    )
    assert two.latency_s == pytest.approx(2 * one.latency_s, rel=1e-6)


def test_only_cascades_fit():
    reason = planner.choose_strategy(cascade_problem(), "auto")
    assert reason.name == "hierarchical"
    with pytest.raises(InputError, match="toy-diffusion' is a diffusion model"):
        planner.solve(image_problem(strategy="hierarchical"))
    with pytest.raises(InputError, match="is a cascaded_diffusion model"):
        planner.solve(cascade_problem(strategy="multi_stage"))


def test_names_of_elements_and_variants():
    problem = cascade_problem()
    assert element_names(problem) == [
        "low.step.0",
        "low.step.1",
        "low.step.2",
        "high.step.0",
        "high.step.1",
    ]
    assert variant_names(problem) == [
        "large@2", "large@3", "small@2", "small@3", "sharp@1", "sharp@2", "quick@1", "quick@2",
    ]  # fmt: skip


def test_bytes_at_every_cut():
    costs = CascadeCosts(cascade_model(), cascade_problem(workload={"kind": "cascade", "images": 2}).workload)
    assert list(costs.cut_bytes / 2) == [100, 15_000, 15_000, 15_000, 55_000, 40_000]


def test_a_level_is_cut_only_where_its_solver_remembers_nothing():
    model = cascade_model()
    high = model.levels[1].model_copy(update={"sampler": Sampler(class_name="DPMSolverMultistepScheduler")})
    costs = CascadeCosts(model.model_copy(update={"levels": [model.levels[0], high]}), cascade_problem().workload)
    assert costs.cut_legal.tolist() == [True, True, True, True, False, True]
    high = high.model_copy(update={"sampler": Sampler(class_name="HeunDiscreteScheduler")})
    with pytest.raises(InputError, match="3 calls of 2 steps"):
        CascadeCosts(model.model_copy(update={"levels": [model.levels[0], high]}), cascade_problem().workload)
