"""Costs of a cascade of diffusion models: a text encoder, then the steps of every level, each in one of its variants.

How many steps a level runs may be part of the decision, and a chain's elements are fixed. So a level has as many
elements as its longest run has steps, and a chain variant is a denoiser with a number of steps n: it computes in the
level's first n elements, and the others cost it nothing. Chain variant 0 is ``common`` and runs the text encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.costs.diffusion import COMMON, DiffusionCosts
from edgeopt.costs.solvers import solver_of
from edgeopt.costs.terms import Terms
from edgeopt.errors import Finding, InputError
from edgeopt.profiles.device import Device
from edgeopt.profiles.model import CascadedDiffusion, Level
from edgeopt.profiles.problem import CascadeWorkload, ImageWorkload

__all__ = ["CascadeCosts", "Run", "run_of"]

Array = NDArray[np.float64]


class Run(NamedTuple):
    """A denoiser and how many steps it takes through its level."""

    level: int
    denoiser: str
    steps: int

    def __str__(self) -> str:
        return f"{self.denoiser}@{self.steps}"


def run_of(model: CascadedDiffusion, variant: str | None, field: str) -> Run:
    """Read a plan's variant, such as ``large@10``.

    Raises
    ------
    InputError
        No such denoiser, or no number of steps.
    """
    name, _, count = f"{variant}".rpartition("@")
    levels = {each: k for k, level in enumerate(model.levels) for each in level.variants}
    if name not in levels or not count.isdecimal() or int(count) < 1:
        mend = f"write one of {', '.join(levels)} with its steps, such as {next(iter(levels))}@10"
        raise InputError(Finding(field, f"'{variant}' is no denoiser of '{model.name}' with its steps", mend))
    return Run(levels[name], name, int(count))


@dataclass(frozen=True)
class CascadeCosts:
    """Seconds and bytes of a cascade under one workload.

    Raises
    ------
    InputError
        Neither the workload nor measured runs say how many steps a level takes, or a sampler calls the denoiser more
        than once in a step.
    """

    model: CascadedDiffusion
    workload: CascadeWorkload

    def __post_init__(self) -> None:
        """Refuse a cascade of unknown numbers of steps, and steps of several calls."""
        for k, (level, counts) in enumerate(zip(self.model.levels, self.choices, strict=True)):
            if several := [count for count in counts if solver_of(level.sampler, count).calls != count]:
                calls = solver_of(level.sampler, several[0]).calls
                message = f"{level.sampler.class_name} makes {calls} calls of {several[0]} steps"
                mend = "use a sampler of one call a step, such as DDIMScheduler"
                raise InputError(Finding(f"model.levels.{k}.sampler.class", message, mend))

    @cached_property
    def choices(self) -> list[list[int]]:
        """Numbers of steps that each level may take, increasing."""
        if self.workload.steps is not None:
            return [[count] for count in self.workload.steps]
        if self.model.quality is None:
            example = ", ".join("20" for _ in self.model.levels)
            message = f"is missing, and '{self.model.name}' has no measured runs to choose from"
            raise InputError(Finding("workload.steps", message, f"write `steps: [{example}]`, one number per level"))
        return [sorted({run.steps[k] for run in self.model.quality.runs}) for k in range(len(self.model.levels))]

    @cached_property
    def runs(self) -> list[Run]:
        """Chain variants 1, 2, …: every denoiser with every number of steps of its level."""
        return [
            Run(k, name, count)
            for k, level in enumerate(self.model.levels)
            for name in level.variants
            for count in self.choices[k]
        ]

    @cached_property
    def variants(self) -> list[str]:
        """Chain variants: ``common``, then ``denoiser@steps``."""
        return [COMMON, *map(str, self.runs)]

    @property
    def first_step(self) -> int:
        """Index of the first denoising step."""
        return 1 if self.model.text_encoder else 0

    @cached_property
    def levels(self) -> list[slice]:
        """Elements of each level."""
        ends = [*accumulate((counts[-1] for counts in self.choices), initial=self.first_step)]
        return [slice(start, stop) for start, stop in pairwise(ends)]

    @cached_property
    def names(self) -> list[str]:
        """Element names: ``text_encoder`` where there is one, then ``LEVEL.step.0`` … of every level."""
        before = ["text_encoder"] if self.model.text_encoder else []
        spans = zip(self.model.levels, self.levels, strict=True)
        return before + [f"{level.name}.step.{i}" for level, span in spans for i in range(span.stop - span.start)]

    def _family(self, index: int) -> DiffusionCosts:
        load = self.workload
        workload = ImageWorkload(steps=self.choices[index][-1], images=load.images, guidance=load.guidance)
        return DiffusionCosts(self.model.level(index), workload)

    @cached_property
    def _families(self) -> list[DiffusionCosts]:
        return [self._family(k) for k in range(len(self.model.levels))]

    def terms(self, device: Device) -> tuple[dict[str, Terms], bool]:
        """Split one call of everything by cause, by the names of denoisers; see :meth:`DiffusionCosts.terms`."""
        found = [family.terms(device) for family in self._families]
        return {name: each for terms, _ in found for name, each in terms.items()}, all(known for _, known in found)

    def is_between_batches(self, device: Device) -> bool:
        """Whether the device's tables were measured at other batches than the workload's."""
        return any(family.is_between_batches(device) for family in self._families)

    def steps_of(self, run: Run) -> slice:
        """Elements in which a run computes."""
        start = self.levels[run.level].start
        return slice(start, start + run.steps)

    def compute_s(self, device: Device) -> tuple[Array, bool]:
        """Seconds per chain variant and element, shape (1 + V, L), and whether all of them are measured."""
        table = np.full((len(self.variants), len(self.names)), np.inf)
        terms, measured = self.terms(device)
        if self.model.text_encoder:
            table[0, 0] = terms["text_encoder"].total
        for row, run in enumerate(self.runs, start=1):
            table[row, self.levels[run.level]] = 0.0
            table[row, self.steps_of(run)] = terms[run.denoiser].total
        return table, measured

    @property
    def resident_bytes(self) -> Array:
        """Weights of the text encoder, shape (1 + V, L); denoisers are in ``shared_bytes``."""
        table = np.zeros((len(self.variants), len(self.names)))
        if self.model.text_encoder:
            table[0, 0] = self.model.text_encoder.weights
        return table

    @property
    def shared_bytes(self) -> Array:
        """Weights of each denoiser, counted once per device, shape (1 + V,).

        A plan takes one number of steps per level, so that no denoiser's weights are counted twice.
        """
        return np.array([0.0, *(self._level(run).variants[run.denoiser].weights for run in self.runs)])

    @property
    def transient_bytes(self) -> Array:
        """Activations while an element runs, shape (1 + V, L)."""
        table = np.zeros((len(self.variants), len(self.names)))
        if self.model.text_encoder:
            table[0, 0] = self.workload.images * self.model.text_encoder.activations
        for row, run in enumerate(self.runs, start=1):
            batch = self._families[run.level].step_batch
            table[row, self.steps_of(run)] = batch * self._level(run).variants[run.denoiser].activations
        return table

    def _level(self, run: Run) -> Level:
        return self.model.levels[run.level]

    @property
    def cut_legal(self) -> NDArray[np.bool_]:
        """Where a stage may begin, shape (L + 1,): a level whose solver remembers its steps is not cut inside them."""
        legal = np.ones(len(self.names) + 1, dtype=bool)
        for level, span, counts in zip(self.model.levels, self.levels, self.choices, strict=True):
            for done in range(1, span.stop - span.start):
                solvers = [solver_of(level.sampler, count) for count in counts]
                legal[span.start + done] = not any(each.state(done) or each.refusal(done) for each in solvers)
        return legal

    @property
    def cut_bytes(self) -> Array:
        """Bytes crossing each cut, shape (L + 1,).

        The prompt; then the conditioning; inside a level its latent, the image that it enlarges (if any) and the
        conditioning; between levels the image and the conditioning; at the end the image.
        """
        model, latents = self.model, [level.latent for level in self.model.levels]
        table = np.zeros(len(self.names) + 1)
        for k, span in enumerate(self.levels):
            below = latents[k - 1] if k else 0.0
            table[span.start] = below + model.conditioning
            table[span.start + 1 : span.stop] = latents[k] + below + model.conditioning
        table[0] = model.prompt
        table[-1] = latents[-1]
        return self.workload.images * table
