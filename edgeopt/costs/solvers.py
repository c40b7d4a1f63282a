"""What a sampler asks of a plan: how often it calls the denoiser, where its run may be cut, what crosses a cut.

A cut after k calls is exact if the next device gets everything that the solver remembers beside the latent. How much
that is follows from the method, in tensors of the latent's size:

=============================  ======================================================  =====================
sampler                        calls for T steps                                       state after k calls
=============================  ======================================================  =====================
DDIM, Euler, flow-match Euler  T                                                       0
DPM-Solver++, DEIS, order o    T                                                       min(k, o - 1)
UniPC, order o                 T                                                       min(k, o) + 1
LMS, order 4                   T                                                       min(k, 3)
PNDM without Runge-Kutta       T + 1 (the second step is taken twice)                  2, then min(k - 1, 3)
PNDM                           T + 9 (three steps of four calls come first)            min(k / 4, 3), then 3
Heun, KDPM2                    2 T - 1 (two calls a step, one for the last)            0
=============================  ======================================================  =====================

Inside a step of several calls nothing may be cut: the half-done step would have to travel too. Samplers that draw
random numbers in every step, and those that are not in the table, are not cut at all. The steps of diffusers'
schedulers are what is described; their sources (0.42) say what each step reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgeopt.profiles.model import Sampler

__all__ = ["SOLVERS", "Solver", "draws_random_numbers", "solver_of"]

#: Options under which a solver draws random numbers in every step.
_RANDOM_OPTIONS: Mapping[str, tuple[Any, ...]] = {
    "stochastic_sampling": (True,),
    "algorithm_type": ("sde-dpmsolver", "sde-dpmsolver++"),
}

_PAIRS = "the solver calls the denoiser twice a step, and call {k} would be the second of a step"
_PRK = "call {k} would be inside one of the first three steps, of four calls each"
_RANDOM = "{name} draws random numbers in every step, whose state does not travel"
_UNKNOWN = "it is not known what {name} remembers between steps"


@dataclass(frozen=True, slots=True)
class Solver:
    """A sampler's run of a given number of steps.

    Attributes
    ----------
    name
        Class of the scheduler.
    calls
        How often it evaluates the denoiser.
    """

    name: str
    calls: int
    _state: Callable[[int], int]
    _refusal: Callable[[int], str]

    def state(self, done: int) -> int:
        """Tensors of the latent's size that must travel beside the latent after ``done`` calls (0: from the start)."""
        return self._state(done) if 0 < done < self.calls else 0

    def refusal(self, done: int) -> str | None:
        """Why the run may not be cut after ``done`` calls; ``None`` where it may."""
        return (self._refusal(done).format(k=done, name=self.name) or None) if 0 < done < self.calls else None


_Kind = tuple[int, Callable[[int], int], Callable[[int], str]]


def _nothing(done: int) -> int:
    return 0


def _anywhere(done: int) -> str:
    return ""


def _memoryless(steps: int, config: Mapping[str, Any]) -> _Kind:
    return steps, _nothing, _anywhere


def _multistep(steps: int, config: Mapping[str, Any]) -> _Kind:
    order = int(config.get("solver_order", 2))
    return steps, lambda done: min(done, order - 1), _anywhere


def _unipc(steps: int, config: Mapping[str, Any]) -> _Kind:
    order = int(config.get("solver_order", 2))
    # A predictor of its own is a second solver with a memory of its own.
    refuse = (lambda done: _UNKNOWN) if config.get("solver_p") else _anywhere
    return steps, lambda done: min(done, order) + 1, refuse


def _lms(steps: int, config: Mapping[str, Any]) -> _Kind:
    return steps, lambda done: min(done, 3), _anywhere


def _pndm(steps: int, config: Mapping[str, Any]) -> _Kind:
    if config.get("skip_prk_steps", False):
        return (steps + 1 if steps > 1 else 1), lambda done: 2 if done == 1 else min(done - 1, 3), _anywhere
    return (
        steps + 9,
        lambda done: min(done // 4, 3),
        lambda done: _PRK if done < 12 and done % 4 else "",
    )


def _pairs(steps: int, config: Mapping[str, Any]) -> _Kind:
    return 2 * steps - 1, _nothing, lambda done: _PAIRS if done % 2 else ""


#: Class of a scheduler to what it asks for.
SOLVERS: dict[str, Callable[[int, Mapping[str, Any]], _Kind]] = {
    "DDIMScheduler": _memoryless,
    "EulerDiscreteScheduler": _memoryless,
    "FlowMatchEulerDiscreteScheduler": _memoryless,
    "DPMSolverMultistepScheduler": _multistep,
    "DEISMultistepScheduler": _multistep,
    "UniPCMultistepScheduler": _unipc,
    "LMSDiscreteScheduler": _lms,
    "PNDMScheduler": _pndm,
    "HeunDiscreteScheduler": _pairs,
    "KDPM2DiscreteScheduler": _pairs,
    "FlowMatchHeunDiscreteScheduler": _pairs,
}


def draws_random_numbers(sampler: Sampler) -> str | None:
    """Return the option under which a known solver draws random numbers in every step, ``None`` where it does not."""
    for option, values in _RANDOM_OPTIONS.items():
        if (value := sampler.config.get(option)) in values and value is not None:
            return f"{option}={value}"
    return None


def solver_of(sampler: Sampler, steps: int) -> Solver:
    """Return what a sampler asks for over ``steps`` steps; one that is not in the table is taken to be uncuttable."""
    kind = SOLVERS.get(sampler.class_name)
    if kind is None:
        return Solver(sampler.class_name, steps, _nothing, lambda done: _UNKNOWN)
    calls, state, refusal = kind(steps, sampler.config)
    if draws_random_numbers(sampler):
        refusal = lambda done: _RANDOM  # noqa: E731
    return Solver(sampler.class_name, calls, state, refusal)
