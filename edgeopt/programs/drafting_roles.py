"""What takes part in a round of speculative decoding: the draft, which begins it, and the target's stages after it.

Messages, by label: ``draft`` says to the first stage how many tokens its cache keeps, the last settled token and the
guesses after it; with ``cut`` that goes on from stage to stage beside the hidden states, so that every stage forgets
what was not taken before it goes on. Where tokens are sampled, ``distributions`` go straight to the last stage.
``reply`` says how many guesses were taken and the token after them. An empty message, ``stop``, ends the request for
stages before the last, which cannot know. Where nothing is drafted, ``loop`` brings the first stage the last token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from edgeopt.programs.drafting import CachedScorer, Drafter, Verifier, WholeScorer
from edgeopt.programs.parties import Links

__all__ = ["Drafting", "Own", "Places", "Staging", "Terms"]


@dataclass(frozen=True, slots=True)
class Places:
    """Ranks of the draft (``None``: nobody drafts) and of the target's stages, and where these begin in the plan."""

    draft: int | None
    stages: tuple[int, ...]
    first_stage: int

    @property
    def is_cut(self) -> bool:
        """Whether the target has several stages."""
        return len(self.stages) > 1


@dataclass(frozen=True, slots=True)
class Terms:
    """Of a request: its length, temperature and seed, and how drafts go on.

    ``next_length`` gives the next draft's length from the last one's, how many were taken and how many were guessed;
    ``stop_below`` and ``at_least`` are as for :meth:`edgeopt.programs.drafting.Drafter.guess`.
    """

    num_tokens: int
    temperature: float
    length: int
    next_length: Callable[[int, int, int], int]
    stop_below: float
    at_least: int


class Own(Links):
    """Links of a process whose parts also talk to each other: what it sends itself stays in memory."""

    def __init__(self, links: Links) -> None:
        self.rank, self._links, self._own = links.rank, links, deque[list[torch.Tensor]]()

    def send(self, to: int, tensors: Sequence[torch.Tensor], label: str = "") -> None:
        """Hand over, or keep."""
        if to == self.rank:
            self._own.append(list(tensors))
        else:
            self._links.send(to, tensors, label)

    def receive(self, source: int) -> list[torch.Tensor]:
        """Take what was kept, or wait."""
        return self._own.popleft() if source == self.rank else self._links.receive(source)

    def poll(self, source: int) -> list[torch.Tensor] | None:
        """Look for a message."""
        if source != self.rank:
            return self._links.poll(source)
        return self._own.popleft() if self._own else None

    def computing(self, stage: int, round_index: int = 0) -> AbstractContextManager[None]:
        """Time the computing."""
        return self._links.computing(stage, round_index)


class Drafting:
    """The draft: after each reply it guesses, until the request is whole."""

    def __init__(self, links: Links, places: Places, terms: Terms, drafter: Drafter) -> None:
        self._links, self._places, self._terms, self._drafter = links, places, terms, drafter
        self._left, self._length = terms.num_tokens, terms.length
        self._guesses: list[int] = []
        self._awaits = True

    def read(self, prompt: list[int]) -> None:
        """Read the prompt."""
        with self._links.computing(0, 0):
            self._drafter.start(prompt)

    def step(self, round_index: int) -> bool:
        """Play one round; say whether there is another."""
        places, terms, first = self._places, self._terms, self._places.stages[0]
        settled: list[int] = []
        if self._awaits:
            count, token = self._links.receive(places.stages[-1])[0].tolist()
            settled = [*self._guesses[:count], token]
            self._left -= len(settled)
            self._length = terms.next_length(self._length, count, len(self._guesses))
        # A target that is not cut knows of the end, and makes the last token without asking.
        if not self._awaits or self._left < (1 if places.is_cut else 2):
            if places.is_cut:
                self._links.send(first, [], "stop")
            return False
        self._awaits = self._left > 1
        guessed = torch.empty(0)
        if self._awaits:
            with self._links.computing(0, round_index):
                self._drafter.settle(settled)
                count = min(self._length, self._left - 1)
                self._guesses, guessed = self._drafter.guess(count, terms.stop_below, terms.at_least)
        else:
            self._guesses = []
            self._drafter.settled += settled
        kept = len(self._drafter.settled) - 1
        self._links.send(first, [torch.tensor([kept, settled[-1], *self._guesses])], "draft")
        if terms.temperature > 0 and self._guesses:
            self._links.send(places.stages[-1], [guessed], "distributions")
        return True


