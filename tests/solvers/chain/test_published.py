"""Instances that others published, with the values they are known to have; and no baseline ahead of us."""

from __future__ import annotations

import pytest

from edgeopt_solvers import solve
from edgeopt_solvers.chain import evaluate
from tests.benchmarks.baselines import BASELINES
from tests.instances.pipeedge import OPTIMA, pipeedge_chain


@pytest.mark.parametrize(("model", "boards"), OPTIMA)
def test_pipeedge_optimum(model, boards):
    chain = pipeedge_chain(model, boards)
    result = solve(chain, time_limit_s=60)
    assert result.status.reason == "optimal"
    assert result.objective == pytest.approx(OPTIMA[model, boards], abs=5e-5)


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_no_baseline_is_ahead(name, objective):
    from dataclasses import replace

    for model, boards in OPTIMA:
        chain = replace(pipeedge_chain(model, boards), objective=objective)
        theirs = BASELINES[name](chain)
        if theirs is None:
            continue
        judged = evaluate(chain, theirs)
        if not judged.violations:
            assert judged.objective >= solve(chain, time_limit_s=60).objective * (1 - 1e-9)
