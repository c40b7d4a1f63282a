"""The PuLP formulation: one tiny golden program per constraint family, with the cuts that a first answer adds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeopt_solvers import solve
from edgeopt_solvers.divisible import CAPABILITIES, Divisible
from edgeopt_solvers.divisible.milp import build, cut_at
from tests.solvers.divisible.draws import brute_force
from tests.solvers.golden import assert_is_golden

GOLDEN = Path(__file__).parent / "golden"

TWO = {"num_units": 3, "unit_s": [1.0, 2.0], "fixed_s": [0.5, 0.25]}
LINKS = {
    **TWO, "fixed_bytes": [2.0, 1.0], "unit_bytes": [1.0, 0.5], "rate_bytes_per_s": [4.0, 2.0],
    "latency_s": [0.125, 0.0],
}  # fmt: skip
POWER = {"power_w": [2.0, 1.0], "byte_j": [0.25, 0.5]}

FAMILIES = {
    "units": TWO,  # (1) (2) (4)
    "limits": {**TWO, "min_units": [1, 2], "memory_bytes": [6.0, 9.0], "unit_memory_bytes": [2.0, 3.0],
               "fixed_memory_bytes": [1.0, 2.0]},  # (2)
    "devices": {**TWO, "max_devices": 1},  # (3)
    "links": LINKS,  # (4) synchronous
    "overlapped": {**LINKS, "exchange": "overlapped"},
    "steps": {**LINKS, "num_steps": [2, 4]},
    "medium": {**LINKS, "shared": True},  # (5)-(8)
    "medium_overlapped": {**LINKS, "shared": True, "exchange": "overlapped"},
    "mixed": {**LINKS, "shared": [True, False]},
    "energy": {**LINKS, **POWER, "objective": "energy"},  # (9)
    "weighted": {**LINKS, **POWER, "shared": True, "objective": {"makespan": 1.0, "energy": 0.5}},
    "lead": {**LINKS, "exchange": "overlapped", "lead_s": [0.5, 0.0], "lead_unit_s": [0.25, 2.0],
             "max_makespan_s": 9.0},  # (10)
    "budgets": {**LINKS, **POWER, "max_energy_j": 9.0, "max_makespan_s": 8.0},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_program_is_the_golden_one(family, tmp_path):
    """Set UPDATE_GOLDEN=1 to rewrite the files; then read the difference line by line."""
    model = build(Divisible(**FAMILIES[family]))
    loads = np.array([2, 1])
    cut_at(model, loads, model.table.solution(loads))
    assert_is_golden(model.problem, GOLDEN / f"{family}.lp", tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_instances_are_solved_right(family):
    instance = Divisible(**FAMILIES[family])
    best = brute_force(instance)
    for backend, supported in CAPABILITIES.items():
        if instance.features() <= supported:
            assert solve(instance, backend).objective == pytest.approx(best, rel=2e-6), backend
