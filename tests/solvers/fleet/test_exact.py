from __future__ import annotations

import gc
import math
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt_solvers import UnsupportedError, solve
from edgeopt_solvers.fleet import Fleet, Solution, evaluate
from edgeopt_solvers.fleet.model import build, price
from tests.solvers.fleet.brute import optimum
from tests.solvers.fleet.draws import population, small

SEEDS = st.integers(0, 10**6)


def _matches(result, expected):
    if math.isinf(expected):
        assert result.status.reason == "infeasible"
        assert not result.status.has_solution
        assert result.message
        return
    assert result.status.has_solution
    assert result.status.reason == "optimal"
    assert result.objective == pytest.approx(expected, rel=2e-6)
    assert result.bound <= expected * (1 + 1e-9) + 1e-12


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.booleans())
def test_equals_brute_force(seed, refusal):
    fleet = small(seed, refusal=refusal)
    _matches(solve(fleet), optimum(fleet))


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.booleans())
def test_equals_brute_force_with_deadlines(seed, refusal):
    fleet = small(seed, deadlines=True, refusal=refusal, most_users=3)
    result, expected = solve(fleet), optimum(fleet)
    if math.isfinite(expected) and result.status.has_solution:
        # The cone reference is good to about 1e-6 where a deadline is nearly impossible.
        assert result.status.reason == "optimal"
        assert result.objective == pytest.approx(expected, rel=2e-5)
    else:
        _matches(result, expected)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.booleans(), st.booleans())
def test_pulp_agrees(seed, deadlines, refusal):
    fleet = small(seed, deadlines=deadlines, refusal=refusal, most_users=6)
    exact, milp = solve(fleet), solve(fleet, "pulp")
    assert exact.status.has_solution == milp.status.has_solution
    assert (exact.status.reason == "infeasible") == (milp.status.reason == "infeasible")
    if exact.status.has_solution:
        assert milp.objective == pytest.approx(exact.objective, rel=5e-6)
        assert exact.bound <= milp.objective * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.booleans())
def test_any_prices_give_a_bound(seed, deadlines):
    fleet = small(seed, deadlines=deadlines, most_users=3)
    expected = optimum(fleet)
    model = build(fleet)
    rng = np.random.default_rng(seed)
    for scale in (0.0, 0.1, 1.0, 10.0):
        assert price(model, scale * rng.random(model.num_resources))[0] <= expected * (1 + 1e-6) + 1e-9


def test_proves_hundred_users_to_a_hundredth_of_a_percent():
    result = solve(population(100, 10, 1, 1), time_limit_s=3)
    assert result.gap < 2e-4


def test_a_thousand_users_within_a_second_of_processor_time():
    fleet = population(1000, 100, 10, 2)
    result = solve(fleet, gap=0.0025)
    assert result.gap <= 0.0025


def test_stops_at_the_gap():
    fleet = population(300, 20, 2, 3)
    loose = solve(fleet, gap=0.01)
    assert loose.status.reason == "gap_reached"
    assert loose.gap <= 0.01
    assert loose.statistics["effort_exhausted"] == 0


def test_default_effort_ends_and_says_so():
    result = solve(population(500, 20, 2, 3))
    assert result.status.reason == "time_limit"
    assert result.statistics["effort_exhausted"] == 1
    assert 0 < result.gap < 0.005


