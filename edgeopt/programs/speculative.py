"""Speculative decoding between parties: one drafts tokens, the target's stages verify them, all roll their caches back.

The source sends prompt and seed to the drafter and to the first stage; the last stage's prefill yields the first token.
Then the drafter sends guesses, their hidden states go down the stages, and the last answers with how many it took and
the token after them, until there are enough (:mod:`edgeopt.programs.drafting_roles`). A target that is not cut is one
stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from edgeopt.errors import Finding, InputError
from edgeopt.executor.layout import Layout
from edgeopt.plan import Plan
from edgeopt.profiles.model import Architecture, CausalLM
from edgeopt.profiles.problem import TextWorkload
from edgeopt.programs.drafting import CachedScorer, Drafter, Verifier, WholeScorer
from edgeopt.programs.drafting_roles import Drafting, Own, Places, Staging, Terms
from edgeopt.programs.language import build_model, model_config
from edgeopt.programs.parties import Links, PartyProgram
from edgeopt.programs.placing import stage_device, stage_threads, threads_restored
from edgeopt.programs.weights import fill, open_weights, torch_dtype

__all__ = ["TOLERANCE", "Speculative", "architecture_of", "build", "draw_prompt", "library_model", "reference"]

#: Tokens are integers: nothing but equality counts.
TOLERANCE: float | None = None


class Speculative(PartyProgram):
    """Source, drafter and the target's stages; a process may be several of them, but hosts one stage at most."""

    def __init__(self, plan: Plan, stages: Sequence[int]) -> None:
        super().__init__(plan, stages)
        self._model, self._load = _inputs(plan)
        limits = plan.problem.constraints.drafting
        self._length = int(plan.decisions["draft_length"])  # type: ignore[arg-type]
        self._bounds = (max(1, limits.min_length), max(limits.max_length, self._length))
        if not plan.decisions.get("adaptive"):
            self._bounds = (self._length, self._length)
        layout = Layout.of(plan)
        first = 1 if self._length else 0
        self._target = len(plan.stages) - 1
        self._ranks = tuple(layout.host_of(index).rank for index in range(first, self._target + 1))
        self._drafter = layout.host_of(0).rank if self._length else None
        self._first_stage = first
        _refuse_other_elements(self._model, plan.stages[-1].stop if len(self._ranks) > 1 else None)
        self.max_message_bytes = self._most_bytes()
        # Of greedy drafts the draft itself says when to stop; others follow what was taken.
        self._stop_below = float(plan.decisions.get("stop_below") or 0.0)  # type: ignore[arg-type]
        if self._stop_below:
            self._length = self._bounds[1]
        self._scorers = {index: self._scorer(index) for index in self.stages}

    def _most_bytes(self) -> int:
        """Prompts, hidden states of the prompt, distributions of the longest draft."""
        config = architecture_of(self._model).config
        hidden = int(config.get("hidden_size", 0)) * torch_dtype(self._model.dtype).itemsize
        guesses = self._bounds[1] * (8 + 4 * int(config.get("vocab_size", 0)))
        positions = max(self._load.prompt_tokens, self._bounds[1] + 1)
        return max(1 << 16, 16 * self._load.prompt_tokens, guesses, positions * (hidden + 8) + 64)

    def _scorer(self, index: int) -> CachedScorer:
        is_draft, stage = index < self._first_stage, self.plan.stages[index]
        is_cut = len(self._ranks) > 1 and not is_draft
        return CachedScorer(
            architecture_of(self._model, stage.variant if is_draft else None),
            *((stage.start, stage.stop) if is_cut else ()),
            dtype=torch_dtype(self._model.dtype),
            device=stage_device(self.plan, index),
            max_tokens=self._load.prompt_tokens + self._load.new_tokens + self._bounds[1] + 1,
        )

    def request(self, seed: int) -> list[torch.Tensor]:
        """Draw a prompt, (1, prompt_tokens) int64; the seed goes with it."""
        return [draw_prompt(self._model, self._load, seed), torch.tensor(seed)]

    def begin(self) -> None:
        """Empty the caches."""
        for scorer in self._scorers.values():
            scorer.reset()

    def play(self, links: Links, inputs: list[torch.Tensor] | None) -> list[torch.Tensor] | None:
        """Feed, draft, hand on, verify or collect."""
        own, places = Own(links), Places(self._drafter, self._ranks, self._first_stage)
        readers = {self._ranks[0]} if self._drafter is None else {self._ranks[0], self._drafter}
        for rank in sorted(readers) if inputs is not None else ():
            own.send(rank, inputs, "input")  # type: ignore[arg-type]
        stage = self._ranks.index(own.rank) if own.rank in self._ranks else None
        made: list[int] = []
        with torch.inference_mode():
            if stage is not None or own.rank == self._drafter:
                made = self._take_part(own, places, stage, own.rank in readers)
        last = self._ranks[-1]
        if own.rank == last:
            own.send(0, [torch.tensor([made])], "output")
        return own.receive(last) if own.rank == 0 else None

    def _take_part(self, links: Links, places: Places, stage: int | None, reads: bool) -> list[int]:
        """Play the parts of this process, of which the stage reads the prompt first; return the last stage's text."""
        load, terms = self._load, self._terms()
        prompt, seed = None, 0
        if reads:
            tokens, number = links.receive(0)
            prompt, seed = tokens[0].tolist(), int(number)
        parts: list[Drafting | Staging] = []
        staging = None
        if stage is not None:
            staging = Staging(links, places, terms, stage, self._scorers[self._first_stage + stage])
            staging.read(prompt if stage == 0 else None, load.prompt_tokens, seed)
            parts.append(staging)
        if links.rank == places.draft:
            assert prompt is not None
            drafting = Drafting(links, places, terms, Drafter(self._scorers[0], load.temperature, seed))
            drafting.read(prompt)
            parts.insert(0, drafting)
        round_index = 0
        while parts:
            round_index += 1
            parts = [part for part in parts if part.step(round_index)]
        return [] if staging is None else staging.made

    def _terms(self) -> Terms:
        load = self._load
        return Terms(
            load.new_tokens, load.temperature, self._length, self._next_length, self._stop_below, self._bounds[0]
        )

    def _next_length(self, length: int, count: int, guessed: int) -> int:
        """One more token after a draft that was taken whole, one less after another, within the bounds."""
        if not guessed or self._stop_below:
            return length
        shortest, longest = self._bounds
        return min(longest, length + 1) if count == guessed else max(shortest, length - 1)


