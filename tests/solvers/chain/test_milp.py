"""The PuLP formulation: one tiny golden program per constraint family, statuses, warm starts, both backends."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pulp
import pytest

from edgeopt_solvers import solve
from edgeopt_solvers.chain import Chain, evaluate, milp, pulp_run
from edgeopt_solvers.solve import Options
from tests.solvers.chain.brute import brute_force
from tests.solvers.golden import assert_is_golden

GOLDEN = Path(__file__).parent / "golden"

TWO = {
    "compute_s": [[1.0, 2.0], [3.0, 4.0]],
    "cut_bytes": [6.0, 8.0, 10.0],
    "rate_bytes_per_s": [[0, 2.0], [1.0, 0]],
    "latency_s": [[0, 0.5], [0.25, 0]],
}
VARIANTS = {
    "compute_s": [[[1.0, 2.0], [0.5, 1.0]], [[3.0, 4.0], [2.0, 3.0]]],
    "cut_bytes": [6.0, 8.0, 10.0],
    "rate_bytes_per_s": [[0, 2.0], [1.0, 0]],
    "latency_s": [[0, 0.5], [0.25, 0]],
}

FAMILIES = {
    "once": TWO,  # (1)-(4)
    "many": {**TWO, "reuse": "many"},
    "free_ends": {**TWO, "source": None},
    "memory_once": {**TWO, "memory_bytes": [10, 5], "resident_bytes": [6, 5]},
    "memory_many": {
        **VARIANTS, "reuse": "many", "memory_bytes": [20, math.inf], "resident_bytes": [[6, 5], [2, 1]],
        "shared_bytes": [4, 3], "transient_bytes": [[1, 2], [0, 5]],
    },
    "stages": {**TWO, "max_stages": 1},
    "loop": {**TWO, "loop_bytes": 4, "loop_messages": 3},
    "throughput": {**TWO, "objective": "throughput", "loop_bytes": 4},
    "energy": {**TWO, "objective": "energy", "power_w": [1, 2], "send_power_w": [3, 4], "receive_power_w": [5, 6]},
    "quality": {
        **VARIANTS, "objective": "quality", "quality_loss": [[0, 0], [1, 2]],
        "handoff_loss": np.arange(12.0).reshape(2, 2, 3),
    },
    "weighted": {**TWO, "objective": {"latency": 2.0, "throughput": 4.0}},
    "budgets": {
        **VARIANTS, "power_w": [1, 2], "quality_loss": [[0, 0], [1, 2]], "max_latency_s": 30, "max_period_s": 7,
        "max_energy_j": 11, "max_quality_loss": 2.5,
    },
    "shape": {**TWO, "pins": {0: 1}, "cut_legal": [1, 0, 1], "min_segment": 2},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_program_is_the_golden_one(family, tmp_path):
    """Set UPDATE_GOLDEN=1 to rewrite the files; then read the difference line by line."""
    assert_is_golden(milp.build(Chain(**FAMILIES[family])).problem, GOLDEN / f"{family}.lp", tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_instances_are_solved_right(family):
    chain = Chain(**FAMILIES[family])
    best = brute_force(chain)
    for backend in ("exact", "pulp", "ortools"):
        assert solve(chain, backend).objective == pytest.approx(best), backend


def _random(devices: int, elements: int, seed: int = 0, **options) -> Chain:
    rng = np.random.default_rng(seed)
    return Chain(
        rng.uniform(0.5, 2, (devices, elements)), rng.uniform(1, 10, elements + 1),
        rng.uniform(5, 50, (devices, devices)), rng.uniform(0, 0.1, (devices, devices)), **options,
    )  # fmt: skip


def _tight(devices: int, elements: int, seed: int = 0) -> Chain:
    return _random(devices, elements, seed, memory_bytes=np.full(devices, 2.5 * elements / devices),
                   resident_bytes=np.random.default_rng(seed).uniform(0.5, 1.5, elements))  # fmt: skip


def test_a_time_limit_is_no_optimum_and_no_infeasibility():
    result = solve(_tight(8, 40), "pulp", time_limit_s=0.3)
    assert result.status.reason == "time_limit"
    assert result.bound <= solve(_tight(8, 40)).objective + 1e-9
    if result.status.has_solution:
        assert result.objective >= solve(_tight(8, 40)).objective - 1e-9


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_units_do_not_matter(scale):
    base = _tight(3, 8, 1)
    chain = Chain(
        base.compute_s * scale, base.cut_bytes / scale, base.rate_bytes_per_s / scale**2, base.latency_s * scale,
        memory_bytes=base.memory_bytes / scale, resident_bytes=base.resident_bytes / scale,
    )  # fmt: skip
    expected = solve(base).objective * scale
    for backend in ("exact", "pulp", "ortools"):
        assert solve(chain, backend).objective == pytest.approx(expected, rel=1e-7), backend


@pytest.mark.parametrize("backend", ["pulp", "ortools"])
def test_a_warm_start_is_taken_and_a_useless_one_does_no_harm(backend):
    chain = _tight(3, 10)
    best = solve(chain)
    assert solve(chain, backend, warm_start=best).objective == pytest.approx(best.objective)
    foreign = solve(_random(5, 12)).solution
    assert solve(chain, backend, warm_start=foreign).objective == pytest.approx(best.objective)


@pytest.mark.parametrize("backend", ["pulp", "ortools"])
def test_a_gap_stops_early_and_is_kept(backend):
    chain = _tight(5, 16)
    result = solve(chain, backend, gap=0.2)
    assert result.status.reason in ("optimal", "gap_reached")
    assert result.gap <= 0.2 + 1e-9
    assert result.bound <= solve(chain).objective + 1e-9


def test_cbc_takes_over_without_highs(monkeypatch):
    monkeypatch.setattr(pulp.HiGHS, "available", lambda self: False)
    chain = _tight(3, 6)
    assert pulp_run.CBC_STATUS[pulp.LpSolutionOptimal] == "optimal"
    result = solve(chain, "pulp")
    assert result.status.reason == "optimal"
    assert result.objective == pytest.approx(brute_force(chain))
    crowded = _random(2, 4, memory_bytes=[1, 1], resident_bytes=[1, 1, 1, 1])
    assert milp.solve(crowded, Options()).status.reason == "infeasible"


def test_an_unknown_status_is_an_error(monkeypatch):
    monkeypatch.setattr(pulp_run, "HIGHS_STATUS", {})
    with pytest.raises(pulp_run.BackendError, match="HiGHS stopped with kOptimal; try backend='exact'"):
        milp.solve(_random(2, 3), Options())


def test_a_plan_that_only_tolerance_admits_is_cut_off(monkeypatch):
    """The checker rejects the first plan; the next best one is returned instead."""
    chain = _random(3, 5)
    best = milp.solve(chain, Options()).solution
    rejected = []

    def strict(instance, solution):
        evaluation = evaluate(instance, solution)
        if solution == best:
            rejected.append(solution)
            return type(evaluation)(evaluation.objective, evaluation.metrics, ("by a hair",))
        return evaluation

    monkeypatch.setattr(milp, "evaluate", strict)
    result = milp.solve(chain, Options())
    assert rejected == [best]
    assert result.solution != best
    assert result.objective > evaluate(chain, best).objective
