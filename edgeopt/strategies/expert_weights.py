"""In how many bits devices may store a mixture's experts and trunk: what that loses, and which choices are tried.

The model's profile says what a layer loses with all its matrices in a format. Of that the trunk's matrices are charged
their share of the weights that work on a token, and each expert its part of the rest, as often as the gate chooses it.
Which experts come to lie on a device is not known before they are placed, so that a choice of formats is held to the
quality by what it may lose at most: the experts that are chosen most often on the devices with the fewest bits, as far
as their memory goes. A plan says what its own placement loses.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from edgeopt.costs.language import weight_formats
from edgeopt.errors import Finding, InputError
from edgeopt.profiles.device import Device
from edgeopt.profiles.model import CausalLM, WeightQuality
from edgeopt.profiles.problem import Problem
from edgeopt.strategies.expert_requests import Request

__all__ = ["choices", "loss", "most_lost", "narrowed"]

Array = NDArray[np.float64]

#: Beyond so many choices for all devices, those that are not the trunk share one format.
_MOST_CHOICES = 243


def choices(problem: Problem, trunk: str, able: list[Device]) -> Iterator[dict[str, str]]:
    """Formats by device to plan with, the model's own dtype first; devices that are not named store in that.

    Of two choices that both keep the quality, one of which stores nothing in more bits than the other, only that is
    tried: with fewer bytes to hold and to read no device has less room or takes longer. Where tables of a device were
    measured in a format that need not be so, and all are tried.

    Parameters
    ----------
    able
        Devices that can compute.

    Raises
    ------
    InputError
        The problem names formats that the model has no sizes for.
    """
    assert isinstance(problem.model, CausalLM)
    asked = problem.constraints.experts.weights
    if asked is not None:
        known = sorted({dtype for layer in problem.model.layers for dtype in layer.weights_by_dtype})
        wrong = next(((name, dtype) for name, dtype in asked.items() if dtype not in known), None)
        if wrong is not None:
            field, message = f"constraints.experts.weights.{wrong[0]}", f"no layer says its size in {wrong[1]}"
            raise InputError(Finding(field, message, f"use {' or '.join(known)}" if known else "leave it out"))
        if _keeps(problem, trunk, asked):
            yield asked
        return
    formats: list[str | None] = [None, *weight_formats(problem)]
    if len(formats) == 1:
        yield {}
        return
    names = [device.name for device in able]
    if len(formats) ** len(names) <= _MOST_CHOICES:
        every = list(itertools.product(formats, repeat=len(names)))
    else:
        every = [tuple(a if name == trunk else b for name in names) for a in formats for b in formats]
    tried = [{name: dtype for name, dtype in zip(names, each, strict=True) if dtype} for each in every]
    kept = [each for each in tried if _keeps(problem, trunk, each)]
    if not any(timing.variant in formats[1:] for device in able for timing in device.timings):
        kept = [a for a in kept if not a or not any(_in_fewer(problem.model, b, a) for b in kept)]
    yield from kept


def _in_fewer(model: CausalLM, fewer: Mapping[str, str], more: Mapping[str, str]) -> bool:
    """Whether a choice stores in fewer bits than another somewhere, and in more nowhere."""

    def size(dtype: str | None) -> float:
        return sum(layer.count * (layer if dtype is None else layer.stored_as(dtype)).weights for layer in model.layers)

    names = {*fewer, *more}
    return dict(fewer) != dict(more) and all(size(fewer.get(name)) <= size(more.get(name)) for name in names)


def _keeps(problem: Problem, trunk: str, formats: Mapping[str, str]) -> bool:
    quality, limit = problem.model.quality, problem.constraints.quality
    if limit is None or not formats:
        return True
    assert isinstance(quality, WeightQuality)
    return most_lost(narrowed(problem, trunk, formats)) <= limit / (1.0 + (quality.margin or 0.0))


def narrowed(problem: Problem, trunk: str, formats: Mapping[str, str]) -> Request:
    """Return the request with its trunk and formats decided."""
    asked = problem.constraints.experts
    decided = asked.weights if not formats and asked.weights is None else dict(formats)
    options = asked.model_copy(update={"trunk": trunk, "weights": decided})
    constraints = problem.constraints.model_copy(update={"experts": options})
    return Request.of(problem.model_copy(update={"constraints": constraints}))


def loss(request: Request, share: Array) -> float | None:
    """What a placement loses; ``None`` where the profile does not say.

    Parameters
    ----------
    share : (G, E, D)
        Part of each expert's tokens that each device serves.
    """
    quality = request.problem.model.quality
    if not isinstance(quality, WeightQuality) or not set(request.costs.formats.values()) <= set(quality.loss):
        return None
    trunk, experts = _losses(request)
    used = request.costs.gates.frequency[:, :, None] * share / request.costs.gates.num_active
    return float(trunk + (used * experts[:, None, :]).sum())


def most_lost(request: Request) -> float:
    """What any placement loses at most."""
    trunk, experts = _losses(request)
    used = request.costs.gates.frequency / request.costs.gates.num_active
    space = np.maximum(request.room, 0.0)
    least = float(request.costs.expert_bytes.min())
    holds = np.floor(space / least * (1 + 1e-9)) if least > 0 else np.full(len(space), np.inf)
    # From the devices that lose most downwards: each step up is charged to the experts for which it counts most.
    order = np.argsort(-experts.sum(axis=0), kind="stable")
    lost, room = float(trunk), 0.0
    for place, d in enumerate(order.tolist()):
        room += holds[d]
        below = experts[:, order[place + 1]] if place + 1 < len(order) else np.zeros(len(experts))
        steps = np.sort((used * np.maximum(experts[:, d] - below, 0.0)[:, None]).ravel())[::-1]
        lost += float(steps[: int(min(room, steps.size))].sum())
    return lost


def _losses(request: Request) -> tuple[float, Array]:
    """What the trunk loses, and the experts of each layer on each device if they served all tokens, (G, D)."""
    quality, costs = request.problem.model.quality, request.costs
    assert isinstance(quality, WeightQuality)
    whole = np.array([layer.experts is not None for layer in costs.whole.layers])
    working = np.array([
        layer.experts.num_active * layer.experts.weights / (
            layer.weights - (layer.experts.num_experts - layer.experts.num_active) * layer.experts.weights
        )
        for layer in costs.layers if layer.experts is not None
    ])  # fmt: skip
    by_format = {dtype: np.array(values) for dtype, values in quality.loss.items()}
    nothing = np.zeros(len(whole))
    at_trunk = by_format[costs.trunk_format] if costs.trunk_format else nothing
    part = np.ones(len(whole))
    part[whole] = 1 - working
    experts = [working * (by_format[dtype] if dtype else nothing)[whole] for dtype in request.formats]
    return float(part @ at_trunk), np.stack(experts, axis=1)
