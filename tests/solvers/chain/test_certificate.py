"""Starting a proof from an earlier one: never another optimum, never a bound above it, whatever it starts from."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from edgeopt_solvers import WarmStart, solve
from edgeopt_solvers.chain import Certificate, Chain, carried_start, without
from edgeopt_solvers.chain.large import try_solve
from edgeopt_solvers.chain.large.clock import Clock
from edgeopt_solvers.chain.large.latency import minimise
from edgeopt_solvers.chain.large.view import additive_view
from edgeopt_solvers.solve import Options
from tests.solvers.chain.test_scale import subset_dp
from tests.solvers.generators import cluster


def drawn(seed: int, **fields: object) -> Chain:
    return cluster(14, 8, seed=seed, load=0.6, source=False, **fields)


@pytest.mark.parametrize("seed", range(20))
def test_no_certificate_changes_the_optimum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    chain = drawn(seed, distinct=seed % 3 > 0, num_types=5)
    optimum = subset_dp(chain)
    plan = try_solve(chain, Options()).solution  # type: ignore[union-attr]
    certificate = Certificate(
        price=rng.uniform(0, 0.4, 8) * optimum, objective=optimum * rng.uniform(0.2, 5),
        remembers=rng.random((15, 8, 8)) < rng.uniform(0, 1),
    )  # fmt: skip
    result = try_solve(chain, Options(warm_start=plan, certificate=certificate))
    assert result is not None
    assert result.objective == pytest.approx(optimum, rel=1e-9)
    assert result.bound <= optimum * (1 + 1e-9)


def test_a_certificate_proves_its_own_chain_again_at_once() -> None:
    proven = 0
    for seed in range(6):
        chain = cluster(40, 20, seed=seed, load=0.6, links="asymmetric")
        first = solve(chain)
        certificate = first.certificate
        if certificate is None or certificate.remembers is None:
            continue
        again = solve(chain, warm_start=first)
        assert again.objective == pytest.approx(first.objective, rel=1e-12)
        assert again.statistics["labels"] <= first.statistics["labels"]
        proven += 1
    assert proven >= 2


@pytest.mark.parametrize("seed", range(6))
def test_carried_to_other_devices(seed: int) -> None:
    chain = cluster(40, 20, seed=seed, load=0.6, links="asymmetric")
    result = solve(chain)
    left, index = without(chain, {result.solution.devices[len(result.solution.devices) // 2]})
    start = carried_start(left, result, index)
    assert start.certificate is None or len(start.certificate.price) == left.num_devices == chain.num_devices - 1
    assert solve(left, warm_start=start).objective == pytest.approx(solve(left).objective, rel=1e-9)


def test_renumbering_keeps_what_is_known_of_each_device() -> None:
    remembers = np.zeros((3, 3, 3), bool)
    remembers[1, 0, 2] = remembers[2, 1, 0] = True
    moved = Certificate(np.array([1.0, 2.0, 3.0]), 5.0, remembers).renumbered([2, None, 0], 4)
    assert moved.price.tolist() == [3.0, 0.0, 1.0, 0.0]
    assert np.argwhere(moved.remembers).tolist() == [[1, 2, 0]]
    assert moved.objective == 5.0


def test_a_certificate_of_something_else_is_ignored() -> None:
    chain = drawn(1)
    wrong = WarmStart(certificate=Certificate(np.ones(3), 1.0, np.ones((2, 3, 3), bool)))
    assert solve(chain, warm_start=wrong).objective == solve(chain).objective
    assert solve(chain, warm_start=WarmStart(certificate="no")).objective == solve(chain).objective


def test_no_time_is_not_a_refutation() -> None:
    view = additive_view(drawn(2))
    with Clock(None) as clock:
        clock.stop[0] = 1
        proof = minimise(view, clock)
    assert proof.path is None
    assert proof.bound < math.inf
    assert replace(proof, rounds=0).bound == proof.bound
