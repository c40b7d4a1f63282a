"""Where a plan's cost comes from: seconds by stage, transfer and cause, and who is busy for how long per request."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field, replace

from edgeopt.costs.cascade import CascadeCosts, run_of
from edgeopt.costs.diffusion import DiffusionCosts
from edgeopt.costs.language import LanguageCosts, weight_formats
from edgeopt.costs.split import SplitCosts
from edgeopt.costs.terms import Terms
from edgeopt.plan import Plan, Stage
from edgeopt.profiles.device import Device
from edgeopt.profiles.model import CascadedDiffusion, CausalLM, Diffusion
from edgeopt.profiles.problem import CascadeWorkload, Problem, TextWorkload

__all__ = ["Term", "busy_seconds", "element_names", "latency_terms", "variant_names"]


@dataclass(frozen=True, slots=True)
class Term:
    """One term of the latency.

    Attributes
    ----------
    term
        ``compute``, a transfer's purpose, or ``waiting`` of requests that arrive by themselves.
    where, what
        A device and its elements, or a link and what crosses it.
    seconds
        Over the whole request.
    stage
        Index of the stage, for compute.
    causes
        Seconds by cause; they add up to ``seconds``. For compute as in :class:`edgeopt.costs.terms.Terms`, for
        transfers ``delay`` (messages times the link's latency) and ``bytes``. Empty where they are not known.
    """

    term: str
    where: str
    what: str
    seconds: float
    stage: int | None = None
    causes: dict[str, float] = field(default_factory=dict)


def element_names(problem: Problem, strategy: str | None = None) -> list[str]:
    """Names of the chain's elements, by which stages and pins speak of them.

    ``strategy`` is a plan's; by default the layers of a language model and the steps of a diffusion run.
    """
    return _costs(problem, strategy).names


def variant_names(problem: Problem) -> list[str]:
    """Names of the denoisers, or of the formats that weights may be stored in; empty where there is no choice."""
    if isinstance(problem.model, CausalLM):
        return weight_formats(problem)
    if isinstance(problem.model, CascadedDiffusion):
        return CascadeCosts(problem.model, _cascade_load(problem)).variants[1:]
    return list(problem.model.variants) if isinstance(problem.model, Diffusion) else []


def latency_terms(plan: Plan) -> list[Term]:
    """Split the latency of a plan into terms, in the order of the request.

    Those of a chain are addends; of a technique whose parties work at the same time they overlap.
    """
    moves = {}
    for transfer in plan.transfers:
        rate = transfer.rate_bytes_per_s
        sending_s = transfer.bytes / rate if rate and transfer.bytes else 0.0
        key = (transfer.purpose, transfer.cut)
        if not plan.is_chain:
            key = (f"{transfer.source} → {transfer.destination}, {transfer.purpose}", transfer.cut)
        number = f"{transfer.messages:.{0 if transfer.messages >= 1 else 2}f}"  # less than one: not in every request
        moves[key] = Term(
            term=transfer.purpose,
            where=f"{transfer.source} → {transfer.destination}",
            what=f"{number} message{'s' if transfer.messages != 1 else ''}",
            seconds=transfer.seconds,
            causes={"delay": transfer.seconds - sending_s, "bytes": sending_s},
        )
    split = []
    if not plan.is_chain:
        split += [Term("compute", s.device, s.elements, s.compute_s, s.index) for s in plan.stages]
    for stage in plan.stages if plan.is_chain else ():
        for purpose in ("input", "cut"):
            if move := moves.pop((purpose, stage.start), None):
                split.append(move)
        causes = _causes(plan, stage)
        split.append(Term("compute", stage.device, stage.elements, stage.compute_s, stage.index, causes))
    line_s = plan.metrics.get("waiting_s", 0.0)
    waiting = [Term("waiting", "in line", "for requests that came before", line_s)] if line_s else []
    return split + list(moves.values()) + waiting


def busy_seconds(plan: Plan) -> dict[str, float]:
    """Seconds per request that each device, link and medium is busy, longest first: the first is the bottleneck.

    Transfers over a reserved medium each have a channel of their own; a time-shared one is busy for their sum.
    """
    busy: dict[str, float] = defaultdict(float)
    for stage in plan.stages:
        busy[stage.device] += stage.compute_s
    for transfer in plan.transfers:
        link = f"{transfer.source} → {transfer.destination}"
        medium = None if transfer.medium is None else plan.problem.network.media[transfer.medium]
        if medium is not None and medium.sharing == "time_shared":
            link = f"medium {transfer.medium}"
        elif medium is not None:
            link = f"{link}, {transfer.purpose} {transfer.cut}" if plan.is_chain else f"{link}, {transfer.purpose}"
        busy[link] += transfer.seconds
    return dict(sorted(busy.items(), key=lambda item: -item[1]))


def _costs(problem: Problem, strategy: str | None) -> LanguageCosts | DiffusionCosts | SplitCosts | CascadeCosts:
    model, workload = problem.model, problem.workload
    if isinstance(model, CausalLM):
        assert isinstance(workload, TextWorkload)
        return LanguageCosts(model, workload)
    if isinstance(model, CascadedDiffusion):
        return CascadeCosts(model, _cascade_load(problem))
    assert not isinstance(workload, TextWorkload | CascadeWorkload)
    return (SplitCosts if strategy == "split_diffusion" else DiffusionCosts)(model, workload)


def _cascade_load(problem: Problem) -> CascadeWorkload:
    assert isinstance(problem.workload, CascadeWorkload)
    return problem.workload


def _causes(plan: Plan, stage: Stage) -> dict[str, float]:
    """Split a stage's compute by cause; empty where the causes do not add up to it (a strategy with other costs)."""
    costs = _costs(plan.problem, plan.strategy)
    device = next(device for device in plan.problem.devices if device.name == stage.device)
    if isinstance(costs, LanguageCosts):
        costs = replace(costs, weights=stage.variant)
        each = costs.prefill_terms(device)[0] + costs.decode_terms(device)[0].sum(axis=0)
        terms = each[stage.start : stage.stop].sum()
    elif isinstance(costs, CascadeCosts):
        terms = _cascade_terms(costs, device, stage)
    elif isinstance(costs, SplitCosts):
        terms = costs.terms(device, stage.start, stage.stop)
    else:
        terms = _diffusion_terms(costs, device, stage)
    causes = {name: float(value) for name, value in terms if value}
    return causes if math.isclose(sum(causes.values()), stage.compute_s, rel_tol=1e-9, abs_tol=1e-15) else {}


def _diffusion_terms(costs: DiffusionCosts, device: Device, stage: Stage) -> Terms:
    table, _ = costs.terms(device)
    total = Terms.from_table(0.0)
    for name in costs.names[stage.start : stage.stop]:
        part = stage.variant if name.startswith("step.") else name
        if part in table:
            total = total + table[part]
    return total


def _cascade_terms(costs: CascadeCosts, device: Device, stage: Stage) -> Terms:
    table, _ = costs.terms(device)
    total = Terms.from_table(0.0)
    if stage.variant is None:
        return table["text_encoder"]
    run = run_of(costs.model, stage.variant, f"stages.{stage.index}.variant")
    for _ in range(stage.start, min(stage.stop, costs.steps_of(run).stop)):
        total = total + table[run.denoiser]
    return total
