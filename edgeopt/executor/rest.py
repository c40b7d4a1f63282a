"""Plan what is left of a request: from its last hand-off on, with the devices that are left.

The source holds what was handed over last, so for the rest of the chain the cut is the beginning: elements before it
are gone, what they have cost in quality is spent, and memory that they held is free again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgeopt import planner
from edgeopt.errors import EdgeoptError
from edgeopt.executor.messages import Handoff
from edgeopt.plan import Plan
from edgeopt.profiles.problem import Problem, TextWorkload
from edgeopt_solvers import solve
from edgeopt_solvers.chain import Chain

__all__ = ["plan_rest", "rest_of"]


def plan_rest(problem: Problem, before: Plan, handoffs: Sequence[Handoff], time_limit_s: float = 10.0) -> Plan | None:
    """Plan the rest of an interrupted request.

    Parameters
    ----------
    problem
        Without what is lost.
    before
        The plan that the request had followed.
    handoffs
        All tokens made so far, or the last latent.

    Returns
    -------
    Plan or None
        Its stages begin at the last hand-off; ``None``: nothing was handed over, or the rest has no plan of its own.
    """
    if not handoffs:
        return None
    try:
        if handoffs[-1].purpose == "loop":
            left = _after_tokens(problem, len(handoffs))
            return planner.solve(left, strategy=before.strategy, time_limit_s=time_limit_s)
        return _after_cut(problem, before, handoffs[-1].cut, time_limit_s)
    except EdgeoptError:
        return None


def _after_tokens(problem: Problem, made: int) -> Problem:
    """Tokens that were made are part of the prompt now."""
    load = problem.workload
    assert isinstance(load, TextWorkload)
    load = load.model_copy(update={"prompt_tokens": load.prompt_tokens + made, "new_tokens": load.new_tokens - made})
    return problem.model_copy(update={"workload": load})


def _after_cut(problem: Problem, before: Plan, cut: int, time_limit_s: float) -> Plan | None:
    technique = planner.choose_strategy(problem, before.strategy)
    whole = technique.build(problem)
    chain = rest_of(whole, cut, before.cuts, before.variants)
    result = solve(chain, time_limit_s=time_limit_s)
    if result.solution is None:
        return None
    plan = technique.plan(problem, chain, result)
    stages = []
    for stage in plan.stages:
        start, stop = stage.start + cut, stage.stop + cut
        stages.append(stage.model_copy(update={"start": start, "stop": stop, "elements": f"{start} to {stop}"}))
    spent = _spent(whole, cut, before.cuts, before.variants)
    return plan.model_copy(
        update={
            "stages": stages,
            "transfers": [moved.model_copy(update={"cut": moved.cut + cut}) for moved in plan.transfers],
            "cuts": [stop + cut for stop in plan.cuts],
            "quality": None if plan.quality is None else plan.quality + spent,
            "timeline": [],
        }
    )


def rest_of(chain: Chain, cut: int, cuts: Sequence[int], variants: Sequence[int]) -> Chain:
    """Return the chain from element ``cut`` on.

    Parameters
    ----------
    cuts, variants
        Ends and variants of the stages that were followed: what was lost in quality before the cut is taken off the
        budget, and a hand-off at the cut is one from the last of those variants.
    """
    assert 0 < cut < chain.num_elements
    assert chain.loop_messages == 0, "a loop is resumed by its tokens, not from a cut"
    done = _followed(cut, cuts, variants)
    loss = chain.quality_loss[:, cut:].copy()
    compute = chain.compute_s[:, :, cut:].copy()
    hand_over = chain.handoff_loss[done[-1], :, cut]
    compute[:, np.isinf(hand_over), 0] = np.inf
    loss[:, 0] += np.where(np.isinf(hand_over), 0.0, hand_over)
    limit = chain.max_quality_loss
    return replace(
        chain,
        compute_s=compute,
        cut_bytes=chain.cut_bytes[cut:],
        cut_messages=chain.cut_messages[cut:],
        resident_bytes=chain.resident_bytes[:, cut:],
        transient_bytes=chain.transient_bytes[:, cut:],
        quality_loss=loss,
        handoff_loss=chain.handoff_loss[:, :, cut:],
        max_quality_loss=None if limit is None else limit - _spent(chain, cut, cuts, variants),
        pins={element - cut: device for element, device in chain.pins.items() if element >= cut},
        cut_legal=chain.cut_legal[cut:],
        held=None if chain.held is None else chain.held[:, :, cut:],
    )


def _followed(cut: int, cuts: Sequence[int], variants: Sequence[int]) -> list[int]:
    """Variant of every element before ``cut``."""
    starts = [0, *cuts[:-1]]
    return [v for v, start, stop in zip(variants, starts, cuts, strict=True) for _ in range(start, min(stop, cut))]


def _spent(chain: Chain, cut: int, cuts: Sequence[int], variants: Sequence[int]) -> float:
    """Quality lost before ``cut``."""
    done = _followed(cut, cuts, variants)
    inside = sum(float(chain.quality_loss[variant, element]) for element, variant in enumerate(done))
    return inside + sum(float(chain.handoff_loss[done[c - 1], done[c], c]) for c in cuts if c < cut)
