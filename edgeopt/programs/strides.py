"""Schedulers that take several steps of their schedule at once: those whose step knows only where it is and goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch

__all__ = ["stepper"]

Step = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def stepper(scheduler: Any, calls: Sequence[int]) -> Step:
    """Let a fresh scheduler make some of its calls only, and return its step: output, timestep, latent to latent.

    A step goes to where the last of the calls that it stands for would have gone. ``scheduler.timesteps`` become those
    of the ``calls``; with all of them nothing is changed. The sampler is one that
    :func:`edgeopt.costs.strides.stride_refusal` lets pass.
    """

    def step(output: torch.Tensor, timestep: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        after: torch.Tensor = scheduler.step(output, timestep, latent, return_dict=False)[0]
        return after

    total = len(scheduler.timesteps)
    if len(calls) == total:
        return step
    times, chosen, ends = scheduler.timesteps, list(calls), [*calls[1:], total]
    scheduler.timesteps = times[chosen]
    if hasattr(scheduler, "sigmas"):  # Euler: from each noise level to the next in the list
        scheduler.sigmas = scheduler.sigmas[[*chosen, total]]
        return step
    # DDIM reckons where it goes from the number of steps of an even schedule; a fraction of one makes any way of it.
    num_train, usual = scheduler.config.num_train_timesteps, scheduler.config.num_train_timesteps // total
    ways = iter([int(times[a] - times[b - 1]) + usual for a, b in zip(chosen, ends, strict=True)])

    def far(output: torch.Tensor, timestep: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        scheduler.num_inference_steps = Fraction(num_train, next(ways))
        return step(output, timestep, latent)

    return far
