"""The large engine for one reserved medium: equal to the general engine and to the reference, and its reach."""

from __future__ import annotations

import itertools
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from edgeopt_solvers import solve
from edgeopt_solvers.chain import Chain, evaluate, general
from edgeopt_solvers.chain.large import kernels_joint, supports, supports_joint, try_solve
from edgeopt_solvers.chain.large.clock import Clock
from edgeopt_solvers.chain.large.joint import joint_view
from edgeopt_solvers.chain.large.prices import raise_prices
from edgeopt_solvers.chain.large.tangents import Tangent, Tangents
from edgeopt_solvers.solve import Options
from tests.solvers.chain.brute_media import brute_force_with_media
from tests.solvers.generators import cluster, tiny


def reserved(chain: Chain, part: float = 1.0, seed: int = 0) -> Chain:
    """Put ``part`` of the links into one reserved medium."""
    shape = (chain.num_devices,) * 2
    inside = np.random.default_rng(seed).random(shape) < part
    return replace(chain, medium=np.where(inside, 0, -1), media=("reserved",))


def small(seed: int) -> Chain:
    """The seed's instance, small enough for the general engine; its bytes span eight magnitudes."""
    chain = tiny(seed) if seed % 3 else cluster(4 + seed % 6, 2 + seed % 5, seed=seed, load=0.2 + 0.1 * (seed % 7))
    return reserved(replace(chain, cut_bytes=chain.cut_bytes * 10.0 ** (2 * (seed % 5) - 4)), 0.8, seed)


#: Seeds whose draw reserves a link (a chain of one device has none).
SEEDS = list(itertools.islice((seed for seed in itertools.count() if supports_joint(small(seed))), 120))


@pytest.mark.parametrize("seed", SEEDS)
def test_small_instances_equal_the_general_engine(seed):
    chain = small(seed)
    assert not supports(chain)
    ours, theirs = try_solve(chain, Options()), general.solve(chain, Options())
    assert ours.status == theirs.status
    assert ours.objective == pytest.approx(theirs.objective, rel=1e-8)
    if ours.status.has_solution:
        assert evaluate(chain, ours.solution).violations == ()
        assert ours.bound <= theirs.objective * (1 + 1e-8)


@pytest.mark.parametrize("seed", [s for s in SEEDS if small(s).num_devices ** small(s).num_elements <= 4_000][:40])
def test_engine_cones_and_brute_force_agree(seed):
    chain = small(seed)
    best = brute_force_with_media(chain)
    ours, cones = try_solve(chain, Options()), solve(chain, "cvxpy")
    if math.isinf(best):
        assert ours.status.reason == cones.status.reason == "infeasible"
        return
    assert ours.status.reason == cones.status.reason == "optimal"
    assert ours.objective == pytest.approx(best, rel=1e-8)
    assert cones.objective == pytest.approx(best, rel=1e-6)


def test_a_finished_search_is_within_its_gap():
    """A pass that finds a much cheaper plan allowed for the dearer one's rounding, and is repeated."""
    chain = reserved(replace(tiny(146), cut_bytes=tiny(146).cut_bytes), 0.8, 146)
    for seed in SEEDS[:30]:
        for gap in (0.0, 0.01):
            result = try_solve(small(seed), Options(gap=gap))
            assert result.status.reason in ("optimal", "infeasible") or result.gap <= gap
    assert try_solve(chain, Options()).status.reason == "optimal"


# ── bounds ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(20))
def test_the_lowest_point_of_parabolas_is_found_and_never_above(seed):
    rng = np.random.default_rng(seed)
    num = 1 + seed % 4
    mu, value = np.sort(rng.uniform(0, 3, num)), rng.uniform(0, 2, num)
    low, high = np.sort(rng.uniform(-0.5, 3.5, 2))
    grid = np.linspace(low, high, 20_001)
    truth = (value[:, None] + (grid[None, :] - mu[:, None]) ** 2).max(axis=0).min()
    found = kernels_joint.envelope(value, mu, low, high)
    assert found <= truth + 1e-12
    if num <= 2:
        assert found == pytest.approx(truth, abs=1e-6)
    assert kernels_joint.envelope(value, mu, high, low - 1.0) == np.inf


