"""A denoising run by patches: every device has some rows of the latent and takes all steps on them.

Synchronous: each exchange of a step waits for that step's tensors, so that the result is that of the whole image.
Asynchronous: after ``warmup_steps`` such steps, others' rows are known as they were one step ago; what is sent has a
whole step to travel. Always exactly one step: the result is another, but it does not depend on who was faster. A patch
with a stride computes only every so many of those steps (:mod:`edgeopt.costs.strides` says which, and what the others
know of it), and steps its sampler over as many at once.

The source encodes the prompt and decodes the image, where the model has a text encoder and a decoder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from edgeopt.costs.strides import STRIDES, context_step, own_steps, sent_steps, stride_refusal
from edgeopt.errors import Finding, InputError
from edgeopt.plan import Plan, Stage
from edgeopt.programs import multi_stage
from edgeopt.programs.conditioning import encode
from edgeopt.programs.diffusion import DiffusionRun
from edgeopt.programs.parties import Links, PartyProgram, rehearse
from edgeopt.programs.placing import stage_device
from edgeopt.programs.sampling import decode, doubled, draw_noise, draw_prompt, guided, load_part, scaled
from edgeopt.programs.sampling import scheduler_of as make_scheduler
from edgeopt.programs.slabs import Exchange, cut_into_slabs
from edgeopt.programs.strides import stepper

__all__ = ["TOLERANCE", "Patch", "build", "denoise", "reference"]

#: Relative to the largest value: sums over slabs are added in another order than sums over the image.
TOLERANCE: float | None = 1e-3

_SPARE_BYTES = 1 << 20


class _Swaps(Exchange):
    """Exchanges of a run over links: fresh, or of an earlier step. What lies between them is timed as computing.

    Parameters
    ----------
    stage
        Index of this patch in the plan.
    fresh_steps, steps
        Steps that wait for each other, and all.
    strides
        Of every patch, after the fresh steps.
    """

    def __init__(
        self, me: int, rows: Sequence[int], stage: int, fresh_steps: int, steps: int, strides: Sequence[int]
    ) -> None:
        super().__init__(me, rows)
        self._stage, self._fresh_steps, self._strides = stage, fresh_steps, strides
        self._sent = {k: sent_steps(steps, fresh_steps, strides[me], strides[k]) for k in self.others}
        self._links: Links | None = None
        self._ranks: Sequence[int] = ()
        self._step = self._point = 0
        self._known: dict[int, dict[int, torch.Tensor]] = {}
        self._heard: dict[int, int] = {}
        self._due: list[int] = []
        self._computing = contextlib.ExitStack()

    def join(self, links: Links, ranks: Sequence[int]) -> None:
        """Start a request: ``ranks`` are those of the patches."""
        self._links, self._ranks, self._known = links, ranks, {}
        self._heard = {}

    @contextlib.contextmanager
    def step(self, step: int):  # type: ignore[no-untyped-def]
        """Take a step: exchanges come in the same order in every one."""
        self._step, self._point = step, 0
        if step < self._fresh_steps:
            wanted = dict.fromkeys(self.others, step)
        else:
            wanted = {k: context_step(step, self._fresh_steps, self._strides[k]) for k in self.others}
        self._due = [k for k in self.others if self._heard.get(k) != wanted[k]]
        self._heard = wanted
        self._go()
        yield
        self._computing.close()

    def _go(self) -> None:
        assert self._links is not None
        self._computing.enter_context(self._links.computing(self._stage, self._step))

    def swap(
        self, kind: str, outgoing: Mapping[int, torch.Tensor], expected: Sequence[int]
    ) -> Mapping[int, torch.Tensor]:
        """Send what will be used, and return the others' tensors of this step, or of the last one known."""
        assert self._links is not None
        self._computing.close()
        for k, tensor in outgoing.items():
            if self._step in self._sent[k]:
                self._links.send(self._ranks[k], [tensor], "context")
        known = self._known.setdefault(self._point, {})
        where = next((tensor.device for tensor in outgoing.values()), torch.device("cpu"))
        for k in expected:
            if k in self._due:
                known[k] = self._links.receive(self._ranks[k])[0].to(where)
        self._point += 1
        self._go()
        return known


