"""Each step of the period engine against brute force: nothing that a best plan needs is ever refuted or left out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgeopt_solvers.chain import Chain
from edgeopt_solvers.chain.large.clock import Clock
from edgeopt_solvers.chain.large.partition import partition
from edgeopt_solvers.chain.large.relaxation import Relaxation
from edgeopt_solvers.chain.large.threshold import _candidates, _Thresholds, period
from edgeopt_solvers.chain.large.types import merge_types
from edgeopt_solvers.chain.large.view import Path, View, period_view
from tests.solvers.generators import cluster, tiny


def best_plans(view: View) -> tuple[float, list[Path]]:
    """Smallest period over all paths of a view, and every path that has it."""
    best, plans = math.inf, []

    def extend(path: Path, start: int) -> None:
        nonlocal best, plans
        if start == view.num_elements:
            value = period(view, path)
            if value < best:
                best, plans = value, []
            if value == best < math.inf:
                plans.append(list(path))
            return
        for device in range(view.num_devices):
            if sum(used == device for used, _ in path) < view.copies[device]:
                for end in range(start + 1, int(view.last_end[device, start]) + 1):
                    extend([*path, (device, end)], end)

    extend([], 0)
    return best, plans


def draw(seed: int) -> Chain:
    """Every feature in turn: odd seeds have devices of two types, as counts."""
    if seed % 2:
        return cluster(
            6, 5, seed=seed, load=0.5, distinct=False, num_types=2, objective="throughput", source=seed % 4 == 1
        )
    return tiny(seed, objective="throughput")


@pytest.mark.parametrize("block", range(6))
def test_no_step_loses_a_best_plan(block: int) -> None:
    for seed in range(1_000 + 10 * block, 1_010 + 10 * block):
        view = merge_types(period_view(draw(seed)))
        best, plans = best_plans(view)
        with Clock(None) as clock:
            relaxation = Relaxation(view, clock)
            candidates = _candidates(view)
            if math.isinf(best):
                excess, found = relaxation.refute(float(candidates[-1]), 100) if len(candidates) else (math.inf, [])
                assert not found, seed
                assert (
                    excess > 0
                    or partition(view, relaxation.remaining(float(candidates[-1])), time_limit_s=math.inf, nodes=10_000)
                    is None
                ), seed
                continue
            place = int(np.searchsorted(candidates, best))
            assert candidates[place] == best, seed  # the period is one of the candidates
            for index in range(0, place + 1, max(1, place // 3)):  # prices from other thresholds must be safe as well
                relaxation.refute(float(candidates[index]), 20)
                assert relaxation.first_open(candidates, 0, len(candidates)) <= place, seed
                remaining = relaxation.remaining(best)
                left = {tuple(row) for row in remaining.rows.tolist()}
                for path in plans:
                    starts = [0, *(end for _, end in path)]
                    assert {(d, s, e) for (d, e), s in zip(path, starts, strict=False)} <= left, seed
                found = partition(view, remaining, time_limit_s=math.inf, nodes=10_000)
                assert found is not None, seed
                assert period(view, found) == pytest.approx(best, rel=1e-12), seed
            for above in range(place, len(candidates), max(1, len(candidates) // 4)):
                wider = relaxation.remaining(float(candidates[above]))
                found = partition(view, wider, time_limit_s=math.inf, nodes=10_000)
                assert found is not None, seed
                assert best <= period(view, found) <= candidates[above] * (1 + 1e-9), seed
            if place:
                excess, found = relaxation.refute(float(candidates[place - 1]), 100)
                assert not found, seed
                lower = relaxation.remaining(float(candidates[place - 1]))
                assert partition(view, lower, time_limit_s=math.inf, nodes=10_000) is None, seed


@pytest.mark.parametrize("links", ["asymmetric", "star"])
def test_partition_knows_which_hand_overs_are_in_time(links: str) -> None:
    """Hand-overs as long as segments, and nothing left out by prices: the program alone decides."""
    for seed in range(4):
        chain = cluster(6, 4, seed=seed, load=0.4, links=links, hidden_bytes=1e6, objective="throughput")
        view = period_view(chain).keep(np.arange(4))
        best, _ = best_plans(view)
        with Clock(None) as clock:
            relaxation = Relaxation(view, clock)
            relaxation.price[:] = 0.0
            candidates = _candidates(view)
            for index in range(0, len(candidates), 5):
                limit = float(candidates[index])
                found = partition(view, relaxation.remaining(limit), time_limit_s=math.inf, nodes=10_000)
                assert (found is not None) == (limit >= best), (seed, limit, best)
                assert found is None or period(view, found) <= limit * (1 + 1e-9), seed


def test_a_search_that_the_clock_stops_refutes_nothing() -> None:
    view = period_view(cluster(30, 10, seed=0, objective="throughput", source=False))
    with Clock(None) as clock:
        search = _Thresholds(view, clock, 0.0, 0)
        last = len(search.candidates) - 1
        clock.stop[0] = 1
        assert search.beam(last, 50) is None
        assert search.relaxation.refute(float(search.candidates[last]), 10) == (-math.inf, [])
        assert not search.refuted_by_prices(last)
        with pytest.raises(TimeoutError):
            partition(view, search.relaxation.remaining(float(search.candidates[0])), time_limit_s=0.0, nodes=1)


@pytest.mark.parametrize("fields", [{}, {"links": "star"}, {"distinct": False}])
def test_bounds_at_any_limit_agree_with_each_other(fields: dict[str, object]) -> None:
    from edgeopt_solvers.chain.large import try_solve
    from edgeopt_solvers.solve import Options

    for seed in range(3):
        chain = cluster(48, 16, seed=seed, objective="throughput", **fields)
        results = [try_solve(chain, Options(time_limit_s=limit)) for limit in (0.003, 0.01, 0.03, 0.1, 5.0)]
        assert all(result is not None for result in results)
        best = min(result.objective for result in results if result)
        assert all(result.bound <= best * (1 + 1e-9) for result in results if result), seed
        if math.isfinite(best):
            assert all(result.status.reason != "infeasible" for result in results if result), seed
