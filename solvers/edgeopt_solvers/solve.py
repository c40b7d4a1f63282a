"""One verb for every family: check the request, run the backend, recompute its answer, return it with its proof."""

from __future__ import annotations

import importlib
import inspect
import math
import time
from dataclasses import dataclass, replace
from typing import Any, Protocol

from edgeopt_solvers.errors import CheckError, InstanceError, UnsupportedError
from edgeopt_solvers.result import Result

__all__ = ["BACKENDS", "Instance", "Options", "WarmStart", "solve"]

#: Backend name → module of the family that implements it.
BACKENDS: dict[str, str] = {"exact": "exact", "pulp": "milp", "ortools": "cp", "cvxpy": "convex"}

#: Relative disagreement between a backend's value and the checker's that is put down to rounding.
TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class WarmStart:
    """What a solve may start from: a solution of the family, and the certificate of an earlier proof."""

    solution: Any | None = None
    certificate: Any | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """What a caller may ask of any backend (see :func:`solve`).

    ``cutoff`` is for a family's own method, which may ignore it: plans that cost as much need not be found, and an
    instance that has only such plans counts as infeasible, with the cutoff as its bound.
    """

    time_limit_s: float | None = None
    gap: float = 0.0
    warm_start: Any | None = None
    seed: int = 0
    certificate: Any | None = None
    cutoff: float = math.inf

    def __post_init__(self) -> None:
        if self.time_limit_s is not None and not self.time_limit_s > 0:
            raise InstanceError(f"time_limit_s must be positive or None, got {self.time_limit_s}")
        if not 0 <= self.gap < math.inf:
            raise InstanceError(f"gap must be a finite fraction >= 0, got {self.gap}")


class Instance(Protocol):
    """What every family's instance offers to :func:`solve`."""

    family: str

    def features(self) -> frozenset[str]:
        """Names of the optional features the instance uses."""
        ...


def solve(
    instance: Instance,
    backend: str = "exact",
    time_limit_s: float | None = None,
    gap: float = 0.0,
    warm_start: Any | None = None,
    seed: int = 0,
    diagnose: bool = True,
) -> Result:
    """Solve an instance of any family.

    Parameters
    ----------
    instance
        For example :class:`edgeopt_solvers.chain.Chain`.
    backend
        ``exact`` (the family's own method), ``pulp`` (MILP), ``ortools`` (CP-SAT) or ``cvxpy`` (convex).
    time_limit_s
        Wall seconds; ``None`` is unlimited. An incumbent found by then is returned with its bound.
    gap
        Stop as soon as the relative gap is proven to be at most this.
    warm_start
        An earlier :class:`Result`, a :class:`WarmStart`, or a solution of the family. The solution is the starting
        incumbent where it is feasible; the certificate is where the bound starts (any is valid, a good one saves time).
    seed
        Seed of everything random; the same seed gives the same answer.
    diagnose
        Say in the message of an infeasible instance which limit is missed. That takes up to two seconds, far longer
        than most instances take to be refuted.

    Raises
    ------
    InstanceError
        An argument is out of range.
    UnsupportedError
        The backend lacks a feature that the instance uses; the message names one that has it.
    CheckError
        The answer does not survive recomputation (a defect here, please report it).
    """
    start = warm_start if isinstance(warm_start, Result | WarmStart) else WarmStart(warm_start)
    options = Options(time_limit_s, gap, start.solution, seed, start.certificate)
    family = importlib.import_module(f"edgeopt_solvers.{instance.family}")
    _refuse_unsupported(instance, backend, family.CAPABILITIES)
    started = time.perf_counter()
    result: Result = importlib.import_module(f"{family.__name__}.{BACKENDS[backend]}").solve(instance, options)
    left_s = None if time_limit_s is None else time_limit_s - (time.perf_counter() - started)
    result = _recheck(instance, result, family, left_s, diagnose)
    return replace(result, backend=backend, runtime_s=time.perf_counter() - started)


def _refuse_unsupported(instance: Instance, backend: str, capabilities: dict[str, frozenset[str]]) -> None:
    if backend not in BACKENDS:
        raise UnsupportedError(f"unknown backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    used = instance.features()
    able = [name for name, supported in capabilities.items() if used <= supported]
    if backend in able:
        return
    lacking = sorted(used - capabilities.get(backend, frozenset()))
    what = f"cannot express {', '.join(lacking)}" if backend in capabilities else "has no formulation"
    way_out = f"use backend={able[0]!r}" if able else "no backend has all of them: drop one"
    raise UnsupportedError(f"backend {backend!r} {what} in family {instance.family!r}; {way_out}")


def _recheck(instance: Instance, result: Result, family: Any, left_s: float | None, diagnose: bool) -> Result:
    """Recompute objective and feasibility from the decisions alone, and hold the backend to them."""
    if result.solution is None:
        if result.status.reason == "infeasible" and not result.message and diagnose:
            return replace(result, message=_diagnosis(instance, family, left_s))
        return result
    evaluation = family.evaluate(instance, result.solution)
    if evaluation.violations:
        raise CheckError(f"{instance.family}: returned decisions are infeasible: {'; '.join(evaluation.violations)}")
    scale = max(abs(evaluation.objective), abs(result.objective), 1e-12)
    if abs(evaluation.objective - result.objective) > TOLERANCE * scale:
        raise CheckError(f"{instance.family}: solver says {result.objective!r}, checker says {evaluation.objective!r}")
    if result.bound > evaluation.objective + TOLERANCE * scale:
        raise CheckError(f"{instance.family}: bound {result.bound!r} above the objective {evaluation.objective!r}")
    return replace(
        result,
        objective=evaluation.objective,
        bound=min(result.bound, evaluation.objective),
        metrics=dict(evaluation.metrics),
    )


def _diagnosis(instance: Instance, family: Any, left_s: float | None) -> str:
    """Ask the family why there is no plan; a diagnosis that solves on its own takes the time that is left."""
    if "time_limit_s" in inspect.signature(family.diagnose).parameters:
        return str(family.diagnose(instance, time_limit_s=left_s))
    return str(family.diagnose(instance))
