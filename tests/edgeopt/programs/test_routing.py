"""Routing that runs: queries go where fractions send them, and parties say what one process says."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgeopt import planner  # noqa: E402
from edgeopt.errors import InputError  # noqa: E402
from edgeopt.executor import execute  # noqa: E402
from edgeopt.profiles import load_problem  # noqa: E402
from edgeopt.profiles.answers import read_answers  # noqa: E402
from edgeopt.programs import compare, reference  # noqa: E402
from edgeopt.programs.parties import rehearse  # noqa: E402
from edgeopt.programs.routing import build  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def planned():
    return planner.solve(load_problem("text-routing"))


def asked(plan, **load):
    problem = plan.problem
    changed = problem.model_copy(update={"workload": problem.workload.model_copy(update=load)})
    return plan.model_copy(update={"problem": changed})


def test_parties_say_what_one_process_says(planned):
    plan = asked(planned, requests=16, requests_per_s=40.0)
    said = rehearse(plan, 3)
    assert compare(plan, said, reference(plan, 3))["equal"]
    assert len(set(said[1].tolist())) > 2


def test_queries_go_where_the_fractions_send_them(planned):
    plan = asked(planned, requests=6000)
    _, rows, stages = build(plan, ()).request(0)
    trace = read_answers(plan.problem.model)
    held_out = trace.part("held-out")
    assert set(rows.tolist()) <= set(held_out.query.tolist())
    kinds = trace.classes[rows.numpy()]
    for name, ways in plan.decisions["fractions"].items():
        mine = stages[torch.tensor(kinds == name)]
        assert len(mine) / 6000 == pytest.approx(plan.decisions["shares"][name], abs=0.025)
        for way in ways:
            stage = next(
                s.index for s in plan.stages
                if (s.variant or "text", s.device) == (way["model"], way["device"])
            )  # fmt: skip
            assert float((mine == stage).double().mean()) == pytest.approx(way["fraction"], abs=0.06)


@pytest.mark.parametrize(
    ("fractions", "words"),
    [
        (None, "decisions.fractions: are no fractions"),
        ({"fact": [{"model": "huge", "device": "server", "fraction": 1.0}]}, "is none of the plan's stages"),
        ({"fact": [{"model": "medium", "device": "server", "fraction": 0.5}]}, "fractions.fact: are no fractions"),
    ],
)
def test_fractions_that_do_not_fit_do_not_run(planned, fractions, words):
    wrong = planned.model_copy(update={"decisions": {**planned.decisions, "fractions": fractions}})
    with pytest.raises(InputError, match=words):
        build(wrong, ())


@pytest.mark.processes
def test_an_executed_plan_reports_responses_and_accuracy(planned):
    plan = asked(planned, requests=20)
    report = execute(plan, repeat=1, warmup=0, timeout_s=100.0)
    assert report.output is not None
    assert report.output.equal
    assert report.responses is not None
    assert report.responses.requests == 20
    assert report.responses.mean_s == pytest.approx(report.latency_s.median)
    assert report.responses.max_s >= report.responses.p95_s >= report.responses.median_s
    assert report.latency_s.predicted == plan.latency_s
    assert report.metrics["accuracy"].predicted == plan.metrics["accuracy"]
    assert 0 < report.metrics["load"].median < 1
    assert len(report.timeline) <= 400
    assert sum(t.messages for t in report.transfers if t.purpose == "input") <= 1
