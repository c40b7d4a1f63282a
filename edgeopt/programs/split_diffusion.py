"""One denoiser's blocks on several devices: features cross the cuts in every round, a latent returns in the loop.

A request has one round for each call of the denoiser. The text encoder runs in the first, the decoder in the last.
The stage of the last block keeps latent and solver; what it returns is the latent as the next call is to see it.
The first call needs none: whoever needs the noise draws it from the workload's seed. With the first round's features
travels the conditioning, which later rounds find where it was left.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import nn

from edgeopt.errors import Finding, InputError
from edgeopt.plan import Plan
from edgeopt.profiles.model import Architecture
from edgeopt.programs.base import Program, TensorSpec
from edgeopt.programs.blocks import block_modules
from edgeopt.programs.conditioning import encode
from edgeopt.programs.denoisers import DENOISERS, build_component, predictor
from edgeopt.programs.diffusion import DiffusionRun, configured_module
from edgeopt.programs.placing import stage_device
from edgeopt.programs.recording import Piece, Recording, record
from edgeopt.programs.sampling import (
    decode,
    doubled,
    draw_noise,
    draw_prompt,
    guided,
    load_part,
    sample_whole,
    scaled,
    scheduler_of,
    set_threads,
)

__all__ = ["TOLERANCE", "SplitDiffusion", "build", "reference"]

#: Relative to the largest value, for machines whose kernels sum in another order; on one machine it is bitwise.
TOLERANCE: float | None = 1e-3


class _SplitRun(DiffusionRun):
    """Shapes and ranges of a run whose elements are text encoder, blocks and decoder."""

    def _num_inner(self, plan: Plan) -> int:
        if len(self.model.variants) != 1 or not self._variant.blocks:
            why = f"model '{self.model.name}' has {len(self.model.variants)} denoisers; one with blocks is cut"
            raise InputError(Finding("model.variants", why, "plan again, or keep the one that was planned"))
        return len(self._variant.blocks)

    @property
    def _variant(self) -> Any:
        return next(iter(self.model.variants.values()))

    @property
    def name(self) -> str:
        """The denoiser's."""
        return next(iter(self.model.variants))

    @property
    def batch(self) -> int:
        """Of a call of the denoiser."""
        return self.load.images * (2 if self.is_guided else 1)

    @cached_property
    def recording(self) -> Recording:
        """The denoiser's forward pass at the run's shapes, with the blocks and bytes that the profile says.

        Raises
        ------
        InputError
            The profile's blocks are not the architecture's.
        """
        architecture = self.architecture(self._variant, f"model.variants.{self.name}")
        specs = [self.latent(), *self.conditioning()]
        latent, *conditioning = (TensorSpec((self.batch, *spec.shape[1:]), spec.dtype) for spec in specs)
        timestep = TensorSpec((), scheduler_of(self).timesteps.dtype)
        conditioning += [TensorSpec(tuple(each.shape), each.dtype) for each in self.local(self.name)]
        found = _recorded(architecture.model_dump_json(by_alias=True), self.dtype, (latent, timestep, *conditioning))
        self._check_blocks(found)
        return found

    def _check_blocks(self, found: Recording) -> None:
        blocks = self._variant.blocks
        if [block.name for block in blocks] != list(found.parts):
            why = f"the profile's blocks are not those of the architecture ({', '.join(found.parts[:4])}, …)"
            raise InputError(
                Finding(f"model.variants.{self.name}.blocks", why, "derive it with `edgeopt profile model`")
            )
        findings = []
        for i, block in enumerate(blocks[:-1]):
            actual = sum(spec.num_bytes for spec in self.features(i + 1, found)) // self.batch
            if actual != block.output:
                field_ = f"model.variants.{self.name}.blocks.{i}.output"
                why = f"after '{block.name}' the profile says {block.output:g} B per image, the tensors have {actual} B"
                findings.append(Finding(field_, why, f"write {actual} B"))
        if findings:
            raise InputError(findings)

    def features(self, cut: int, recording: Recording | None = None) -> list[TensorSpec]:
        """Tensors that are alive before a block, in one call."""
        return [TensorSpec(shape, dtype) for shape, dtype in (recording or self.recording).specs(cut)]

    def crossing(self, cut: int, round_index: int) -> list[TensorSpec]:
        """Tensors that cross a cut in a round, the result apart."""
        if round_index and cut <= self.first_step:
            return [self.latent()]
        if cut == 0:
            return [self.prompt()]
        if cut == self.first_step:
            return self.conditioning()
        if cut >= self.last_step:
            return [self.latent()]
        return self.features(cut - self.first_step) + (self.conditioning() if round_index == 0 else [])


