"""A denoising run by patches: every device has some rows of the latent and takes all steps on them.

Synchronous: each exchange of a step waits for that step's tensors, so that the result is that of the whole image.
Asynchronous: after ``warmup_steps`` such steps, others' rows are known as they were one step ago; what is sent has a
whole step to travel. Always exactly one step: the result is another, but it does not depend on who was faster.

The source encodes the prompt and decodes the image, where the model has a text encoder and a decoder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from edgeopt.errors import Finding, InputError
from edgeopt.plan import Plan, Stage
from edgeopt.programs import multi_stage
from edgeopt.programs.diffusion import DiffusionRun
from edgeopt.programs.parties import Links, PartyProgram, rehearse
from edgeopt.programs.placing import stage_device
from edgeopt.programs.schedules import make_scheduler
from edgeopt.programs.slabs import Exchange, cut_into_slabs

__all__ = ["TOLERANCE", "Patch", "build", "reference"]

#: Relative to the largest value: sums over slabs are added in another order than sums over the image.
TOLERANCE: float | None = 1e-3


class _Swaps(Exchange):
    """Exchanges of a run over links: fresh, or one step old."""

    def __init__(self, me: int, rows: Sequence[int], ranks: Sequence[int], links: Links, fresh_steps: int, steps: int):
        super().__init__(me, rows)
        self._ranks, self._links = ranks, links
        self._fresh_steps, self._steps = fresh_steps, steps
        self._step = self._point = 0
        self._known: dict[int, Mapping[int, torch.Tensor]] = {}
        self.pieces: _Pieces | None = None

    def begin(self, step: int) -> None:
        """Start a step: exchanges come in the same order in every one."""
        self._step, self._point = step, 0

    def swap(
        self, kind: str, outgoing: Mapping[int, torch.Tensor], expected: Sequence[int]
    ) -> Mapping[int, torch.Tensor]:
        """Send, and return this step's tensors of the others, or those of the step before."""
        assert self.pieces is not None
        self.pieces.stop()
        fresh = self._step < self._fresh_steps
        # What is sent in the last step would be used in the next.
        if fresh or self._step < self._steps - 1:
            for k, tensor in outgoing.items():
                self._links.send(self._ranks[k], [tensor], "context")
        # In the first stale step all that is needed has been received already.
        if fresh or self._step > self._fresh_steps:
            heard = {k: self._links.receive(self._ranks[k])[0] for k in expected}
            own = next(iter(outgoing.values()), None)
            where = own.device if own is not None else torch.device("cpu")
            self._known[self._point] = {k: tensor.to(where) for k, tensor in heard.items()}
        known = self._known[self._point]
        self._point += 1
        self.pieces.go()
        return known


class _Pieces:
    """Times computing in pieces between exchanges."""

    def __init__(self, links: Links, stage: int) -> None:
        self._links, self._stage, self.step = links, stage, 0
        self._open = contextlib.ExitStack()

    def go(self) -> None:
        self._open.enter_context(self._links.computing(self._stage, self.step))

    def stop(self) -> None:
        self._open.close()


