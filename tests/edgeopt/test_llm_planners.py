"""The comparison of planners says what it means: nobody beats a proven plan, and its figures add up."""

from __future__ import annotations

import numpy as np
import pytest

from edgeopt.strategies import get_strategy
from edgeopt_solvers.chain import evaluate
from tests.benchmarks.llm_planners import MODELS, PLANNERS, Row, compare, draw_problem, solutions_of, summary


@pytest.mark.parametrize(("ratio", "rate"), [(1.0, 1000.0), (3.0, 10.0), (8.0, 100.0)])
@pytest.mark.parametrize("model", MODELS)
def test_nobody_beats_the_proven_plan(model, ratio, rate):
    row = compare(draw_problem(np.random.default_rng(5), model, ratio, rate), ratio, rate)
    assert row.bound_s == pytest.approx(row.ours_s, rel=1e-9)
    assert sum(seconds is not None for seconds in row.planners_s.values()) >= 4
    assert all(seconds >= row.ours_s * (1 - 1e-9) for seconds in row.planners_s.values() if seconds is not None)


def test_planners_use_what_their_tool_uses():
    """Exo and transformers use every device, whatever it costs; accelerate fills them in the order given."""
    problem = draw_problem(np.random.default_rng(5), MODELS[0], 5.0, 100.0)
    chain = get_strategy("pipeline").build(problem)
    found = solutions_of(chain)
    everyone = set(range(chain.num_devices))
    assert set(found["memory_proportional"].devices) == set(found["equal_split"].devices) == everyone
    assert found["halda"].devices == tuple(range(chain.num_devices))
    assert found["greedy_bytes"].devices == tuple(range(len(found["greedy_bytes"].devices)))
    assert not any(evaluate(chain, solution).violations for solution in found.values() if solution)


def test_the_summary_counts_what_fits():
    slower = dict.fromkeys(PLANNERS, 2.0)
    rows = [
        Row("m", 1.0, 1000.0, 2, 1.0, 1.0, slower),
        Row("m", 8.0, 1000.0, 2, 2.0, 2.0, slower | {"halda": None}),
        Row("m", 1.0, 10.0, 2, 1.0, 0.8, slower | {"greedy_bytes": 1.2}),
    ]
    found = summary(rows)
    assert found["clusters"] == {"all": 3, "hard": 2, "apart": 1, "slow": 1}
    assert found["gap_worst"] == pytest.approx(0.25)
    assert found["never_slower"]
    assert not found["first_three_at_least_factor"]
    assert found["planners"]["halda"]["all"]["clusters"] == 2
    assert found["planners"]["greedy_bytes"]["slow"]["most"] == pytest.approx(1.2)
    assert found["planners"]["equal_split"]["hard"]["at_least_factor"] == 0.5
    assert not summary([Row("m", 1.0, 10.0, 2, 1.0, 1.0, slower | {"halda": 0.9})])["never_slower"]
