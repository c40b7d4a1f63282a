"""Changes of plan: what new loads cost in every engine, what a change moves, plans carried over when devices leave."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from edgeopt_solvers import InstanceError, UnsupportedError, solve
from edgeopt_solvers.chain import Chain, Solution, carried_over, compare, evaluate, general, held_by, without
from edgeopt_solvers.chain.large import supports, try_solve
from edgeopt_solvers.solve import Options
from tests.solvers.chain.brute import brute_force
from tests.solvers.chain.brute_media import brute_force_with_media
from tests.solvers.chain.test_scale import brute_force as brute_force_once
from tests.solvers.generators import cluster, tiny

BASE = {
    "compute_s": [[1.0, 1.0, 1.0], [0.5, 0.5, 0.5]],
    "cut_bytes": [0.0, 0.0, 0.0, 0.0],
    "rate_bytes_per_s": [[0, 10.0], [10.0, 0]],
    "latency_s": [[0, 0.1], [0.1, 0]],
    "resident_bytes": [10.0, 20.0, 40.0],
    "shared_bytes": [5.0],
}
ON_0, SPLIT, ON_1 = Solution((3,), (0,), (0,)), Solution((1, 3), (0, 1), (0, 0)), Solution((3,), (1,), (0,))


def test_a_hand_computed_change():
    chain = Chain(**BASE, load_cost=[0.0, 0.01])
    chain = replace(chain, held=held_by(chain, SPLIT))
    metrics = evaluate(chain, ON_1).metrics
    assert metrics["moved_bytes"] == 10  # element 0; device 1 keeps the shared bytes it had
    assert metrics["movement_cost"] == pytest.approx(0.1)
    assert evaluate(chain, ON_1).objective == pytest.approx(metrics["latency_s"] + 0.1)
    assert evaluate(chain, ON_0).metrics["moved_bytes"] == 60
    moved = compare(chain, ON_0, SPLIT)
    assert moved.elements == ((1, (0, 0), (1, 0)), (2, (0, 0), (1, 0)))
    assert moved.load_bytes.tolist() == [0, 65]
    assert moved.drop_bytes.tolist() == [60, 0]
    assert moved.moved_bytes == 65
    assert compare(chain, SPLIT, SPLIT).elements == ()


@pytest.mark.parametrize("backend", ["exact", "pulp", "ortools"])
def test_the_price_decides_whether_to_move(backend):
    chain = Chain(**BASE, source=None)
    held = held_by(chain, ON_0)
    answers = {
        cost: solve(replace(chain, held=held, load_cost=cost), backend).solution.devices for cost in (0.0, 0.01, 1.0)
    }
    # everything on device 1 saves 1.5 s and moves 75 bytes
    assert answers == {0.0: (1,), 0.01: (1,), 1.0: (0,)}


def _moving(chain: Chain, seed: int) -> Chain:
    rng = np.random.default_rng(seed)
    D, V, L = chain.compute_s.shape
    resident = chain.resident_bytes if chain.resident_bytes.any() else rng.uniform(0.5, 1.5, (V, L))
    return replace(
        chain, resident_bytes=resident, load_cost=rng.uniform(0.0, 1.0, D) * rng.choice([0.1, 3.0]),
        held=rng.random((D, V, L)) < 0.5,
    )  # fmt: skip


def test_the_large_engines_agree_with_all_plans():
    taken = 0
    for seed in range(60):
        chain = _moving(tiny(seed, **({"objective": "throughput"} if seed % 4 == 0 else {})), seed)
        result = try_solve(chain, Options())
        assert (result is None) == (not supports(chain))
        if result is None:
            result = general.solve(chain, Options())
        else:
            taken += 1
        assert result.objective == pytest.approx(brute_force_once(chain), rel=1e-9), seed
        assert result.status.reason == ("optimal" if result.solution else "infeasible")
    assert taken >= 40


def test_what_was_paid_for_counts_when_labels_are_compared():
    """Shared bytes that one label has paid for, and a seemingly better one has not, in memory and as loads."""
    for seed in range(150):
        rng = np.random.default_rng(seed)
        D, V, L = [(2, 3, 5), (2, 2, 6)][seed % 2]
        fields = {"load_cost": rng.choice([0.0, 0.5, 2.0], D)} if seed % 3 == 0 else {}
        chain = Chain(
            rng.integers(0, 6, (D, V, L)), rng.integers(0, 2, L + 1), np.full((D, D), 2.0), np.full((D, D), 0.1),
            memory_bytes=rng.integers(4, 12, D), resident_bytes=rng.integers(0, 4, (V, L)),
            shared_bytes=rng.integers(0, 5, V), reuse="many", **fields,
        )  # fmt: skip
        assert general.solve(chain, Options()).objective == pytest.approx(brute_force(chain)), seed


def test_reserved_media_and_new_loads_together():
    for seed in range(25):
        rng = np.random.default_rng(seed)
        D, V, L = [(3, 1, 5), (2, 2, 4)][seed % 2]
        chain = Chain(
            rng.uniform(0.1, 2, (D, V, L)), rng.uniform(0, 3, L + 1), rng.uniform(1, 9, (D, D)),
            rng.uniform(0, 0.2, (D, D)), resident_bytes=rng.uniform(0, 2, (V, L)), shared_bytes=rng.uniform(0, 3, V),
            held=rng.random((D, V, L)) < 0.3, load_cost=rng.uniform(0, 1, D),
            reuse=["once", "many"][seed // 2 % 2], medium=np.zeros((D, D), int), media=["reserved"],
        )  # fmt: skip
        best = brute_force_with_media(chain)
        assert solve(chain).objective == pytest.approx(best, rel=1e-7), seed
        if seed < 6:
            assert solve(chain, "pulp").objective == pytest.approx(best, rel=1e-6), seed


def test_a_period_with_shares_and_loads_is_refused():
    chain = Chain(**BASE, objective="throughput", medium=np.zeros((2, 2), int), media=["reserved"], load_cost=1.0)
    with pytest.raises(UnsupportedError, match="reserved_conflict"):
        solve(chain)


def test_a_diagnosis_speaks_of_the_budget_not_of_loads():
    result = solve(Chain(**BASE, load_cost=100.0, max_latency_s=1.0))
    assert result.status.reason == "infeasible"
    assert "max_latency_s is 1 s, but the best possible is 1.7 s" in result.message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"load_cost": [1.0]}, "load_cost has shape"),
        ({"load_cost": -1.0}, "load_cost is -1"),
        ({"load_cost": 1e308}, "loading overflows"),
        ({"held": np.ones((2, 2), bool)}, "held must be booleans of shape"),
        ({"held": np.full((2, 3), 0.5)}, "held must be booleans"),
    ],
)
def test_malformed_fields_are_refused(fields, message):
    with pytest.raises(InstanceError, match=message):
        Chain(**BASE, **fields)


def test_held_survives_json():
    chain = Chain(**BASE, held=[[1, 0, 0], [0, 1, 1]], load_cost=0.5)
    assert chain.held.shape == (2, 1, 3)
    assert Chain.from_json(chain.to_json()) == chain
    assert "movement" in chain.features()


# ── devices leave ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(6))
def test_a_plan_is_carried_over_when_a_device_leaves(seed):
    chain = cluster(24, 10, seed=seed, load=0.3)
    plan = solve(chain).solution
    for gone in plan.devices:
        smaller, new = without(chain, [gone])
        start = carried_over(smaller, plan, new)
        cold = solve(smaller)
        assert start is not None
        assert evaluate(smaller, start).violations == ()
        assert evaluate(smaller, start).objective >= cold.objective * (1 - 1e-9)
        assert evaluate(smaller, start).objective <= 3 * cold.objective
        assert solve(smaller, warm_start=start).objective == pytest.approx(cold.objective)


def test_a_plan_whose_devices_stay_is_only_renumbered():
    chain = cluster(12, 5, seed=1, load=0.3, source=False)
    plan = solve(chain).solution
    gone = next(d for d in range(5) if d not in plan.devices)
    smaller, new = without(chain, [gone])
    assert carried_over(smaller, plan, new) == replace(plan, devices=tuple(new[d] for d in plan.devices))


def test_what_cannot_be_carried_over():
    chain = Chain(**BASE)
    assert carried_over(chain, ON_0, [None]).cuts[-1] == 3  # every device left, others came
    full = replace(chain, memory_bytes=[1.0, 1.0])
    assert carried_over(full, SPLIT, [0, 1]) is None
    assert carried_over(chain, Solution((2,), (0,), (0,)), [0]) is None
    with pytest.raises(InstanceError, match="the plan uses device 1"):
        carried_over(chain, SPLIT, [0])
    with pytest.raises(InstanceError, match="devices names 7"):
        carried_over(chain, SPLIT, [0, 7])
    with pytest.raises(InstanceError, match="no plan"):
        held_by(chain, Solution((3,), (5,), (0,)))


def test_variants_and_returns_are_carried_over():
    rng = np.random.default_rng(0)
    chain = Chain(
        rng.uniform(1, 2, (3, 2, 6)), np.ones(7), np.full((3, 3), 5.0), np.zeros((3, 3)), reuse="many",
        quality_loss=rng.random((2, 6)), max_quality_loss=4.0,
    )  # fmt: skip
    plan = Solution((2, 4, 6), (0, 2, 0), (0, 1, 1))
    smaller, new = without(chain, {2})
    assert new == [0, 1, None]
    start = carried_over(smaller, plan, new)
    assert start is not None
    assert math.isfinite(evaluate(smaller, start).objective)


def test_devices_that_are_needed_cannot_leave():
    chain = Chain(**BASE, pins={0: 1}, power_w=[1, 2], held=[[1, 0, 0], [0, 1, 1]], load_cost=[1, 2])
    with pytest.raises(InstanceError, match="source is device 0"):
        without(chain, {0})
    with pytest.raises(InstanceError, match=r"pins\[0\] is device 1"):
        without(chain, {1})
    smaller, _ = without(replace(chain, pins=None), {1})
    assert (smaller.load_cost.tolist(), smaller.held.shape, smaller.power_w.tolist()) == ([1], (1, 1, 3), [1])
