"""Exact division: closed forms, optimality, certificates, limits, magnitudes."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt_solvers import InstanceError, solve
from edgeopt_solvers.bandwidth import Bandwidth, Solution, evaluate
from tests.solvers.bandwidth.draws import problems

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


def exact_sum(values) -> Fraction:
    return sum((Fraction(float(value)) for value in values), Fraction(0))


def assert_feasible(instance, result):
    assert evaluate(instance, result.solution).violations == ()
    for g in range(instance.num_media):
        chosen = instance.medium == g
        total = exact_sum(result.solution.shares[chosen])
        least = exact_sum(instance.min_share[chosen])
        # exactly kept, unless the least shares alone exceed the budget by rounding
        assert total <= Fraction(float(instance.budget[g])) or float(least) >= instance.budget[g] * (1 - 1e-9)


# ── closed forms ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_sum_is_the_square_of_the_sum_of_roots():
    size, rate, weight = np.array([4.0, 9.0, 1.0]), np.array([1.0, 2.0, 5.0]), np.array([1.0, 2.0, 0.5])
    result = solve(Bandwidth(size, rate, weight=weight))
    root = np.sqrt(weight * size / rate)
    assert result.objective == pytest.approx(root.sum() ** 2, rel=1e-14)
    assert result.solution.shares == pytest.approx(root / root.sum(), rel=1e-14)
    assert result.gap <= 1e-14
    assert result.statistics["num_steps"] == 1


def test_max_of_equal_starts_is_the_sum_of_transfers():
    size, rate = np.array([4.0, 9.0, 1.0]), np.array([1.0, 2.0, 5.0])
    result = solve(Bandwidth(size, rate, objective="max"))
    assert result.objective == pytest.approx((size / rate).sum(), rel=1e-14)
    assert result.solution.shares == pytest.approx(size / rate / (size / rate).sum(), rel=1e-14)


def test_max_of_two_flows_solves_its_quadratic():
    # a1/(τ − c1) + a2/(τ − c2) = 1
    a1, a2, c1, c2 = 2.0, 3.0, 1.0, 4.0
    p, q = c1 + c2 + a1 + a2, c1 * c2 + a1 * c2 + a2 * c1
    tau = (p + math.sqrt(p * p - 4 * q)) / 2
    assert solve(Bandwidth([a1, a2], [1.0, 1.0], fixed_s=[c1, c2], objective="max")).objective == pytest.approx(tau)


def test_radio_in_bits_and_bytes():
    # one flow alone: B log2(1 + γ) bits/s
    result = solve(Bandwidth([1e6], band_hz=[20e6], snr=[3.0]))
    assert result.objective == pytest.approx(8e6 / (20e6 * 2.0), rel=1e-14)


def test_equal_radio_flows_share_equally():
    result = solve(Bandwidth([1e6] * 4, band_hz=[20e6], snr=[3.0] * 4))
    assert result.solution.shares == pytest.approx([0.25] * 4, rel=1e-12)
    assert result.objective == pytest.approx(4 * 8e6 / (5e6 * math.log2(13.0)), rel=1e-13)


def test_weak_radio_signals_do_not_mind_a_narrow_slice():
    # γ/b → 0: R → γ B / ln 2 whatever the share
    snr = 1e-9
    result = solve(Bandwidth([1.0] * 3, band_hz=[1e6], snr=[snr] * 3))
    assert result.objective == pytest.approx(3 * 8 * math.log(2) / (1e6 * snr), rel=1e-6)


def test_media_do_not_touch_each_other():
    rng = np.random.default_rng(0)
    size, rate, medium = rng.lognormal(0, 1, 30), rng.lognormal(0, 1, 30), rng.integers(0, 3, 30)
    both = solve(Bandwidth(size, rate, medium=medium)).objective
    alone = [solve(Bandwidth(size[medium == g], rate[medium == g])).objective for g in range(3)]
    assert both == pytest.approx(sum(alone), rel=1e-13)


# ── optimality of what hypothesis draws ──────────────────────────────────────────────────────────────────────────


@settings(max_examples=250, deadline=None)
@given(problems(most_flows=12))
def test_proven_and_feasible(instance):
    result = solve(instance)
    if not result.status.has_solution:
        assert result.status.reason == "infeasible"
        assert result.message
        return
    assert result.status.reason == "optimal"
    assert result.gap <= 1e-9
    assert result.bound <= result.objective
    assert_feasible(instance, result)


@settings(max_examples=300, deadline=None)
@given(problems(most_flows=12, wild=True))
def test_magnitudes(instance):
    result = solve(instance)
    if result.status.has_solution:
        assert result.status.reason == "optimal"
        assert result.gap <= 1e-9
        assert_feasible(instance, result)
    else:
        assert result.status.reason == "infeasible"
        assert result.message


@settings(max_examples=150, deadline=None)
@given(problems(most_flows=6, objectives=("sum",)), st.integers(0, 2**32 - 1))
def test_no_random_allocation_beats_the_bound(instance, seed):
    """Feasible points anywhere, and moves of a little share between two flows, cost at least the bound."""
    result = solve(instance)
    if not result.status.has_solution:
        return
    rng = np.random.default_rng(seed)
    shares = result.solution.shares
    candidates = [rng.random(instance.num_flows) for _ in range(10)]
    for g in range(instance.num_media):
        for point in candidates:
            on_g = instance.medium == g
            if on_g.any():
                point[on_g] *= instance.budget[g] / point[on_g].sum()
    for _ in range(20):
        i, j = rng.integers(0, instance.num_flows, 2)
        if instance.medium[i] == instance.medium[j]:
            moved = shares.copy()
            amount = moved[i] * 10.0 ** rng.uniform(-6, -0.1)
            moved[i], moved[j] = moved[i] - amount, moved[j] + amount
            candidates.append(moved)
    for point in candidates:
        evaluation = evaluate(instance, Solution(point))
        if not evaluation.violations:
            assert evaluation.objective >= result.bound * (1 - 1e-9)


@settings(max_examples=100, deadline=None)
@given(problems(most_flows=8, objectives=("sum",), limits=False))
def test_prices_of_a_medium_agree(instance):
    """KKT: without limits the weighted saving per unit of share is the same for all flows of a medium."""
    result = solve(instance)
    if not result.status.has_solution:
        return
    shares = result.solution.shares
    moving = (instance.size_bytes > 0) & (instance.weight > 0)
    step = 1e-5
    ends = []
    for factor in (1 - step, 1 + step):
        b = shares * factor
        radio = instance.band_hz[instance.medium] * b * np.log1p(instance.snr / np.where(b > 0, b, 1)) / math.log(2) / 8
        rate = np.where(instance.is_radio, radio, b * instance.rate_bytes_per_s)
        ends.append(instance.weight * instance.size_bytes / np.where(moving, rate, 1.0))
    price = (ends[0] - ends[1]) / np.where(moving, 2 * step * shares, 1.0)
    for g in range(instance.num_media):
        on_g = price[moving & (instance.medium == g)]
        assert on_g == pytest.approx(on_g[:1].repeat(len(on_g)), rel=1e-4)


# ── limits at their edges ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("objective", ["sum", "max"])
@pytest.mark.parametrize("radio", [False, True])
def test_deadlines_exactly_tight(objective, radio):
    rng = np.random.default_rng(1)
    rates = {"band_hz": [2e7], "snr": rng.lognormal(0, 1, 40)} if radio else {"rate_bytes_per_s": np.full(40, 3e6)}
    free = Bandwidth(rng.lognormal(13, 1, 40), **rates, fixed_s=rng.random(40))
    shares = rng.dirichlet(np.ones(40))
    from edgeopt_solvers.bandwidth.check import flow_seconds

    tight = Bandwidth(
        free.size_bytes, **rates, fixed_s=free.fixed_s, objective=objective,
        deadline_s=flow_seconds(free, shares)[1],
    )  # fmt: skip
    result = solve(tight)
    assert result.status.reason == "optimal"
    assert result.solution.shares == pytest.approx(shares, rel=1e-6)
    early = Bandwidth(
        free.size_bytes, **rates, fixed_s=free.fixed_s, objective=objective, deadline_s=tight.deadline_s * (1 - 1e-6)
    )
    late = solve(early)
    assert late.status.reason == "infeasible"
    assert late.message.startswith("medium 0: minimum shares and deadlines need 1.00000")


@pytest.mark.parametrize("objective", ["sum", "max"])
@pytest.mark.parametrize("low", [[0.1] * 10, [0.25] * 4, [1 / 3] * 3, [1.0], [0.7, 0.1, 0.2]])
def test_minimum_shares_that_fill_the_medium(low, objective):
    num_flows = len(low)
    result = solve(Bandwidth([5.0] * num_flows, [1.0] * num_flows, min_share=low, objective=objective))
    assert result.status.reason == "optimal"
    assert result.solution.shares == pytest.approx(low, rel=1e-9)


def test_minimum_shares_above_the_budget_are_named():
    result = solve(Bandwidth([5.0] * 4, [1.0] * 4, medium=[0, 1, 1, 0], min_share=[0.1, 0.5, 0.6, 0.1]))
    assert result.status.reason == "infeasible"
    assert "medium 1" in result.message
    assert "0.1 too much" in result.message


def test_nothing_left_for_a_flow_without_a_limit():
    result = solve(Bandwidth([5.0, 5.0], [1.0, 1.0], min_share=[1.0, 0.0]))
    assert result.status.reason == "infeasible"
    assert "nothing is left for flow 1" in result.message
    unweighted = solve(Bandwidth([5.0, 5.0], [1.0, 1.0], min_share=[1.0, 0.0], weight=[1.0, 0.0]))
    assert unweighted.objective == 5.0
    assert unweighted.metrics["latest_s"] == math.inf


def test_deadline_before_the_flow_may_start():
    result = solve(Bandwidth([5.0, 0.0], [1.0, 1.0], fixed_s=[0.0, 3.0], deadline_s=[math.inf, 2.0]))
    assert result.status.reason == "infeasible"
    assert "flow 1" in result.message
    assert "(1 s too late)" in result.message


def test_deadline_out_of_reach_of_the_whole_medium():
    result = solve(Bandwidth([5.0], band_hz=[8.0], snr=[1.0], deadline_s=[4.0]))  # 5 bytes at 1 byte/s
    assert result.status.reason == "infeasible"
    assert "flow 0 on medium 0 needs 5 s" in result.message


def test_no_link():
    assert "flow 1 on medium 0 has no link" in solve(Bandwidth([1.0, 2.0], [1.0, 0.0])).message
    assert "flow 0 on medium 0 has no link" in solve(Bandwidth([1.0], band_hz=[1.0], snr=[0.0])).message
    assert solve(Bandwidth([1.0, 0.0], [1.0, 0.0])).objective == 1.0


@pytest.mark.parametrize("objective", ["sum", "max"])
def test_all_flows_empty(objective):
    result = solve(Bandwidth([0.0] * 3, [1.0] * 3, fixed_s=[1.0, 2.0, 3.0], objective=objective))
    assert result.objective == (6.0 if objective == "sum" else 3.0)
    assert result.solution.shares.tolist() == [0.0] * 3
    assert result.gap == 0.0


def test_infinite_rate_is_free():
    assert solve(Bandwidth([5.0, 7.0], [math.inf, 2.0])).objective == 3.5


def test_upper_limits_with_room_to_spare():
    result = solve(Bandwidth([1.0, 1.0], [1.0, 1.0], max_share=[0.2, 0.3]))
    assert result.solution.shares.tolist() == [0.2, 0.3]
    assert result.objective == pytest.approx(5 + 10 / 3)


def test_short_transfer_after_a_long_start_keeps_its_digits():
    starts = np.array([1e6, 1e6, 0.0])
    result = solve(Bandwidth([1e-4, 3e-4, 5.0], [1.0] * 3, fixed_s=starts, objective="max"))
    assert result.solution.shares[1] / result.solution.shares[0] == pytest.approx(3.0, rel=1e-9)
    assert result.gap <= 1e-14


def test_tiny_rest_beside_large_minimum_shares():
    result = solve(Bandwidth([1.0, 1.0, 4.0], [1.0] * 3, min_share=[1 - 1e-9, 0.0, 0.0]))
    assert result.gap <= 1e-9
    assert result.solution.shares[2] / result.solution.shares[1] == pytest.approx(2.0, rel=1e-6)


# ── running it ───────────────────────────────────────────────────────────────────────────────────────────────────


def large(seed=0, objective="sum", num_flows=10_000, num_media=100):
    rng = np.random.default_rng(seed)
    return Bandwidth(
        rng.lognormal(13, 1.5, num_flows), medium=np.arange(num_flows) % num_media, band_hz=np.full(num_media, 20e6),
        snr=rng.lognormal(-2, 1.5, num_flows), weight=rng.uniform(0.5, 2, num_flows), objective=objective,
    )  # fmt: skip


@pytest.mark.parametrize("objective", ["sum", "max"])
def test_ten_thousand_flows(objective):
    result = solve(large(objective=objective))
    assert result.status.reason == "optimal"
    assert result.gap <= 1e-12


def test_threads_and_repeats_agree():
    instances = [large(seed, objective, 500, 5) for seed in range(16) for objective in ("sum", "max")]
    alone = [solve(instance) for instance in instances]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(solve, instances))
    for a, b in zip(alone, together, strict=True):
        assert (a.objective, a.bound) == (b.objective, b.bound)
        assert a.solution == b.solution


def test_warm_start_gives_the_same_answer():
    instance = large(3, num_flows=1000, num_media=10)
    cold = solve(instance)
    warm = solve(instance, warm_start=cold)
    assert warm.objective == pytest.approx(cold.objective, rel=1e-13)
    assert warm.statistics["num_steps"] <= cold.statistics["num_steps"]
    assert solve(instance, warm_start=Solution([1.0])).objective == cold.objective


def test_time_limit_still_returns_an_allocation():
    instance = large(4)
    result = solve(instance, time_limit_s=1e-9)
    assert result.status.has_solution
    assert result.bound <= solve(instance).objective <= result.objective
    assert_feasible(instance, result)


def test_warm_start_must_not_be_negative_or_wrong():
    with pytest.raises(InstanceError, match="shares"):
        Solution([math.nan])


def test_flow_that_hardly_feels_its_share_gives_way_to_the_others():
    """Needed shares of a power-limited flow are known to few digits; the others must not pay for that."""
    result = solve(Bandwidth([1e16, 1.0, 5.0], band_hz=[2e7], snr=[1.5e-12, 1e-3, 1e3], objective="max"))
    assert result.status.reason == "optimal"
    assert result.gap <= 1e-12


def test_memory_does_not_grow():
    import tracemalloc

    instance = large(5, num_flows=50, num_media=2)
    for _ in range(50):
        solve(instance)
    tracemalloc.start()
    for _ in range(500):
        solve(instance)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 100_000
