"""The torch computation a plan stands for, cut at the plan's stages.

A process builds a :class:`Program` for the stages it hosts and holds only their weights. The executor moves tensors
between stages and knows nothing of models; a program knows nothing of processes. Rounds: a request is ``rounds``
passes over all stages (1 for a diffusion run; one prefill and then one per decoded token for a language model);
between rounds the last stage's output loops back to the first.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from edgeopt.plan import Plan

__all__ = ["Program", "TensorSpec"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and dtype of a message's tensor, known before it arrives so that nothing else need be sent."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Size of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


class Program(ABC):
    """Runs the stages of a plan that one process hosts.

    Parameters
    ----------
    plan
        Architecture, workload, cuts and variants all come from here.
    stages
        Indices of ``plan.stages`` hosted by this process; nothing else is loaded. Empty for a source that only
        feeds and collects.
    """

    #: Where a request can be resumed from what a stage was handed: ``cut``, ``loop``, both, or nowhere.
    resumes_from: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, plan: Plan, stages: Sequence[int]) -> None:
        self.plan = plan
        self.stages = tuple(stages)
        #: Called by :meth:`run` with each element's index as soon as it is done, for measuring inside a stage.
        self.on_element: Callable[[int], None] | None = None
        #: Whether :meth:`run` may return tensors that lie on an accelerator; otherwise they are in main memory.
        self.stays_on_device = False

    @property
    @abstractmethod
    def rounds(self) -> int:
        """Passes over all stages per request."""

    @abstractmethod
    def request(self, seed: int) -> list[torch.Tensor]:
        """Make the input that the source device sends to the first stage (prompt tokens, class labels)."""

    def resume(self, seed: int, handoffs: Sequence[list[torch.Tensor]]) -> list[torch.Tensor]:
        """Make the input of a request that is under way: this program's plan begins where ``handoffs`` ended."""
        raise NotImplementedError(f"{type(self).__name__} resumes nowhere")

    def join(self, handoffs: Sequence[list[torch.Tensor]], result: list[torch.Tensor]) -> list[torch.Tensor]:
        """Put together what was made before and after the interruption."""
        return result

    @abstractmethod
    def specs(self, stage: int, round_index: int) -> list[TensorSpec]:
        """Tensors that stage ``stage`` receives in a round; ``stage = len(plan.stages)``: the result for the source.

        Stage 0 in round 0 receives the request, in later rounds what the last stage returned.
        """

    @abstractmethod
    def begin(self) -> None:
        """Forget the previous request (caches, solver state)."""

    @abstractmethod
    def fork(self) -> Program:
        """Return a program that shares this one's weights and nothing of a request's state."""

    def hand_over(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a stage's output where the next message is sent from; on the way from a GPU through pinned memory."""
        if self.stays_on_device or tensor.device.type != "cuda":
            return tensor if self.stays_on_device else tensor.cpu()
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return pinned.copy_(tensor)

    @abstractmethod
    def run(self, stage: int, round_index: int, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """Compute one hosted stage in one round; the last stage of the last round returns the result."""

    def _done(self, element: int) -> None:
        """Report an element, if anybody listens."""
        if self.on_element is not None:
            self.on_element(element)
