"""Routing by a router that runs: the source scores what arrives, and bins go where their fractions send them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgeopt import planner  # noqa: E402
from edgeopt.errors import InputError  # noqa: E402
from edgeopt.executor import execute  # noqa: E402
from edgeopt.profiler.scoring import score_rows  # noqa: E402
from edgeopt.profiles import load_problem  # noqa: E402
from edgeopt.profiles.answers import read_answers  # noqa: E402
from edgeopt.profiles.routers import bins_of, features_of, gains_of, predicted, read_cuts  # noqa: E402
from edgeopt.programs import compare, reference  # noqa: E402
from edgeopt.programs.parties import rehearse  # noqa: E402
from edgeopt.programs.routing import build  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def planned():
    return planner.solve(load_problem("text-router"))


def asked(plan, **load):
    problem = plan.problem
    changed = problem.model_copy(update={"workload": problem.workload.model_copy(update=load)})
    return plan.model_copy(update={"problem": changed})


def test_parties_say_what_one_process_says(planned):
    plan = asked(planned, requests=16, requests_per_s=40.0)
    said = rehearse(plan, 3)
    assert compare(plan, said, reference(plan, 3))["equal"]
    assert 0 not in said[1].tolist()  # the stage that scores answers nothing
    assert len(set(said[1].tolist())) > 1


def test_queries_go_where_the_fractions_of_their_bin_send_them(planned):
    plan = asked(planned, requests=4000)
    party = build(plan, ())
    inputs = party.request(0)
    told = party.told(inputs)
    stages = torch.tensor([told.first(n) for n in range(4000)])
    model, given = plan.problem.model, plan.decisions["router"]
    trace, router = read_answers(model), model.answers.router
    tree = read_cuts(given["cuts"], trace.models, given["bins"])
    chances = predicted(router, trace.models, features_of(trace, router.features))
    known = bins_of(tree, gains_of(chances, trace.models.index(given["over"])))
    assert trace.held_out[inputs[1].numpy()].all()  # rows count from 0
    bins = torch.tensor(known[inputs[1].numpy()])
    for k, name in enumerate(given["bins"]):
        mine = stages[bins == k]
        assert len(mine) / 4000 == pytest.approx(plan.decisions["shares"][name], abs=0.06)
        for way in plan.decisions["fractions"][name]:
            stage = next(
                s.index for s in plan.stages[1:]
                if (s.variant or "text", s.device) == (way["model"], way["device"])
            )  # fmt: skip
            assert float((mine == stage).double().mean()) == pytest.approx(way["fraction"], abs=0.1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"over": "tiny"}, "decisions.router: cannot be read"),
        (
            {"cuts": {"gain": "text", "at": 0.5, "below": "bin-1"}},
            "is no bin, and no cut with gain, at, below and above",
        ),
        ({"cuts": "bin-1"}, "cuts do not lead to each of the bins"),
        ({"bins": ["bin-1"], "cuts": "bin-1"}, "have no fractions"),
    ],
)
def test_cuts_that_do_not_fit_do_not_run(planned, change, words):
    router = {**planned.decisions["router"], **change}
    wrong = planned.model_copy(update={"decisions": {**planned.decisions, "router": router}})
    with pytest.raises(InputError, match=words):
        build(wrong, ())


def test_scores_are_timed_for_the_shortest_and_the_longest_query(planned):
    model = planned.problem.model
    rows, trace = score_rows(model, "here"), read_answers(model)
    assert [row.tokens for row in rows] == [trace.prompt_tokens.min(), trace.prompt_tokens.max()]
    assert all(row.phase == "score" and 0 < row.elements[0] < 50 for row in rows)
    bare = model.model_copy(update={"answers": model.answers.model_copy(update={"router": None})})
    assert score_rows(bare, "here") == []


@pytest.mark.processes
def test_an_executed_plan_reports_its_scores(planned):
    report = execute(asked(planned, requests=12), repeat=1, warmup=0, timeout_s=100.0)
    assert report.output is not None
    assert report.output.equal
    assert report.stages[0].elements == "router, all queries"
    assert report.stages[0].compute_s.median > 0
    assert report.metrics["accuracy"].predicted == planned.metrics["accuracy"]
