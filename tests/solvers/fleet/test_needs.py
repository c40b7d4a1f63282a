"""Bounds and plans where only deadlines count: never beyond the optimum, and near it for a hundred users."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt_solvers import solve
from edgeopt_solvers.fleet import Fleet, evaluate
from edgeopt_solvers.fleet.admission import as_sum
from edgeopt_solvers.fleet.model import build, columns, price, worth
from edgeopt_solvers.fleet.needs import Floor, admitting, alone, within
from edgeopt_solvers.fleet.shares import strain
from tests.solvers.fleet.brute import optimum
from tests.solvers.fleet.draws import population, small

SEEDS = st.integers(0, 10**6)


def _prices(rng, model):
    """Prices of very different size, some of them nothing."""
    drawn = rng.lognormal(0, 2, model.num_prices)
    drawn[rng.random(model.num_prices) < 0.2] = 0
    return drawn


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SEEDS, st.booleans(), st.booleans(), st.booleans())
def test_needs_above_all_there_is_refute_a_level(seed, deadlines, refusal, memory):
    fleet = small(seed, objective="max", deadlines=deadlines, refusal=refusal, memory=memory, most_users=3)
    best, rng = optimum(fleet), np.random.default_rng(seed)
    model = build(replace(fleet, objective="sum"))
    for level in (best if math.isfinite(best) else 2.0) * np.array([0.3, 0.9, 1.000001, 1.5]):
        at = within(model, level)
        for _ in range(5):
            prices = _prices(rng, at)
            needed = float(price(at, prices)[2].sum())
            if needed > worth(prices, at.num_resources) * (1 + 1e-9):
                assert level < best


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SEEDS, st.booleans(), st.booleans(), st.booleans())
def test_proven_level_is_below_the_optimum(seed, deadlines, refusal, memory):
    fleet = small(seed, objective="max", deadlines=deadlines, refusal=refusal, memory=memory, most_users=3)
    best = optimum(fleet)
    model = build(replace(fleet, objective="sum"))
    lowest = float(alone(model, lambda: False).max())
    assert lowest <= best * (1 + 1e-9)
    if math.isinf(lowest):
        return
    floor = Floor(model, lowest)
    floor.raise_to(math.inf, 1e-3, lambda: False)
    assert floor.level <= best * (1 + 1e-7)
    if floor.hopeless:
        assert math.isinf(best)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(SEEDS)
def test_proven_level_is_the_optimum_without_a_choice(seed):
    rng = np.random.default_rng(seed)
    users = int(rng.integers(2, 6))
    fleet = Fleet(
        rng.uniform(0, 1, (users, 1)), rng.lognormal(0, 1, (users, 1)), rng.lognormal(0, 1, (users, 1)),
        rng.lognormal(1, 1, users), [2.0], rng.uniform(0, 0.5, (users, 1)), cell=rng.integers(0, 2, users),
        weight=rng.uniform(0.5, 2, users), objective="max",
    )  # fmt: skip
    best = optimum(fleet)
    model = build(replace(fleet, objective="sum"))
    lowest = float(alone(model, lambda: False).max())
    assert lowest <= best * (1 + 1e-9)
    if math.isinf(lowest):
        return
    floor = Floor(model, lowest)
    floor.raise_to(math.inf, 1e-3, lambda: False)
    assert best * (1 - 2e-3) <= floor.level <= best * (1 + 1e-7)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SEEDS, st.booleans())
def test_any_prices_bound_the_refusals(seed, memory):
    fleet = small(seed, objective="admitted", memory=memory, most_users=3)
    best, rng = optimum(fleet), np.random.default_rng(seed)
    model = admitting(build(as_sum(fleet)[0]))
    for scale in (0.01, 0.1, 1.0, 10.0):
        assert price(model, scale * _prices(rng, model))[0] <= best * (1 + 1e-6) + 1e-9


@settings(max_examples=40, deadline=None, derandomize=True)
@given(SEEDS)
def test_strain_brackets_the_largest_eigenvalue(seed):
    fleet = small(seed, deadlines=True, most_users=4)
    model = build(fleet)
    if not model.num_servers or model.limit is None:
        return
    cols = columns(model, np.arange(len(model.pair_user) * model.num_servers))
    picked = np.flatnonzero((cols.key >= 0) & (cols.slack > 0) & np.isfinite(cols.slack))
    if not len(picked):
        return
    part = replace(
        cols, user=np.arange(len(picked)), first=np.arange(len(picked)),
        **{name: getattr(cols, name)[picked] for name in ("cell", "resource", "lin", "a", "b", "slack", "key")},
    )  # fmt: skip
    lines = np.zeros((len(picked), part.num_resources))
    lines[np.arange(len(picked)), part.cell] += part.a / np.sqrt(part.slack)
    lines[np.arange(len(picked)), part.resource] += part.b / np.sqrt(part.slack)
    largest = float(np.linalg.norm(lines, 2)) ** 2
    state = strain(part)
    assert state.least <= largest * (1 + 1e-9)
    assert state.most >= largest * (1 - 1e-9)
    # It stops once the question is answered.
    assert (state.most <= 1) == (largest <= 1) or abs(largest - 1) < 1e-5


@pytest.mark.parametrize("objective", ["max", "admitted"])
def test_a_hundred_users_are_within_a_few_percent(objective):
    free = population(100, 10, 1, 3)
    if objective == "admitted":
        tight = 0.9 * solve(free, gap=0.01).metrics["mean_latency_s"]
        fleet = replace(free, objective=objective, deadline_s=np.full(100, tight))
    else:
        fleet = replace(free, objective=objective)
    result = solve(fleet, gap=0.05, time_limit_s=10)
    assert not evaluate(fleet, result.solution).violations
    assert result.gap <= 0.05