class Patch(PartyProgram):
    """One device's rows."""

    def __init__(self, plan: Plan, stages: Sequence[int]) -> None:
        super().__init__(plan, stages)
        self._facts = facts = DiffusionRun(plan)
        self._labels = facts.label_count
        self._patches = [stage for stage in plan.stages if stage.variant is not None]
        self._rows = [stage.stop - stage.start for stage in self._patches]
        self._variant = _one_variant(plan, facts, self._patches)
        self._own = next((stage for stage in self._patches if stage.index in self.stages), None)
        mode, warmup = plan.decisions.get("mode"), plan.decisions.get("warmup_steps", 0)
        if mode not in ("synchronous", "asynchronous") or not isinstance(warmup, int) or warmup < 1:
            message = f"mode {mode!r} with {warmup!r} warm-up steps"
            raise InputError(Finding("decisions", message, "write the plan with edgeopt solve"))
        self._fresh_steps = facts.load.steps if mode == "synchronous" else warmup
        if facts.model.sampler.config.get("thresholding"):
            message = "thresholding needs a quantile over the whole image"
            raise InputError(Finding("model.sampler.config.thresholding", message, "use clip_sample, or neither"))
        make_scheduler(facts.model.sampler, facts.load.steps, num_stages=1)
        self._modules: dict[str, Any] = {}
        for stage in (plan.stages[index] for index in self.stages if plan.stages[index].variant is None):
            where = stage_device(plan, stage.index)
            self._modules[stage.elements] = multi_stage.load_module(facts, stage.elements, where)
        self._denoiser: Any = None
        if self._own is not None:
            where = stage_device(plan, self._own.index)
            self._denoiser = multi_stage.load_module(facts, f"variant:{self._variant}", where)
            self._swaps = _Swaps(self._patches.index(self._own), self._rows, (), _NOWHERE, 0, 0)
            cut_into_slabs(self._denoiser, self._swaps)
        exchange = facts.model.variants[self._variant].patch
        step_bytes = 0.0 if exchange is None else exchange.per_row * sum(self._rows) + exchange.halo + exchange.sums
        latent = facts.load.images * max(facts.model.latent, facts.model.conditioning)
        self.max_message_bytes = int(4 * (latent + 2 * facts.load.images * step_bytes)) + (1 << 20)

    def request(self, seed: int) -> list[torch.Tensor]:
        """Draw one prompt (or label) per image."""
        return [multi_stage.draw_prompt(self._facts, self._labels, seed)]

    def begin(self) -> None:
        """Nothing is kept between requests."""

    def play(self, links: Links, inputs: list[torch.Tensor] | None) -> list[torch.Tensor] | None:
        """Hand out the conditioning, denoise the own rows, collect all of them."""
        ranks = _ranks(self.plan, self._patches)
        if inputs is not None:
            (conditioning,) = self._component(links, "text_encoder", inputs)
            for rank in ranks:
                if rank != links.rank:
                    links.send(rank, [conditioning], "input")
        else:
            (conditioning,) = links.receive(0)
        own = self._denoise(links, ranks, conditioning) if self._own is not None else None
        if links.rank != 0:
            assert own is not None
            links.send(0, [own], "output")
            return None
        parts = [own if rank == 0 and own is not None else links.receive(rank)[0] for rank in ranks]
        return self._component(links, "decoder", [torch.cat(parts, 2)])

    def _component(self, links: Links, name: str, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Run the text encoder or the decoder, where the model has one."""
        if name not in self._modules:
            return tensors
        index = next(k for k in self.stages if self.plan.stages[k].elements == name)
        where = stage_device(self.plan, index)
        run = multi_stage.encode if name == "text_encoder" else multi_stage.decode
        with links.computing(index):
            return [run(self._modules[name], tensors[0].to(where)).contiguous().cpu()]

    def _denoise(self, links: Links, ranks: Sequence[int], conditioning: torch.Tensor) -> torch.Tensor:
        facts, stage, swaps = self._facts, self._own, self._swaps
        assert stage is not None
        swaps.__init__(swaps.me, self._rows, ranks, links, self._fresh_steps, facts.load.steps)  # type: ignore[misc]
        swaps.pieces = pieces = _Pieces(links, stage.index)
        where, predict = stage_device(self.plan, stage.index), facts.predict(self._variant)
        scheduler = make_scheduler(facts.model.sampler, facts.load.steps, num_stages=1)
        rows = slice(stage.start, stage.stop)
        latent = multi_stage.draw_noise(facts, scheduler)[:, :, rows].to(where)
        conditioning = conditioning.to(where)
        guidance = facts.load.guidance
        both = conditioning
        if guidance > 1:
            both = torch.cat([multi_stage.unconditional(conditioning, self._labels), conditioning])
        for step, timestep in enumerate(scheduler.timesteps):
            pieces.step = step
            swaps.begin(step)
            pieces.go()
            x = multi_stage.scaled(scheduler, latent, timestep)
            output = predict(self._denoiser, torch.cat([x, x]) if guidance > 1 else x, timestep.to(where), both)
            if output.shape[2] != latent.shape[2]:
                output = output[:, :, rows]
            if guidance > 1:
                free, guided = output.chunk(2)
                output = free + guidance * (guided - free)
            latent = scheduler.step(output, timestep, latent, return_dict=False)[0]
            pieces.stop()
        return latent.contiguous().cpu()


def build(plan: Plan, stages: Sequence[int]) -> Patch:
    """Load what this process runs."""
    return Patch(plan, stages)


def reference(plan: Plan, seed: int) -> list[torch.Tensor]:
    """Sample the whole image in this process.

    An asynchronous run has another result: its reference is the same run, rehearsed in one process, which says that the
    transport changes nothing and says nothing of what stale context does to images.
    """
    if plan.decisions.get("mode") == "asynchronous":
        return rehearse(plan, seed, build)
    facts = DiffusionRun(plan)
    source = plan.problem.constraints.source or plan.problem.devices[0].name
    patches = [stage for stage in plan.stages if stage.variant is not None]
    alone = patches[0].model_copy(update={"index": 0, "device": source, "start": 0, "stop": facts.num_elements})
    return multi_stage.reference(plan.model_copy(update={"stages": [alone]}), seed)


def _one_variant(plan: Plan, facts: DiffusionRun, patches: Sequence[Stage]) -> str:
    names = {stage.variant for stage in patches}
    ends = [(stage.start, stage.stop) for stage in patches]
    rows = facts.model.latent_shape[1] if len(facts.model.latent_shape) == 3 else 0
    if len(names) != 1 or not names <= set(facts.model.variants):
        known = ", ".join(facts.model.variants)
        raise InputError(Finding("stages", "patches are of one denoiser of the model", f"use one of {known}"))
    starts = [0, *(stop for _, stop in ends)]
    if any(start != before for (start, _), before in zip(ends, starts, strict=False)) or starts[-1] != rows:
        raise InputError(Finding("stages", f"rows {ends} do not make up {rows} rows", "solve the problem again"))
    return str(names.pop())


def _ranks(plan: Plan, patches: Sequence[Stage]) -> list[int]:
    from edgeopt.executor.layout import Layout

    layout = Layout.of(plan)
    return [layout.host_of(stage.index).rank for stage in patches]


class _Nowhere(Links):
    """Links of a program that is not playing."""

    rank = -1

    def send(self, to: int, tensors: Sequence[torch.Tensor], label: str = "") -> None:
        raise AssertionError("not playing")

    def receive(self, source: int) -> list[torch.Tensor]:
        raise AssertionError("not playing")

    def poll(self, source: int) -> list[torch.Tensor] | None:
        raise AssertionError("not playing")

    def computing(self, stage: int, round_index: int = 0) -> Any:
        raise AssertionError("not playing")


_NOWHERE = _Nowhere()
