"""A target in stages: the same tokens as from one piece, wherever the draft is, whatever is taken."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgeopt import planner
from edgeopt.costs.drafting import expected_request
from edgeopt.errors import InputError, NoPlanError
from edgeopt.profiles import load_problem
from edgeopt.questions.explain import explain
from edgeopt.strategies.speculative import Speculative
from edgeopt.strategies.speculative_choice import Choice
from edgeopt.strategies.speculative_rounds import Rounds
from edgeopt_solvers import Result, Status
from edgeopt_solvers.policy import StagedSolution
from tests.edgeopt.factories import device
from tests.edgeopt.speculative_cases import problem, target

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]

NAMES = ["phone", "desk", "shelf", "hall"]


def planned(solution, *, draft="small", temperature=0.0, adaptive=False, new_tokens=13):
    """The plan of given decisions, on four devices of which the first owns the request."""
    model = target()
    model = model.model_copy(update={"drafts": {draft: model.drafts[draft]}})
    case = problem(
        model=model,
        workload={"kind": "text", "prompt_tokens": 6, "new_tokens": new_tokens, "temperature": temperature},
        devices=[device(name, gflops=10) for name in NAMES],
        constraints={"drafting": {"max_length": 6, "adaptive": adaptive}},
    )
    technique = Speculative()
    instance = technique.build(case)
    value = technique.evaluate(instance, solution).objective
    plan = technique.plan(case, instance, Result(Status("gap_reached", True), value, 0.0, solution, "exact", 0.0))
    assert technique.solution(plan) == solution
    return plan


@pytest.mark.parametrize(
    ("draft_device", "length", "cuts", "devices", "options"),
    [
        (0, 3, (2, 4), (1, 2), {}),
        (1, 3, (2, 4), (1, 2), {"draft": "twin"}),  # with the first stage
        (2, 4, (3, 4), (0, 2), {"adaptive": True}),  # with the last, and the source has a stage
        (0, 2, (1, 2, 4), (1, 2, 3), {"adaptive": True}),
        (2, 3, (2, 3, 4), (1, 2, 3), {"draft": "twin"}),  # with the one in the middle, which sends to the last too
        (3, 1, (1, 3, 4), (2, 1, 3), {"new_tokens": 3}),
        (1, 1, (2, 4), (2, 0), {"new_tokens": 2}),  # nothing to draft: the draft hands the token on
        (-1, 0, (2, 4), (2, 1), {}),
        (-1, 0, (1, 3, 4), (0, 1, 2), {}),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_are_those_of_one_process(draft_device, length, cuts, devices, options, temperature):
    from edgeopt.programs import reference
    from edgeopt.programs.parties import rehearse

    draft = 0 if length else -1
    solution = StagedSolution(draft, draft_device, length, cuts, devices)
    plan = planned(solution, temperature=temperature, **options)
    for seed in range(2):
        (tokens,), (expected,) = rehearse(plan, seed), reference(plan, seed)
        assert tokens.tolist() == expected.tolist()
    assert tokens.shape == (1, options.get("new_tokens", 13))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_messages_are_as_many_as_planned(temperature):
    """A twin is always taken, so that a greedy run has the rounds that acceptance 1 gives."""
    from edgeopt.programs import build
    from edgeopt.programs.parties import check_message, rehearse

    solution, sent = StagedSolution(0, 0, 3, (1, 2, 4), (1, 2, 3)), {}
    plan = planned(solution, draft="twin", temperature=temperature)
    instance = Speculative().build(plan.problem)
    choice = Choice(Rounds(plan.problem), instance, solution, expected_request(np.ones(3), 3, 12))
    expected = {t.purpose: (t.messages, t.bytes) for t in choice.transfers}

    def counting(plan, stages):
        party = build(plan, stages)
        play = party.play

        def played(links, inputs):
            send = links.send

            def noted(to, tensors, label=""):
                messages, total = sent.get(label, (0, 0))
                sent[label] = (messages + 1, total + check_message(tensors, label, party.max_message_bytes))
                send(to, tensors, label)

            links.send = noted
            return play(links, inputs)

        party.play = played
        return party

    rehearse(plan, 0, counting)
    assert sent.keys() == {transfer.purpose for transfer in plan.transfers}
    assert sent["cut"][0] == 2 * (1 + sent["draft"][0])
    assert sent["stop"] == (2, 0)
    if temperature == 0:
        for purpose in ("input", "draft", "reply", "output"):
            assert sent[purpose] == pytest.approx(expected[purpose])
    else:
        guesses = (sent["draft"][1] - 16 * sent["draft"][0]) / 8
        assert sent["distributions"] == (sent["reply"][0] - 1, 4 * 11 * guesses)


def test_sampled_tokens_of_a_target_in_stages_have_its_distribution():
    """Two tokens after the first, of a vocabulary of three, against the whole target's own probabilities."""
    from edgeopt.programs.drafting import CachedScorer, Drafter, Verifier

    options = {"dtype": torch.float32, "device": torch.device("cpu"), "max_tokens": 16}
    model, prompt, counts, total = target(3), [0, 1, 2, 1], {}, 300
    draft, front, back, whole = (
        CachedScorer(architecture, *span, **options)
        for architecture, span in (
            (model.drafts["small"].architecture, ()), (model.architecture, (0, 2)), (model.architecture, (2, 4)),
            (model.architecture, ()),
        )
    )  # fmt: skip
    with torch.inference_mode():
        for seed in range(total):
            for scorer in (draft, front, back):
                scorer.reset()
            drafter, verifier = Drafter(draft, 1.0, seed), Verifier(back, 1.0, seed)
            made = [verifier.start(prompt, front.score(prompt, 1))]
            drafter.start(prompt)
            drafter.settle(made)
            while len(made) < 3:
                guesses, guessed = drafter.guess(2) if len(made) == 1 else ([], torch.empty(0))
                front.keep(len(prompt) + len(made) - 1)
                hidden = front.score([made[-1], *guesses], 1)
                count, token = verifier.take(verifier.passed(guesses, hidden), guesses, guessed)
                made += [*guesses[:count], token]
                assert back.num_cached == len(verifier.settled) - 1
            counts[tuple(made[:3])] = counts.get(tuple(made[:3]), 0) + 1
        chances = {}
        for cell in itertools.product(range(3), repeat=3):
            whole.reset()
            rows = torch.softmax(whole.score([*prompt, *cell[:2]], 3), -1)
            chances[cell] = float(torch.stack([rows[i, token] for i, token in enumerate(cell)]).prod())
    found = sum((counts.get(cell, 0) - total * p) ** 2 / (total * p) for cell, p in chances.items())
    assert found < 54.1  # 26 degrees of freedom, 0.1 %


