"""Split diffusion as a chain, for curves: blocks of one denoiser on devices, features crossing at every step.

The strategy ``split_diffusion`` prices and runs it; where it is not installed, this chain stands in for it. Elements
are the blocks of the denoiser, rounds are the steps; a block's share of its denoiser's time is its share of the FLOP.
"""

from __future__ import annotations

import numpy as np

from edgeopt import planner
from edgeopt.costs.diffusion import DiffusionCosts
from edgeopt.errors import NoPlanError
from edgeopt.profiles.model import Diffusion
from edgeopt.profiles.problem import ImageWorkload, Problem
from edgeopt.strategies import strategy_names
from edgeopt.strategies.chain import compute_table, shared_arguments
from edgeopt_solvers import solve
from edgeopt_solvers.chain import Chain

__all__ = ["STRATEGY", "split_chain", "split_latency_s"]

STRATEGY = "split_diffusion"


def split_latency_s(problem: Problem, variant: str) -> float | None:
    """Return the least latency of one denoiser split over the devices, ``None`` where they cannot hold it."""
    if STRATEGY in strategy_names():
        only = {variant: problem.model.variants[variant]}  # type: ignore[union-attr]
        model = problem.model.model_copy(update={"variants": only, "quality": None})
        limits = problem.constraints.model_copy(update={"quality": None, "deadline": None})
        asked = problem.model_copy(update={"model": model, "strategy": STRATEGY, "constraints": limits})
        try:
            return planner.solve(asked, strategy=STRATEGY).latency_s
        except NoPlanError:
            return None
    result = solve(split_chain(problem, variant))
    return None if result.solution is None else result.metrics["latency_s"]


def split_chain(problem: Problem, variant: str) -> Chain:
    """Return the chain of one denoiser's blocks, run once per step."""
    model, load = problem.model, problem.workload
    assert isinstance(model, Diffusion)
    assert isinstance(load, ImageWorkload)
    denoiser = model.variants[variant]
    blocks, steps = denoiser.blocks, load.steps
    costs = DiffusionCosts(model, load)
    share = np.array([block.flop for block in blocks]) / sum(block.flop for block in blocks)
    batch = costs.step_batch
    cut_bytes = np.zeros(len(blocks) + 1)
    cut_bytes[0], cut_bytes[-1] = load.images * model.prompt, load.images * model.latent
    cut_bytes[1:-1] = [steps * batch * block.output for block in blocks[:-1]]
    messages = np.full(len(blocks) + 1, float(steps))
    messages[[0, -1]] = 1.0
    return Chain(
        compute_s=compute_table(problem, lambda device: steps * costs.terms(device)[0][variant].total * share),
        cut_bytes=cut_bytes,
        cut_messages=messages,
        resident_bytes=np.array([block.weights for block in blocks]),
        transient_bytes=np.full(len(blocks), batch * denoiser.activations),
        loop_bytes=(steps - 1) * load.images * model.latent,
        loop_messages=steps - 1,
        cut_legal=np.array([True, *(block.legal for block in blocks)]),
        reuse="once",
        **{**shared_arguments(problem, [block.name for block in blocks]), "max_latency_s": None},
    )
