"""The torch computations that plans stand for: one file per technique, found by the plan's strategy.

A technique's module offers ``build(plan, stages)``, ``reference(plan, seed)`` and ``TOLERANCE`` (largest difference
from the reference relative to its largest value; ``None``: not even one bit). What it builds is a
:class:`~edgeopt.programs.base.Program` for a chain and a :class:`~edgeopt.programs.parties.PartyProgram` for parts that
talk freely. Other packages add theirs in the entry-point group ``edgeopt.programs``.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from edgeopt.plan import Plan
    from edgeopt.programs.base import Program
    from edgeopt.programs.parties import PartyProgram

__all__ = ["build", "compare", "reference"]

_MODULES = {
    "cascade": "edgeopt.programs.answers",
    "pipeline": "edgeopt.programs.pipeline",
    "multi_stage": "edgeopt.programs.multi_stage",
    "hierarchical": "edgeopt.programs.hierarchical",
    "split_diffusion": "edgeopt.programs.split_diffusion",
    "patch": "edgeopt.programs.patch",
    "routing": "edgeopt.programs.routing",
    "speculative": "edgeopt.programs.speculative",
}


def _technique(plan: Plan) -> Any:
    from edgeopt.errors import Finding, InputError, MissingDependencyError

    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("torch", "models", "executing a plan") from error
    if plan.strategy in _MODULES:
        return import_module(_MODULES[plan.strategy])
    if found := list(entry_points(group="edgeopt.programs", name=plan.strategy)):
        return found[0].load()
    raise InputError(
        Finding("strategy", f"no program executes strategy '{plan.strategy}'", f"execute one of {', '.join(_MODULES)}")
    )


def build(plan: Plan, stages: Sequence[int]) -> Program | PartyProgram:
    """Load the stages of a plan that this process hosts.

    Raises
    ------
    InputError
        The plan's model cannot be built or cut this way, or its checkpoint does not fit.
    MissingDependencyError
        torch, transformers or diffusers is absent.
    """
    return _technique(plan).build(plan, stages)


def reference(plan: Plan, seed: int) -> list[torch.Tensor]:
    """Compute a plan's result in this process alone, through the model library's own path where it has one.

    Parameters
    ----------
    seed
        Of the request, as in :meth:`Program.request`.
    """
    return _technique(plan).reference(plan, seed)


def compare(plan: Plan, result: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Say how a distributed result relates to the reference.

    Returns
    -------
    dict
        ``equal``: it counts as the same; ``kind``: ``tokens`` or ``bitwise`` when every bit agrees or has to,
        ``tolerance`` when floats agree (or fail to) within ``tolerance`` times the largest expected value;
        ``max_abs_diff`` (``inf`` for other shapes, dtypes or not-a-number).
    """
    import torch

    tolerance = _technique(plan).TOLERANCE
    shapes = [(tuple(x.shape), x.dtype) for x in result] == [(tuple(x.shape), x.dtype) for x in expected]
    if not shapes:
        return _verdict(False, "bitwise" if tolerance else "tokens", float("inf"), tolerance)
    if all(torch.equal(x, y) for x, y in zip(result, expected, strict=True)):
        return _verdict(True, "bitwise" if tolerance else "tokens", 0.0, tolerance)
    difference = max(float((x.double() - y.double()).abs().max()) for x, y in zip(result, expected, strict=True))
    largest = max(float(y.double().abs().max()) for y in expected)
    if difference != difference or largest == float("inf"):
        difference = float("inf")
    if tolerance is None:
        return _verdict(False, "tokens", difference, tolerance)
    return _verdict(difference <= tolerance * largest, "tolerance", difference, tolerance)


def _verdict(equal: bool, kind: str, difference: float, tolerance: float | None) -> dict[str, Any]:
    return {"equal": equal, "kind": kind, "max_abs_diff": difference, "tolerance": tolerance}
