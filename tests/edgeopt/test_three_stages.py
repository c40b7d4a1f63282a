"""A bundled problem that three stages solve faster than any plan of one or two, by enumeration; and it runs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgeopt import planner
from edgeopt.profiles import load_problem
from edgeopt_solvers.chain import Solution, evaluate

NAME = "digits-three-stages"


@pytest.fixture(scope="module")
def problem():
    return load_problem(NAME)


def _limited(problem, most):
    return problem.model_copy(update={"constraints": problem.constraints.model_copy(update={"max_stages": most})})


def _fastest(chain, stages):
    """Return the least latency of all plans with exactly so many stages, each evaluated on its own."""
    length, best = chain.num_elements, np.inf
    homes = [(d, v) for d in range(chain.num_devices) for v in range(1, chain.num_variants)]
    for places in itertools.product(homes, repeat=stages):
        if any(a == b for a, b in itertools.pairwise(places)):
            continue
        devices, variants = zip(*places, strict=True)
        for inner in itertools.combinations(range(1, length), stages - 1):
            found = evaluate(chain, Solution((*inner, length), devices, variants))
            if not found.violations:
                best = min(best, found.metrics["latency_s"])
    return best


def test_no_plan_of_two_stages_comes_near(problem):
    best = planner.solve(problem)
    assert len(best.stages) >= 3
    assert best.status == "optimal"
    two = planner.solve(_limited(problem, 2))
    chain = planner.choose_strategy(problem, "multi_stage").build(problem)
    enumerated = min(_fastest(chain, 1), _fastest(chain, 2))
    assert two.latency_s == pytest.approx(enumerated)
    assert enumerated >= 1.05 * best.latency_s
    asked = problem.constraints.quality
    assert max(best.quality, two.quality) * (1 + problem.model.quality.margin) <= asked + 1e-9
    assert not planner.verify(best)


@pytest.mark.torch
@pytest.mark.processes
def test_it_runs_and_makes_the_images_of_one_process(problem):
    pytest.importorskip("diffusers")
    from edgeopt.executor import execute

    plan = planner.solve(problem)
    report = execute(plan, repeat=1, warmup=0, timeout_s=240.0)
    assert len(report.stages) == len(plan.stages) == 3
    assert report.output.equal
    assert report.output.kind == "bitwise"
