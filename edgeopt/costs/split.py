"""Costs of split diffusion: the blocks of one denoiser on several devices, passed once for every call of the denoiser.

Elements are the text encoder, the blocks and the decoder. Chain variant 0 is ``common`` (text encoder and decoder),
variant 1 the denoiser. With B the batch of a call (guidance doubles it), n the images, R the calls:

- a block takes R times its seconds at batch B; text encoder and decoder run once;
- a cut between blocks carries R messages: every time B times the bytes that are alive there (a U-Net's skips are among
  them), and with the first of them the conditioning, which every device's blocks read;
- the device of the last block steps the solver; the new latent returns to the first stage in R - 1 messages (the
  loop). Device for device noise and timesteps are made on the spot: the first call needs no latent from anywhere;
- a text encoder that stands alone passes latents on to the first block, a decoder alone passes them back: the loop
  runs from the chain's last stage to its first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edgeopt.costs.diffusion import COMMON, DiffusionCosts
from edgeopt.costs.roofline import Work, roofline
from edgeopt.costs.terms import Terms
from edgeopt.profiles.device import Device
from edgeopt.profiles.model import Block, Diffusion, Variant
from edgeopt.profiles.problem import ImageWorkload

__all__ = ["SplitCosts", "has_blocks"]

Array = NDArray[np.float64]


def has_blocks(variant: Variant) -> bool:
    """Whether a denoiser's profile says what each of its blocks takes."""
    known = variant.common_weights is not None and len(variant.blocks) > 1
    return known and all(block.traffic is not None and block.kernels is not None for block in variant.blocks)


