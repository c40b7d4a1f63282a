"""Plans of cascades of language models against arithmetic by hand and brute force over their recorded answers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from edgeopt import planner
from edgeopt.costs.answering import accuracy_needed
from edgeopt.errors import InputError, NoPlanError
from edgeopt.profiles import load_problem
from edgeopt.profiles.answers import read_answers
from edgeopt.profiles.problem import Constraints
from edgeopt.strategies.cascade import MOST_BUSY, Cascade
from tests.edgeopt.answer_cases import problem, trace
from tests.edgeopt.factories import device, network

GFLOP = {"small": 0.1, "medium": 0.8, "big": 3.0}
MEGABYTES = {"small": 3, "medium": 4, "big": 5}


def seconds_of(one, fit, m, d):
    """Seconds of each fit query at a model on a device, by hand: a pass for each token of query and answer but one."""
    name, speed = fit.models[m], {"phone": 10, "server": 30}[one.devices[d].name]
    busy = GFLOP[name] * (fit.prompt_tokens + fit.tokens[:, m] - 1) / speed
    there = 0.05 + (16 + 8 * fit.prompt_tokens) / 1e5
    back = 0.05 + (24 + 8 * fit.tokens[:, m]) / 1e5
    return busy, busy + (there + back if d else 0.0)


def brute_force(one, floor, rate=None):
    """Least mean seconds over all models, devices that hold them, and thresholds of the trace that reach the floor."""
    fit = read_answers(one.model).part("fit")
    best = math.inf
    room = [device.memory / 1e6 for device in one.devices]
    for size in (1, 2, 3):
        for models in itertools.combinations(range(3), size):
            for places in itertools.product(range(len(one.devices)), repeat=size):
                held = [sum(MEGABYTES[fit.models[m]] for m, d in zip(models, places, strict=True) if d == e)
                        for e in range(len(room))]  # fmt: skip
                if any(need > has for need, has in zip(held, room, strict=True)):
                    continue
                tables = [seconds_of(one, fit, m, d) for m, d in zip(models, places, strict=True)]
                for thresholds in itertools.product(*(np.unique(fit.confidence[:, m]) for m in models[:-1])):
                    value = evaluated(fit, models, places, tables, thresholds, rate)
                    if value is not None and value[1] >= floor - 1e-12:
                        best = min(best, value[0])
    return best


def evaluated(fit, models, places, tables, thresholds, rate):
    going, total, right, busy = np.ones(len(fit), bool), 0.0, 0.0, dict.fromkeys(places, 0.0)
    for k, (m, d) in enumerate(zip(models, places, strict=True)):
        total += tables[k][1][going].sum()
        busy[d] += tables[k][0][going].sum() / len(fit)
        stops = going & (fit.confidence[:, m] >= thresholds[k]) if k < len(thresholds) else going
        right += fit.correct[stops, m].sum()
        going = going & ~stops
    if rate is not None and max(busy.values()) > MOST_BUSY / rate * (1 + 1e-9):
        return None
    return total / len(fit), right / len(fit)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rate", [None, 1.5])
def test_a_plan_is_the_best_of_all(tmp_path, seed, rate):
    """24 fit queries: every confidence is a threshold that the plan may choose."""
    load = {"kind": "text", "prompt_tokens": 8, "new_tokens": 4, "requests_per_s": rate}
    one = problem(tmp_path, trace(32, seed), workload=load)
    for floor in (0.1, 0.3, 0.5):
        best = brute_force(one, accuracy_needed(floor, 24, 8), rate)
        given = one.model_copy(update={"constraints": Constraints(accuracy=floor)})
        if math.isinf(best):
            with pytest.raises(NoPlanError):
                planner.solve(given)
            continue
        plan = planner.solve(given)
        assert plan.objective == pytest.approx(best, rel=1e-6)
        assert planner.verify(plan) == []


def test_a_plan_costs_what_the_formulas_say(tmp_path):
    one = problem(
        tmp_path,
        trace(400),
        constraints={"accuracy": 0.65, "thresholds": {"small": 0.6, "medium": 0.0}, "max_stages": 2},
    )
    plan = planner.solve(one)
    assert plan.decisions == {"models": ["small", "big"], "devices": ["phone", "server"], "thresholds": [0.6]}
    fit = read_answers(one.model).part("fit")
    passed = fit.confidence[:, 0] < 0.6
    first, second = seconds_of(one, fit, 0, 0), seconds_of(one, fit, 2, 1)
    assert plan.latency_s == pytest.approx((first[1] + passed * second[1]).mean(), rel=1e-6)
    assert plan.objective == pytest.approx(plan.latency_s)
    assert plan.metrics["passed_on_1"] == pytest.approx(passed.mean())
    right = np.where(passed, fit.correct[:, 2], fit.correct[:, 0]).mean()
    assert plan.metrics["accuracy"] == pytest.approx(right)
    assert plan.metrics["accuracy_low"] < right < plan.metrics["accuracy_high"]
    assert [stage.compute_s for stage in plan.stages] == pytest.approx(
        [first[0].mean(), (passed * second[0]).mean()], rel=1e-6
    )
    question, answer = plan.transfers
    assert (question.source, question.destination, question.purpose) == ("phone", "server", "input")
    assert question.bytes == pytest.approx((passed * (16 + 8 * fit.prompt_tokens)).mean())
    assert answer.bytes == pytest.approx((passed * (24 + 8 * fit.tokens[:, 2])).mean())
    assert question.messages == answer.messages == pytest.approx(passed.mean())


def test_queries_that_arrive_by_themselves_wait(tmp_path):
    load = {"kind": "text", "prompt_tokens": 8, "new_tokens": 4, "requests_per_s": 2.0}
    one = problem(tmp_path, workload=load)
    plan, alone = planner.solve(one), planner.solve(problem(tmp_path))
    assert plan.decisions == alone.decisions
    assert plan.objective == pytest.approx(alone.latency_s)
    assert plan.latency_s == pytest.approx(alone.latency_s + plan.metrics["waiting_s"])
    busy = {name: sum(s.compute_s for s in plan.stages if s.device == name) for name in ("phone", "server")}
    assert plan.metrics["load"] == pytest.approx(2.0 * max(busy.values()))
    assert plan.metrics["waiting_s"] > 0
    assert planner.verify(plan) == []


def test_two_models_that_one_memory_does_not_hold_are_put_apart(tmp_path):
    """With room for both on the fast device both are there."""
    limits, fast = {"accuracy": 0.65, "thresholds": {"small": 0.6}, "max_stages": 2}, network(rate=1e9, latency=1e-6)
    for memory, devices in ((8.5e6, {"server"}), (5.5e6, {"phone", "server"})):
        both = [device("phone", gflops=10, memory=8.5e6), device("server", gflops=30, memory=memory)]
        plan = planner.solve(problem(tmp_path, trace(400), constraints=limits, devices=both, network=fast))
        assert plan.decisions["models"] == ["small", "big"]
        assert set(plan.decisions["devices"]) == devices


def test_more_devices_than_models_are_no_more_choices(tmp_path):
    """Twelve equal servers: three entries of each model at most are left to choose from."""
    servers = [device(f"server-{i}", gflops=30) for i in range(12)]
    one = problem(tmp_path, devices=[device("phone", gflops=1), *servers])
    instance = Cascade().build(one)
    assert instance.num_models <= 12
    assert planner.solve(one).objective == pytest.approx(
        planner.solve(one.model_copy(update={"devices": one.devices[:4]})).objective
    )


def test_what_nobody_reaches_is_refused_with_field_and_amount(tmp_path):
    with pytest.raises(NoPlanError, match=r"constraints.accuracy is 0.97, which needs 1 on the queries .* lower it"):
        planner.solve(problem(tmp_path, constraints={"accuracy": 0.97}))
    with pytest.raises(NoPlanError, match=r"constraints.deadline, kept on average, is 0.001 s"):
        planner.solve(problem(tmp_path, constraints={"accuracy": 0.1, "deadline": "1 ms"}))
    load = {"kind": "text", "prompt_tokens": 8, "new_tokens": 4, "requests_per_s": 1000.0}
    with pytest.raises(
        NoPlanError, match=r"workload.requests_per_s is 1000, which leaves a device per query 0.00095 s"
    ):
        planner.solve(problem(tmp_path, workload=load))
    with pytest.raises(NoPlanError, match=r"the smallest model needs 3\d+ bytes, and no device"):
        planner.solve(problem(tmp_path, devices=[device("phone", memory=1e6)]))


def test_what_does_not_fit_is_refused_with_field_and_mend(tmp_path):
    with pytest.raises(
        InputError, match=r"constraints.thresholds.smal: there is no model 'smal' .* did you mean 'small'"
    ):
        planner.solve(problem(tmp_path, constraints={"accuracy": 0.5, "thresholds": {"smal": 0.5}}))
    with pytest.raises(ValueError, match="less than or equal to 1"):
        Constraints(accuracy=0.5, thresholds={"small": 1.5})
    load = {"kind": "text", "prompt_tokens": 5, "new_tokens": 3}
    with pytest.raises(InputError, match="longest of the trace's queries has 8 tokens; raise it to 8") as refused:
        planner.solve(problem(tmp_path, workload=load))
    assert len(refused.value.findings) == 2


def test_a_plan_file_with_a_threshold_out_of_range_is_no_plan(tmp_path):
    plan = planner.solve(
        problem(tmp_path, trace(400), constraints={"accuracy": 0.65, "thresholds": {"small": 0.6}, "max_stages": 2})
    )
    for change, sentence in (
        ({"thresholds": [1.5]}, "thresholds[0] is 1.5; give a confidence from 0 to 1"),
        ({"thresholds": []}, "thresholds has 0 entries for 2 models"),
        ({"devices": ["server", "phone"]}, "model 'big' on device 'phone' is none of the choices"),
    ):
        wrong = plan.model_copy(update={"decisions": {**plan.decisions, **change}})
        assert sentence in planner.verify(wrong)[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"constraints": {}}, "constraints.accuracy"),
        ({"objective": "throughput"}, "(objective: latency)"),
        ({"workload": {"kind": "text", "prompt_tokens": 8, "new_tokens": 4, "batch": 2}}, "one query at a time"),
        ({"constraints": {"accuracy": 0.5, "first": "phone"}}, "nothing to pin"),
    ],
)
def test_what_it_is_not_for(tmp_path, change, reason):
    assert reason in (Cascade().unfit(problem(tmp_path, **change)) or "")


def test_nobody_else_promises_right_answers():
    problem = load_problem("text-cascade")
    assert "cascade" in planner.fitting_strategies(problem)
    assert not {"pipeline", "speculative"} & planner.fitting_strategies(problem).keys()
    assert Cascade().unfit(load_problem("text-speculative"))
    assert Cascade().unfit(load_problem("home-cluster"))
    assert Cascade().unfit(load_problem("digits-split"))


def test_the_bundled_problem_asks_two_models_and_is_verified():
    plan = planner.solve(load_problem("text-cascade"))
    assert len(plan.decisions["models"]) > 1
    assert len(set(plan.decisions["devices"])) == 2
    assert plan.latency_s < 0.6 * plan.metrics["largest_alone_s"]
    assert plan.metrics["accuracy"] > 0.85
    assert planner.verify(plan) == []
