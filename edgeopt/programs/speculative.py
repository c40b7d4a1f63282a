"""Speculative decoding between parties: one drafts tokens, one verifies them, both roll their caches back.

The source sends prompt and seed to both. The verifier's prefill yields the first token; then the drafter sends guesses,
the verifier answers with how many it took and the token after them, until there are enough.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch

from edgeopt.errors import Finding, InputError
from edgeopt.executor.layout import Layout
from edgeopt.plan import Plan
from edgeopt.profiles.model import Architecture, CausalLM
from edgeopt.profiles.problem import TextWorkload
from edgeopt.programs.drafting import CachedScorer, Drafter, Verifier, WholeScorer
from edgeopt.programs.language import build_model, model_config
from edgeopt.programs.parties import Links, PartyProgram
from edgeopt.programs.placing import stage_device, stage_threads, threads_restored
from edgeopt.programs.weights import fill, open_weights, torch_dtype

__all__ = ["TOLERANCE", "Speculative", "architecture_of", "build", "draw_prompt", "library_model", "reference"]

#: Tokens are integers: nothing but equality counts.
TOLERANCE: float | None = None


class Speculative(PartyProgram):
    """Source, drafter and verifier; a process may be several of them."""

    def __init__(self, plan: Plan, stages: Sequence[int]) -> None:
        super().__init__(plan, stages)
        self._model, self._load = _inputs(plan)
        limits = plan.problem.constraints.drafting
        self._length = int(plan.decisions["draft_length"])  # type: ignore[arg-type]
        self._bounds = (max(1, limits.min_length), max(limits.max_length, self._length))
        if not plan.decisions.get("adaptive"):
            self._bounds = (self._length, self._length)
        size = architecture_of(self._model).config.get("vocab_size", 0)
        self.max_message_bytes = max(1 << 16, 16 * self._load.prompt_tokens, self._bounds[1] * (8 + 4 * size))
        layout = Layout.of(plan)
        self._target = len(plan.stages) - 1
        self._verifier = layout.host_of(self._target).rank
        self._drafter = layout.host_of(0).rank if self._length else None
        # Of greedy drafts the draft itself says when to stop; others follow what was taken.
        self._stop_below = float(plan.decisions.get("stop_below") or 0.0)  # type: ignore[arg-type]
        if self._stop_below:
            self._length = self._bounds[1]
        self._scorers = {index: self._scorer(index) for index in self.stages}

    def _scorer(self, index: int) -> CachedScorer:
        return CachedScorer(
            architecture_of(self._model, None if index == self._target else self.plan.stages[index].variant),
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
        """Feed, draft, verify or collect."""
        roles = {rank for rank in (self._verifier, self._drafter) if rank is not None}
        if inputs is not None:
            for rank in sorted(roles - {0}):
                links.send(rank, inputs, "input")
        else:
            inputs = links.receive(0)
        prompt, seed = inputs[0][0].tolist(), int(inputs[1])
        drafter = verifier = None
        if links.rank == self._drafter:
            drafter = Drafter(self._scorers[0], self._load.temperature, seed)
        if links.rank == self._verifier:
            verifier = Verifier(self._scorers[self._target], self._load.temperature, seed)
        with torch.inference_mode():
            if drafter is not None and verifier is None:
                self._draft(links, drafter, prompt)
            if verifier is not None:
                result = self._verify(links, verifier, drafter, prompt)
                if links.rank != 0:
                    links.send(0, [result], "output")
        if links.rank != 0:
            return None
        return [result] if verifier is not None else links.receive(self._verifier)

    def _draft(self, links: Links, drafter: Drafter, prompt: list[int]) -> None:
        with links.computing(0, 0):
            drafter.start(prompt)
        left, length, round_index = self._load.new_tokens, self._length, 0
        guesses: list[int] = []
        while True:
            count, token = links.receive(self._verifier)[0].tolist()
            left -= count + 1
            if left <= 1:  # the verifier makes the last token alone
                return
            length = self._next_length(length, count, len(guesses))
            round_index += 1
            with links.computing(0, round_index):
                drafter.settle([*guesses[:count], token])
                guesses, guessed = drafter.guess(min(length, left - 1), self._stop_below, self._bounds[0])
            links.send(self._verifier, [torch.tensor(guesses), guessed], "draft")

    def _verify(self, links: Links, verifier: Verifier, drafter: Drafter | None, prompt: list[int]) -> torch.Tensor:
        """Play the verifier, and the drafter too where both are one process."""
        remote = self._drafter is not None and drafter is None
        with links.computing(self._target, 0):
            made = [verifier.start(prompt)]
        if drafter is not None:
            with links.computing(0, 0):
                drafter.start(prompt)
        total, length, round_index = self._load.new_tokens, self._length, 0
        last, guessed = [made[0]], torch.empty(0)
        if remote:
            links.send(self._drafter, [torch.tensor([0, made[0]])], "reply")  # type: ignore[arg-type]
        while len(made) < total:
            round_index += 1
            guesses: list[int] = []
            left = total - len(made)
            if remote and left > 1:
                tokens, guessed = links.receive(self._drafter)  # type: ignore[arg-type]
                guesses = tokens.tolist()
            elif drafter is not None and left > 1:
                with links.computing(0, round_index):
                    drafter.settle(last)
                    guesses, guessed = drafter.guess(min(length, left - 1), self._stop_below, self._bounds[0])
            with links.computing(self._target, round_index):
                count, token = verifier.check(guesses, guessed)
            last = [*guesses[:count], token]
            made += last
            length = self._next_length(length, count, len(guesses))
            if remote and guesses:
                links.send(self._drafter, [torch.tensor([count, token])], "reply")  # type: ignore[arg-type]
        return torch.tensor([made])

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
        party = Speculative(plan, ())
        party._drafter, party._verifier = (0, 0) if party._length else (None, 0)
        verifier = Verifier(WholeScorer(target), load.temperature, seed)
        drafter = None
        if party._length:
            drafter = Drafter(WholeScorer(library_model(model, plan.stages[0].variant)), load.temperature, seed)
        return [party._verify(_Alone(), verifier, drafter, prompt[0].tolist())]


class _Alone(Links):
    """Links of a process that talks to nobody."""

    rank = 0

    def send(self, to: int, tensors: Sequence[torch.Tensor], label: str = "") -> None:
        raise NotImplementedError

    def receive(self, source: int) -> list[torch.Tensor]:
        raise NotImplementedError

    def poll(self, source: int) -> list[torch.Tensor] | None:
        return None

    def computing(self, stage: int, round_index: int = 0) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


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


def _inputs(plan: Plan) -> tuple[CausalLM, TextWorkload]:
    model, load = plan.problem.model, plan.problem.workload
    if not isinstance(model, CausalLM) or not isinstance(load, TextWorkload):
        message = "the speculative program runs causal_lm models on text workloads"
        raise InputError(Finding("model.family", message, "change the strategy"))
    return model, load
