"""The exact backend beside brute force, the MILP and CP-SAT, and its own promises."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt_solvers import solve
from edgeopt_solvers.divisible import CAPABILITIES, FEATURES, Divisible, Solution, evaluate
from edgeopt_solvers.errors import BackendError, InstanceError, UnsupportedError
from tests.solvers.divisible.draws import EXTRAS, best_shares, brute_force, problems

#: Draws in which a budget is met exactly, up to rounding, are decided by rounding; others agree to this.
CLOSE = 2e-6


def assert_equal_to_brute_force(instance, result, best):
    if result.status.has_solution:
        assert result.objective == pytest.approx(best, rel=CLOSE, abs=1e-12)
        assert result.bound <= best * (1 + 1e-12) + 1e-300
        assert evaluate(instance, result.solution).violations == ()
    else:
        assert result.status.reason == "infeasible"
        assert best == math.inf
        assert result.message


@settings(max_examples=300, deadline=None)
@given(problems())
def test_equal_to_brute_force(instance):
    result = solve(instance)
    assert_equal_to_brute_force(instance, result, brute_force(instance))
    if result.status.has_solution:
        assert result.status.reason == "optimal"


@settings(max_examples=40, deadline=None)
@given(problems(most_devices=3, most_units=5, extras=[name for name in EXTRAS if name != "pairwise"]))
def test_pulp_agrees(instance):
    assert_equal_to_brute_force(instance, solve(instance, "pulp"), solve(instance).objective)


@settings(max_examples=60, deadline=None)
@given(problems(extras=("fixed_s", "transfer", "latency", "overlapped", "memory", "min_units", "steps", "max_makespan",
                        "max_energy", "max_devices", "broken")))  # fmt: skip
def test_ortools_agrees(instance):
    assert_equal_to_brute_force(instance, solve(instance, "ortools"), solve(instance).objective)


@settings(max_examples=300, deadline=None)
@given(problems(wild=True))
def test_any_magnitude(instance):
    result = solve(instance, time_limit_s=20)
    assert result.status.reason in ("optimal", "infeasible", "gap_reached")
    assert result.gap <= 2e-6 or not result.status.has_solution
    if not result.status.has_solution:
        assert result.message


@settings(max_examples=60, deadline=None)
@given(problems(wild=True, most_devices=3, most_units=5), st.sampled_from(["pulp", "ortools", "cvxpy"]))
def test_programs_never_crash_nor_hang(instance, backend):
    """Amounts 30 orders of magnitude apart: an answer that the checker accepts, or a refusal that names a way out."""
    best, refused = solve(instance), ""
    try:
        result = solve(instance, backend, time_limit_s=5.0)
    except (BackendError, UnsupportedError) as error:
        refused = str(error)
    if refused:
        assert "exact" in refused
        return
    assert result.bound <= best.objective * (1 + 1e-6)
    if result.status.has_solution:
        assert result.objective >= best.bound * (1 - 1e-9)
    else:
        assert result.status.reason == "time_limit" or not best.status.has_solution


@settings(max_examples=60, deadline=None)
@given(problems(extras=("fixed_s", "shared", "mixed", "latency", "overlapped", "steps", "max_makespan", "max_energy")))
def test_cvxpy_divides_the_medium_alike(instance):
    """The same instance with every load given: what is best without memory limits, held by memory and least units."""
    best = solve(instance)
    loads = np.array(best.solution.loads if best.status.has_solution else [instance.num_units])
    if not best.status.has_solution or not (loads > 0).all():
        loads = np.full(instance.num_devices, 1 + instance.num_units)
        loads[0] += 1
    given = replace(
        instance, num_units=int(loads.sum()), min_units=loads, memory_bytes=loads.astype(float),
        unit_memory_bytes=np.ones(len(loads)), fixed_memory_bytes=np.zeros(len(loads)),
    )  # fmt: skip
    assert "choice" not in given.features()
    exact = solve(given)
    assert_equal_to_brute_force(given, solve(given, "cvxpy"), exact.objective)


@settings(max_examples=25, deadline=None)
@given(problems(most_devices=20, most_units=60, objectives=("makespan", "energy")))
def test_larger_ones_are_proven(instance):
    result = solve(instance, time_limit_s=20)
    assert result.status.reason in ("optimal", "infeasible")


def library(seed: int, num_devices: int = 64, num_units: int = 512, **more) -> Divisible:
    rng = np.random.default_rng(seed)
    fields = {
        "num_units": num_units,
        "unit_s": 2e-3 / rng.lognormal(0, 0.8, num_devices),
        "fixed_s": rng.uniform(1e-3, 2e-2, num_devices),
        "fixed_bytes": rng.uniform(2e4, 2e5, num_devices),
        "unit_bytes": rng.uniform(1e3, 8e3, num_devices),
        "rate_bytes_per_s": rng.lognormal(18, 0.6, num_devices),
        "latency_s": rng.uniform(1e-3, 5e-3, num_devices),
        "shared": True,
        "power_w": rng.uniform(3, 40, num_devices),
        "byte_j": rng.uniform(1e-8, 1e-6, num_devices),
    }
    return Divisible(**{**fields, **more})


@pytest.mark.parametrize("shared", [True, False])
def test_a_weighted_sum_is_proven(shared):
    instance = library(3, num_devices=16, num_units=128, shared=shared, objective={"makespan": 1.0, "energy": 0.01})
    result = solve(instance)
    assert result.status.reason == "optimal"
    assert result.gap <= 1e-6


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("exchange", ["synchronous", "overlapped"])
def test_no_move_of_units_helps_at_full_size(seed, exchange):
    instance = library(seed, exchange=exchange)
    result = solve(instance)
    assert result.status.reason == "optimal"
    assert result.gap <= 1e-9
    rng = np.random.default_rng(seed)
    for _ in range(200):
        loads = np.array(result.solution.loads)
        i, j = rng.choice(np.flatnonzero(loads)), rng.integers(64)
        moved = int(rng.integers(1, loads[i] + 1))
        loads[i] -= moved
        loads[j] += moved
        other = evaluate(instance, Solution(tuple(loads), tuple(best_shares(instance, loads))))
        assert other.objective >= result.objective * (1 - 1e-9)


def test_one_device_takes_everything():
    result = solve(Divisible(5, [2.0], fixed_s=[1.0]))
    assert result.solution.loads == (5,)
    assert result.objective == 11.0


def test_equal_devices_share_equally():
    result = solve(Divisible(12, [1.0] * 4))
    assert result.solution.loads == (3, 3, 3, 3)
    assert result.objective == 3.0
    assert solve(Divisible(13, [1.0] * 4)).objective == 4.0


def test_a_fixed_cost_leaves_a_device_idle():
    result = solve(Divisible(4, [1.0, 1.0], fixed_s=[0.0, 10.0]))
    assert result.solution.loads == (4, 0)
    assert solve(Divisible(40, [1.0, 1.0], fixed_s=[0.0, 10.0])).solution.loads == (25, 15)


def test_the_medium_is_shared_where_it_ends_everything_together():
    # τ − 1 = 2/b1, τ − 2 = 3/b2 with loads (1, 1): 2/(τ−1) + 3/(τ−2) = 1
    instance = Divisible(
        2, [1.0, 2.0], fixed_bytes=[2.0, 3.0], rate_bytes_per_s=[1.0, 1.0], shared=True, max_devices=2,
        memory_bytes=[1.0, 1.0], unit_memory_bytes=[1.0, 1.0],
    )  # fmt: skip
    p, q = 8.0, 2 + 4 + 3
    assert solve(instance).objective == pytest.approx((p + math.sqrt(p * p - 4 * q)) / 2, rel=1e-12)


def test_overlapped_exchange_counts_only_where_it_exceeds_compute():
    fields = {"num_units": 4, "unit_s": [1.0], "fixed_bytes": [3.0], "rate_bytes_per_s": [1.0]}
    assert solve(Divisible(**fields)).objective == 7.0
    assert solve(Divisible(**fields, exchange="overlapped")).objective == 4.0
    assert solve(Divisible(**{**fields, "fixed_bytes": [9.0]}, exchange="overlapped")).objective == 9.0


def test_all_wait_once_for_the_slowest():
    # 3 + 1 seconds a unit on the first device, 1 + 3 on the second: two units each are done after 8 seconds of work,
    # of which they wait for each other: 6 until both are through the first part, 6 for the rest.
    fields = {"num_units": 4, "unit_s": [1.0, 3.0], "lead_unit_s": [3.0, 1.0]}
    assert evaluate(Divisible(**fields), Solution((2, 2), (1.0, 1.0))).objective == 12.0
    assert evaluate(Divisible(**fields), Solution((2, 2), (1.0, 1.0))).terms["lead_s"] == 6.0
    assert solve(Divisible(**fields)).objective == solve(Divisible(**fields), "pulp").objective == 12.0
    assert solve(Divisible(**fields, lead_s=[100.0, 0.0])).solution.loads == (0, 4)
    late = solve(Divisible(**fields, max_makespan_s=11.0))
    assert late.status.reason == "infeasible"
    assert "the fastest division takes 12 s" in late.message


def test_steps_wait_for_what_the_others_computed():
    # Two units each: 2 + 1 seconds on the first device, 6 + 1 on the second, so that the second never waits: 6, not 7.
    fields = {"num_units": 4, "unit_s": [1.0, 3.0], "fixed_bytes": [1.0, 1.0], "rate_bytes_per_s": [1.0, 1.0]}
    pairs = Divisible(**fields, exchange="pairwise")
    assert evaluate(pairs, Solution((2, 2), (1.0, 1.0))).objective == 6.0
    assert evaluate(pairs, Solution((3, 1), (1.0, 1.0))).objective == (4.0 + 4.0) / 2
    assert evaluate(pairs, Solution((4, 0), (1.0, 0.0))).objective == 5.0, "alone as in one step"
    assert solve(pairs).objective == 4.0
    late = solve(replace(pairs, max_makespan_s=3.5))
    assert "the fastest division takes 4 s" in late.message
    with pytest.raises(UnsupportedError, match="pairwise"):
        solve(pairs, "pulp")
    with pytest.raises(InstanceError, match="energy counts"):
        Divisible(**fields, exchange="pairwise", power_w=[1.0, 1.0], objective="energy")


@pytest.mark.parametrize("seed", range(12))
def test_many_steps_take_what_pairs_of_devices_say(seed):
    """Step by step: a device goes on once it is done and has heard from all others, who send when they are done."""
    rng = np.random.default_rng(seed)
    D, steps = int(rng.integers(2, 6)), 2000
    computing, travel = rng.uniform(1, 3, D), rng.uniform(0, 3, D)
    done = computing.copy()
    for _ in range(steps - 1):
        arrived = done + travel
        begins = [max(done[d], max(arrived[k] for k in range(D) if k != d)) for d in range(D)]
        done = np.array(begins) + computing
    instance = Divisible(
        D, computing, unit_bytes=travel, rate_bytes_per_s=np.ones(D), exchange="pairwise", num_steps=np.full(D, steps)
    )
    value = evaluate(instance, Solution((1,) * D, (1.0,) * D)).objective
    assert value == pytest.approx(done.max(), abs=20)


def test_steps_multiply_everything():
    one = Divisible(4, [1.0], fixed_s=[1.0], fixed_bytes=[2.0], rate_bytes_per_s=[4.0], latency_s=[0.25])
    three = Divisible(
        4, [1.0], fixed_s=[1.0], fixed_bytes=[2.0], rate_bytes_per_s=[4.0], latency_s=[0.25], num_steps=[3]
    )
    assert solve(three).objective == 3 * solve(one).objective == 17.25


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"memory_bytes": [2.0, 3.0], "unit_memory_bytes": [1.0, 1.0]}, "hold 5 units of 6, 1 too few"),
        (
            {"memory_bytes": [2.0, 5.0], "unit_memory_bytes": [1.0, 1.0], "max_devices": 1},
            "hold 5 units of 6, 1 too few",
        ),
        ({"min_units": [4, 4], "memory_bytes": [5.0, 5.0], "unit_memory_bytes": [1, 1]}, "min_units: no loads"),
        (
            {"min_units": [4, 4], "memory_bytes": [5.0, 5.0], "unit_memory_bytes": [1, 1]},
            "possible are 5 (1 fewer) or 8 (2 more)",
        ),
        ({"max_makespan_s": 2.5}, "max_makespan_s is 2.5 s, the fastest division takes 3 s, 0.5 s too long"),
        ({"max_energy_j": 5.0, "power_w": [1.0, 2.0]}, "the least energy of any division is 6 J, 1 J too much"),
        (
            {"max_energy_j": 7.5, "power_w": [1.0, 2.0], "max_makespan_s": 4.0},
            "within max_makespan_s = 4 s at least 8 J are needed, 0.5 J too much",
        ),
        ({"fixed_bytes": [1.0, 1.0], "rate_bytes_per_s": [0.0, 0.0]}, "device 0 has no link for its 1 bytes"),
        ({"unit_s": [math.inf, math.inf]}, "device 0 cannot compute"),
        ({"min_units": [7, 7]}, "min_units[0] is 7, above num_units = 6"),
        (
            {"fixed_memory_bytes": [9.0, 9.0], "memory_bytes": [8.0, 8.0]},
            "device 0 needs 9 bytes for 1 units, its memory is 8 bytes",
        ),
    ],
)
def test_infeasible_names_the_limit_and_by_how_much(fields, sentence):
    result = solve(Divisible(**{"num_units": 6, "unit_s": [1.0, 1.0], **fields}))
    assert result.status.reason == "infeasible"
    assert sentence in result.message


def test_time_limit_keeps_the_best_loads_and_a_bound():
    instance = library(2, objective={"makespan": 1.0, "energy": 0.01})
    started = time.perf_counter()
    result = solve(instance, time_limit_s=0.5)
    assert time.perf_counter() - started < 0.5 + 0.5
    assert result.status.has_solution
    assert 0 < result.bound <= result.objective


def test_a_gap_is_kept():
    result = solve(library(0, objective={"makespan": 1.0, "energy": 0.01}), gap=0.05)
    assert result.gap <= 0.05


def test_warm_start_is_never_lost():
    instance = library(1, num_devices=16, num_units=64)
    best = solve(instance)
    again = solve(instance, warm_start=best)
    assert again.objective == pytest.approx(best.objective, rel=1e-9)


def test_sixteen_threads_give_the_same_answers():
    weights = {"makespan": 1.0, "energy": 0.01}
    instances = [library(seed, num_devices=12, num_units=60) for seed in range(8)]
    instances += [library(seed, num_devices=6, num_units=30, objective=weights) for seed in range(8)]
    alone = [solve(instance) for instance in instances]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(solve, instances))
    for a, b in zip(alone, together, strict=True):
        assert (a.objective, a.bound, a.solution) == (b.objective, b.bound, b.solution)


def test_capabilities_are_features():
    assert all(supported <= FEATURES for supported in CAPABILITIES.values())
    with pytest.raises(UnsupportedError, match="cannot express shared"):
        solve(library(0, num_devices=3, num_units=4), "ortools")
    with pytest.raises(UnsupportedError, match="cannot express choice"):
        solve(library(0, num_devices=3, num_units=4), "cvxpy")
