"""Memory caps and the objectives ``max`` and ``admitted``: against brute force, the other backends and closed forms."""

from __future__ import annotations

import gc
import math
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

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
OBJECTIVES = st.sampled_from(["sum", "max", "admitted"])


def _matches(result, expected):
    if math.isinf(expected):
        assert result.status.reason == "infeasible"
        assert result.message
        return
    assert result.status.reason == "optimal"
    # The cone reference for sums with deadlines is good to about 1e-6 where a deadline is nearly impossible.
    assert result.objective == pytest.approx(expected, rel=2e-5, abs=1e-12)
    assert result.bound <= expected * (1 + 2e-6) + 1e-12


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SEEDS, OBJECTIVES, st.booleans(), st.booleans(), st.booleans())
def test_equals_brute_force(seed, objective, memory, deadlines, refusal):
    most = 3 if objective == "sum" and deadlines else 4
    fleet = small(seed, objective=objective, memory=memory, deadlines=deadlines, refusal=refusal, most_users=most)
    _matches(solve(fleet), optimum(fleet))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(SEEDS, OBJECTIVES, st.booleans(), st.booleans())
def test_pulp_agrees(seed, objective, deadlines, refusal):
    fleet = small(seed, objective=objective, memory=True, deadlines=deadlines, refusal=refusal, most_users=6)
    exact, milp = solve(fleet), solve(fleet, "pulp")
    assert exact.status.has_solution == milp.status.has_solution
    assert (exact.status.reason == "infeasible") == (milp.status.reason == "infeasible")
    if exact.status.has_solution:
        assert milp.objective == pytest.approx(exact.objective, rel=5e-6, abs=1e-12)
        assert exact.bound <= milp.objective * (1 + 1e-9)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(SEEDS, st.booleans())
def test_any_prices_give_a_bound_with_memory(seed, deadlines):
    fleet = small(seed, deadlines=deadlines, memory=True, most_users=3)
    expected = optimum(fleet)
    model = build(fleet)
    rng = np.random.default_rng(seed)
    for scale in (0.0, 0.1, 1.0, 10.0):
        assert price(model, scale * rng.random(model.num_prices))[0] <= expected * (1 + 1e-6) + 1e-9


def _without_choice(seed: int, objective: str, deadlines: bool) -> Fleet:
    rng = np.random.default_rng(seed)
    users = int(rng.integers(1, 9))
    fleet = Fleet(
        rng.uniform(0, 1, (users, 1)), rng.lognormal(0, 1, (users, 1)), rng.lognormal(0, 1, (users, 1)),
        rng.lognormal(1, 1, users), [2.0], rng.uniform(0, 0.5, (users, 1)), cell=rng.integers(0, 3, users),
        weight=rng.uniform(0.5, 2, users), objective=objective,
    )  # fmt: skip
    if not deadlines:
        return fleet
    latency = evaluate(fleet, solve(replace(fleet, objective="sum")).solution).latency_s
    return replace(fleet, deadline_s=latency * rng.uniform(0.9, 1.4, users))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(SEEDS, st.sampled_from(["sum", "max"]), st.booleans())
def test_cvxpy_divides_shares_alike(seed, objective, deadlines):
    fleet = _without_choice(seed, objective, deadlines)
    exact, cone = solve(fleet), solve(fleet, "cvxpy")
    assert exact.status.has_solution == cone.status.has_solution
    if exact.status.has_solution:
        assert exact.objective == pytest.approx(cone.objective, rel=1e-5)
        # Both plans may miss a deadline by the checker's 1e-7 of it.
        assert cone.bound <= exact.objective * (1 + 2e-7)
        assert exact.bound <= cone.objective * (1 + 2e-7)


def test_cvxpy_refuses_choices():
    with pytest.raises(UnsupportedError, match="choice"):
        solve(population(3, 2, 1, 0), "cvxpy")


def test_evened_users_cost_the_same():
    """Where no deadline and no constant cost decides, linked users all sit at the level."""
    fleet = Fleet(np.zeros((3, 1)), np.ones((3, 1)), np.ones((3, 1)), [1, 2, 4], [3], np.zeros((3, 1)), objective="max")
    latency = evaluate(fleet, solve(fleet).solution).latency_s
    assert latency == pytest.approx(np.full(3, latency[0]), rel=1e-9)


def _boxes(sizes, memory, **extra):
    users = len(sizes)
    return Fleet(
        np.zeros((users, 1)), np.ones((users, 1)), np.ones((users, 1)), np.ones(users), np.ones(len(memory)),
        np.zeros((users, len(memory))), resident_bytes=np.array(sizes)[:, None], memory_bytes=memory, **extra,
    )  # fmt: skip


@pytest.mark.parametrize("backend", ["exact", "pulp"])
def test_memory_filled_to_the_last_byte(backend):
    result = solve(_boxes([0.3, 0.1, 0.2, 0.6], [0.6, 0.6]), backend)
    assert result.status.reason == "optimal"
    assert result.solution.servers[3] not in result.solution.servers[:3]


@pytest.mark.parametrize("backend", ["exact", "pulp"])
def test_memory_that_does_not_suffice_is_named(backend):
    short = solve(_boxes([3e9, 1e9, 2e9, 6e9], [6e9, 5e9]), backend)
    assert short.status.reason == "infeasible"
    assert "memory" in short.message
    assert "1e+09 bytes too few" in short.message
    one = solve(_boxes([7e9], [6e9, 5e9]), backend)
    assert "user 0 fits into no server" in one.message
    assert "1e+09 bytes too few" in one.message
    unpackable = solve(_boxes([4e9, 4e9, 4e9], [6e9, 6e9]), backend)
    assert unpackable.status.reason == "infeasible"
    assert "no assignment fits" in unpackable.message