class Staging:
    """A stage of the target; the last verifies and keeps the text, ``made``."""

    def __init__(
        self, links: Links, places: Places, terms: Terms, number: int, scorer: CachedScorer | WholeScorer
    ) -> None:
        self._links, self._places, self._terms, self._scorer = links, places, terms, scorer
        self._number, self._index = number, places.first_stage + number
        self._is_last = number == len(places.stages) - 1
        self._verifier: Verifier | None = None
        self.made: list[int] = []

    def read(self, prompt: list[int] | None, prompt_tokens: int, seed: int) -> None:
        """Read the prompt, or of what the stage before made of it, which passes the seed on where it matters."""
        hidden = None
        if prompt is None:
            hidden, *seeds = self._links.receive(self._places.stages[self._number - 1])
            seed = int(seeds[0]) if seeds else 0
        if not self._is_last:
            with self._links.computing(self._index, 0):
                output = self._scorer.score(hidden if prompt is None else prompt, 1)  # type: ignore[arg-type]
            self._pass_on([output, *([torch.tensor([seed])] if self._terms.temperature > 0 else [])])
            return
        self._verifier = Verifier(self._scorer, self._terms.temperature, seed)
        with self._links.computing(self._index, 0):
            # Of a prompt that others have read only the length is known here, and wanted.
            token = self._verifier.start([0] * prompt_tokens if prompt is None else prompt, hidden)
        self.made = [token]
        self._answer(0, token, asked=True)

    def step(self, round_index: int) -> bool:
        """Play one round; say whether there is another."""
        return self._verify(round_index) if self._is_last else self._hand_on(round_index)

    def _hand_on(self, round_index: int) -> bool:
        """Play a stage before the last."""
        places, drafts = self._places, self._places.draft is not None
        source = places.stages[self._number - 1]
        if self._number == 0:
            source = places.stages[-1] if places.draft is None else places.draft
        if not drafts and round_index == self._terms.num_tokens:
            return False
        message = self._links.receive(source)
        if not message:
            if self._number < len(places.stages) - 2:
                self._links.send(places.stages[self._number + 1], [], "stop")
            return False
        words = message[-1] if drafts else None
        new: list[int] | torch.Tensor = message[0]
        if self._number == 0:
            new = message[0].tolist()[1 if drafts else 0 :]
        with self._links.computing(self._index, round_index):
            if words is not None:
                self._scorer.keep(int(words[0]))
            output = self._scorer.score(new, 1)
        self._pass_on([output] if words is None else [output, words])
        return True

    def _verify(self, round_index: int) -> bool:
        """Play the last stage; where it is the only one, tokens come from the draft or are its own."""
        places, verifier = self._places, self._verifier
        assert verifier is not None
        left = self._terms.num_tokens - len(self.made)
        if left == 0:
            return False
        hidden, guesses, guessed = None, list[int](), None
        spread = places.draft is not None and self._terms.temperature > 0 and left > 1
        if spread and places.is_cut and places.draft == places.stages[-2]:  # sent before the stage there had its turn
            guessed = self._guessed()
        if places.is_cut:
            message = self._links.receive(places.stages[-2])
            hidden = message[0]
            guesses = message[1].tolist()[2:] if places.draft is not None else []
        elif places.draft is not None and left > 1:
            guesses = self._links.receive(places.draft)[0].tolist()[2:]
        with self._links.computing(self._index, round_index):
            logits = verifier.passed(guesses, hidden)
            if not spread:
                count, token = verifier.take(logits, guesses, torch.empty(0))
        if spread:
            guessed = self._guessed() if guessed is None else guessed
            with self._links.computing(self._index, round_index):
                count, token = verifier.take(logits, guesses, guessed)
        self.made += [*guesses[:count], token]
        self._answer(count, token, asked=bool(guesses))
        return True

    def _guessed(self) -> torch.Tensor:
        """Wait for the draft's distributions, (guesses, vocabulary): they travel while the stages compute."""
        assert self._places.draft is not None
        return self._links.receive(self._places.draft)[0]

    def _answer(self, count: int, token: int, asked: bool) -> None:
        """Tell the draft, or the first stage where nobody drafts."""
        places = self._places
        if places.draft is not None:
            if asked:
                self._links.send(places.draft, [torch.tensor([count, token])], "reply")
        elif places.is_cut and len(self.made) < self._terms.num_tokens:
            self._links.send(places.stages[0], [torch.tensor([token])], "loop")

    def _pass_on(self, tensors: list[torch.Tensor]) -> None:
        self._links.send(self._places.stages[self._number + 1], tensors, "cut")
