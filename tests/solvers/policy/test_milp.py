"""The PuLP formulation of cascades: one tiny golden program per constraint family."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeopt_solvers import solve
from edgeopt_solvers.policy import CAPABILITIES, Cascade
from edgeopt_solvers.policy.milp import build
from edgeopt_solvers.policy.traces import traces_of
from tests.solvers.golden import assert_is_golden
from tests.solvers.policy.policies import brute_force_cascade

GOLDEN = Path(__file__).parent / "golden"

TWO = {
    "confidence": [[0.9, 0.5], [0.25, 0.75], [0.5, 0.5]], "correct": [[1, 1], [0, 1], [0, 1]], "seconds": [1.0, 4.0],
    "num_levels": None,
}  # fmt: skip
THREE = {
    "confidence": [[0.75, 0.5, 1], [0.25, 0.5, 1]], "correct": [[1, 1, 1], [0, 0, 1]], "seconds": [1.0, 2.0, 4.0],
    "num_levels": None,
}  # fmt: skip

FAMILIES = {
    "states": TWO,  # (1)-(3)
    "skipped": THREE,  # a model between two others may be left out
    "floor": {**TWO, "min_accuracy": 0.75},  # (4)
    "graded": {**TWO, "correct": [[0.5, 1], [0.25, 0.75], [0, 1]], "min_accuracy": 0.5},
    "budgets": {**TWO, "min_accuracy": 0.5, "max_latency_s": 4.0, "cost": [2.0, 1.0], "max_cost": 2.5},  # (5)
    "models": {**THREE, "min_accuracy": 1.0, "max_models": 2},
    "busy": {**TWO, "min_accuracy": 0.5, "device": [0, 0], "busy_s": [0.5, 2.0], "max_busy_s": 1.5},
    "conflicts": {**THREE, "min_accuracy": 1.0, "conflicts": [[0, 1], [0, 2]]},  # (6)
    "weighted": {**TWO, "min_accuracy": 1.0, "cost": [[1.0, 2.0], [3.0, 1.0], [1.0, 1.0]],
                 "objective": {"latency": 1.0, "cost": 2.0}},
    "grid": {**TWO, "min_accuracy": 0.5, "grid": [[0.3], [0.5]]},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_program_is_the_golden_one(family, tmp_path):
    """Set UPDATE_GOLDEN=1 to rewrite the files; then read the difference line by line."""
    instance = Cascade(**FAMILIES[family])
    assert_is_golden(build(instance, traces_of(instance))[0], GOLDEN / f"{family}.lp", tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_instances_are_solved_right(family):
    instance = Cascade(**FAMILIES[family])
    best = brute_force_cascade(instance)
    for backend, supported in CAPABILITIES.items():
        if instance.features() <= supported:
            assert solve(instance, backend).objective == pytest.approx(best, rel=2e-6), backend
