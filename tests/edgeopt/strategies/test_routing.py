"""Plans of routing against arithmetic by hand, a grid of fractions and other choices; what it refuses."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from edgeopt import planner
from edgeopt.costs.answering import accuracy_needed
from edgeopt.costs.routing import mixed_interval
from edgeopt.errors import InputError, NoPlanError
from edgeopt.profiles import load_problem
from edgeopt.profiles.answers import read_answers
from edgeopt.questions.terms import latency_terms
from edgeopt.strategies.routing import Routing
from edgeopt_solvers import Result, Status
from edgeopt_solvers.placement import ServingSolution
from tests.edgeopt import answer_cases


def trace(num_queries=40):
    """Recorded answers with fit and held-out queries in both classes."""
    recorded = answer_cases.trace(num_queries)
    return replace(recorded, classes=np.array(["odd", "even"])[np.arange(num_queries) // 4 % 2])


GFLOP = {"small": 0.1, "medium": 0.8, "big": 3.0}


def problem(folder, recorded=None, rate=0.6, **fields):
    load = {"kind": "text", "prompt_tokens": 8, "new_tokens": 4, "requests_per_s": rate}
    common = {"strategy": "routing", "workload": load, "constraints": {}}
    return answer_cases.problem(folder, recorded or trace(), **(common | fields))


def seconds_of(one, fit, m, d):
    """Seconds of each fit query at a model on a device, and of its way; one pass per token but the last."""
    speed = {"phone": 10, "server": 30}[one.devices[d].name]
    busy = GFLOP[fit.models[m]] * (fit.prompt_tokens + fit.tokens[:, m] - 1) / speed
    way = 0.1 + (40 + 8 * fit.prompt_tokens + 8 * fit.tokens[:, m]) / 1e5
    return busy, way if d else np.zeros(len(fit))


def response(one, fit, fractions, rate):
    """Mean response, loads and accuracy, class by class and device by device."""
    total, right, loads = 0.0, 0.0, []
    for d in range(len(one.devices)):
        flow = load = square = 0.0
        for (c, name), m in itertools.product(enumerate(sorted(set(fit.classes))), range(3)):
            rows, part = fit.classes == name, fractions[c][m][d]
            busy, way = seconds_of(one, fit, m, d)
            each = rate * rows.mean() * part
            flow, load, square = flow + each, load + each * busy[rows].mean(), square + each * (busy[rows] ** 2).mean()
            total += each * way[rows].mean()
            right += each / rate * fit.correct[rows, m].mean()
        loads.append(load)
        total += load + flow * square / (2 * (1 - load))
    return total / rate, loads, right


def test_a_plan_costs_what_the_formulas_say(tmp_path):
    one = problem(tmp_path, trace(80), rate=0.9, constraints={"accuracy": 0.4})
    plan, fit = planner.solve(one), read_answers(one.model).part("fit")
    assert plan.status == "optimal"
    models, devices = ["small", "medium", "big"], ["phone", "server"]
    fractions = np.zeros((2, 3, 2))
    for c, name in enumerate(("even", "odd")):
        for way in plan.decisions["fractions"][name]:
            fractions[c, models.index(way["model"]), devices.index(way["device"])] = way["fraction"]
    assert fractions.sum(axis=(1, 2)) == pytest.approx([1, 1])
    mean_s, loads, right = response(one, fit, fractions, 0.9)
    assert plan.latency_s == pytest.approx(mean_s, rel=1e-6)
    assert plan.objective == plan.latency_s
    assert plan.metrics["accuracy"] == pytest.approx(right)
    assert right >= accuracy_needed(0.4, 60, 20) - 1e-9
    used = [loads[d] for d, name in enumerate(devices) if f"load_{name}" in plan.metrics]
    assert [plan.metrics[f"load_{name}"] for name in devices if f"load_{name}" in plan.metrics] == pytest.approx(used)
    assert plan.metrics["load"] == pytest.approx(max(loads))
    busy = sum(stage.compute_s for stage in plan.stages)
    moving = sum(transfer.seconds for transfer in plan.transfers)
    assert plan.latency_s == pytest.approx(busy + moving + plan.metrics["waiting_s"])
    assert plan.latency_s == pytest.approx(sum(term.seconds for term in latency_terms(plan)))
    assert plan.throughput_per_s == pytest.approx(0.9 / max(loads))
    assert planner.verify(plan) == []


def test_no_other_fractions_are_better(tmp_path):
    recorded = trace(40)
    one = problem(tmp_path, recorded, rate=1.0)
    plan, fit = planner.solve(one), read_answers(one.model).part("fit")
    technique = Routing()
    instance = technique.build(one)
    steps = np.linspace(0, 1, 11)
    for a, b, m, n in itertools.product(steps, steps, range(3), range(3)):
        fractions = np.zeros((2, 3, 2))
        fractions[0, m, 0] += a
        fractions[0, n, 1] += 1 - a
        fractions[1, m, 0] += b
        fractions[1, n, 1] += 1 - b
        evaluated = technique.evaluate(instance, ServingSolution(fractions, (fractions > 0).any(axis=0)))
        if not evaluated.violations:
            assert evaluated.objective >= plan.objective * (1 - 1e-6)
            mean_s, _, _ = response(one, fit, fractions, 1.0)
            assert evaluated.objective == pytest.approx(mean_s, rel=1e-6)


def test_more_arrivals_use_more_devices_and_floors_larger_models(tmp_path):
    few, many = (planner.solve(problem(tmp_path, rate=rate)) for rate in (0.01, 12.0))
    assert {stage.device for stage in few.stages} == {"phone"}
    assert {stage.device for stage in many.stages} == {"phone", "server"}
    assert many.latency_s > few.latency_s
    floored = planner.solve(
        problem(tmp_path, trace(400), rate=0.5, constraints={"routing": {"accuracy": {"odd": 0.6}}})
    )
    ways = {name: {way["model"] for way in found} for name, found in floored.decisions["fractions"].items()}
    assert ways["even"] == {"small"}
    assert "big" in ways["odd"] or "medium" in ways["odd"]


def test_models_that_one_memory_does_not_hold_are_not_put_there(tmp_path):
    plan = planner.solve(problem(tmp_path, trace(200), rate=1.5, constraints={"accuracy": 0.5}))
    held = {stage.variant for stage in plan.stages if stage.device == "phone"}  # 4.5 MB: either, not both
    assert len(held) <= 1
    assert None not in held


def test_a_plan_that_was_changed_is_found_out(tmp_path):
    plan = planner.solve(problem(tmp_path, rate=6.0))
    for change, words in (
        ({"fractions": {"even": []}}, "is not by class"),
        ({"fractions": {**plan.decisions["fractions"], "odd": []}}, "fractions add up to 0"),
        ({"shares": {"even": 0.9, "odd": 0.1}}, "decisions.shares"),
    ):
        changed = plan.model_copy(update={"decisions": {**plan.decisions, **change}})
        assert words in "; ".join(planner.verify(changed))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"rate": 1000.0},
            r"load: .*constraints.routing.max_load is 0.95; workload.requests_per_s is 1000, and .* lower",
        ),
        ({"constraints": {"accuracy": 0.99}}, "constraints.accuracy is 0.99, which needs 1 on the queries"),
        ({"constraints": {"routing": {"accuracy": {"odd": 0.99}}}}, "constraints.routing.accuracy.odd is 0.99"),
        ({"constraints": {"accuracy": 0.45}, "rate": 10.0}, "constraints.accuracy and load: the fullest device"),
    ],
)
def test_what_no_device_can_carry_is_named(tmp_path, fields, words):
    with pytest.raises(NoPlanError, match=words):
        planner.solve(problem(tmp_path, trace(200), **fields))


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"routing": {"accuracy": {"od": 0.5}}}, "there is no class 'od' in the recorded answers; did you mean 'odd'"),
        ({"accuracy": 0.5, "routing": {"accuracy": {"odd": 0.5}}}, "is given beside floors of classes"),
    ],
)
def test_floors_that_do_not_fit_are_refused(tmp_path, limits, words):
    with pytest.raises(InputError, match=words):
        planner.solve(problem(tmp_path, constraints=limits))


def test_a_class_without_queries_is_refused(tmp_path):
    recorded = trace(40)
    recorded.classes[:] = np.where(recorded.held_out, recorded.classes, "odd")
    recorded.classes[3] = "even"
    with pytest.raises(InputError, match=r"class 'even' has no query of the split 'fit'; record some"):
        planner.solve(problem(tmp_path, recorded))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"rate": None}, "workload.requests_per_s"),
        ({"objective": "throughput"}, "objective: latency"),
        ({"constraints": {"deadline": 1.0}}, "bounds no response time"),
        ({"constraints": {"first": "phone"}}, "nothing to pin"),
        ({"constraints": {"thresholds": {"small": 0.5}}}, "is for cascade"),
    ],
)
def test_what_it_is_not_for(tmp_path, fields, why):
    assert why in (Routing().unfit(problem(tmp_path, **fields)) or "")


def test_others_do_not_queue_and_it_needs_answers():
    one = load_problem("text-routing")
    assert "routing" in planner.fitting_strategies(one)
    assert not {"pipeline", "speculative", "cascade"} & planner.fitting_strategies(one).keys()
    for name in ("text-speculative", "home-cluster", "digits-split"):
        assert Routing().unfit(load_problem(name))


def test_the_bundled_problem_spreads_classes_and_is_verified():
    plan = planner.solve(load_problem("text-routing"))
    assert plan.gap <= 1e-6
    assert len({stage.device for stage in plan.stages}) == 3
    assert {way["model"] for way in plan.decisions["fractions"]["day"]} == {"text"}  # only the large one knows
    assert "text" not in {way["model"] for way in plan.decisions["fractions"]["spelling"]}
    assert planner.verify(plan) == []
    technique = Routing()
    instance = technique.build(plan.problem)
    every = ServingSolution(np.full((5, 3, 3), 1 / 9), np.ones((3, 3), dtype=bool))
    worse = technique.evaluate(instance, every)
    assert worse.objective > plan.objective
    found = technique.plan(
        plan.problem, instance, Result(Status("optimal", True), worse.objective, worse.objective, every, "exact", 0.0)
    )
    assert len(found.stages) == 9


def test_the_interval_of_a_mixture_covers_what_varies():
    """Draw recorded and other queries and a run of them again and again: 95 of 100 runs lie where they should."""
    rng = np.random.default_rng(0)
    shares, right, fit, others, requests = np.array([0.3, 0.7]), np.array([0.9, 0.4]), [60, 140], [50, 120], 200
    inside, count = 0, 1500
    for _ in range(count):
        known = rng.binomial(fit, right) / fit
        asked = rng.binomial(others, right) / others
        run = rng.binomial(rng.multinomial(requests, shares), asked).sum() / requests
        interval = mixed_interval(known, shares, fit, others, requests)
        inside += interval.low <= run <= interval.high
    assert 0.935 <= inside / count <= 0.985
