"""What is left of a request is planned as well as it can be: held against the whole chain with its beginning fixed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgeopt import planner
from edgeopt.executor.messages import Handoff
from edgeopt.executor.recovery import resumed_plan, without_device
from edgeopt.executor.rest import plan_rest, rest_of
from edgeopt_solvers import solve
from edgeopt_solvers.chain import Chain, evaluate
from tests.edgeopt.factories import device, diffusion_model, image_problem, text_problem


def a_chain(rng: np.random.Generator) -> Chain:
    """Draw a chain of two or three devices and two variants, in which quality can bind."""
    devices, variants, elements = int(rng.integers(2, 4)), 2, 5
    return Chain(
        compute_s=rng.uniform(0.1, 1.0, (devices, variants, elements)),
        cut_bytes=rng.uniform(0.1, 2.0, elements + 1),
        rate_bytes_per_s=rng.uniform(0.5, 5.0, (devices, devices)),
        latency_s=rng.uniform(0.0, 0.1, (devices, devices)),
        memory_bytes=rng.uniform(2.0, 5.0, devices),
        resident_bytes=rng.uniform(0.2, 1.0, (variants, elements)),
        quality_loss=rng.uniform(0.0, 1.0, (variants, elements)),
        handoff_loss=rng.choice([0.0, 0.2, np.inf], p=[0.6, 0.3, 0.1], size=(variants, variants, elements + 1)),
        max_quality_loss=float(rng.uniform(1.5, 3.0)),
        reuse="many",
    )


@pytest.mark.parametrize("seed", range(25))
def test_the_rest_is_the_whole_with_a_beginning_that_costs_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    chain, cut = a_chain(rng), 2
    variant = int(rng.integers(2))
    rest = solve(rest_of(chain, cut, (cut, 5), (variant, 1 - variant)))

    # A second formulation: the prefix is forced onto a device of its own that stands where the source does.
    def more(values: np.ndarray, row: int) -> np.ndarray:
        grown = np.concatenate([values, values[row : row + 1]])
        return np.concatenate([grown, grown[:, row : row + 1]], axis=1)

    compute = np.concatenate([chain.compute_s, np.full_like(chain.compute_s[:1], np.inf)])
    compute[:, :, :cut] = np.inf
    compute[-1, variant, :cut] = 0.0
    rate, latency = more(chain.rate_bytes_per_s, 0), more(chain.latency_s, 0)
    for a, b in ((-1, 0), (0, -1)):
        rate[a, b], latency[a, b] = 1e300, 0.0
    nothing = chain.cut_bytes.copy()
    nothing[0] = 0.0
    whole = replace(
        chain, compute_s=compute, rate_bytes_per_s=rate, latency_s=latency, cut_bytes=nothing,
        cut_messages=np.where(np.arange(6) == 0, 0.0, chain.cut_messages),
        memory_bytes=np.append(chain.memory_bytes, np.inf), medium=None, snr=None, load_cost=None,
    )  # fmt: skip
    expected = solve(whole)
    assert rest.status.has_solution == expected.status.has_solution
    if rest.solution is not None:
        assert rest.objective == pytest.approx(expected.objective, rel=1e-9)
        assert not evaluate(rest_of(chain, cut, (cut, 5), (variant, 1 - variant)), rest.solution).violations


def test_a_diffusion_run_is_planned_from_its_cut() -> None:
    names = ["phone", "server", "spare"]
    devices = [device(name, gflops=speed, memory=8e9) for name, speed in zip(names, (10, 100, 60), strict=True)]
    quality = {
        "form": "additive", "metric": "loss", "base": 1.0, "steps": 10, "source": "made for a test",
        "loss": {"large": [0.0] * 10, "small": [1.0] * 10},
    }  # fmt: skip
    problem = image_problem(
        model=diffusion_model(quality), devices=devices, constraints={"source": "phone", "quality": 6.0}
    )
    plan = planner.solve(problem)
    left = without_device(plan, "server")
    cut = next(stop for stop in plan.cuts if stop > 1)
    handoff = Handoff(request=0, purpose="cut", cut=cut, round=0, data="")
    rest = plan_rest(left, plan, [handoff])
    assert rest is not None
    assert (rest.stages[0].start, rest.stages[-1].stop) == (cut, 12)
    assert [stage.index for stage in rest.stages] == list(range(len(rest.stages)))
    assert "server" not in {stage.device for stage in rest.stages}
    small = sum(s.stop - s.start for p in (plan, rest) for s in p.stages if s.variant == "small" and s.start >= 1
                and (p is rest or s.stop <= cut))  # fmt: skip
    assert rest.quality == pytest.approx(1.0 + small)
    assert rest.quality <= 6.0
    whole = planner.solve(left)
    remainder = resumed_plan(whole, [handoff])
    computing = sum(stage.compute_s for stage in rest.stages)
    assert rest.latency_s == pytest.approx(computing + sum(moved.seconds for moved in rest.transfers))
    assert remainder.stages[0].start == cut


def test_a_language_model_is_planned_with_the_tokens_it_has() -> None:
    plan = planner.solve(text_problem())
    tokens = [Handoff(request=0, purpose="loop", cut=6, round=r, data="") for r in (1, 2)]
    left = plan.problem.model_copy(update={"devices": plan.problem.devices})
    rest = plan_rest(left, plan, tokens)
    assert rest is not None
    assert (rest.problem.workload.prompt_tokens, rest.problem.workload.new_tokens) == (12, 3)
    assert rest.latency_s < planner.solve(resumed_plan(plan, tokens).problem).latency_s * (1 + 1e-12)
    assert plan_rest(left, plan, []) is None
