"""Costs of a multi-stage diffusion run: a text encoder, the steps in one of V variants, a decoder.

A step is one call of the denoiser: solvers of two calls a step have twice as many, and may be cut at every second.

Chain variant 0 is ``common``: it runs the text encoder and the decoder, which are the same whatever denoiser is
used; variants 1..V are the denoisers and run only steps. So a device that encodes text holds no denoiser.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edgeopt.costs.roofline import Work, roofline
from edgeopt.costs.solvers import Solver, solver_of
from edgeopt.costs.terms import Terms
from edgeopt.costs.timings import between_batches, interpolate_s, matching
from edgeopt.profiles.device import Device
from edgeopt.profiles.model import Component, Diffusion, Variant
from edgeopt.profiles.problem import ImageWorkload

__all__ = ["COMMON", "DiffusionCosts", "guides_twice"]

Array = NDArray[np.float64]

COMMON = "common"


def guides_twice(model: Diffusion, workload: ImageWorkload) -> bool:
    """Whether guidance calls the denoiser twice per image: not where one was taught to be told its strength (FLUX)."""
    architectures = [variant.architecture for variant in model.variants.values() if variant.architecture]
    return workload.guidance > 1 and not any(each.config.get("guidance_embeds") for each in architectures)


@dataclass(frozen=True)
class DiffusionCosts:
    """Seconds and bytes of one family of denoisers under one workload."""

    model: Diffusion
    workload: ImageWorkload

    @cached_property
    def solver(self) -> Solver:
        """What the sampler asks of the run."""
        return solver_of(self.model.sampler, self.workload.steps)

    @cached_property
    def variants(self) -> list[str]:
        """Chain variants: ``common`` and the denoisers' names."""
        return [COMMON, *self.model.variants]

    @cached_property
    def names(self) -> list[str]:
        """Element names: ``text_encoder``, ``step.0`` …, ``decoder`` (the components only where the model has them)."""
        steps = [f"step.{i}" for i in range(self.solver.calls)]
        before = ["text_encoder"] if self.model.text_encoder else []
        return before + steps + (["decoder"] if self.model.decoder else [])

    @property
    def first_step(self) -> int:
        """Index of the first denoising step."""
        return 1 if self.model.text_encoder else 0

    @property
    def steps(self) -> slice:
        """Elements that are denoising steps: calls of the denoiser."""
        return slice(self.first_step, self.first_step + self.solver.calls)

    @property
    def step_batch(self) -> int:
        """Batch that a denoiser sees: classifier-free guidance evaluates every image twice."""
        return self.workload.images * (2 if guides_twice(self.model, self.workload) else 1)

    def _terms(self, device: Device, phase: str, part: Component | Variant, variant: str | None) -> tuple[Terms, bool]:
        batch = self.step_batch if phase == "step" else self.workload.images
        measured = interpolate_s(matching(device, self.model.name, phase, self.model.dtype, variant), batch)
        if measured is not None:
            return Terms.from_table(measured[0, 0]), True
        work = Work(
            flop=batch * part.flop,
            weights=part.weights,
            activations=batch * (part.activations if part.traffic is None else part.traffic),
            kernels=part.kernels or 1,
        )
        return roofline(device, self.model.dtype, work), False

    def terms(self, device: Device) -> tuple[dict[str, Terms], bool]:
        """Split what runs at all by what takes the time, and say whether all of it is measured.

        Returns
        -------
        terms : dict
            Of one call: ``text_encoder`` and ``decoder`` where the model has them, every denoiser by its name.
        measured : bool
        """
        found = {
            name: self._terms(device, name, part, None)
            for name, part in (("text_encoder", self.model.text_encoder), ("decoder", self.model.decoder))
            if part is not None
        }
        found |= {name: self._terms(device, "step", part, name) for name, part in self.model.variants.items()}
        return {name: terms for name, (terms, _) in found.items()}, all(measured for _, measured in found.values())

    def step_terms(self, device: Device, variant: str) -> tuple[Terms, bool]:
        """Seconds of one call of a denoiser, and whether they are measured."""
        return self._terms(device, "step", self.model.variants[variant], variant)

    def is_between_batches(self, device: Device) -> bool:
        """Whether the device's tables were measured at other batches than the workload's."""
        images = self.workload.images
        batches = {"text_encoder": images, "step": self.step_batch, "decoder": images}
        return between_batches(device, self.model.name, self.model.dtype, batches)

    def compute_s(self, device: Device) -> tuple[Array, bool]:
        """Seconds per chain variant and element, shape (1 + V, L), and whether all of them are measured."""
        table = np.full((len(self.variants), len(self.names)), np.inf)
        terms, measured = self.terms(device)
        for element, name in ((0, "text_encoder"), (-1, "decoder")):
            if name in terms:
                table[0, element] = terms[name].total
        for row, name in enumerate(self.model.variants, start=1):
            table[row, self.steps] = terms[name].total
        return table, measured

    @property
    def resident_bytes(self) -> Array:
        """Weights of the text encoder and the decoder, shape (1 + V, L); denoisers are in ``shared_bytes``."""
        table = np.zeros((len(self.variants), len(self.names)))
        if self.model.text_encoder:
            table[0, 0] = self.model.text_encoder.weights
        if self.model.decoder:
            table[0, -1] = self.model.decoder.weights
        return table

    @property
    def shared_bytes(self) -> Array:
        """Weights of each denoiser, counted once per device however many steps it runs; shape (1 + V,)."""
        return np.array([0.0, *(variant.weights for variant in self.model.variants.values())])

    @property
    def transient_bytes(self) -> Array:
        """Activations while an element runs, shape (1 + V, L)."""
        table = np.zeros((len(self.variants), len(self.names)))
        if self.model.text_encoder:
            table[0, 0] = self.workload.images * self.model.text_encoder.activations
        if self.model.decoder:
            table[0, -1] = self.workload.images * self.model.decoder.activations
        for row, variant in enumerate(self.model.variants.values(), start=1):
            table[row, self.steps] = self.step_batch * variant.activations
        return table

    @property
    def cut_bytes(self) -> Array:
        """Bytes crossing each cut, shape (L + 1,).

        The prompt; then the conditioning; between steps the latent, what the solver remembers beside it, and the
        conditioning (every later stage needs it); before the decoder the latent alone; at the end the image.
        """
        model, images = self.model, self.workload.images
        table = np.full(len(self.names) + 1, model.latent + model.conditioning)
        for done in range(1, self.solver.calls):
            table[self.first_step + done] += self.solver.state(done) * model.latent
        table[self.first_step] = model.conditioning
        table[self.steps.stop] = model.latent
        table[0] = model.prompt
        if model.decoder:
            table[-1] = model.decoder.output
        return images * table

    @property
    def cut_refusals(self) -> dict[int, str]:
        """Cut → why the solver may not be cut there."""
        reasons = {done: self.solver.refusal(done) for done in range(1, self.solver.calls)}
        return {self.first_step + done: reason for done, reason in reasons.items() if reason}

    @property
    def cut_legal(self) -> NDArray[np.bool_]:
        """Where a stage may begin, shape (L + 1,)."""
        table = np.ones(len(self.names) + 1, bool)
        table[list(self.cut_refusals)] = False
        return table