def test_overfull_memory_is_a_violation():
    fleet = _boxes([3e9, 4e9], [6e9])
    plan = Solution((0, 0), (0, 0), (0.5, 0.5), (0.5, 0.5))
    (words,) = evaluate(fleet, plan).violations
    assert "server 0: 7e+09 bytes resident" in words
    assert "1e+09 bytes too many" in words


def test_deadlines_that_are_too_tight_together_are_quantified():
    fleet = _boxes([0, 0], [math.inf], deadline_s=[3.0, 3.0])
    # Two equal users take half of the cell and half of the server each: 4 s, 4/3 of the deadline.
    message = solve(fleet).message
    assert "every deadline 1.333 times as long" in message
    assert "is not enough" in message


def test_admits_as_many_as_memory_holds():
    result = solve(_boxes([2e9] * 5, [4e9, 5e9], deadline_s=np.full(5, 1e3), objective="admitted"))
    assert result.objective == 1
    assert result.status.reason == "optimal"
    assert result.metrics["num_served"] == 4


@settings(max_examples=20, deadline=None, derandomize=True)
@given(SEEDS)
def test_the_largest_cost_is_between_mean_and_sum(seed):
    fleet = small(seed, memory=True)
    total, largest = solve(fleet), solve(replace(fleet, objective="max"))
    assert total.status.reason == largest.status.reason
    if total.status.has_solution:
        worst = total.metrics["max_weighted_latency_s"]
        assert total.bound / fleet.num_users <= largest.objective * (1 + 1e-9)
        assert largest.bound <= worst * (1 + 1e-9)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SEEDS, OBJECTIVES, st.booleans(), st.booleans())
def test_extreme_magnitudes_are_survived(seed, objective, deadlines, refusal):
    rng = np.random.default_rng(seed)
    users, cuts, servers = (int(n) for n in rng.integers([1, 1, 0], [9, 6, 5]))

    def draw(*shape, zero=0.2, endless=0.0):
        values = 10.0 ** rng.uniform(-12, 18, shape)
        values[rng.random(shape) < zero] = 0
        values[rng.random(shape) < endless] = np.inf
        return values

    late = draw(users, zero=0.0, endless=0.0 if objective == "admitted" else 0.3)
    fleet = Fleet(
        draw(users, cuts, endless=0.2), draw(users, cuts, zero=0.4), draw(users, cuts, zero=0.4), draw(users),
        draw(servers), draw(users, servers, endless=0.2), cell=rng.integers(0, 3, users),
        weight=draw(users, zero=0.0), deadline_s=late if deadlines or objective == "admitted" else None,
        refusal_cost=draw(users, endless=0.3) if refusal else None, resident_bytes=draw(users, cuts, zero=0.5),
        memory_bytes=draw(servers, zero=0.1, endless=0.3), objective=objective,
    )  # fmt: skip
    started = time.thread_time()
    result = solve(fleet, time_limit_s=1)
    assert time.thread_time() - started < 1.2
    assert result.bound <= result.objective
    if result.status.has_solution:
        assert not evaluate(fleet, result.solution).violations
    elif result.status.reason == "infeasible":
        assert result.message


@pytest.mark.parametrize("objective", ["sum", "max", "admitted"])
def test_time_limit_is_kept(objective):
    fleet = population(
        1000, 30, 4, 5, deadline_s=np.full(1000, 0.3), refusal_cost=np.full(1000, 1.0), objective=objective,
        resident_bytes=np.tile(np.linspace(4e9, 0, 33), (1000, 1)), memory_bytes=np.full(30, 5e10),
    )  # fmt: skip
    started = time.thread_time()
    result = solve(fleet, time_limit_s=0.5)
    assert time.thread_time() - started < 0.7
    if result.status.has_solution:
        assert not evaluate(fleet, result.solution).violations


def test_memory_at_a_moderate_size():
    free = population(100, 10, 1, 1)
    resident = np.asarray(free.work) / np.asarray(free.work).max() * 8e9
    cap = np.full(10, 0.6 * resident.max(axis=1).sum() / 10)
    result = solve(replace(free, resident_bytes=resident, memory_bytes=cap), gap=0.002)
    assert result.gap <= 0.002
    assert not evaluate(replace(free, resident_bytes=resident, memory_bytes=cap), result.solution).violations


def test_threads_agree():
    fleets = [small(seed, objective=o, memory=True) for seed in range(4) for o in ("sum", "max", "admitted")]
    alone = [solve(fleet) for fleet in fleets]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(solve, fleets * 2))
    for a, b in zip(alone * 2, together, strict=True):
        assert (a.status, a.objective, a.bound, a.solution) == (b.status, b.objective, b.bound, b.solution)


def test_hundreds_of_solves_do_not_grow():
    """Resident memory after the first solves; the benchmark repeats it over ten thousand."""
    fleet = Fleet([[0.0, 1.0]], [[1.0, 0.0]], [[1.0, 0.0]], [2.0], [2.0], [[0.1]])
    for _ in range(200):
        solve(fleet)
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(300):
        solve(fleet)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 900


def test_memory_caps_have_a_finite_gap_from_the_start():
    fleet = population(400, 50, 4, 1)
    resident = np.asarray(fleet.work) / np.asarray(fleet.work).max() * 8e9
    cap = np.full(50, 0.3 * resident.max(axis=1).sum() / 50)
    tight = replace(fleet, resident_bytes=resident, memory_bytes=cap)
    result = solve(tight, time_limit_s=0.02)
    assert not evaluate(tight, result.solution).violations
    assert result.bound <= result.objective
    assert math.isfinite(result.gap)
