"""Patches that take fewer steps: which steps one computes, and whose context of which step it knows.

After ``fresh`` synchronous steps a patch with stride s computes every s-th step, and steps its sampler over s of them
at once. Such a computation at step c takes until step c + s begins, so that its context is known from there on: it is
between s and 2 s - 1 steps old when it is used, and no patch waits for a slower one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgeopt.costs.solvers import solver_of
from edgeopt.profiles.model import Sampler

__all__ = ["STRIDES", "context_step", "own_steps", "sent_steps", "stride_refusal", "stride_vectors"]

#: Strides that are planned.
STRIDES = (1, 2, 4)

#: Samplers whose step reads nothing but the latent and the denoiser's output, between any two points of the schedule.
_SINGLE_STEP = ("DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler")


def own_steps(steps: int, fresh: int, stride: int) -> list[int]:
    """Return the steps that a patch computes: all fresh ones, then every ``stride``-th."""
    return [*range(fresh), *range(fresh, steps, stride)]


def context_step(step: int, fresh: int, stride: int) -> int:
    """Return the step whose context of a patch with that stride is known at a later ``step`` >= ``fresh``."""
    done = (step - fresh) // stride
    return fresh + (done - 1) * stride if done else fresh - 1


def sent_steps(steps: int, fresh: int, stride: int, to_stride: int) -> set[int]:
    """Return the steps in which a patch gives its context to one with ``to_stride``: those that are used there."""
    later = own_steps(steps, fresh, to_stride)[fresh:]
    return {*range(fresh), *(context_step(step, fresh, stride) for step in later)}


def stride_vectors(seconds: Sequence[float], largest: int) -> Iterator[tuple[int, ...]]:
    """Yield strides for devices with these seconds per step, from few to many steps left out.

    The fastest takes all steps (else the whole run should have fewer), a slower device never has the smaller stride.
    """
    known = [stride for stride in STRIDES if stride <= largest]
    order = sorted(range(len(seconds)), key=lambda d: (seconds[d], d))

    def rising(count: int, least: int) -> Iterator[tuple[int, ...]]:
        if not count:
            yield ()
            return
        for stride in (one for one in known if one >= least):
            yield from ((stride, *rest) for rest in rising(count - 1, stride))

    for found in sorted(((1, *rest) for rest in rising(len(order) - 1, 1)), key=lambda row: (max(row), sum(row), row)):
        vector = [1] * len(order)
        for d, stride in zip(order, found, strict=True):
            vector[d] = stride
        yield tuple(vector)


def stride_refusal(sampler: Sampler, steps: int) -> str:
    """Say why a sampler cannot take several steps at once; empty where it can."""
    if sampler.class_name in _SINGLE_STEP:
        return ""
    if solver_of(sampler, steps).calls != steps:
        return f"{sampler.class_name} calls the denoiser several times in a step"
    return f"{sampler.class_name} weighs earlier steps by their distances, or is not known to step over several at once"
