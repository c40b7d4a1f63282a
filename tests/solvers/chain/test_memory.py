"""The bound with memory against the subset program: never above the optimum, and its completions lose no plan."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgeopt_solvers.chain.large import labels, latency
from edgeopt_solvers.chain.large.clock import Clock
from edgeopt_solvers.chain.large.latency import Proof
from edgeopt_solvers.chain.large.prices import Memory, raise_prices
from edgeopt_solvers.chain.large.types import merge_types
from edgeopt_solvers.chain.large.view import View, additive_view
from tests.solvers.chain.test_scale import brute_force, subset_dp
from tests.solvers.generators import cluster, tiny


def memory_of(view: View, clock: Clock, **options: int) -> Memory:
    """Memory that starts from unsettled prices, so that there are cycles to remember."""
    into = np.ascontiguousarray(view.link.transpose(0, 2, 1))
    prices = raise_prices(view, into, clock, start=None, target=math.inf, iterations=5)
    return Memory(view, prices, **options)


@pytest.mark.parametrize("distinct", [True, False])
@pytest.mark.parametrize("links", ["pair", "star"])
def test_bound_rises_to_the_optimum_and_not_beyond(distinct: bool, links: str) -> None:
    closed = rising = 0
    for seed in range(12):
        chain = cluster(12, 8, seed=seed, load=0.6, links=links, distinct=distinct, num_types=5, source=False)
        optimum = subset_dp(chain)
        if math.isinf(optimum):
            continue
        view = merge_types(additive_view(chain))
        with Clock(None) as clock:
            memory = memory_of(view, clock)
            for _ in range(8):
                before = memory.bound
                memory.improve(1.1 * optimum, 0.0, 10, clock)
                assert before <= memory.bound <= optimum * (1 + 1e-9), seed
                assert memory.elementary[0] >= optimum * (1 - 1e-9), seed
                rising += memory.bound > before
            for limit in (1.1 * optimum, 0.99 * optimum):
                reached, completions = memory.completions(limit, clock)
                assert reached == limit
                assert completions is not None
                found = labels.search(view, completions, clock, incumbent=limit, tolerance=0.0, width=10_000)
                assert math.isinf(found.cut_off), seed
                if limit > optimum:
                    assert found.cost == pytest.approx(optimum, rel=1e-9), seed
                    assert view.cost(found.path) == pytest.approx(optimum, rel=1e-9), seed
                else:
                    assert not found.path, seed
        closed += memory.bound > optimum * (1 - 1e-6)
    assert closed >= 3
    assert rising >= 10


def test_too_few_labels_lower_the_limit_but_not_the_truth() -> None:
    chain = cluster(12, 8, seed=1, load=0.6, source=False)
    optimum = subset_dp(chain)
    view = additive_view(chain)
    with Clock(None) as clock:
        memory = memory_of(view, clock, most_labels=300)
        for _ in range(20):
            memory.improve(2.0 * optimum, 0.0, 10, clock)
        limit, completions = memory.completions(2.0 * optimum, clock)
        assert completions is not None
        assert memory.bound <= limit < 2.0 * optimum
        assert memory.bound <= optimum * (1 + 1e-9)


def closed_by_memory(view: View, incumbent: float) -> Proof:
    """Prove a view by the last resort alone, which small instances do not need otherwise."""
    with Clock(None) as clock:
        search = latency._Search(view, clock, 0.0, 0)
        prices = search.prices(None, 3)
        if math.isinf(prices.bound):
            search.proof.bound = math.inf
            return search.proof
        while not search.proof.path and not search.labels(latency.plain_completions(prices), 1):
            prices = search.prices(prices.price, 20)
            if search.labels(latency.plain_completions(prices), 1_000):
                break
        if search.proof.path:
            search.proof.bound = 0.0
            latency._close(search, prices)
        return search.proof


@pytest.mark.parametrize("block", range(4))
def test_memory_alone_equals_brute_force(block: int) -> None:
    for seed in range(15 * block, 15 * block + 15):
        chain = tiny(seed)
        view = merge_types(additive_view(chain))
        expected = brute_force(chain)
        proof = closed_by_memory(view, expected)
        assert proof.cost == pytest.approx(expected, rel=1e-9), seed
        if math.isfinite(expected):
            assert proof.within(0.0), seed
