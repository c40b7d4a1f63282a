"""Noise schedules that can be cut: every stage builds the whole schedule and runs its own calls of it.

A cut is exact when the next stage gets the latent and everything that the solver remembers beside it. The stage before
writes that down as tensors (:func:`solver_state`), the stage after puts it back (:func:`restore_state`); how many there
are is known before the run (:mod:`edgeopt.costs.solvers`), so the plan counts their bytes. A truncated schedule would
not do: flow matching appends a last noise level of 0 to whatever it is given, and shifts levels by the full run's
resolution.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from edgeopt.costs.solvers import SOLVERS, draws_random_numbers, solver_of
from edgeopt.errors import Finding, InputError, MissingDependencyError
from edgeopt.profiles.model import Sampler

__all__ = ["check_cut", "make_scheduler", "restore_state", "solver_state"]


def make_scheduler(
    sampler: Sampler,
    steps: int,
    *,
    start: int = 0,
    latent_shape: Sequence[int] | None = None,
    num_stages: int = 1,
) -> Any:
    """Return a scheduler with the whole schedule set, ready for call ``start``.

    Parameters
    ----------
    latent_shape
        Of the run, without the batch axis; schedules that are shifted by resolution need it.
    num_stages
        Stages that hand over nothing but the latent; for more than one, solvers that remember more are refused.

    Raises
    ------
    InputError
        A solver that cannot be run, or not be cut at ``start``.
    """
    try:
        import diffusers
    except ImportError as error:
        raise MissingDependencyError("diffusers", "models", "running a diffusion model") from error
    solver = solver_of(sampler, steps)
    check_cut(sampler, steps, start)
    if num_stages > 1 and any(solver.state(done) or solver.refusal(done) for done in range(solver.calls)):
        raise _refuse(sampler, "remembers earlier steps", "use DDIMScheduler or EulerDiscreteScheduler")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of numpy, about how schedulers read torch tensors
        scheduler = getattr(diffusers, sampler.class_name).from_config(dict(sampler.config))
        if scheduler.config.get("use_dynamic_shifting"):
            _shift(scheduler, sampler, steps, latent_shape)
        else:
            scheduler.set_timesteps(steps)
    if len(scheduler.timesteps) != solver.calls:
        why = f"makes {len(scheduler.timesteps)} calls for {steps} steps, {solver.calls} were counted on"
        raise _refuse(sampler, why, "drop the options that change the number of steps")
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    return scheduler


def _shift(scheduler: Any, sampler: Sampler, steps: int, latent_shape: Sequence[int] | None) -> None:
    """Set a schedule that depends on the resolution, from the size of the whole run, as FLUX's pipeline does.

    Source: ``calculate_shift`` and ``FluxPipeline.__call__`` of diffusers 0.42.
    """
    if sampler.class_name != "FlowMatchEulerDiscreteScheduler" or latent_shape is None:
        raise _refuse(sampler, "with use_dynamic_shifting needs the resolution of a flow-matching run", _KNOWN)
    tokens = math.prod(latent_shape[-2:]) // 4  # 2 x 2 latent pixels each
    config = scheduler.config
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    smallest, largest = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (largest - smallest) / (high - low)
    mu = tokens * slope + (smallest - slope * low)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)


_KNOWN = f"use one of {', '.join(SOLVERS)}"


def check_cut(sampler: Sampler, steps: int, start: int) -> None:
    """Refuse a solver that cannot be run, or not be cut after ``start`` calls.

    Raises
    ------
    InputError
        With the reason.
    """
    if option := draws_random_numbers(sampler):
        raise _refuse(sampler, f"with {option} draws random numbers in every step", _KNOWN)
    if sampler.class_name not in SOLVERS:
        raise _refuse(sampler, "draws random numbers, or is not known to repeat itself exactly", _KNOWN)
    if sampler.config.get("solver_p"):
        raise _refuse(sampler, "with solver_p is two solvers", "drop solver_p")
    if why := solver_of(sampler, steps).refusal(start):
        raise _refuse(sampler, f"cannot be cut after {start} calls: {why}", "cut elsewhere")


def _refuse(sampler: Sampler, why: str, mend: str) -> InputError:
    return InputError(Finding("model.sampler.class", f"{sampler.class_name} {why}", mend))


# ── what a solver remembers ──────────────────────────────────────────────────────────────────────────────────────


def solver_state(scheduler: Any, sampler: Sampler, steps: int, done: int) -> list[torch.Tensor]:
    """Return what the solver remembers after ``done`` calls, beside the latent.

    Returns
    -------
    list of tensors of the latent's shape
        As many as :meth:`edgeopt.costs.solvers.Solver.state` says.
    """
    count = solver_of(sampler, steps).state(done)
    tensors = _GIVE[sampler.class_name](scheduler, count) if count else []
    assert len(tensors) == count, (sampler.class_name, done, len(tensors), count)
    return tensors


def restore_state(scheduler: Any, sampler: Sampler, steps: int, done: int, tensors: Sequence[torch.Tensor]) -> None:
    """Put back what :func:`solver_state` wrote down, in a scheduler made for call ``done``."""
    if done:
        _TAKE.get(sampler.class_name, _take_nothing)(scheduler, steps, done, list(tensors))


def _take_nothing(scheduler: Any, steps: int, done: int, tensors: list[torch.Tensor]) -> None:
    """Everything is in the schedule."""


def _give_outputs(scheduler: Any, count: int) -> list[torch.Tensor]:
    return list(scheduler.model_outputs[-count:])


def _take_outputs(scheduler: Any, steps: int, done: int, tensors: list[torch.Tensor]) -> None:
    order = scheduler.config.solver_order
    scheduler.model_outputs = [None] * (order - len(tensors)) + tensors
    scheduler.lower_order_nums = min(done, order)


def _give_unipc(scheduler: Any, count: int) -> list[torch.Tensor]:
    return [scheduler.last_sample, *scheduler.model_outputs[1 - count :]]


def _take_unipc(scheduler: Any, steps: int, done: int, tensors: list[torch.Tensor]) -> None:
    scheduler.last_sample, *outputs = tensors
    _take_outputs(scheduler, steps, done, outputs)
    order, before = scheduler.config.solver_order, done - 1
    times = list(scheduler.timesteps[max(0, done - order) : done])
    scheduler.timestep_list = [None] * (order - len(times)) + times
    # The order of the call before this one, by which the corrector goes.
    last = min(order, steps - before) if scheduler.config.lower_order_final else order
    scheduler.this_order = min(last, min(before, order) + 1)


def _give_lms(scheduler: Any, count: int) -> list[torch.Tensor]:
    return list(scheduler.derivatives[-count:])


def _take_lms(scheduler: Any, steps: int, done: int, tensors: list[torch.Tensor]) -> None:
    scheduler.derivatives = tensors


def _give_pndm(scheduler: Any, count: int) -> list[torch.Tensor]:
    if scheduler.counter == 1:  # half of the step that is taken twice
        return [scheduler.cur_sample, *scheduler.ets]
    return list(scheduler.ets[-count:])


def _take_pndm(scheduler: Any, steps: int, done: int, tensors: list[torch.Tensor]) -> None:
    scheduler.counter = done
    if done == 1:
        scheduler.cur_sample, *tensors = tensors
    scheduler.ets = tensors


_GIVE: dict[str, Callable[[Any, int], list[torch.Tensor]]] = {
    "DPMSolverMultistepScheduler": _give_outputs,
    "DEISMultistepScheduler": _give_outputs,
    "UniPCMultistepScheduler": _give_unipc,
    "LMSDiscreteScheduler": _give_lms,
    "PNDMScheduler": _give_pndm,
}

_TAKE: dict[str, Callable[[Any, int, int, list[torch.Tensor]], None]] = {
    "DPMSolverMultistepScheduler": _take_outputs,
    "DEISMultistepScheduler": _take_outputs,
    "UniPCMultistepScheduler": _take_unipc,
    "LMSDiscreteScheduler": _take_lms,
    "PNDMScheduler": _take_pndm,
}
