"""Serving in order of arrival: formulas against simulation, plans against grids, cvxpy and all choices of models."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from edgeopt_solvers import solve
from edgeopt_solvers.errors import InstanceError, UnsupportedError
from edgeopt_solvers.placement import Serving, ServingSolution, evaluate


def drawn(seed, *, classes=3, models=2, devices=2, load=0.6, **fields):
    """Models of growing size, accuracy and time on unequal devices; times vary."""
    rng = np.random.default_rng(seed)
    base = 4.0 ** np.arange(models)[None, :, None] * rng.uniform(0.3, 1.5, (1, 1, devices))
    service = base * rng.uniform(0.8, 1.3, (classes, models, devices))
    square = service**2 * (1 + rng.uniform(0, 0.5, service.shape))
    arrival = rng.uniform(0.2, 1, classes)
    arrival *= load * (1 / service[:, 0].mean(axis=0)).sum() / arrival.sum()
    accuracy = np.sort(rng.uniform(0.4, 1, (classes, models)), axis=1)
    return Serving(arrival, service, square, rng.uniform(0, 0.5, devices), accuracy, **fields)


def number_on(instance, fractions):
    """Mean response of many fractions at once, (n, C, M, V); ``inf`` where a device is full."""
    flow = instance.arrival_per_s[:, None, None] * fractions
    load = np.einsum("ncmv,cmv->nv", flow, instance.service_s)
    square = np.einsum("ncmv,cmv->nv", flow, instance.square_s2)
    full = (load > instance.max_load).any(axis=1) | (load >= 1).any(axis=1)
    waiting = flow.sum(axis=(1, 2)) * square / (2 * np.where(load < 1, 1 - load, 1))
    total = (load + waiting).sum(axis=1) + np.einsum("ncmv,cmv->n", flow, instance.network_s)
    right = np.einsum("c,ncmv,cm->n", instance.arrival_per_s, fractions, instance.accuracy)
    total, right = total / instance.arrival_per_s.sum(), right / instance.arrival_per_s.sum()
    low = instance.min_accuracy is not None and isinstance(instance.min_accuracy, float)
    return np.where(full | (low & (right < (instance.min_accuracy or 0) - 1e-12)), math.inf, total)


def grid(ways, steps):
    """All fractions of ``ways`` ways in multiples of 1 / steps."""
    cuts = itertools.combinations(range(steps + ways - 1), ways - 1)
    return np.array([np.diff([-1, *cut, steps + ways - 1]) - 1 for cut in cuts]) / steps


@pytest.mark.parametrize("floor", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_no_grid_point_is_better_and_one_is_near(seed, floor):
    instance = drawn(seed, classes=1, load=0.15 if floor else 0.5)
    if floor:
        instance = replace(instance, min_accuracy=float(instance.accuracy.mean()))
    points = grid(4, 40).reshape(-1, 1, 2, 2)
    best = number_on(instance, points).min()
    result = solve(instance)
    assert result.status.reason == "optimal"
    assert best * (1 - 0.02) <= result.objective <= best * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(4, 7))
def test_no_grid_point_of_two_classes_is_better(seed):
    instance = drawn(seed, classes=2, models=1, devices=3, load=0.7)
    each = grid(3, 30)
    pairs = np.stack([np.repeat(each, len(each), 0), np.tile(each, (len(each), 1))], axis=1)
    best = number_on(instance, pairs[:, :, None, :]).min()
    result = solve(instance)
    assert result.status.reason == "optimal"
    assert best * (1 - 0.02) <= result.objective <= best * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_bounds_hold_for_random_fractions(seed):
    instance = drawn(seed, classes=3, models=3, devices=2, load=0.4)
    result = solve(instance)
    rng = np.random.default_rng(seed)
    near = rng.dirichlet(np.full(6, 0.15), (4000, 3)).reshape(-1, 3, 3, 2)
    mixed = 0.9 * result.solution.fractions + 0.1 * near
    assert min(number_on(instance, near).min(), number_on(instance, mixed).min()) >= result.bound * (1 - 1e-9)
    assert result.gap <= 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_cvxpy_where_it_is_convex(seed):
    cp = pytest.importorskip("cvxpy")
    rng = np.random.default_rng(seed)
    seconds, arrival = rng.uniform(0.5, 2, 4), 0.7 * rng.uniform(1, 3)
    each_s2 = seconds**2 * rng.uniform(1, 2, 4)
    result = solve(Serving([arrival], seconds[None, None], each_s2[None, None]))
    x = cp.Variable(4, nonneg=True)
    waiting = [
        each_s2[v] / 2 * cp.quad_over_lin(arrival * x[v], 1 - arrival * seconds[v] * x[v]) for v in range(4)
    ]  # fmt: skip
    value = cp.Problem(cp.Minimize(arrival * (seconds @ x) + sum(waiting)), [cp.sum(x) == 1]).solve(cp.CLARABEL)
    assert result.objective == pytest.approx(value / arrival, rel=1e-6)
    assert result.statistics["num_nodes"] == 1  # the relaxation is exact


@pytest.mark.parametrize("seed", range(6))
def test_equal_to_the_best_choice_of_models(seed):
    instance = drawn(
        seed, classes=2, models=3, devices=2, load=0.3, model_bytes=[1.0, 3.0, 8.0], memory_bytes=[4.0, 9.0]
    )  # fmt: skip
    values = []
    for first, second in itertools.product(((0, 1),), ((0, 2), (0, 1))):
        held = np.zeros((3, 2), dtype=bool)
        held[list(first), 0] = held[list(second), 1] = True
        service = np.where(held, instance.service_s, np.inf)
        values.append(
            solve(Serving(instance.arrival_per_s, service, instance.square_s2, instance.network_s[:, 0])).objective
        )
    result = solve(instance)
    assert result.objective == pytest.approx(min(values), rel=2e-6)
    assert result.gap <= 1e-6


def test_one_queue_by_hand():
    # 2 queries/s of half a second each would fill 1; at 1.2: R = 0.6, wait 1.2 · 0.25 / (2 · 0.4)
    result = solve(Serving([1.2], [[[0.5]]], network_s=[0.1]))
    assert result.objective == pytest.approx(0.1 + 0.5 + 0.375)
    assert result.metrics["load"] == pytest.approx(0.6)
    # service that varies like an exponential: M/M/1, 1 / (2 - 1.2)
    assert solve(Serving([1.2], [[[0.5]]], [[[0.5]]])).objective == pytest.approx(1 / 0.8)


def simulated(rng, instance, fractions, count):
    """Mean response of a stream: Poisson arrivals, random choice, service that takes one of two values."""
    rates = (instance.arrival_per_s[:, None, None] * fractions).ravel()
    total = rates.sum()
    times = np.cumsum(rng.exponential(1 / total, count))
    ways = rng.choice(len(rates), count, p=rates / total)
    mean, square = instance.service_s.ravel()[ways], instance.square_s2.ravel()[ways]
    seconds = mean + np.sqrt(np.maximum(square - mean**2, 0)) * rng.choice([-1, 1], count)
    device = ways % instance.num_devices
    free, response = np.zeros(instance.num_devices), 0.0
    for at, d, s in zip(times.tolist(), device.tolist(), seconds.tolist(), strict=True):
        free[d] = max(free[d], at) + s
        response += free[d] - at
    return response / count + float(instance.network_s.ravel()[ways].mean())


@pytest.mark.parametrize(("seed", "load"), [(0, 0.3), (1, 0.6), (2, 0.8)])
def test_the_formula_is_what_a_simulation_finds(seed, load):
    instance = drawn(seed, classes=2, models=2, devices=2, load=load)
    result = solve(instance)
    found = simulated(np.random.default_rng(seed), instance, result.solution.fractions, 150_000)
    assert found == pytest.approx(result.objective, rel=0.04)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"arrival_per_s": [6.0]}, "loaded to at least 1.2, max_load is 1; arrivals of 5 of the 6 queries/s"),
        ({"max_load": 0.5}, "loaded to at least 0.8, max_load is 0.5; arrivals of 2.5 of the 4 queries/s"),
        ({"accuracy": [0.7, 0.8], "min_accuracy": 0.9}, "the most accurate models reach 0.8, 10 points too few"),
        ({"accuracy": [0.7, 0.8], "min_accuracy": [0.85]}, "min_accuracy[0] is 0.85, its most accurate model"),
        ({"accuracy": [0.7, 0.8], "min_accuracy": 0.8}, "min_accuracy and load: the fullest device is loaded to at"),
        ({"network_s": [math.inf]}, "class 0 reaches no model"),
        ({"model_bytes": [3.0, 3.0], "memory_bytes": [2.0]}, "class 0 reaches no model"),
    ],
)
def test_infeasible_names_the_limit_and_by_how_much(fields, sentence):
    service = [[[0.2], [1.0]]]
    result = solve(Serving(**{"arrival_per_s": [4.0], "service_s": service, **fields}))
    assert result.status.reason == "infeasible"
    assert sentence in result.message


def test_a_floor_costs_time_and_is_kept():
    free, floored = (solve(drawn(3, load=0.2, **fields)) for fields in ({}, {"min_accuracy": 0.8}))
    assert floored.metrics["accuracy"] == pytest.approx(0.8, abs=1e-6)
    assert floored.objective > free.objective
    by_class = solve(drawn(3, load=0.2, min_accuracy=[0.7, 0.0, 0.75]))
    accuracy = np.einsum("cmv,cm->c", by_class.solution.fractions, drawn(3).accuracy)
    assert accuracy[0] >= 0.7 - 1e-9
    assert accuracy[2] >= 0.75 - 1e-9


def test_a_device_exactly_full_has_a_plan_and_an_honest_gap():
    result = solve(Serving([1.6], [[[0.5]]], max_load=0.8))
    assert result.objective == pytest.approx(0.5 + 1.6 * 0.25 / 0.4)
    assert result.bound <= result.objective


def test_a_time_limit_leaves_a_plan_with_its_bound():
    result = solve(drawn(0, classes=5, models=3, devices=4, load=0.8), time_limit_s=0.05)
    assert result.status.has_solution
    assert 0 < result.bound <= result.objective


def test_it_refuses_what_means_nothing():
    for fields, words in (
        ({"service_s": [[[0.0]]]}, "service_s is 0 somewhere"),
        ({"square_s2": [[[0.1]]]}, r"square_s2\[0, 0, 0\] is 0.1, below the square"),
        ({"min_accuracy": 0.5}, "accuracy is missing"),
        ({"max_load": 1.5}, "max_load is 1.5"),
        ({"memory_bytes": [1.0]}, "model_bytes is missing"),
        ({"arrival_per_s": [0.0]}, "is 0 for every class"),
    ):
        with pytest.raises(InstanceError, match=words):
            Serving(**{"arrival_per_s": [1.0], "service_s": [[[0.5]]], **fields})
    with pytest.raises(UnsupportedError, match="serving"):
        solve(Serving([1.0], [[[0.5]]]), "cvxpy")


@pytest.mark.parametrize("seed", range(20))
def test_any_magnitude(seed):
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 4)), int(rng.integers(1, 4)), int(rng.integers(1, 3)))
    service = np.where(rng.random(shape) < 0.2, np.inf, 10.0 ** rng.uniform(-6, 6, shape))
    arrival = 10.0 ** rng.uniform(-6, 2, shape[0]) * rng.choice([1e-3, 1.0])
    square = np.where(np.isfinite(service), service, 1.0) ** 2 * (1 + 10.0 ** rng.uniform(-3, 2, shape))
    instance = Serving(arrival, service, square, max_load=float(rng.choice([0.5, 1.0])))
    result = solve(instance, time_limit_s=2)
    if result.status.has_solution:
        assert 0 < result.bound <= result.objective
        assert evaluate(instance, result.solution).violations == ()
    else:
        assert result.message


def test_json_and_what_breaks_a_rule():
    instance = drawn(1, model_bytes=[1.0, 2.0], memory_bytes=[math.inf, 1.5], min_accuracy=0.9)
    assert Serving.from_json(instance.to_json()) == instance
    fractions, loaded = np.zeros((3, 2, 2)), np.ones((2, 2), dtype=bool)
    fractions[:, 0, 0] = 0.9
    broken = " ".join(evaluate(instance, ServingSolution(fractions, loaded)).violations)
    for words in ("class 0: its fractions add up to 0.9", "device 1 holds 3 bytes", "the mean accuracy is"):
        assert words in broken
