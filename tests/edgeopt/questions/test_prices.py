"""Prices of limits are differences of optima; both optima come from listing every plan."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from edgeopt import planner
from edgeopt.questions.prices import changes, prices
from tests.edgeopt.factories import device, language_model, network, text_problem
from tests.edgeopt.questions.draws import drawn, fifty, listed


def changed_chain(chain, limit, amount):
    """Loosen a limit on the arrays, sharing nothing with the code that loosens it in the problem."""
    if limit.endswith(".memory"):
        memory = chain.memory_bytes.copy()
        memory[int(limit.removeprefix("devices[").partition("]")[0])] += amount
        return replace(chain, memory_bytes=memory)
    return {
        "network.default.rate": lambda: replace(chain, rate_bytes_per_s=2 * chain.rate_bytes_per_s),
        "network.default.latency": lambda: replace(chain, latency_s=chain.latency_s / 2),
        "constraints.deadline": lambda: replace(chain, max_latency_s=(chain.max_latency_s or 0) + amount),
        "constraints.quality": lambda: replace(chain, max_quality_loss=(chain.max_quality_loss or 0) + amount),
        "constraints.max_stages": lambda: replace(chain, max_stages=(chain.max_stages or 0) + int(amount)),
        "constraints.first": lambda: replace(chain, pins=None),
    }[limit]()


@pytest.fixture(scope="module")
def asked():
    """Every draw with its listed values, its chain and its prices."""
    cases = []
    for problem in fifty(first=10):
        chain, *_, values = listed(problem)
        cases.append((problem, chain, values, prices(planner.solve(problem))))
    return cases


def test_prices_are_differences_of_optima(asked):
    for problem, chain, values, (found, missed) in asked:
        assert missed == []
        by_limit = {price.change.limit: price for price in found}
        for change in changes(problem):
            price = by_limit.get(change.limit)
            asked = change if price is None else price.change
            *_, loose = listed(problem, changed_chain(chain, change.limit, asked.amount))
            gain = 0.0 if price is None else price.gain
            assert gain == pytest.approx(values.min() - loose.min(), rel=1e-6, abs=1e-9), change
            assert price is None or price.proven
            if asked.amount != change.amount:  # doubled, since half of it brings nothing
                *_, loose = listed(problem, changed_chain(chain, change.limit, asked.amount / 2))
                assert loose.min() == pytest.approx(values.min(), rel=1e-9)
        assert [price.gain for price in found] == sorted((price.gain for price in found), reverse=True)


def test_the_draws_meet_limits_of_every_kind(asked):
    binding = {price.change.limit.partition("[")[0] for *_, (found, _) in asked for price in found}
    assert {"devices", "network.default.rate", "network.default.latency", "constraints.first"} <= binding


def test_a_limit_that_no_amount_of_loosening_helps_is_left_out():
    roomy = text_problem(devices=[device("phone", gflops=1, memory=9e12), device("server", gflops=50, memory=9e12)])
    limits = {price.change.limit for price in prices(planner.solve(roomy))[0]}
    assert not any(limit.endswith(".memory") for limit in limits)


def test_the_amount_is_doubled_until_it_helps():
    """A block of 5 GB does not fit into 2 GB with one or two more; with four it does."""
    devices = [device("phone", gflops=1, memory=64e9), device("server", gflops=50, memory=2e9)]
    problem = text_problem(model=language_model(num_blocks=2, weights=5e9), devices=devices)
    assert next(one for one in changes(problem) if one.limit == "devices[1].memory").what == "1 GB more on server"
    price = next(one for one in prices(planner.solve(problem))[0] if one.change.limit == "devices[1].memory")
    assert price.change.what == "4 GB more on server"
    assert price.gain > 0
    assert price.lifted < price.after, "the second block would fit as well"


def test_every_link_and_choice_is_asked_about_in_words():
    devices = [device("phone"), device("laptop"), device("server")]
    links = [
        {"between": ["phone", "server"], "rate": 5e6, "latency": 0.02},
        {"from": "laptop", "to": "phone", "rate": 1e6, "latency": 0.0},
    ]
    constraints = {
        "pin": {"block.*": "server"}, "last": "server", "forbid": ["laptop"], "min_segment": 2, "max_stages": 2,
        "period": 9.0,
    }  # fmt: skip
    asked = {
        change.limit: change.what
        for change in changes(
            text_problem(devices=devices, network=network(rate=1e6, links=links), constraints=constraints)
        )
    }
    assert asked["network.default.rate"] == "16 instead of 8 Mbit/s on links that are not listed"
    assert asked["network.links[0].rate"] == "80 instead of 40 Mbit/s between phone and server"
    assert asked["network.links[0].latency"] == "10 instead of 20 ms between phone and server"
    assert asked["network.links[1].rate"] == "16 instead of 8 Mbit/s from laptop to phone"
    assert "network.links[1].latency" not in asked
    assert asked["constraints.forbid[0]"] == "laptop allowed"
    assert asked["constraints.pin.block.*"] == "block.* free to leave server"
    assert asked["constraints.last"] == "the last element free to leave server"
    assert asked["constraints.min_segment"] == "stages of 1 elements"
    assert asked["constraints.max_stages"] == "max_stages 3 instead of 2"
    assert asked["constraints.period"] == "period 9.9 s instead of 9 s"
    assert asked["devices[0].memory"] == "4 GB more on phone"
    assert "devices[1].memory" not in asked, "a device that may not compute needs no memory"


def test_what_is_not_looked_at_in_time_is_said():
    plan = planner.solve(text_problem())
    found, missed = prices(plan, time_limit_s=1e-9)
    assert found == []
    assert missed == [change.limit for change in changes(plan.problem)]


def test_loosening_changes_the_field_that_it_names_and_no_other():
    problem = drawn(3)
    before = problem.model_dump()
    for change in changes(problem):
        after = change.problem.model_dump()
        part = change.limit.partition(".")[0].partition("[")[0]
        assert {key for key in before if before[key] != after[key]} == {part}
        assert change.amount is None or (change.amount > 0 and math.isfinite(change.amount))
