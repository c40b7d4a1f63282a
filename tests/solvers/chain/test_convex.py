"""The cone reference: equal to brute force, its cones at the plan, its statuses, and what it does at a limit."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from edgeopt_solvers import BackendError, UnsupportedError, solve
from edgeopt_solvers.chain import CAPABILITIES, Chain, convex, evaluate
from edgeopt_solvers.chain.milp import build
from tests.solvers.chain.brute import brute_force
from tests.solvers.chain.brute_media import brute_force_with_media
from tests.solvers.chain.draws import chains
from tests.solvers.chain.test_joint import reserved
from tests.solvers.chain.test_media import media_chains, several
from tests.solvers.generators import cluster


def agree_by_cones(chain: Chain, best: float) -> None:
    if not chain.features() <= CAPABILITIES["cvxpy"]:
        return
    result = solve(chain, "cvxpy")
    if math.isinf(best):
        assert result.status.reason == "infeasible"
        return
    assert result.status.reason == "optimal"
    assert result.objective == pytest.approx(best, rel=1e-6, abs=1e-6)
    assert result.bound <= best + 1e-6 * max(1.0, abs(best))
    assert evaluate(chain, result.solution).violations == ()


@several(30)
@given(chains(max_plans=2_000))
def test_every_feature_without_media(chain):
    agree_by_cones(chain, brute_force(chain))


@several(60)
@given(media_chains(max_plans=800))
def test_shares_at_fixed_rates(chain):
    agree_by_cones(chain, brute_force_with_media(chain))


@several(30)
@given(media_chains(modes=("reserved", "reserved", "time_shared"), radio=True, max_plans=800))
def test_shares_of_radio_bands(chain):
    agree_by_cones(chain, brute_force_with_media(chain))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("radio", [False, True])
def test_the_cones_give_the_cost_and_the_shares_of_a_plan_and_their_relaxation_is_below(seed, radio):
    chain = reserved(cluster(8, 4, seed=seed, load=0.6))
    if radio:
        snr = np.random.default_rng(seed).uniform(0.5, 30.0, chain.rate_bytes_per_s.shape)
        chain = replace(chain, band_hz=[80e6], snr=snr)
    best = solve(chain)
    fixed = convex.relax(build(chain), fixed=best.solution)
    assert fixed.value == pytest.approx(best.objective, rel=1e-6)
    used = [share for share in fixed.shares.values() if share > 1e-3]
    assert sorted(used) == pytest.approx(sorted(s for s in best.solution.shares if s > 1e-3), rel=1e-2)
    assert convex.relax(build(chain)).value <= best.objective * (1 + 1e-6)


def test_far_ratios_do_not_pass_for_optimal():
    """Signal-to-noise ratios over 18 magnitudes: the cone solver's shares lose digits, the plan's cost must not."""
    rng = np.random.default_rng(7)
    compared = 0
    for _ in range(12):
        shape = (3, 3)
        chain = Chain(
            compute_s=rng.uniform(0.1, 5.0, (3, 4)), cut_bytes=rng.uniform(0.5, 5.0, 5),
            rate_bytes_per_s=np.ones(shape), latency_s=np.zeros(shape), source=0,
            resident_bytes=np.ones(4), memory_bytes=[2.0, 2.0, 2.0], medium=np.zeros(shape),
            media=["reserved"], band_hz=[8.0], snr=10.0 ** rng.uniform(-9, 9, shape),
        )  # fmt: skip
        result = solve(chain, "cvxpy")
        assert result.objective == pytest.approx(brute_force_with_media(chain), rel=1e-6)
        compared += result.status.reason == "optimal"
    assert compared == 12


def test_a_time_limit_keeps_the_incumbent_and_a_bound():
    chain = reserved(cluster(24, 8, seed=0))
    known = solve(chain)
    result = solve(chain, "cvxpy", time_limit_s=0.3, warm_start=known)
    assert result.status.reason in ("time_limit", "optimal")
    assert result.objective == pytest.approx(known.objective)
    assert result.bound <= known.objective * (1 + 1e-9)


def test_gaps_that_are_asked_for_are_proven():
    chain = reserved(cluster(16, 5, seed=1))
    result = solve(chain, "cvxpy", gap=0.2)
    assert result.gap <= 0.2
    assert result.bound <= solve(chain).objective * (1 + 1e-9)


def test_statuses_without_a_meaning_are_failures(monkeypatch):
    monkeypatch.setattr(convex, "STATUS", {})
    with pytest.raises(BackendError, match="HiGHS stopped with 'optimal' under cvxpy; use backend='exact'"):
        solve(reserved(cluster(4, 2, seed=0)), "cvxpy")


def test_shares_that_even_out_busy_times_are_refused_by_name():
    with pytest.raises(UnsupportedError, match="'cvxpy' cannot express reserved_period"):
        solve(reserved(replace(cluster(4, 2, seed=0), objective="throughput")), "cvxpy")


@pytest.mark.parametrize("seed", range(8))
def test_links_that_are_nearly_dead_do_not_hide_all_others_in_tolerances(seed):
    rng = np.random.default_rng(seed)
    chain = Chain(
        compute_s=rng.uniform(0.1, 5.0, (3, 4)), cut_bytes=rng.uniform(0.5, 5.0, 5),
        rate_bytes_per_s=np.where(rng.random((3, 3)) < 0.4, 1e-7, 10.0), latency_s=np.zeros((3, 3)),
        source=None, reuse="many", resident_bytes=np.ones(4), memory_bytes=[2.0, 4.0, 2.0],
    )  # fmt: skip
    for backend in ("pulp", "cvxpy"):
        assert solve(chain, backend).objective == pytest.approx(brute_force(chain), rel=1e-6), backend
