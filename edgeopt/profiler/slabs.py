"""Seconds of a denoiser's steps on some rows of its latent, between one exchange and the next.

Nobody is asked: the context of all other rows is there at once, in the shape in which it would come. What a step then
takes is what :class:`~edgeopt.programs.patch.Patch` computes in it, exchanges left out; putting others' keys and values
beside one's own is in it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence

import torch

from edgeopt.plan import Plan
from edgeopt.programs.diffusion import DiffusionRun
from edgeopt.programs.patch import denoise
from edgeopt.programs.placing import stage_device
from edgeopt.programs.sampling import doubled, draw_prompt, load_part
from edgeopt.programs.slabs import StandIn, cut_into_slabs

__all__ = ["Slab"]


class _Timed(StandIn):
    """Adds up the seconds of each step that lie outside exchanges."""

    def __init__(self, rows: Sequence[int], device: torch.device) -> None:
        super().__init__(*rows)
        self.steps_s: list[float] = []
        self._device, self._since_s = device, 0.0

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Time a step."""
        self.steps_s.append(0.0)
        self._since_s = time.perf_counter()
        yield
        self._pause()

    def swap(
        self, kind: str, outgoing: Mapping[int, torch.Tensor], expected: Sequence[int]
    ) -> Mapping[int, torch.Tensor]:
        """Answer while the clock stands still."""
        self._pause()
        found = super().swap(kind, outgoing, expected)
        self._since_s = time.perf_counter()
        return found

    def _pause(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        self.steps_s[-1] += time.perf_counter() - self._since_s


class Slab:
    """The rows of a plan's first stage; those of the others are nobody's."""

    def __init__(self, plan: Plan) -> None:
        self._facts, self._stage = DiffusionRun(plan), plan.stages[0]
        self._variant = str(self._stage.variant)
        self._device = stage_device(plan, 0)
        self._module = load_part(self._facts, f"variant:{self._variant}", self._device)
        own = self._stage.stop - self._stage.start
        self._exchange = _Timed((own, self._facts.model.latent_shape[1] - own), self._device)
        cut_into_slabs(self._module, self._exchange)

    def steps_s(self, seed: int) -> list[float]:
        """Denoise once; seconds of every step."""
        facts, labels = self._facts, self._facts.label_count
        if facts.model.text_encoder:
            specs = facts.conditioning()
            given = [torch.randn(spec.shape).to(spec.dtype) for spec in specs]
        else:
            given = [draw_prompt(facts, labels, seed)]
        given = doubled(facts, [each.to(self._device) for each in given], labels)
        self._exchange.steps_s = []
        with torch.inference_mode():
            denoise(
                facts, self._variant, self._module, self._stage, range(facts.solver.calls), given, self._exchange.step
            )
        return self._exchange.steps_s