def build(plan: Plan, stages: Sequence[int]) -> Speculative:
    """Load the models that this process hosts."""
    return Speculative(plan, stages)


def draw_prompt(model: CausalLM, load: TextWorkload, seed: int) -> torch.Tensor:
    """Take row ``seed`` of the model's prompts, or draw random tokens; (batch, prompt_tokens) int64.

    Raises
    ------
    InputError
        The prompts are shorter than the workload's.
    """
    if model.prompts is None:
        generator = torch.Generator().manual_seed(seed)
        size = architecture_of(model).config["vocab_size"]
        return torch.randint(size, (load.batch, load.prompt_tokens), generator=generator)
    from safetensors.torch import load_file

    rows = load_file(model.prompts)["prompts"]
    if rows.shape[1] < load.prompt_tokens:
        message = f"is {load.prompt_tokens}, the prompts of '{model.name}' have {rows.shape[1]} tokens"
        raise InputError(Finding("workload.prompt_tokens", message, "ask for no more"))
    chosen = [(seed + i) % len(rows) for i in range(load.batch)]
    return rows[chosen, : load.prompt_tokens].long()


def reference(plan: Plan, seed: int) -> list[torch.Tensor]:
    """Generate in this process with the library's own models and no code for caches.

    Greedy tokens are those of the target alone, through ``generate``. Sampled ones need the draft as well, since they
    depend on its guesses; every pass is computed anew from the first token, so that nothing has to be rolled back.

    Returns
    -------
    list of one tensor, (1, new_tokens) int64
    """
    model, load = _inputs(plan)
    prompt = draw_prompt(model, load, seed)
    target = library_model(model, None)
    threads = stage_threads(plan, len(plan.stages) - 1)
    with torch.inference_mode(), threads_restored():
        if threads is not None:
            torch.set_num_threads(threads)
        if load.temperature == 0:
            tokens = target.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=load.new_tokens, do_sample=False,
                num_beams=1, pad_token_id=0,
            )  # fmt: skip
            return [tokens[:, load.prompt_tokens :].clone()]
        verifier = Verifier(WholeScorer(target), load.temperature, seed)
        drafter = None
        if plan.decisions["draft_length"]:
            drafter = Drafter(WholeScorer(library_model(model, plan.stages[0].variant)), load.temperature, seed)
        return [_sampled(Speculative(plan, ())._terms(), verifier, drafter, prompt[0].tolist())]


