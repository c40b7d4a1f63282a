"""Drafting at length: the trained models' texts on two hundred prompts, and lengths that follow what is taken."""

from __future__ import annotations

import collections
import contextlib
import random

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from edgeopt import planner
from edgeopt.profiles import load_problem
from edgeopt.programs import build
from edgeopt.programs.parties import Links
from edgeopt.programs.speculative import Speculative, draw_prompt, library_model
from tests.edgeopt.speculative_cases import problem

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]


class Alone(Links):
    """Links of a process that plays all parts, and counts how often each computes."""

    rank = 0

    def __init__(self):
        self.rounds = collections.Counter()

    def send(self, to, tensors, label=""):
        raise AssertionError("there is nobody else")

    receive = poll = send

    def computing(self, stage, round_index=0):
        self.rounds[stage] += round_index > 0
        return contextlib.nullcontext()


def in_one_place(plan, **decisions):
    """Return the plan with all its parts on the source."""
    source = plan.problem.devices[0].name
    stages = [stage.model_copy(update={"device": source}) for stage in plan.stages]
    return plan.model_copy(update={"stages": stages, "decisions": {**plan.decisions, **decisions}})


def texts(party, seeds):
    made = []
    with torch.inference_mode():
        for seed in seeds:
            party.begin()
            made.append(party.play(Alone(), party.request(seed))[0])
    return torch.cat(made)


def test_two_hundred_texts_are_the_targets_own():
    """Drafts of one to sixteen tokens, which stop when they doubt; the reference knows no draft."""
    case = load_problem("text-speculative")
    load = case.workload.model_copy(update={"new_tokens": 12})
    limits = case.constraints.model_copy(update={"drafting": case.constraints.drafting.model_copy(
        update={"min_length": 1, "max_length": 16, "adaptive": True}), "max_stages": 1})  # fmt: skip
    plan = in_one_place(planner.solve(case.model_copy(update={"workload": load, "constraints": limits})))
    assert 0 < plan.decisions["stop_below"] < 1
    party, target = build(plan, (0, 1)), library_model(case.model, None)
    found = texts(party, range(200))
    prompts = torch.cat([draw_prompt(case.model, load, seed) for seed in range(200)])
    with torch.inference_mode():
        whole = target.generate(
            prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=12, do_sample=False, num_beams=1,
            pad_token_id=0,
        )  # fmt: skip
    assert found.shape == (200, 12)
    assert len({tuple(row) for row in found.tolist()}) > 100
    assert found.tolist() == whole[:, load.prompt_tokens :].tolist()


class Script:
    """A model that says one token everywhere, except where it errs; it is as sure as it is told to be."""

    def __init__(self, errs=lambda place: False, sure=lambda place: 0.99):
        self.num_cached, self.passes, self._errs, self._sure = 0, 0, errs, sure

    def reset(self):
        self.num_cached = self.passes = 0

    def keep(self, num_tokens):
        self.num_cached = num_tokens

    def score(self, tokens, last):
        self.passes += 1
        self.num_cached += len(tokens)
        rows = torch.empty(last, 11)
        for row, place in zip(rows, range(self.num_cached - last + 1, self.num_cached + 1), strict=True):
            row.fill_((1 - self._sure(place)) / 10)[3 if self._errs(place) else 2] = self._sure(place)
        return rows.log()


STEP_S, NEW = 0.2, 120


def cost(length, errs, sure=lambda place: 0.9, **decisions):
    """Seconds of a text when a pass of the target takes one, whatever it checks, and a guess :data:`STEP_S`."""
    adaptive = bool(decisions)
    case = problem(
        workload={"kind": "text", "prompt_tokens": 6, "new_tokens": NEW},
        constraints={"drafting": {"min_length": 1, "max_length": 8}},
    )
    plan = in_one_place(planner.solve(case), draft_length=length, adaptive=adaptive, **decisions)

    class Scripted(Speculative):
        def _scorer(self, index):
            return Script() if index == self._target else Script(errs, sure)

    party, links = Scripted(plan, (0, 1)), Alone()
    party.begin()
    (text,) = party.play(links, party.request(0))
    assert text.tolist() == [[2] * NEW]
    return links.rounds[1] + STEP_S * (party._scorers[0].passes - 1)


def threshold(length, errs):
    """What the plan's formula gives where the share of right guesses is known: half of λ τ."""
    return 0.5 * STEP_S * NEW / cost(length, errs)


def test_drafts_that_stop_in_doubt_beat_every_fixed_length_where_acceptance_varies():
    """Half of the text cannot be guessed, in stretches, and the draft is unsure there: no one length is right."""

    def hard(place):
        return place // 20 % 2 == 1

    fixed = {length: cost(length, hard) for length in range(1, 9)}
    best = min(fixed, key=fixed.get)
    doubt = threshold(best, hard)
    assert cost(best, hard, lambda place: 0.1 if hard(place) else 0.95, stop_below=doubt) < 0.85 * fixed[best]


def test_a_draft_whose_doubts_mean_nothing_loses_little():
    """A fifth of the guesses is wrong, wherever, and the draft is four fifths sure of each: its length stays."""
    draw = random.Random(0)
    wrong = {place for place in range(200) if draw.random() < 0.2}.__contains__
    fixed = {length: cost(length, wrong) for length in range(1, 9)}
    best = min(fixed, key=fixed.get)
    assert cost(best, wrong, lambda place: 0.8, stop_below=threshold(best, wrong)) < 1.1 * fixed[best]


def test_without_a_threshold_lengths_follow_what_was_taken():
    """As for sampled drafts: one longer or one shorter; long stretches pay for it."""

    def hard(place):
        return place // 40 % 2 == 1

    case = problem(
        workload={"kind": "text", "prompt_tokens": 6, "new_tokens": 13, "temperature": 1.0},
        constraints={"drafting": {"min_length": 1, "adaptive": True}},
    )
    assert "stop_below" not in planner.solve(case).decisions
    assert cost(4, hard, stop_below=0) < 0.97 * min(cost(length, hard) for length in range(1, 9))


def test_the_plan_says_how_much_doubt_is_worth_a_stop():
    limits = {"drafting": {"min_length": 2, "max_length": 2, "adaptive": True}}
    model = problem().model
    model = model.model_copy(update={"drafts": {"small": model.drafts["small"]}})
    plan = planner.solve(problem(constraints=limits, model=model))
    # On the server alone: a draft step takes 0.01 s, a pass over n positions 0.2 n s; 1 + 0.8 + 0.64 tokens a round.
    assert plan.decisions["draft_device"] == "server"
    assert plan.decisions["stop_below"] == pytest.approx(0.5 * 0.21 * 2.44 / (2 * 0.01 + 0.6), rel=1e-6)
    assert planner.verify(plan) == []
