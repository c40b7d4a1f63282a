"""Costs of a denoising run by patches: rows of the latent on several devices at once, in the words of a divisible load.

A device with h units of ``multiple`` rows computes ``c = alpha + beta h`` seconds a step. Where slabs of several
heights were timed on it this is the line through them: what a slab does is affine in its rows (each of its tokens
attends to all), its fixed part being operations too small to fill the device, and others' context that is put beside
its own. Else it is reckoned from the whole step: the roofline is convex in the rows, and its chord from none to all of
them lies above it.

It gives ``halo + sums + per_row multiple h`` bytes a step to every other one, over a link to each: the slowest of them
counts. A synchronous device goes on as soon as it has what the others computed, so that a step takes

    max(max over devices of c, mean of the two largest c + e),    e = messages latency + bytes / rate;

in an asynchronous one what is sent has a step to travel, ``max(c, latency + bytes / rate)``. In the first w synchronous
steps all wait for the slowest, so that they are a part of their own (``lead`` of the divisible load),

    max over devices of w (c + e)  +  max over devices of (n - w) max(c, latency + bytes / rate);

n is T, the number of steps, and with a stride those that the device computes: w, and every s-th of the others. There
nobody waits longer than the slowest takes: a patch's context is asked for when it has had time for it. Messages then
come and go while it computes; what they take of the processor, where that was measured, is added to c, as if all its
cores computed. Conditioning and rows cross once, to the source and from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edgeopt.costs.diffusion import DiffusionCosts
from edgeopt.costs.roofline import Work, roofline
from edgeopt.costs.strides import own_steps
from edgeopt.costs.timings import interpolate_s, matching
from edgeopt.profiles.device import Device
from edgeopt.profiles.model import PatchExchange
from edgeopt.profiles.problem import PatchOptions

__all__ = ["PatchCosts"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PatchCosts:
    """Seconds and bytes of one denoiser by patches; ``costs`` is of a family with that one alone."""

    costs: DiffusionCosts
    options: PatchOptions

    @property
    def variant(self) -> str:
        """The denoiser."""
        return next(iter(self.costs.model.variants))

    @property
    def exchange(self) -> PatchExchange:
        """What is exchanged per step and image."""
        known = self.costs.model.variants[self.variant].patch
        assert known is not None, "checked by the strategy"
        return known

    @property
    def num_units(self) -> int:
        """How many times ``multiple`` rows there are to share out."""
        return self.costs.model.latent_shape[1] // self.exchange.multiple

    @property
    def calls(self) -> int:
        """Calls of the denoiser: steps."""
        return self.costs.solver.calls

    @property
    def fresh_calls(self) -> int:
        """Steps in which all wait for all."""
        return self.calls if self.options.mode == "synchronous" else min(self.options.warmup_steps, self.calls)

    def own_calls(self, stride: int) -> int:
        """Steps that a device with that stride computes."""
        return len(own_steps(self.calls, self.fresh_calls, stride))

    @property
    def unit_bytes(self) -> float:
        """Bytes that a step gives to each other device, per unit."""
        return self.costs.step_batch * self.exchange.per_row * self.exchange.multiple

    @property
    def fixed_bytes(self) -> float:
        """Bytes that a step gives to a neighbour, whatever the rows."""
        return self.costs.step_batch * (self.exchange.halo + self.exchange.sums)

    @property
    def conditioning_bytes(self) -> float:
        """What the source gives to every device."""
        return self.costs.workload.images * self.costs.model.conditioning

    @cached_property
    def unit_latent_bytes(self) -> float:
        """Bytes of the finished latent, per unit."""
        return self.costs.workload.images * self.costs.model.latent / self.num_units

    def slab_line(self, device: Device) -> tuple[float, float, float] | None:
        """Fit seconds per step of slabs timed on a device: of a step without rows, per unit, and the largest error.

        The line of least relative errors through all heights timed, neither end of it below nought. ``None`` where
        fewer than two heights were timed, or not at this batch.
        """
        variant, model = self.variant, self.costs.model
        timings = matching(device, model.name, "slab", model.dtype, variant)
        rows = np.array(sorted({timing.rows for timing in timings if timing.rows is not None}), np.int64)
        found = interpolate_s(timings, self.costs.step_batch, "rows", rows) if len(rows) > 1 else None
        if found is None:
            return None
        units, seconds = rows / self.exchange.multiple, found[:, 0]
        sides = np.stack([1 / seconds, units / seconds], axis=1)
        options = [np.linalg.lstsq(sides, np.ones(len(units)), rcond=None)[0]]
        for kept in (0, 1):  # the other is nought
            side = sides[:, kept]
            options.append(np.eye(2)[kept] * (side.sum() / (side @ side)))
        start, each = min(
            (line for line in options if (line >= 0).all()), key=lambda line: float(((sides @ line - 1) ** 2).sum())
        )
        return float(start), float(each), float(np.abs(sides @ [start, each] - 1).max())

    def step_s(self, device: Device, alone: bool = False) -> tuple[float, float, bool]:
        """Seconds of a step without rows and per unit, and whether they are measured.

        A device ``alone`` computes the whole step, in no slabs. Where only that is measured, launches are what it
        takes whatever its rows, as far as they explain it.
        """
        line = None if alone else self.slab_line(device)
        if line is not None:
            return *line[:2], True
        variant, batch = self.costs.model.variants[self.variant], self.costs.step_batch
        traffic = batch * (variant.activations if variant.traffic is None else variant.traffic)
        work = [
            Work(
                batch * share * variant.flop, variant.weights, activations=share * traffic, kernels=variant.kernels or 1
            )
            for share in (0.0, 1.0)
        ]
        terms, measured = self.costs.step_terms(device, self.variant)
        whole = float(terms.total)
        if measured:
            start = min((variant.kernels or 1) * device.launch_overhead, whole)
        else:
            start = float(roofline(device, self.costs.model.dtype, work[0]).total)
        return start, max(whole - start, 0.0) / self.num_units, measured

    def carry_s(self, device: Device, patches: int) -> tuple[float, float]:
        """Seconds that a step's messages among so many patches take from computing: of a device, and per unit on it.

        0 where they were not measured, where an accelerator computes, and for a device that is emulated by rests
        (``runtime.cpu_quota``), since messages come and go in these.
        """
        messages, exchange, peers = device.messages, self.exchange, patches - 1
        if messages is None or peers < 1 or device.runtime.accelerator != "cpu" or device.runtime.cpu_quota is not None:
            return 0.0, 0.0
        near = min(peers, 2)
        ends = 2 * (peers * (exchange.messages - exchange.halo_messages) + near * exchange.halo_messages)
        around = 2 * self.costs.step_batch * (peers * exchange.sums + near * exchange.halo)
        # Its own rows go to every other one, the rest of them come from somewhere.
        byte_s = messages.per_mebibyte / 2**20
        fixed_s = ends * messages.each + byte_s * (around + self.unit_bytes * self.num_units)
        return fixed_s, byte_s * self.unit_bytes * (peers - 1)

    @property
    def fixed_memory_bytes(self) -> float:
        """Weights, and the context of all rows in one exchange, or in all where it is kept from step to step."""
        exchange, batch = self.exchange, self.costs.step_batch
        context = batch * (exchange.per_row * self.costs.model.latent_shape[1] + exchange.halo + exchange.sums)
        if self.fresh_calls == self.calls:
            context /= max(exchange.messages, 1)
        return self.costs.model.variants[self.variant].weights + context

    @property
    def unit_memory_bytes(self) -> float:
        """Activations per unit."""
        return self.costs.step_batch * self.costs.model.variants[self.variant].activations / self.num_units

    def component_s(self, device: Device) -> dict[str, float]:
        """Seconds of text encoder and decoder on a device, where the model has them."""
        terms, _ = self.costs.terms(device)
        return {name: float(terms[name].total) for name in ("text_encoder", "decoder") if name in terms}

    def component_bytes(self) -> dict[str, float]:
        """Memory of text encoder and decoder."""
        images, model = self.costs.workload.images, self.costs.model
        parts = {"text_encoder": model.text_encoder, "decoder": model.decoder}
        return {name: part.weights + images * part.activations for name, part in parts.items() if part is not None}
