"""Layer split of a language model: hidden states travel down the stages, the sampled token returns to the first.

A request is one prefill round over the whole prompt, which yields the first token, and one round per further token.
With ``workload.prefill_chunk`` the prompt is several rounds: the first stage goes on with the next chunk while later
stages work on those before it, and nothing returns until the last one yields the first token.

At a temperature above 0 the last stage draws tokens (:mod:`edgeopt.programs.choosing`) from the request's seed, which
travels with the prompt.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch

from edgeopt.errors import Finding, InputError
from edgeopt.plan import Plan
from edgeopt.profiles.model import Architecture, CausalLM
from edgeopt.profiles.problem import TextWorkload
from edgeopt.programs.base import Program, TensorSpec
from edgeopt.programs.choosing import choose_token
from edgeopt.programs.language import LanguagePart, build_model, model_config
from edgeopt.programs.placing import stage_device, stage_threads, threads_restored
from edgeopt.programs.quantised import fill_quantised
from edgeopt.programs.weights import fill, open_weights, torch_dtype

__all__ = ["TOLERANCE", "Pipeline", "build", "reference"]

#: Tokens are integers: nothing but equality counts.
TOLERANCE: float | None = None

_SEED = TensorSpec((1,), torch.int64)


class Pipeline(Program):
    """Stages of a decoder-only language model, each with the KV cache of its own layers."""

    resumes_from: ClassVar[frozenset[str]] = frozenset({"loop"})

    def __init__(self, plan: Plan, stages: Sequence[int]) -> None:
        super().__init__(plan, stages)
        self._model, self._architecture, self._load = _inputs(plan)
        self._dtype = torch_dtype(self._model.dtype)
        self._config = model_config(self._architecture)
        self._chunks = self._load.chunks
        self._parts = {index: self._part(index) for index in self.stages}
        self._forget()

    def _part(self, index: int) -> LanguagePart:
        stage = self.plan.stages[index]
        return LanguagePart(
            self._architecture,
            stage.start,
            stage.stop,
            dtype=self._dtype,
            device=stage_device(self.plan, index),
            max_tokens=self._load.prompt_tokens + self._load.new_tokens,
            weights=stage.variant,
        )

    def _forget(self) -> None:
        self._tokens: list[torch.Tensor] = []
        self._prompt: torch.Tensor | None = None
        self._seed = 0

    @property
    def rounds(self) -> int:
        """A round for every chunk of the prompt, the last of which yields a token, and for every token after it."""
        return len(self._chunks) + self._load.new_tokens - 1

    def returns(self, round_index: int) -> bool:
        """Chunks of the prompt follow each other without waiting for a token."""
        return round_index >= len(self._chunks)

    def part(self, stage: int) -> LanguagePart:
        """Return the modules of a hosted stage, for measuring inside them."""
        return self._parts[stage]

    def request(self, seed: int) -> list[torch.Tensor]:
        """Draw a prompt, (batch, prompt_tokens) int64; where tokens are drawn, the seed goes with it."""
        return self._with_seed(_prompt(self._load, self._config.vocab_size, seed), seed)

    def _with_seed(self, tensor: torch.Tensor, seed: int) -> list[torch.Tensor]:
        return [tensor, torch.tensor([seed])] if self._load.temperature > 0 else [tensor]

    def resume(self, seed: int, handoffs: Sequence[list[torch.Tensor]]) -> list[torch.Tensor]:
        """Append the tokens made so far to the prompt, whose keys and values are computed anew."""
        made = [token for (token,) in handoffs]
        load = self._load.model_copy(update={"prompt_tokens": self._load.prompt_tokens - len(made)})
        return self._with_seed(torch.cat([_prompt(load, self._config.vocab_size, seed), *made], dim=1), seed)

    def join(self, handoffs: Sequence[list[torch.Tensor]], result: list[torch.Tensor]) -> list[torch.Tensor]:
        """All tokens, those made before the interruption first."""
        return [torch.cat([*(token for (token,) in handoffs), *result], dim=1)]

    def specs(self, stage: int, round_index: int) -> list[TensorSpec]:
        """Token ids into the first stage and back to the source, hidden states in between."""
        batch = self._load.batch
        if stage == len(self.plan.stages):
            return [TensorSpec((batch, self._load.new_tokens), torch.int64)]
        seed = [_SEED] if round_index == 0 and self._load.temperature > 0 else []
        if stage == 0:
            return [TensorSpec((batch, self._load.prompt_tokens if round_index == 0 else 1), torch.int64), *seed]
        tokens = 1 if self.returns(round_index) else self._chunks[round_index]
        return [TensorSpec((batch, tokens, self._config.hidden_size), self._dtype), *seed]

    def begin(self) -> None:
        """Empty the caches."""
        self._forget()
        for part in self._parts.values():
            part.reset()

    def fork(self) -> Pipeline:
        """Share the parts' modules; the caches are new."""
        other = copy.copy(self)
        other._parts = {index: part.fork() for index, part in self._parts.items()}
        other._forget()
        return other

    @torch.inference_mode()
    def run(self, stage: int, round_index: int, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """Run one stage; the last returns the token of the round, and all tokens after the last round."""
        part = self._parts[stage]
        part.on_element = self.on_element or _ignore
        x = self._chunk(round_index, inputs) if stage == 0 and not self.returns(round_index) else inputs[0]
        seed = inputs[1:] if round_index == 0 else []
        if seed:
            self._seed = int(seed[0])
        yields = round_index >= len(self._chunks) - 1
        position = self._load.prompt_tokens + round_index - len(self._chunks) + 1
        part.choose = partial(choose_token, temperature=self._load.temperature, seed=self._seed, position=position)
        output = part(x.to(part.device), yields=yields)
        if not part.has_head:
            return [self.hand_over(output), *seed]
        part.on_element(self.plan.stages[stage].stop - 1)
        if not yields:
            return []
        self._tokens.append(output.cpu())
        output = torch.cat(self._tokens, dim=1) if round_index == self.rounds - 1 else self._tokens[-1]
        return [self.hand_over(output)]

    def _chunk(self, round_index: int, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Keep the prompt that arrives with the first round, and cut off what this round is about."""
        if round_index == 0:
            self._prompt = inputs[0]
        assert self._prompt is not None
        return self._prompt.split(self._chunks, dim=1)[round_index]


def build(plan: Plan, stages: Sequence[int]) -> Pipeline:
    """Load the stages that this process hosts."""
    return Pipeline(plan, stages)


def reference(plan: Plan, seed: int) -> list[torch.Tensor]:
    """Generate with the whole model in this process through the library's own ``generate``.

    Every part of the model computes with the number of threads of the device that the plan gives it, since the
    order of floating point sums depends on it, and stores its weights in the format of its stage. The prompt is
    computed in one piece.

    Returns
    -------
    list of one tensor, (batch, new_tokens) int64
    """
    model_profile, architecture, load = _inputs(plan)
    config = model_config(architecture)
    model = build_model(architecture, config)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    source, dtype = open_weights(architecture), torch_dtype(model_profile.dtype)
    for stage in plan.stages:
        for number in range(max(stage.start - 1, 0), min(stage.stop - 1, config.num_hidden_layers)):
            prefix = f"model.layers.{number}."
            fill_quantised(model.model.layers[number], source, stage.variant, dtype=dtype, rename=prefix.__add__)
    fill(model, source, dtype=dtype)
    elements = [model.model.embed_tokens, *model.model.layers, model.model.norm]
    for index, stage in enumerate(plan.stages):
        threads = stage_threads(plan, index)
        if threads is not None:
            first = elements[stage.start]
            first.register_forward_pre_hook(lambda *_, threads=threads: torch.set_num_threads(threads))
    model.generation_config.eos_token_id = None
    prompt = _prompt(load, config.vocab_size, seed)
    with torch.inference_mode(), threads_restored():
        tokens = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=load.new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=0,
            logits_processor=[_drawn(load.temperature, seed)] if load.temperature > 0 else None,
        )
    return [tokens[:, load.prompt_tokens :].clone()]


def _drawn(temperature: float, seed: int) -> Any:
    """Return what makes the token that is drawn the likeliest, whose choice is then the library's."""

    def process(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chosen = choose_token(scores, temperature, seed, tokens.shape[1])
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)

    return process


def _ignore(element: int) -> None:
    """Nobody measures."""


def _prompt(load: TextWorkload, vocabulary: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (load.batch, load.prompt_tokens), generator=generator)


def _inputs(plan: Plan) -> tuple[CausalLM, Architecture, TextWorkload]:
    model, load = plan.problem.model, plan.problem.workload
    if not isinstance(model, CausalLM) or not isinstance(load, TextWorkload):
        raise InputError(
            Finding(
                "model.family", "the pipeline program runs causal_lm models on text workloads", "change the strategy"
            )
        )
    if model.architecture is None:
        raise InputError(
            Finding("model.architecture", f"model '{model.name}' says nothing to build it from", "add `architecture:`")
        )
    num_elements = sum(layer.count for layer in model.layers)
    num_blocks = model_config(model.architecture).num_hidden_layers
    if num_elements != num_blocks + 2:
        raise InputError(
            Finding(
                "model.layers",
                f"model '{model.name}' has {num_elements} elements; its architecture makes {num_blocks + 2} "
                f"(embed, {num_blocks} blocks, head)",
                "let the layers' counts match num_hidden_layers",
            )
        )
    return model, model.architecture, load
