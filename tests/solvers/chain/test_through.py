"""Bounds of plans through an element on a device, and plans below a cutoff, against listing every plan."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from edgeopt_solvers.chain import general
from edgeopt_solvers.chain.through import least_through
from edgeopt_solvers.solve import Options
from tests.solvers.chain.brute import all_plans, metrics_of
from tests.solvers.chain.draws import chains
from tests.solvers.chain.test_general import chain_of


def listed(chain):
    dev, var = all_plans(chain)
    metrics, ok = metrics_of(chain, dev, var)
    value = sum(weight * metrics[name][ok] for name, weight in chain.weights.items())
    return dev[ok], value + metrics["movement"][ok]


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(chains(max_plans=1_000))
def test_no_plan_that_does_so_costs_less(chain):
    dev, value = listed(chain)
    known = general.solve(chain, Options()).solution
    for device in range(chain.num_devices):
        bounds = least_through(chain, device, known)
        assert bounds.shape == (chain.num_elements,)
        for element, bound in enumerate(bounds):
            least = value[dev[:, element] == device].min(initial=math.inf)
            assert bound <= least + 1e-9 * max(abs(least) if math.isfinite(least) else 1.0, 1.0)


def test_without_limits_the_bound_is_the_least_value():
    chain = chain_of(3, 5, reuse="many")
    dev, value = listed(chain)
    for device in range(3):
        wanted = [value[dev[:, element] == device].min() for element in range(5)]
        assert least_through(chain, device) == pytest.approx(wanted, rel=1e-9)


def test_prices_bring_the_bound_close_where_memory_binds():
    chain = chain_of(3, 7, fill=0.9)
    dev, value = listed(chain)
    known = general.solve(chain, Options()).solution
    wanted = np.array([[value[dev[:, e] == d].min(initial=math.inf) for e in range(7)] for d in range(3)])
    bounds = np.array([least_through(chain, d, known) for d in range(3)])
    assert bounds.min() == pytest.approx(value.min(), rel=0.15)
    assert (bounds <= wanted * (1 + 1e-9)).all()
    assert (bounds > value.min() * (1 + 1e-9)).any(), "some decision is known to be worse without solving for it"


def test_out_of_time_nothing_is_claimed():
    chain = chain_of(6, 60, fill=0.5)
    assert (least_through(chain, 0, time_limit_s=1e-9) == -math.inf).all()


def test_where_nothing_can_run_every_bound_is_infinite():
    chain = chain_of(2, 3)
    compute_s = chain.compute_s.copy()
    compute_s[:, :, 1] = math.inf
    assert (least_through(replace(chain, compute_s=compute_s), 0) == math.inf).all()


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(chains(max_plans=1_000))
def test_a_plan_is_found_exactly_where_one_is_below_the_cutoff(chain):
    _, value = listed(chain)
    least = value.min(initial=math.inf)
    some = least if math.isfinite(least) else 1.0
    for cutoff in (some - 0.25, some + 0.25, some + 1e9):
        result = general.solve(chain, Options(cutoff=cutoff))
        if least < cutoff:
            assert result.status.reason == "optimal"
            assert result.objective == pytest.approx(least, rel=1e-9, abs=1e-9)
        else:
            assert result.solution is None
            assert result.status.reason == "infeasible"
            assert result.bound == cutoff
