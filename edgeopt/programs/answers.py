"""Recorded queries put to models of growing size: the source asks on where an answer was not confident enough.

A run serves ``workload.requests`` held-out queries: one after the other, or as they arrive at ``requests_per_s``. The
result is every query's number, the stage that answered it and its tokens, so that the reference tells whether the same
models said the same; :func:`share_right` counts how many answers are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from edgeopt.errors import Finding, InputError
from edgeopt.executor.layout import Layout
from edgeopt.plan import Plan
from edgeopt.profiles.answers import read_answers
from edgeopt.profiles.model import CausalLM
from edgeopt.profiles.problem import TextWorkload
from edgeopt.programs.answering import CONFIDENCE_DECIMALS, Answer, Queries, answer, read_queries
from edgeopt.programs.arrivals import Ask, draw_stream, play_stream
from edgeopt.programs.drafting import CachedScorer, WholeScorer
from edgeopt.programs.parties import Links, PartyProgram
from edgeopt.programs.placing import stage_device, stage_threads, threads_restored
from edgeopt.programs.speculative import architecture_of, library_model
from edgeopt.programs.weights import torch_dtype

__all__ = ["TOLERANCE", "Answers", "Told", "ask_here", "build", "reference", "share_right"]

#: Tokens are integers: nothing but equality counts.
TOLERANCE: float | None = None

#: What stands behind an answer's last token in the result.
_NOTHING = -1


class Answers(PartyProgram):
    """The source, which releases queries and decides who is asked next, or the host of some models."""

    def __init__(self, plan: Plan, stages: Sequence[int]) -> None:
        super().__init__(plan, stages)
        self._model, self._load = _inputs(plan)
        self.decide()
        assert self._model.answers is not None
        assert self._model.answers.queries is not None
        self._known = read_queries(self._model.answers.queries)
        longest = self._load.prompt_tokens + self._load.new_tokens
        self.max_message_bytes = 64 + 8 * longest
        self._layout = Layout.of(plan)
        self._scorers = {
            index: CachedScorer(
                architecture_of(self._model, plan.stages[index].variant),
                dtype=torch_dtype(self._model.dtype),
                device=stage_device(plan, index),
                max_tokens=longest,
            )
            for index in self.stages
        }

    def decide(self) -> None:
        """Read the plan's decisions.

        Raises
        ------
        InputError
            They do not fit the stages.
        """
        self._thresholds = _checked_thresholds(self.plan)

    def told(self, inputs: list[torch.Tensor]) -> Told:
        """Return what keeps a request's answers and says who is asked next."""
        return Told(self._thresholds)

    def request(self, seed: int) -> list[torch.Tensor]:
        """Draw held-out queries: when each arrives, (requests,) float64, and which rows they are, (requests,) int64.

        Without a rate they follow each other in the trace's order, the first at row ``seed`` of the held-out ones.
        """
        rows = read_answers(self._model).part("held-out").query.tolist()
        if self._load.requests_per_s is not None:
            times, _, queries = draw_stream(self._load, [rows], [1.0], seed)
            return [times, queries]
        count = self._load.requests
        chosen = [rows[(seed + i) % len(rows)] for i in range(count)]
        return [torch.zeros(count, dtype=torch.float64), torch.tensor(chosen)]

    def begin(self) -> None:
        """Keep nothing of the request before; every answer begins with empty caches."""

    def play(self, links: Links, inputs: list[torch.Tensor] | None) -> list[torch.Tensor] | None:
        """Answer what is asked here, and at the source ask on."""
        count = len(self._layout.hosts)
        with torch.inference_mode():
            if inputs is None:
                play_stream(links, count, self._answer)
                return None
            told, rows = self.told(inputs), inputs[1].tolist()
            ranks = [self._layout.host_of(i).rank for i in range(len(self.plan.stages))]

            def onward(query: int, stage: int | None, answered: list[torch.Tensor]) -> Ask | None:
                following = told.following(query, stage, answered)
                if following is None:
                    return None
                return Ask(ranks[following], following, [torch.tensor(self._known.queries[rows[query]])])

            play_stream(
                links, count, self._answer, inputs[0], onward, hosts=bool(self.stages),
                one_by_one=self._load.requests_per_s is None,
            )  # fmt: skip
        return told.result(rows)

    def measures(self, result: Sequence[torch.Tensor]) -> dict[str, float]:
        """Count right answers."""
        return {"accuracy": share_right(self._known, result)}

    def _answer(self, stage: int, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        scorer = self._scorers[stage]
        scorer.reset()
        said = answer(scorer, tensors[0].tolist(), self._known.stop, self._load.new_tokens)
        return [torch.tensor(said.tokens), torch.tensor([said.confidence], dtype=torch.float64)]


class Told:
    """What each query was answered last and by whom, and who is asked next: stages in turn, by their thresholds."""

    def __init__(self, thresholds: Sequence[float] = ()) -> None:
        self.thresholds = thresholds
        self.answers: dict[int, tuple[int, list[int]]] = {}

    def following(self, query: int, stage: int | None, answered: list[torch.Tensor]) -> int | None:
        """Keep an answer, and return the stage that shall be asked now; ``None``: the answer stands."""
        if stage is None:
            return self.first(query)
        self.answers[query] = stage, answered[0].tolist()
        asks_on = stage < len(self.thresholds) and float(answered[1]) < self.thresholds[stage]
        return stage + 1 if asks_on else None

    def first(self, query: int) -> int:
        """Stage that a query goes to when it arrives."""
        return 0

    def result(self, rows: Sequence[int]) -> list[torch.Tensor]:
        """Rows, stages and tokens, (requests,), (requests,) and (requests, longest), in the order of release."""
        told = [self.answers[n] for n in range(len(rows))]
        longest = max(len(tokens) for _, tokens in told)
        padded = [[*tokens, *[_NOTHING] * (longest - len(tokens))] for _, tokens in told]
        return [torch.tensor(list(rows)), torch.tensor([stage for stage, _ in told]), torch.tensor(padded)]


def build(plan: Plan, stages: Sequence[int]) -> Answers:
    """Load the models that this process hosts."""
    return Answers(plan, stages)


def reference(plan: Plan, seed: int) -> list[torch.Tensor]:
    """Ask the same models one after the other in this process, without caches, by the library's own classes.

    Returns
    -------
    list of tensors
        As :meth:`Answers.play`.
    """
    return ask_here(Answers(plan, ()), seed)


def ask_here(party: Answers, seed: int) -> list[torch.Tensor]:
    """Ask whom a party would ask, as :func:`reference` says."""
    plan = party.plan
    model, load = _inputs(plan)
    inputs = party.request(seed)
    told, rows = party.told(inputs), inputs[1].tolist()
    modules: dict[int, Any] = {}
    known: dict[tuple[int, int], Answer] = {}
    with torch.inference_mode(), threads_restored():
        for n, row in enumerate(rows):
            stage = told.following(n, None, [])
            while stage is not None:
                if stage not in modules:
                    modules[stage] = library_model(model, plan.stages[stage].variant)
                if (threads := stage_threads(plan, stage)) is not None:
                    torch.set_num_threads(threads)
                if (row, stage) not in known:
                    scorer = WholeScorer(modules[stage])
                    known[row, stage] = answer(scorer, party._known.queries[row], party._known.stop, load.new_tokens)
                said = known[row, stage]
                answered = [torch.tensor(said.tokens), torch.tensor([said.confidence], dtype=torch.float64)]
                stage = told.following(n, stage, answered)
    return told.result(rows)


def share_right(known: Queries, result: Sequence[torch.Tensor]) -> float:
    """Fraction of a run's queries whose answer is right."""
    rows, _, tokens = result
    right = [
        [token for token in told if token != _NOTHING] == known.answers[row]
        for row, told in zip(rows.tolist(), tokens.tolist(), strict=True)
    ]
    return sum(right) / len(right)


def _checked_thresholds(plan: Plan) -> list[float]:
    thresholds = plan.decisions.get("thresholds")
    count = len(plan.stages) - 1
    if not isinstance(thresholds, list) or len(thresholds) != count:
        message = f"is {thresholds!r} for {count + 1} models"
        raise InputError(Finding("decisions.thresholds", message, "give a confidence for each model but the last"))
    for k, value in enumerate(thresholds):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            finding = Finding(f"decisions.thresholds[{k}]", f"is {value!r}", "give a confidence from 0 to 1")
            raise InputError(finding)
    return [round(float(value), CONFIDENCE_DECIMALS) for value in thresholds]  # type: ignore[arg-type]


def _inputs(plan: Plan) -> tuple[CausalLM, TextWorkload]:
    model, load = plan.problem.model, plan.problem.workload
    if not isinstance(model, CausalLM) or not isinstance(load, TextWorkload):
        message = "queries are answered by causal_lm models, on text workloads"
        raise InputError(Finding("model.family", message, "change the strategy"))
    if model.answers is None or model.answers.queries is None:
        message = f"of '{model.name}' is missing: nothing says what is asked"
        raise InputError(Finding("model.answers.queries", message, "name the file of recorded queries"))
    return model, load
