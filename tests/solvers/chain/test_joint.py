"""The large engine for one reserved medium: equal to the general engine and to the reference, and its reach."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgeopt_solvers import solve
from edgeopt_solvers.chain import Chain, evaluate, general
from edgeopt_solvers.chain.large import supports, supports_joint, try_solve
from edgeopt_solvers.solve import Options
from tests.solvers.generators import cluster, tiny


def reserved(chain: Chain, part: float = 1.0, seed: int = 0) -> Chain:
    """Put ``part`` of the links into one reserved medium."""
    shape = (chain.num_devices,) * 2
    inside = np.random.default_rng(seed).random(shape) < part
    return replace(chain, medium=np.where(inside, 0, -1), media=("reserved",))


@pytest.mark.parametrize("seed", range(60))
def test_small_instances_equal_the_general_engine(seed):
    chain = reserved(tiny(seed), 0.8, seed)
    if not supports_joint(chain):
        pytest.skip("no link is reserved")
    assert not supports(chain)
    ours, theirs = try_solve(chain, Options()), general.solve(chain, Options())
    assert ours.status == theirs.status
    assert ours.objective == pytest.approx(theirs.objective, rel=1e-8)
    if ours.status.has_solution:
        assert evaluate(chain, ours.solution).violations == ()
        assert ours.bound <= theirs.objective * (1 + 1e-8)


@pytest.mark.parametrize("seed", range(2))
def test_the_tangent_program_finds_the_same_at_8_by_32(seed):
    chain = reserved(cluster(32, 8, seed=seed))
    ours = solve(chain)
    assert ours.status.reason == "optimal"
    theirs = solve(chain, "pulp", time_limit_s=100)
    assert theirs.bound <= ours.objective * (1 + 1e-6)
    if theirs.status.reason == "optimal":
        assert theirs.objective == pytest.approx(ours.objective, rel=1e-6)


def test_a_large_instance_is_proven():
    chain = reserved(cluster(128, 64, seed=0, load=0.15))
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


def test_time_limits_are_kept():
    chain = reserved(cluster(128, 64, seed=2, load=0.5))
    result = solve(chain, time_limit_s=0.5)
    assert result.runtime_s < 0.5 + 2.0  # a pass looks at the clock between labels; the machine may be busy
    if result.status.has_solution:
        assert 0 < result.bound <= result.objective