def test_the_bundled_target_fits_no_device_is_cut_and_drafting_pays():
    from edgeopt.programs import reference
    from edgeopt.programs.parties import rehearse

    case = load_problem("text-speculative-pipeline")
    plan = planner.solve(case)
    assert plan.status == "optimal"
    assert len(plan.decisions["target_devices"]) > 1
    assert plan.decisions["draft_length"] > 1
    assert plan.metrics["speed_up"] > 1.5
    assert "no device holds it whole" in " ".join(plan.notes)
    assert planner.verify(plan) == []
    explanation = explain(plan, ["without phone", "without desk"], time_limit_s=10.0)
    slower, impossible = explanation.answers
    assert slower.price > 0
    assert slower.proven
    assert impossible.plan is None
    assert "no cut of the target fits" in impossible.broken
    # Drafts apart, the target alone takes what the pipeline of the same layers does.
    alone = planner.solve(case, strategy="pipeline")
    assert plan.metrics["target_alone_s"] == pytest.approx(alone.latency_s, rel=1e-3)
    assert rehearse(plan, 0)[0].tolist() == reference(plan, 0)[0].tolist()
    whole = case.constraints.model_copy(update={"max_stages": 1})
    mend = r"in at most 1 stages \(max_stages\) fits .* on device 'desk'.*; add a device, raise `memory`"
    with pytest.raises(NoPlanError, match=mend):
        planner.solve(case.model_copy(update={"constraints": whole}))


@pytest.mark.processes
def test_processes_with_stages_make_the_targets_text():
    from edgeopt.executor import execute

    plan = planner.solve(load_problem("text-speculative-pipeline"))
    report = execute(plan, repeat=1, warmup=0, timeout_s=180)
    assert report.output is not None
    assert report.output.equal
    assert {t.purpose for t in report.transfers} == {t.purpose for t in plan.transfers}


def test_layers_that_the_architecture_does_not_make_are_refused_where_the_target_is_cut():
    from edgeopt.programs import build

    plan = planned(StagedSolution(0, 0, 2, (2, 4), (1, 2)))
    stages = [*plan.stages[:-1], plan.stages[-1].model_copy(update={"stop": 5})]
    with pytest.raises(InputError, match=r"model.layers.*its architecture makes 4"):
        build(plan.model_copy(update={"stages": stages}), ())