def test_tangents_bound_every_plan_and_bracket_its_root():
    joint = joint_view(reserved(cluster(9, 4, seed=3, load=0.6)))
    keep = np.arange(joint.view.num_devices - 1)
    joint = joint.keep(keep)
    best = general.solve(reserved(cluster(9, 4, seed=3, load=0.6)), Options())
    path = joint.view.path(best.solution)
    assert joint.cost(path) == pytest.approx(best.objective)
    tangents = Tangents()
    with Clock(None) as clock:
        for mu in np.array([0.3, 1.0, 2.0]) * joint.root(path):
            tangent = Tangent.of(mu, joint.at(mu))
            tangent.raise_prices(clock, start=None, target=np.inf, iterations=100)
            assert tangent.value <= joint.cost(path) - (joint.root(path) - mu) ** 2 + 1e-12
            again = raise_prices(tangent.view, tangent.into, clock, start=None, target=np.inf, iterations=100)
            assert tangent.bound == again.bound
            tangents.add(tangent)
    at, bound = tangents.lowest()
    assert max(tangents.value) <= bound <= joint.cost(path) * (1 + 1e-12)
    low, high = tangents.range(joint.cost(path) * (1 + 1e-9))
    assert low - 1e-9 <= at <= high + 1e-9
    assert low <= joint.root(path) <= high
    assert tangents.range(bound - 1e-9)[0] > tangents.range(bound - 1e-9)[1]


@pytest.mark.parametrize("seed", range(2))
def test_the_tangent_programs_find_the_same_at_6_by_16(seed):
    chain = reserved(cluster(16, 6, seed=seed))
    ours = try_solve(chain, Options())
    assert ours.status.reason == "optimal"
    for backend in ("pulp", "cvxpy"):
        theirs = solve(chain, backend)
        assert theirs.status.reason == "optimal"
        assert theirs.objective == pytest.approx(ours.objective, rel=1e-6)


@pytest.mark.parametrize(("seed", "load"), [(0, 0.15), (4, 0.15), (4, 0.4), (1, 0.5)])
def test_large_instances_are_proven(seed, load):
    chain = reserved(cluster(128, 64, seed=seed, load=load))
    result = solve(chain, time_limit_s=60)
    assert result.status.reason == "optimal"
    assert len(result.solution.shares) == len(result.solution.cuts) + 1  # the input and the result, too


def test_what_the_engine_does_not_know_is_left_to_the_general_one():
    chain = reserved(cluster(12, 4, seed=0))
    assert supports_joint(chain)
    assert not supports_joint(replace(chain, max_latency_s=1.0))
    assert not supports_joint(replace(chain, objective="throughput"))
    two = np.where(np.arange(chain.num_devices)[:, None] % 2 == 0, 0, 1) * np.ones((1, chain.num_devices))
    assert not supports_joint(replace(chain, medium=two, media=("reserved", "reserved"), band_hz=None))
    assert not supports_joint(replace(chain, band_hz=[1e6], snr=np.ones((chain.num_devices,) * 2)))


@pytest.mark.parametrize("limit_s", [0.05, 0.3, 1.0])
def test_time_limits_are_kept(limit_s):
    chain = reserved(cluster(128, 64, seed=3, load=0.7))
    try_solve(reserved(cluster(20, 12, seed=0)), Options())  # loads the compiled loops
    busy, started = time.process_time(), time.perf_counter()
    result = try_solve(chain, Options(time_limit_s=limit_s))
    over = time.perf_counter() - started - limit_s
    # waiting for a core is not the engine's: what it worked itself counts
    assert min(over, time.process_time() - busy - limit_s) < 0.2
    assert result.status.reason == "time_limit"
    if result.status.has_solution:
        assert 0 < result.bound <= result.objective


def test_sixteen_threads_and_warm_starts_give_the_same():
    instances = [reserved(cluster(40, 16, seed=seed)) for seed in range(4)]
    alone = [try_solve(chain, Options()) for chain in instances]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda chain: try_solve(chain, Options()), instances * 4))
    for one, other in zip(alone * 4, together, strict=True):
        assert (one.objective, one.bound, one.solution) == (other.objective, other.bound, other.solution)
    for chain, known in zip(instances, alone, strict=True):
        again = try_solve(chain, Options(warm_start=known.solution))
        assert again.objective == pytest.approx(known.objective, rel=1e-9)
        assert again.status.reason == "optimal"