@dataclass(frozen=True)
class SplitCosts:
    """Seconds and bytes of one denoiser's blocks under one workload.

    Parameters
    ----------
    model
        With a single denoiser, for which :func:`has_blocks` holds.
    """

    model: Diffusion
    workload: ImageWorkload

    @cached_property
    def whole(self) -> DiffusionCosts:
        """Costs of the same run uncut."""
        return DiffusionCosts(self.model, self.workload)

    @property
    def variant_name(self) -> str:
        """The denoiser's name."""
        (name,) = self.model.variants
        return name

    @property
    def variants(self) -> list[str]:
        """Chain variants: ``common`` and the denoiser's name."""
        return [COMMON, self.variant_name]

    @property
    def _denoiser(self) -> Variant:
        return self.model.variants[self.variant_name]

    @property
    def _blocks(self) -> list[Block]:
        return self._denoiser.blocks

    @property
    def calls(self) -> int:
        """How often the chain is passed per request."""
        return self.whole.solver.calls

    @cached_property
    def names(self) -> list[str]:
        """Element names: ``text_encoder``, the blocks' own, ``decoder``."""
        before = ["text_encoder"] if self.model.text_encoder else []
        return before + [block.name for block in self._blocks] + (["decoder"] if self.model.decoder else [])

    @property
    def blocks(self) -> slice:
        """Elements that are blocks."""
        first = 1 if self.model.text_encoder else 0
        return slice(first, first + len(self._blocks))

    def block_terms(self, device: Device) -> tuple[Terms, bool]:
        """Seconds of every block in one call, and whether they add up to a measurement.

        A measured call is divided among the blocks as the roofline divides it, by FLOPs on a device without a rate.
        """
        whole, measured = self.whole.step_terms(device, self.variant_name)
        blocks, batch = self._blocks, self.whole.step_batch
        flop = np.array([block.flop for block in blocks])
        if self.model.dtype in device.compute or not measured:
            work = Work(
                flop=batch * flop,
                weights=np.array([block.weights for block in blocks]),
                activations=batch * np.array([block.traffic for block in blocks], float),
                kernels=np.array([block.kernels for block in blocks], float),
            )
            terms = roofline(device, self.model.dtype, work)
        else:
            terms = Terms.from_table(flop)
        if measured:
            return Terms.from_table(float(whole.total) * terms.total / terms.total.sum()), True
        return terms, False

    def terms(self, device: Device, start: int, stop: int) -> Terms:
        """Seconds of elements ``start`` to ``stop`` over the whole request, by cause."""
        blocks, total = self.block_terms(device)[0], Terms.from_table(0.0)
        first, once = self.blocks.start, self.whole.terms(device)[0]
        for element in range(start, stop):
            inside = self.blocks.start <= element < self.blocks.stop
            each = blocks[element - first] if inside else once[self.names[element]]
            for _ in range(self.calls if inside else 1):
                total = total + each
        return total

    def compute_s(self, device: Device) -> tuple[Array, bool]:
        """Seconds per chain variant and element of a whole request, shape (2, L), and whether they are measured."""
        table = np.full((2, len(self.names)), np.inf)
        once, measured = self.whole.terms(device)
        for element, name in ((0, "text_encoder"), (-1, "decoder")):
            if name in once:
                table[0, element] = once[name].total
        table[1, self.blocks] = self.calls * self.block_terms(device)[0].total
        return table, measured

    @property
    def cut_bytes(self) -> Array:
        """Bytes crossing each cut per request, shape (L + 1,)."""
        table = self.call_bytes(0) + (self.calls - 1) * self.call_bytes(1)
        table[0] = self.workload.images * self.model.prompt
        table[-1] = self.workload.images * (self.model.decoder.output if self.model.decoder else self.model.latent)
        return table

    def call_bytes(self, call: int) -> Array:
        """Bytes crossing each cut in one call of the denoiser, shape (L + 1,); what the result takes is not in it."""
        model, images, start, stop = self.model, self.workload.images, self.blocks.start, self.blocks.stop
        table = np.zeros(len(self.names) + 1)
        if call == 0:
            table[:stop] = images * model.conditioning
            table[0] = images * model.prompt
        elif start:
            table[start] = images * model.latent
        table[start + 1 : stop] += self.whole.step_batch * np.array([block.output for block in self._blocks[:-1]])
        table[stop] = images * model.latent
        return table

    @property
    def cut_messages(self) -> Array:
        """Messages at each cut, shape (L + 1,): one a call; prompt and result are one each."""
        table = np.full(len(self.names) + 1, float(self.calls))
        table[[0, -1]] = 1.0
        return table

    @property
    def loop_bytes(self) -> float:
        """Bytes of latents that return from the last stage to the first."""
        return (self.calls - 1) * self.workload.images * self.model.latent

    @property
    def cut_refusals(self) -> dict[int, str]:
        """Cut → why the denoiser may not be cut there."""
        start = self.blocks.start
        return {
            start + i + 1: f"the library keeps '{block.name}' and what follows on one device"
            for i, block in enumerate(self._blocks)
            if not block.legal
        }

    @property
    def cut_legal(self) -> NDArray[np.bool_]:
        """Where a stage may begin, shape (L + 1,)."""
        table = np.ones(len(self.names) + 1, bool)
        table[list(self.cut_refusals)] = False
        return table

    @property
    def resident_bytes(self) -> Array:
        """Weights of the text encoder, the blocks and the decoder, shape (2, L)."""
        table = np.zeros((2, len(self.names)))
        if self.model.text_encoder:
            table[0, 0] = self.model.text_encoder.weights
        if self.model.decoder:
            table[0, -1] = self.model.decoder.weights
        table[1, self.blocks] = [block.weights for block in self._blocks]
        return table

    @property
    def shared_bytes(self) -> Array:
        """Weights that every device with a block holds beside it, shape (2,)."""
        return np.array([0.0, self._denoiser.common_weights or 0.0])

    @property
    def transient_bytes(self) -> Array:
        """Activations while an element runs, shape (2, L): of any block at most what the whole denoiser needs."""
        table = np.zeros((2, len(self.names)))
        images = self.workload.images
        if self.model.text_encoder:
            table[0, 0] = images * self.model.text_encoder.activations
        if self.model.decoder:
            table[0, -1] = images * self.model.decoder.activations
        table[1, self.blocks] = self.whole.step_batch * self._denoiser.activations
        return table
