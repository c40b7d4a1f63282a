"""Drafting at length: the trained models' texts on two hundred prompts, and lengths that follow what is taken."""

from __future__ import annotations

import collections
import contextlib

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
    """Drafts of one to sixteen tokens, as the length follows what is taken; the reference knows no draft."""
    case = load_problem("text-speculative")
    load = case.workload.model_copy(update={"new_tokens": 12})
    limits = case.constraints.model_copy(update={"drafting": case.constraints.drafting.model_copy(
        update={"min_length": 1, "max_length": 16, "adaptive": True})})  # fmt: skip
    plan = in_one_place(planner.solve(case.model_copy(update={"workload": load, "constraints": limits})))
    assert plan.decisions["adaptive"]
    party, target = build(plan, (0, 1)), library_model(case.model)
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
    """A model that says one token everywhere, except where it is told to err; counts its passes."""

    def __init__(self, errs=lambda place: False):
        self.num_cached, self.passes, self._errs = 0, 0, errs

    def reset(self):
        self.num_cached = self.passes = 0

    def keep(self, num_tokens):
        self.num_cached = num_tokens

    def score(self, tokens, last):
        self.passes += 1
        self.num_cached += len(tokens)
        places = range(self.num_cached - last + 1, self.num_cached + 1)
        return torch.nn.functional.one_hot(torch.tensor([3 if self._errs(p) else 2 for p in places]), 11).float()


def cost(length, adaptive, errs, *, new_tokens=120, draft_s=0.2):
    """Seconds of a text when a pass of the target takes one, whatever it checks; and the text."""
    drafting = {"min_length": 1 if adaptive else length, "max_length": 8 if adaptive else length, "adaptive": adaptive}
    load = {"kind": "text", "prompt_tokens": 6, "new_tokens": new_tokens}
    case = problem(workload=load, constraints={"drafting": drafting | {"min_length": 1}})
    plan = in_one_place(planner.solve(case), draft_length=length, adaptive=adaptive)

    class Scripted(Speculative):
        def _scorer(self, index):
            return Script() if index == self._target else Script(errs)

    party, links = Scripted(plan, (0, 1)), Alone()
    party.begin()
    (text,) = party.play(links, party.request(0))
    drafted = party._scorers[0].passes - 1
    return links.rounds[1] + draft_s * drafted, text.tolist()


def test_a_length_that_follows_what_is_taken_stays_lossless_and_beats_every_fixed_one():
    """Half of the text is easy to guess and half is not, in long stretches: no one length is right for both."""
    found = {length: cost(length, False, lambda place: place // 40 % 2 == 1) for length in range(1, 9)}
    seconds, text = cost(4, True, lambda place: place // 40 % 2 == 1)
    assert all(row == [[2] * 120] for _, row in [*found.values(), (seconds, text)])
    assert seconds < 0.97 * min(value for value, _ in found.values())


def test_where_guesses_are_all_alike_a_fixed_length_is_as_good():
    """Every fourth guess is wrong: following costs at most a tenth more than the best fixed length."""
    found = {length: cost(length, False, lambda place: place % 4 == 0)[0] for length in range(1, 9)}
    assert cost(4, True, lambda place: place % 4 == 0)[0] < 1.1 * min(found.values())
