"""Cascades that run: parties say what one process says, and thresholds are checked before they do."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from edgeopt import planner
from edgeopt.errors import InputError
from edgeopt.executor import execute
from edgeopt.plan import Plan
from edgeopt.profiles import load_model, load_problem
from edgeopt.profiles.answers import read_answers
from edgeopt.programs import compare, reference
from edgeopt.programs.answering import Queries, read_queries, write_queries
from edgeopt.programs.answers import build, share_right
from edgeopt.programs.parties import rehearse

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]


def plan_of(**load) -> Plan:
    problem = load_problem("text-cascade")
    return planner.solve(problem.model_copy(update={"workload": problem.workload.model_copy(update=load)}))


@pytest.mark.parametrize("rate", [None, 15.0])
def test_parties_say_what_one_process_says(rate):
    plan = plan_of(requests=12, requests_per_s=rate)
    said = rehearse(plan, 5)
    assert compare(plan, said, reference(plan, 5))["equal"]
    assert set(said[1].tolist()) == {0, 1}


def test_answers_are_those_that_were_recorded():
    """Tokens by number, stages by the trace's confidences, and as many right ones."""
    plan = plan_of(requests=16)
    rows, stages, tokens = rehearse(plan, 0)
    trace = read_answers(plan.problem.model)
    assert rows.tolist() == trace.part("held-out").query[:16].tolist()
    first, last = (trace.models.index(name) for name in plan.decisions["models"])
    known = trace.rows(rows.numpy())
    assert stages.tolist() == (known.confidence[:, first] < plan.decisions["thresholds"][0]).astype(int).tolist()
    model = [first if stage == 0 else last for stage in stages.tolist()]
    counts = [known.tokens[n, m] for n, m in enumerate(model)]
    assert (tokens >= 0).sum(1).tolist() == counts
    right = sum(known.correct[n, m] for n, m in enumerate(model))
    assert share_right(read_queries(plan.problem.model.answers.queries), [rows, stages, tokens]) == right / 16


@pytest.mark.processes
def test_an_executed_plan_reports_responses_and_accuracy():
    plan = plan_of(requests=6, requests_per_s=6.0)
    report = execute(plan, repeat=1, warmup=0, timeout_s=100.0)
    assert report.output is not None
    assert report.output.equal
    assert report.responses is not None
    assert report.responses.requests == 6
    assert report.latency_s.predicted == plan.latency_s
    accuracy = report.metrics["accuracy"]
    assert accuracy.predicted == plan.metrics["accuracy"]
    assert round(6 * accuracy.median) == pytest.approx(6 * accuracy.median)
    assert {transfer.purpose for transfer in report.transfers} == {"input", "output", "end"}


@pytest.mark.parametrize(
    ("thresholds", "sentence"),
    [
        ([1.5], r"decisions.thresholds\[0\]: is 1.5; give a confidence from 0 to 1"),
        (["high"], r"decisions.thresholds\[0\]: is 'high'"),
        ([], r"decisions.thresholds: is .. for 2 models; give a confidence for each model but the last"),
        (None, "decisions.thresholds: is None for 2 models"),
    ],
)
def test_thresholds_out_of_range_do_not_run(thresholds, sentence):
    plan = plan_of()
    wrong = plan.model_copy(update={"decisions": {**plan.decisions, "thresholds": thresholds}})
    with pytest.raises(InputError, match=sentence):
        build(wrong, ())


def test_what_does_not_say_what_is_asked_does_not_run():
    plan = plan_of()
    model = load_model("text")
    mute = model.model_copy(update={"answers": model.answers.model_copy(update={"queries": None})})
    with pytest.raises(InputError, match=r"model\.answers\.queries: of 'text' is missing"):
        build(plan.model_copy(update={"problem": plan.problem.model_copy(update={"model": mute})}), ())


def test_queries_that_are_written_are_read(tmp_path):
    path = str(tmp_path / "queries.safetensors")
    for largest in (40, 4000):
        queries = Queries([[1, 2, largest], [3]], [[4], [5, 6]], 4)
        write_queries(path, queries)
        assert read_queries(path) == queries
    (tmp_path / "queries.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="record the answers anew"):
        read_queries(path)
