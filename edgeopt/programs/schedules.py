"""Noise schedules that can be cut: every stage builds the whole schedule and runs its own steps of it.

A cut is exact when a step needs nothing but the latent. Solvers that remember earlier model outputs would start each
stage without their memory: the result would look right and be wrong, so they run only where one stage does all steps.
"""

from __future__ import annotations

import warnings
from typing import Any

from edgeopt.errors import Finding, InputError, MissingDependencyError
from edgeopt.profiles.model import Sampler

__all__ = ["MEMORYLESS", "REMEMBERING", "make_scheduler"]

#: One step needs the latent and the model's output, no history and no random numbers.
MEMORYLESS = ("DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler")

#: Deterministic, one evaluation per step, but with a memory of earlier steps.
REMEMBERING = (
    "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "LMSDiscreteScheduler", "UniPCMultistepScheduler",
)  # fmt: skip

#: Options under which a solver draws random numbers in every step.
_RANDOM_OPTIONS = {"stochastic_sampling": True, "algorithm_type": ("sde-dpmsolver", "sde-dpmsolver++")}


def make_scheduler(sampler: Sampler, steps: int, *, num_stages: int, start: int = 0) -> Any:
    """Return a scheduler with the whole schedule set, ready for step ``start``.

    Parameters
    ----------
    num_stages
        Stages that share the denoising steps.

    Raises
    ------
    InputError
        A solver that cannot be cut this way, or one whose steps are not single evaluations.
    """
    try:
        import diffusers
    except ImportError as error:
        raise MissingDependencyError("diffusers", "models", "running a diffusion model") from error
    _check(sampler, num_stages)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of numpy, about how schedulers read torch tensors
        scheduler = getattr(diffusers, sampler.class_name).from_config(dict(sampler.config))
        scheduler.set_timesteps(steps)
    if len(scheduler.timesteps) != steps:
        raise _refuse(sampler, f"makes {len(scheduler.timesteps)} evaluations of {steps} steps", MEMORYLESS)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    return scheduler


def _check(sampler: Sampler, num_stages: int) -> None:
    for option, values in _RANDOM_OPTIONS.items():
        value = sampler.config.get(option)
        if value and (value is values or (isinstance(values, tuple) and value in values)):
            raise _refuse(sampler, f"with {option}={value} draws random numbers in every step", MEMORYLESS)
    if sampler.config.get("use_dynamic_shifting"):
        raise _refuse(sampler, "with use_dynamic_shifting needs a shift that depends on the resolution", MEMORYLESS)
    if sampler.class_name in MEMORYLESS:
        return
    if sampler.class_name not in REMEMBERING:
        why = "evaluates the model twice per step, draws random numbers, or is not known to be cut exactly"
        raise _refuse(sampler, why, MEMORYLESS)
    if num_stages > 1:
        why = f"remembers earlier steps, and {num_stages} stages share the steps: each would start without that memory"
        raise _refuse(sampler, why, MEMORYLESS)


def _refuse(sampler: Sampler, why: str, instead: tuple[str, ...]) -> InputError:
    mend = f"use one of {', '.join(instead)}"
    return InputError(Finding("model.sampler.class", f"{sampler.class_name} {why}", mend))
