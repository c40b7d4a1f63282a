"""Multi-stage diffusion: the denoising run is cut into contiguous stages and only latents (and conditioning) travel.

Chain elements are the text encoder, T steps and the decoder; every stage picks a denoiser of the family, so the
chain has variants, each resident once per device however many steps it runs there. Proposed by Li, Qian, Niyato,
Mao, Wu, "Toward Resource-Efficient Collaboration of Large AI Models in Mobile Edge Networks", arXiv:2602.13206.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from edgeopt.costs.diffusion import DiffusionCosts
from edgeopt.costs.quality import QualityTerms, quality_terms
from edgeopt.errors import Finding, InputError
from edgeopt.plan import Plan
from edgeopt.profiles.model import Diffusion
from edgeopt.profiles.problem import ImageWorkload, Problem
from edgeopt.strategies.base import Strategy
from edgeopt.strategies.cases import margin_notes
from edgeopt.strategies.chain import (
    able_devices,
    chain_plan,
    compute_table,
    shared_arguments,
    wants_quality,
    with_cut_reasons,
)
from edgeopt.strategies.pipeline import basis_notes
from edgeopt_solvers import Result
from edgeopt_solvers.chain import Chain

__all__ = ["MultiStage"]


class MultiStage(Strategy):
    """Plan which device runs which denoising steps with which denoiser."""

    name: ClassVar[str] = "multi_stage"

    def unfit(self, problem: Problem) -> str | None:
        """Refuse everything that is not a diffusion model with an image workload."""
        if isinstance(problem.model, Diffusion) and isinstance(problem.workload, ImageWorkload):
            return None
        return f"multi_stage cuts denoising runs; {problem.model.name!r} is a {problem.model.family} model"

    def build(self, problem: Problem) -> Chain:
        """Build the chain of steps; ``reuse`` is ``many``: a run may come back to a device, whose weights stay.

        Raises
        ------
        InputError
            The problem asks for quality and the model carries none.
        """
        costs = _costs(problem)
        quality = quality_terms(costs)
        floor = problem.constraints.quality
        if quality is None and (field := wants_quality(problem)):
            raise InputError(
                [
                    Finding(
                        field=field,
                        message=f"the problem asks for quality and model {problem.model.name!r} has no quality profile",
                        mend="add a measured `quality:` block with its source to the model, or drop the request",
                    )
                ]
            )
        compute_s = compute_table(problem, lambda device: costs.compute_s(device)[0])
        if quality:
            compute_s[:, quality.unmeasured] = np.inf
        return Chain(
            compute_s=compute_s,
            cut_bytes=costs.cut_bytes,
            cut_legal=costs.cut_legal,
            resident_bytes=costs.resident_bytes,
            shared_bytes=costs.shared_bytes,
            transient_bytes=costs.transient_bytes,
            quality_loss=quality and quality.loss,
            handoff_loss=quality and quality.handoff,
            max_quality_loss=None if floor is None or quality is None else quality.target(floor) - quality.base,
            reuse="many",
            **shared_arguments(problem, costs.names),
        )

    def plan(self, problem: Problem, chain: Chain, result: Result) -> Plan:
        """Write the stages with their denoisers' names (``None`` where only encoder or decoder run)."""
        costs = _costs(problem)
        quality = quality_terms(costs)
        able = [device for device, can in zip(problem.devices, able_devices(problem), strict=True) if can]
        measured = {device.name: costs.compute_s(device)[1] for device in able}
        return chain_plan(
            problem,
            self.name,
            chain,
            result,
            costs.names,
            [None, *costs.variants[1:]],
            quality_base=quality.base if quality else None,
            metrics={"images_per_s": costs.workload.images / result.metrics["latency_s"]},
            notes=[
                *basis_notes(measured, [device.name for device in able if costs.is_between_batches(device)]),
                *_margin_notes(problem, quality),
            ],
        )

    def describe(self, problem: Problem) -> Callable[[str], str]:
        """Say why the solver may not be cut where a message wants a cut, and how a quality asked for was tightened."""
        named, costs = super().describe(problem), _costs(problem)
        refusals, notes = costs.cut_refusals, _margin_notes(problem, quality_terms(costs))

        def words(message: str) -> str:
            told = with_cut_reasons(named(message), refusals)
            return "; ".join([told, *(notes if "max_quality_loss" in message else [])])

        return words


def _margin_notes(problem: Problem, quality: QualityTerms | None) -> list[str]:
    asked = problem.constraints.quality
    return [] if asked is None or quality is None else margin_notes(problem, quality.target(asked), quality.margin)


def _costs(problem: Problem) -> DiffusionCosts:
    assert isinstance(problem.model, Diffusion)
    assert isinstance(problem.workload, ImageWorkload)
    return DiffusionCosts(problem.model, problem.workload)
