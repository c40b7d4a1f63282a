"""Worker of speculative decoding whose draft length and prompt change from request to request.

Starting processes takes longer than most requests, so one set of them serves everything that a setting is measured on.
``plan.decisions["turns"]`` has a length and a row of prompts for each request; 0 is the target alone, a negative
length drafts that stop by themselves. The plan itself is that of the longest draft. The result is all texts so far:
what the reference compares is every one of them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from edgeopt.plan import Plan
from edgeopt.profiles.model import CausalLM
from edgeopt.programs.parties import Links
from edgeopt.programs.speculative import Speculative, library_model

__all__ = ["COMMAND", "Turns", "fresh_prompts", "own_texts"]


class Turns(Speculative):
    """The plan's parties, with another length each time."""

    def __init__(self, plan: Plan, stages: Sequence[int]) -> None:
        super().__init__(plan, stages)
        self._turns: list[list[int]] = plan.decisions["turns"]  # type: ignore[assignment]
        self._number, self._drafts_at, self._doubt, self._made = -1, self._drafter, self._stop_below, []

    def begin(self) -> None:
        """Take the next turn."""
        super().begin()
        self._number += 1
        asked = self._turns[self._number][0]
        self._bounds = (1, self.plan.problem.constraints.drafting.max_length) if asked < 0 else (asked, asked)
        self._length, self._stop_below = self._bounds[1], self._doubt if asked < 0 else 0.0
        self._drafter = self._drafts_at if self._length else None

    def request(self, seed: int) -> list[torch.Tensor]:
        """Read all prompts before the first request."""
        self._prompts = fresh_prompts(self._model, [row for _, row in self._turns], self._load.prompt_tokens)
        return [self._prompts[:1], torch.tensor(seed)]

    def play(self, links: Links, inputs: list[torch.Tensor] | None) -> list[torch.Tensor] | None:
        """Play a turn; the source adds its text to the others."""
        if inputs is not None:
            inputs = [self._prompts[self._number : self._number + 1], inputs[1]]
        made = super().play(links, inputs)
        if made is None:
            return None
        self._made += made
        return [torch.cat(self._made)]


def fresh_prompts(model: CausalLM, rows: Sequence[int], num_tokens: int) -> torch.Tensor:
    """Return the ends of rows of prompts, (rows, num_tokens) int64: acceptance is measured on their beginnings."""
    from safetensors.torch import load_file

    assert model.prompts is not None
    known = load_file(model.prompts)["prompts"]
    return known[[row % len(known) for row in rows], -num_tokens:].long()


def own_texts(model: CausalLM, prompts: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Continue prompts by the library's own target and no draft, one at a time; (rows, num_tokens) int64."""
    target, texts = library_model(model, None), []
    for prompt in prompts:
        whole = target.generate(
            prompt[None], attention_mask=torch.ones_like(prompt[None]), max_new_tokens=num_tokens, do_sample=False,
            num_beams=1, pad_token_id=0,
        )  # fmt: skip
        texts.append(whole[0, len(prompt) :])
    return torch.stack(texts)


def reference(plan: Plan, seed: int) -> list[torch.Tensor]:
    """The target's own text for the prompt of every turn."""
    program = Turns(plan, ())
    rows = [row for _, row in program._turns]
    each = sorted(set(rows))
    texts = own_texts(program._model, fresh_prompts(program._model, each, program._load.prompt_tokens),
                      program._load.new_tokens)  # fmt: skip
    return [texts[[each.index(row) for row in rows]]]


#: What ``execute`` starts instead of the real worker.
COMMAND = (sys.executable, "-P", str(Path(__file__).resolve()))

if __name__ == "__main__":
    from edgeopt.executor.worker import main
    from edgeopt.programs import compare

    main(Turns, reference, compare)
