"""Split diffusion: the blocks of one denoiser on several devices, all of them passed in every step.

The technique that multi-stage diffusion is compared with: features, and the skips that cross the cut, travel in every
step. Chain elements are the text encoder, the blocks and the decoder, with a loop of latents (docs/formulations).
Which denoiser of the family is cut is a decision too: a chain knows one, so there is a case for each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from edgeopt.costs.split import SplitCosts, has_blocks
from edgeopt.errors import Finding, InputError
from edgeopt.plan import Plan
from edgeopt.profiles.model import Diffusion
from edgeopt.profiles.problem import ImageWorkload, Problem
from edgeopt.strategies.base import Strategy
from edgeopt.strategies.cases import margin_notes, margin_of, narrowed, qualities, quality_of
from edgeopt.strategies.chain import (
    able_devices,
    chain_plan,
    compute_table,
    shared_arguments,
    transfers_of,
    wants_quality,
    with_cut_reasons,
)
from edgeopt.strategies.pipeline import basis_notes
from edgeopt.strategies.timeline import Bar, link_lane
from edgeopt_solvers import Result
from edgeopt_solvers.chain import Chain, Solution

__all__ = ["SplitDiffusion"]


class SplitDiffusion(Strategy):
    """Plan which device runs which blocks of a denoiser."""

    name: ClassVar[str] = "split_diffusion"

    def unfit(self, problem: Problem) -> str | None:
        """Refuse everything that is not a diffusion model with blocks and an image workload."""
        model = problem.model
        if not (isinstance(model, Diffusion) and isinstance(problem.workload, ImageWorkload)):
            return f"split_diffusion cuts denoisers; {model.name!r} is a {model.family} model"
        if not any(has_blocks(variant) for variant in model.variants.values()):
            return (
                f"split_diffusion cuts between blocks; {model.name!r} lists none (`edgeopt profile model` derives them)"
            )
        return None

    def cases(self, problem: Problem) -> list[Problem]:
        """One problem for each denoiser that has blocks and, where quality is asked for, a measured quality.

        Raises
        ------
        InputError
            The problem asks for quality and the model carries none for any of them.
        """
        model, workload = problem.model, problem.workload
        assert isinstance(model, Diffusion)
        assert isinstance(workload, ImageWorkload)
        known = qualities(model, workload)
        able = [name for name, variant in model.variants.items() if has_blocks(variant)]
        if field := wants_quality(problem):
            able = [name for name in able if name in known]
            if not able:
                message = f"the problem asks for quality and model {model.name!r} has none for a denoiser with blocks"
                mend = "add a measured `quality:` block with its source to the model, or drop the request"
                raise InputError([Finding(field=field, message=message, mend=mend)])
        return [narrowed(problem, model, name, known.get(name)) for name in able]

    def build(self, problem: Problem) -> Chain:
        """Build the chain of blocks of the problem's first denoiser (of a case: its only one).

        ``reuse`` is ``many``: a device keeps nothing between steps, so a step may come back to it.

        Raises
        ------
        InputError
            As :meth:`cases`.
        """
        problem = self.cases(problem)[0]
        costs = _costs(problem)
        quality, floor = problem.model.quality, problem.constraints.quality
        loss = np.zeros((2, len(costs.names)))
        return Chain(
            compute_s=compute_table(problem, lambda device: costs.compute_s(device)[0]),
            cut_bytes=costs.cut_bytes,
            cut_messages=costs.cut_messages,
            cut_legal=costs.cut_legal,
            resident_bytes=costs.resident_bytes,
            shared_bytes=costs.shared_bytes,
            transient_bytes=costs.transient_bytes,
            loop_bytes=costs.loop_bytes,
            loop_messages=float(costs.calls - 1),
            quality_loss=None if quality is None else loss,
            max_quality_loss=None if floor is None or quality is None else floor - _planned_quality(problem),
            reuse="many",
            **shared_arguments(problem, costs.names),
        )

    def describe(self, problem: Problem) -> Callable[[str], str]:
        """Say why the denoiser may not be cut where a message wants a cut."""
        case = self.cases(problem)[0]
        named, refusals, notes = super().describe(problem), _costs(case).cut_refusals, _margin_notes(case)

        def words(message: str) -> str:
            told = with_cut_reasons(named(message), refusals)
            return "; ".join([told, *(notes if "max_quality_loss" in message else [])])

        return words

    def plan(self, problem: Problem, chain: Chain, result: Result) -> Plan:
        """Write the stages with the denoiser's name; the timeline shows the first two calls of it."""
        problem = self.cases(problem)[0]
        costs = _costs(problem)
        able = [device for device, can in zip(problem.devices, able_devices(problem), strict=True) if can]
        measured = {device.name: costs.compute_s(device)[1] for device in able}
        notes = basis_notes(measured, [d.name for d in able if costs.whole.is_between_batches(d)])
        if divided := [name for name, known in measured.items() if known]:
            notes.append(f"a measured step is divided among its blocks as the roofline has it: {', '.join(divided)}")
        notes += _margin_notes(problem)
        rounds = _rounds(problem, costs, chain, result.solution)
        return chain_plan(
            problem,
            self.name,
            chain,
            result,
            costs.names,
            [None, costs.variant_name],
            quality_base=None if problem.model.quality is None else quality_of(problem),
            metrics={"images_per_s": costs.workload.images / result.metrics["latency_s"]},
            bars=[bar for bars in rounds for bar in bars],
            notes=notes,
        )