def _sampled(terms: Terms, verifier: Verifier, drafter: Drafter | None, prompt: list[int]) -> torch.Tensor:
    """Draft and verify by turns, (1, new_tokens) int64."""
    last, length = [verifier.start(prompt)], terms.length
    made = list(last)
    if drafter is not None:
        drafter.start(prompt)
    while (left := terms.num_tokens - len(made)) > 0:
        guesses, guessed = list[int](), torch.empty(0)
        if drafter is not None and left > 1:
            drafter.settle(last)
            guesses, guessed = drafter.guess(min(length, left - 1), terms.stop_below, terms.at_least)
        count, token = verifier.check(guesses, guessed)
        last = [*guesses[:count], token]
        made += last
        length = terms.next_length(length, count, len(guesses))
    return torch.tensor([made])


def library_model(model: CausalLM, draft: str | None) -> Any:
    """Return a model of the family, the target or a draft, as the library has it, in evaluation mode."""
    architecture = architecture_of(model, draft)
    config = model_config(architecture)
    whole: Any = build_model(architecture, config)
    if config.tie_word_embeddings:
        whole.lm_head.weight = whole.model.embed_tokens.weight
    fill(whole, open_weights(architecture), dtype=torch_dtype(model.dtype))
    whole.generation_config.eos_token_id = None
    return whole


def architecture_of(model: CausalLM, draft: str | None = None) -> Architecture:
    """Return what to build the target or a draft from.

    Raises
    ------
    InputError
        The profile does not say.
    """
    found, name = (model.architecture, "model") if draft is None else (None, f"model.drafts.{draft}")
    if draft is not None:
        found = model.drafts[draft].architecture
    if found is None:
        raise InputError(Finding(f"{name}.architecture", "says nothing to build it from", "add `architecture:`"))
    return found


def _refuse_other_elements(model: CausalLM, num_elements: int | None) -> None:
    """Refuse cuts that count other elements than the architecture has; ``None``: there are no cuts."""
    num_blocks = model_config(architecture_of(model)).num_hidden_layers
    if num_elements not in (None, num_blocks + 2):
        message = f"of '{model.name}' make {num_elements} elements; its architecture makes {num_blocks + 2} (embed, "
        message += f"{num_blocks} blocks, head)"
        raise InputError(Finding("model.layers", message, "let the layers' counts match num_hidden_layers"))


def _inputs(plan: Plan) -> tuple[CausalLM, TextWorkload]:
    model, load = plan.problem.model, plan.problem.workload
    if not isinstance(model, CausalLM) or not isinstance(load, TextWorkload):
        message = "the speculative program runs causal_lm models on text workloads"
        raise InputError(Finding("model.family", message, "change the strategy"))
    return model, load