@pytest.mark.parametrize("limit_s", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("deadlines", [False, True])
def test_time_limit_is_kept(limit_s, deadlines):
    extra = {"deadline_s": np.full(2000, 0.3), "refusal_cost": np.full(2000, 1.0)} if deadlines else {}
    fleet = population(2000, 30, 4, 5, **extra)
    # Seconds of this thread: whoever else holds the cores is not counted.
    started = time.thread_time()
    result = solve(fleet, time_limit_s=limit_s)
    assert time.thread_time() - started < limit_s + 0.2
    assert result.status.reason in ("time_limit", "gap_reached")


def test_deadlines_and_admission_at_a_moderate_size():
    free = solve(population(150, 10, 2, 7), gap=0.001)
    latency = evaluate(population(150, 10, 2, 7), free.solution).latency_s
    tight = np.full(150, np.quantile(latency, 0.7))
    fleet = population(150, 10, 2, 7, deadline_s=tight, refusal_cost=np.full(150, 3 * tight[0]))
    result = solve(fleet, time_limit_s=4)
    evaluation = evaluate(fleet, result.solution)
    assert not evaluation.violations
    assert np.nanmax(evaluation.latency_s) <= tight[0] * (1 + 1e-7)
    assert result.gap < 0.01


def test_a_refusal_dearer_than_everything_admits_most():
    fleet = small(1234, deadlines=True, refusal=True, most_users=3)
    dear = replace(fleet, deadline_s=np.full(fleet.num_users, 1.5), refusal_cost=np.full(fleet.num_users, 1e3))
    result = solve(dear)
    assert result.metrics["num_refused"] == math.floor(optimum(dear) / 1e3)


def test_no_upper_limit_on_costs_is_no_proof_of_infeasibility():
    """Without a deadline for everyone no cost is too high; the tree used to close its root for that."""
    fleet = small(145591, deadlines=True, refusal=True, most_users=6)
    result = solve(fleet)
    assert result.status.reason == "optimal"
    assert result.objective == pytest.approx(14.3323153, rel=1e-6)


def test_same_seed_same_answer_and_threads():
    fleets = [population(8, 3, 1, seed) for seed in range(4)]

    def run(fleet):
        result = solve(fleet, seed=3)
        return result.objective, result.bound, result.solution

    alone = [run(fleet) for fleet in fleets]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(run, fleets * 3))
    assert together == alone * 3


def test_memory_does_not_grow():
    fleet = small(5, refusal=True)
    for _ in range(20):
        solve(fleet)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(100):
        solve(fleet)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 100_000


def test_warm_start_follows_users_that_come_and_go():
    fleet = population(600, 30, 4, 8, user_ids=np.arange(600))
    cold = solve(fleet, gap=0.002)
    stay = np.r_[20:600]
    rows = {"local_s", "upload_bytes", "work", "rate_bytes_per_s", "latency_s", "cell", "weight", "user_ids"}
    later = Fleet(
        **{f.name: getattr(fleet, f.name)[stay] if f.name in rows else getattr(fleet, f.name) for f in fields(fleet)}
    )
    warm = solve(later, gap=0.002, warm_start=cold)
    fresh = solve(later, gap=0.002)
    assert warm.gap <= 0.002
    assert warm.statistics["newton_and_pricing"] < 0.7 * fresh.statistics["newton_and_pricing"]
    before = {
        u: (c, s) for u, c, s in zip(cold.solution.user_ids, cold.solution.cuts, cold.solution.servers, strict=True)
    }
    same = sum(
        before[u] == (c, s)
        for u, c, s in zip(warm.solution.user_ids, warm.solution.cuts, warm.solution.servers, strict=True)
    )
    assert same > 0.8 * len(stay)


def test_a_poor_warm_start_does_no_harm():
    fleet = small(77)
    for nonsense in (
        Solution((0,) * fleet.num_users, (99,) * fleet.num_users, (0.0,) * fleet.num_users, (0.0,) * fleet.num_users),
        Solution((), (), (), ()),
    ):
        _matches(solve(fleet, warm_start=nonsense), optimum(fleet))


@settings(max_examples=120, deadline=None)
@given(SEEDS, st.booleans(), st.booleans())
def test_extreme_magnitudes_are_survived(seed, deadlines, refusal):
    rng = np.random.default_rng(seed)
    users, cuts, servers = (int(n) for n in rng.integers([1, 1, 0], [12, 6, 5]))

    def draw(*shape, zero=0.2, endless=0.0):
        values = 10.0 ** rng.uniform(-12, 18, shape)
        values[rng.random(shape) < zero] = 0
        values[rng.random(shape) < endless] = np.inf
        return values

    fleet = Fleet(
        draw(users, cuts, endless=0.2), draw(users, cuts, zero=0.4), draw(users, cuts, zero=0.4), draw(users),
        draw(servers), draw(users, servers, endless=0.2), cell=rng.integers(0, 3, users),
        weight=draw(users, zero=0.0), deadline_s=draw(users, zero=0.0, endless=0.3) if deadlines else None,
        refusal_cost=draw(users, endless=0.3) if refusal else None,
    )  # fmt: skip
    started = time.thread_time()
    result = solve(fleet, time_limit_s=1)
    assert time.thread_time() - started < 1.2
    if result.status.has_solution:
        assert not evaluate(fleet, result.solution).violations
        assert result.bound <= result.objective


def test_backend_without_a_formulation_is_refused():
    with pytest.raises(UnsupportedError, match="exact"):
        solve(small(1), "ortools")