def _planned_quality(case: Problem) -> float:
    """Return what samples of a case's denoiser may come to: its quality and the margin."""
    assert isinstance(case.model, Diffusion)
    quality = quality_of(case)
    return quality * (1.0 + margin_of(case.model, quality))


def _margin_notes(case: Problem) -> list[str]:
    asked = case.constraints.quality
    if asked is None or case.model.quality is None:
        return []
    assert isinstance(case.model, Diffusion)
    margin = margin_of(case.model, quality_of(case))
    return margin_notes(case, asked / (1.0 + margin), margin)


def _costs(case: Problem) -> SplitCosts:
    assert isinstance(case.model, Diffusion)
    assert isinstance(case.workload, ImageWorkload)
    return SplitCosts(case.model, case.workload)


def _rounds(problem: Problem, costs: SplitCosts, chain: Chain, solution: Solution) -> list[list[Bar]]:
    """Bars of the first two calls of the denoiser, each with the transfers inside it."""
    rate = {(t.purpose, t.cut): t.rate_bytes_per_s for t in transfers_of(problem, chain, solution)}
    names = [device.name for device in problem.devices]
    rows = np.asarray(chain.compute_s)
    segments = list(zip(solution.devices, solution.variants, solution.starts, solution.cuts, strict=True))

    def hop(label: str, cut: int, i: int, j: int, payload: float) -> list[Bar]:
        if i == j:
            return []
        seconds = float(chain.latency_s[i, j]) + (payload / rate[label, cut] if payload else 0.0)
        return [Bar(link_lane(names[i], names[j]), label, seconds)]

    def once(call: int) -> list[Bar]:
        bars, payload = [], costs.call_bytes(call)
        for k, (device, variant, start, stop) in enumerate(segments):
            if k:
                bars += hop("cut", start, segments[k - 1][0], device, payload[start])
            if variant or (call == 0 and start < costs.blocks.start):
                label = f"call {call} {costs.names[start]} … {costs.names[stop - 1]}"
                seconds = rows[device, variant, start:stop].sum() / (costs.calls if variant else 1)
                bars.append(Bar(names[device], label, float(seconds)))
        return bars

    first, last = solution.devices[0], solution.devices[-1]
    begin = [] if chain.source is None else hop("input", 0, chain.source, first, costs.call_bytes(0)[0])
    rounds = [begin + once(0)]
    if costs.calls > 1:
        latents = costs.workload.images * costs.model.latent
        rounds.append(hop("loop", solution.cuts[-1], last, first, latents) + once(1))
    return rounds