class Patch(PartyProgram):
    """One device's rows, and on the source what comes before and after them."""

    def __init__(self, plan: Plan, stages: Sequence[int]) -> None:
        super().__init__(plan, stages)
        self._facts = facts = DiffusionRun(plan)
        self._labels = facts.label_count
        self._patches = [stage for stage in plan.stages if stage.variant is not None]
        self._variant = _one_variant(facts, self._patches)
        self._fresh_steps = _fresh_steps(plan, facts.solver.calls)
        if facts.model.sampler.config.get("thresholding"):
            message = "thresholding needs a quantile over the whole image"
            raise InputError(Finding("model.sampler.config.thresholding", message, "use clip_sample, or neither"))
        make_scheduler(facts)
        rows = [stage.stop - stage.start for stage in self._patches]
        strides = _strides(plan, self._patches, facts)
        self._modules: dict[str, Any] = {}
        for stage in (plan.stages[index] for index in self.stages):
            name = stage.elements if stage.variant is None else f"variant:{stage.variant}"
            self._modules[name] = load_part(facts, name, stage_device(plan, stage.index))
        self._own = next((stage for stage in self._patches if stage.index in self.stages), None)
        if self._own is not None:
            me = self._patches.index(self._own)
            self._swaps = _Swaps(me, rows, self._own.index, self._fresh_steps, facts.solver.calls, strides)
            self._calls = own_steps(facts.solver.calls, self._fresh_steps, strides[me])
            cut_into_slabs(self._modules[f"variant:{self._variant}"], self._swaps)
        self.max_message_bytes = _largest(facts, self._variant, sum(rows))

    def request(self, seed: int) -> list[torch.Tensor]:
        """Draw one prompt (or label) per image."""
        return [draw_prompt(self._facts, self._labels, seed)]

    def begin(self) -> None:
        """Nothing is kept between requests."""

    def play(self, links: Links, inputs: list[torch.Tensor] | None) -> list[torch.Tensor] | None:
        """Hand out the conditioning, denoise the own rows, collect all of them."""
        ranks = _ranks(self.plan, self._patches)
        if inputs is not None:
            conditioning = inputs
            if self._facts.model.text_encoder:
                with self._component(links, "text_encoder") as (module, where):
                    conditioning = [
                        each.contiguous().cpu() for each in encode(self._facts.model, module, inputs[0].to(where))
                    ]
            for rank in ranks:
                if rank != 0:
                    links.send(rank, conditioning, "input")
        else:
            conditioning = links.receive(0)
        own = self._denoise(links, ranks, conditioning) if self._own is not None else None
        if links.rank != 0:
            assert own is not None
            links.send(0, [own], "output")
            return None
        parts = [own if rank == 0 and own is not None else links.receive(rank)[0] for rank in ranks]
        image = torch.cat(parts, 2)
        if self._facts.model.decoder:
            with self._component(links, "decoder") as (module, where):
                image = decode(module, image.to(where)).contiguous().cpu()
        return [image]

    @contextlib.contextmanager
    def _component(self, links: Links, name: str):  # type: ignore[no-untyped-def]
        index = next(k for k in self.stages if self.plan.stages[k].elements == name)
        with links.computing(index):
            yield self._modules[name], stage_device(self.plan, index)

    def _denoise(self, links: Links, ranks: Sequence[int], conditioning: list[torch.Tensor]) -> torch.Tensor:
        stage = self._own
        assert stage is not None
        self._swaps.join(links, ranks)
        where, module = stage_device(self.plan, stage.index), self._modules[f"variant:{self._variant}"]
        given = doubled(self._facts, [each.to(where) for each in conditioning], self._labels)
        latent = denoise(self._facts, self._variant, module, stage, self._calls, given, self._swaps.step)
        return latent.contiguous().cpu()


def denoise(
    facts: DiffusionRun,
    variant: str,
    module: Any,
    stage: Stage,
    calls: Sequence[int],
    conditioning: Sequence[torch.Tensor],
    step_of: Callable[[int], AbstractContextManager[None]],
) -> torch.Tensor:
    """Denoise the rows of a stage with a module that is cut into slabs, where the conditioning is.

    Parameters
    ----------
    calls
        Steps that are computed.
    conditioning
        Of a call's whole batch.
    step_of
        What each step is made in.
    """
    where, predict = conditioning[0].device, facts.predict(variant)
    scheduler = make_scheduler(facts)
    noise = draw_noise(facts, scheduler)
    move = stepper(scheduler, calls)
    rows = slice(stage.start, stage.stop)
    latent = noise[:, :, rows].to(where)
    for step, timestep in zip(calls, scheduler.timesteps, strict=True):
        with step_of(step):
            x = scaled(scheduler, latent, timestep)
            output = predict(module, torch.cat([x, x]) if facts.is_guided else x, timestep.to(where), *conditioning)
            if output.shape[2] != latent.shape[2]:  # a library that makes squares only
                output = output[:, :, rows]
            latent = move(guided(facts, output), timestep, latent)
    return latent