@lru_cache(maxsize=4)
def _recorded(architecture_json: str, dtype: torch.dtype, arguments: tuple[TensorSpec, ...]) -> Recording:
    """Record a denoiser; programs of the same run in one process share it."""
    architecture = Architecture.model_validate_json(architecture_json)
    tensors = [torch.empty(spec.shape, dtype=spec.dtype, device="meta") for spec in arguments]
    return record(configured_module(architecture, dtype), predictor(architecture)[0], tensors)


@dataclass
class _State:
    """What a stage keeps from round to round."""

    scheduler: Any
    conditioning: list[torch.Tensor] = field(default_factory=list)
    both: list[torch.Tensor] = field(default_factory=list)
    latent: torch.Tensor | None = None


class SplitDiffusion(Program):
    """Stages of a denoiser, each with the weights of its own blocks."""

    def __init__(self, plan: Plan, stages: Sequence[int]) -> None:
        super().__init__(plan, stages)
        self._facts = _SplitRun(plan)
        self._labels = self._facts.label_count
        self._timesteps = scheduler_of(self._facts).timesteps
        self._pieces: dict[int, Piece] = {}
        self._modules: dict[str, nn.Module] = {}
        self._states: dict[int, _State] = {}
        for index in self.stages:
            stage, device = plan.stages[index], stage_device(plan, index)
            start, stop = self._span(index)
            if start < stop:
                self._pieces[index] = self._piece(start, stop, device)
            if stage.start < self._facts.first_step:
                self._modules["text_encoder"] = load_part(self._facts, "text_encoder", device)
            if stage.stop > self._facts.last_step:
                self._modules["decoder"] = load_part(self._facts, "decoder", device)

    def _span(self, index: int) -> tuple[int, int]:
        """Blocks of a stage, half open."""
        stage, facts = self.plan.stages[index], self._facts
        return max(stage.start, facts.first_step) - facts.first_step, min(
            stage.stop, facts.last_step
        ) - facts.first_step

    def _piece(self, start: int, stop: int, device: torch.device) -> Piece:
        facts, field_ = self._facts, f"model.variants.{self._facts.name}"
        module = build_component(
            facts.architecture(facts.model.variants[facts.name], field_), tuple(DENOISERS), field_,
            dtype=facts.dtype, device=device, weights=set(facts.recording.weights_of(start, stop)),
        )  # fmt: skip
        return Piece(facts.recording, start, stop, module, device)

    @property
    def rounds(self) -> int:
        """One for each call of the denoiser."""
        return self._facts.solver.calls

    def request(self, seed: int) -> list[torch.Tensor]:
        """Draw one prompt (or label) per image. The noise is not part of it: it comes from the workload's seed."""
        return [draw_prompt(self._facts, self._labels, seed)]

    def specs(self, stage: int, round_index: int) -> list[TensorSpec]:
        """Features between blocks, with the conditioning in the first round; latents in the loop."""
        stages = self.plan.stages
        if stage == len(stages):
            return [self._facts.result()]
        return self._facts.crossing(stages[stage].start, round_index)

    def begin(self) -> None:
        """Forget conditioning and latent; set the schedule to its first step."""
        self._states = {index: _State(scheduler_of(self._facts)) for index in self.stages}

    def fork(self) -> SplitDiffusion:
        """Share the weights; the state is new."""
        other = copy.copy(self)
        other._states = {}
        return other

    @torch.inference_mode()
    def run(self, stage: int, round_index: int, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """Run a stage's part of one call of the denoiser."""
        span, facts, state = self.plan.stages[stage], self._facts, self._states[stage]
        tensors = [tensor.to(stage_device(self.plan, stage)) for tensor in inputs]
        if span.start < facts.first_step:
            if round_index == 0:
                tensors = encode(facts.model, self._modules["text_encoder"], tensors[0])
            self._done(0)
        start, stop = self._span(stage)
        if start < stop:
            tensors = self._blocks(stage, start, stop, round_index, tensors, state)
        if span.stop > facts.last_step:
            if round_index == self.rounds - 1:
                tensors = [decode(self._modules["decoder"], tensors[0])]
            self._done(facts.last_step)
        return [tensor.contiguous().cpu() for tensor in tensors]

    def _blocks(
        self, stage: int, start: int, stop: int, round_index: int, tensors: list[torch.Tensor], state: _State
    ) -> list[torch.Tensor]:
        facts, device = self._facts, stage_device(self.plan, stage)
        timestep = self._timesteps[round_index]
        if round_index == 0:
            count = len(facts.conditioning())
            tensors, state.conditioning = tensors[:-count], tensors[-count:]
            state.both = [*doubled(facts, state.conditioning, self._labels), *facts.local(facts.name, device)]
            if start == 0:
                tensors = [scaled(state.scheduler, draw_noise(facts, state.scheduler).to(device), timestep)]
        if start == 0 and facts.is_guided:
            tensors = [torch.cat([tensors[0], tensors[0]])]
        on_part = None if self.on_element is None else lambda part: self._done(facts.first_step + part)
        tensors = self._pieces[stage].run(tensors, timestep.to(device), state.both, on_part)
        if stop < facts.last_step - facts.first_step:
            return tensors + (state.conditioning if round_index == 0 else [])
        return [self._step(state, round_index, guided(facts, tensors[0]))]

    def _step(self, state: _State, round_index: int, prediction: torch.Tensor) -> torch.Tensor:
        """Step the solver; return the latent as the next call sees it, and as it is after the last."""
        scheduler, timestep = state.scheduler, self._timesteps[round_index]
        if state.latent is None:
            state.latent = draw_noise(self._facts, scheduler).to(prediction.device)
            scaled(scheduler, state.latent, timestep)  # some solvers want to have been asked
        state.latent = scheduler.step(prediction, timestep, state.latent, return_dict=False)[0]
        if round_index == self.rounds - 1:
            return state.latent
        return scaled(scheduler, state.latent, self._timesteps[round_index + 1])


def build(plan: Plan, stages: Sequence[int]) -> SplitDiffusion:
    """Load the stages that this process hosts."""
    return SplitDiffusion(plan, stages)


@torch.inference_mode()
def reference(plan: Plan, seed: int) -> list[torch.Tensor]:
    """Sample in this process with the library's whole denoiser and a plain loop over its calls.

    Every block computes with the number of threads of the device that the plan gives it, since the order of floating
    point sums depends on it.

    Returns
    -------
    list of one tensor
        Images (images, channels, height, width), or latents without a decoder.
    """
    facts = _SplitRun(plan)
    module = load_part(facts, f"variant:{facts.name}", torch.device("cpu"))
    order = [block.name for block in facts.model.variants[facts.name].blocks]

    def enter(position: int) -> Callable[..., None]:
        return lambda *_: set_threads(plan, facts.first_step + position)

    module.register_forward_pre_hook(enter(0))
    for name, block in block_modules(module).items():
        # What the library computes between two blocks belongs to the second.
        if order.index(name) == 1:
            block.register_forward_pre_hook(enter(1))
        block.register_forward_hook(enter(order.index(name) + 1))
    return sample_whole(facts, plan, seed, lambda call: (facts.name, module))