def build(plan: Plan, stages: Sequence[int]) -> Patch:
    """Load what this process runs."""
    return Patch(plan, stages)


def reference(plan: Plan, seed: int) -> list[torch.Tensor]:
    """Sample the whole image in this process.

    An asynchronous run has another result: its reference is the same run, rehearsed in one process, which says that the
    transport changes nothing and says nothing of what stale context does to images.
    """
    facts = DiffusionRun(plan)
    if _fresh_steps(plan, facts.solver.calls) < facts.solver.calls:
        return rehearse(plan, seed, build)
    source = plan.problem.constraints.source or plan.problem.devices[0].name
    patch = next(stage for stage in plan.stages if stage.variant is not None)
    alone = patch.model_copy(update={"index": 0, "device": source, "start": 0, "stop": facts.num_elements})
    return multi_stage.reference(plan.model_copy(update={"stages": [alone]}), seed)


def _fresh_steps(plan: Plan, steps: int) -> int:
    """Steps in which patches wait for each other."""
    mode, warmup = plan.decisions.get("mode"), plan.decisions.get("warmup_steps")
    if mode == "synchronous":
        return steps
    if mode != "asynchronous" or not isinstance(warmup, int) or warmup < 1:
        message = f"mode {mode!r} with {warmup!r} warm-up steps"
        raise InputError(Finding("decisions", message, "write the plan with edgeopt solve"))
    return min(warmup, steps)


def _strides(plan: Plan, patches: Sequence[Stage], facts: DiffusionRun) -> list[int]:
    """Every how many steps each patch computes after the fresh ones; 1 where the plan does not say."""
    names = [device.name for device in plan.problem.devices]
    given = plan.decisions.get("strides", [1] * len(names))
    mend = "write the plan with edgeopt solve"
    if not isinstance(given, list) or len(given) != len(names) or not all(one in STRIDES for one in given):
        raise InputError(Finding("decisions.strides", f"{given!r} is not a stride for each device", mend))
    strides = [int(given[names.index(stage.device)]) for stage in patches]  # type: ignore[arg-type]
    if max(strides) > 1 and (why := stride_refusal(facts.model.sampler, facts.load.steps)):
        raise InputError(Finding("model.sampler.class", why, "plan with constraints.patch.max_stride 1"))
    return strides


def _one_variant(facts: DiffusionRun, patches: Sequence[Stage]) -> str:
    """Return the denoiser that all patches are of, which together make up the latent."""
    names = {stage.variant for stage in patches}
    if len(names) != 1 or not names <= set(facts.model.variants):
        known = ", ".join(facts.model.variants)
        raise InputError(Finding("stages", "patches are of one denoiser of the model", f"use one of {known}"))
    rows = [row for stage in patches for row in range(stage.start, stage.stop)]
    if rows != list(range(facts.model.latent_shape[1])):
        ends = ", ".join(f"{stage.start}:{stage.stop}" for stage in patches)
        message = f"patches {ends} do not make up {facts.model.latent_shape[1]} rows"
        raise InputError(Finding("stages", message, "solve the problem again"))
    return str(names.pop())


def _largest(facts: DiffusionRun, variant: str, rows: int) -> int:
    """Most bytes of a message: conditioning, rows of the latent, or what one exchange holds."""
    model, images = facts.model, facts.load.images
    batch = images * (2 if facts.is_guided else 1)
    known = model.variants[variant].patch
    exchange = 0.0 if known is None else known.per_row * rows + known.halo + known.sums
    return int(images * (model.latent + model.conditioning) + batch * exchange) + _SPARE_BYTES


def _ranks(plan: Plan, patches: Sequence[Stage]) -> list[int]:
    from edgeopt.executor.layout import Layout

    layout = Layout.of(plan)
    return [layout.host_of(stage.index).rank for stage in patches]
