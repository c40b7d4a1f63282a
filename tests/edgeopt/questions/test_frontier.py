"""The frontier is the set of listed plans that no other one dominates."""

from __future__ import annotations

import numpy as np
import pytest

from edgeopt.errors import InputError, NoPlanError
from edgeopt.questions.frontier import RESOLUTION, frontier, parse_axes
from tests.edgeopt.factories import device, image_problem, network, text_problem
from tests.edgeopt.questions.draws import drawn, listed


def undominated(first, second):
    """Return the non-dominated pairs of two vectors, by rising first."""
    pairs = []
    for i in np.lexsort((second, first)):
        if not pairs or second[i] < pairs[-1][1] - 1e-9 * abs(pairs[-1][1]):
            pairs.append((float(first[i]), float(second[i])))
    return pairs


@pytest.mark.parametrize("axes", ["latency,quality", "quality,latency", "energy,quality", "latency,energy"])
@pytest.mark.parametrize("seed", [1, 150, 157])
def test_it_holds_what_no_listed_plan_dominates(seed, axes):
    names = axes.split(",")
    problem = drawn(seed)
    while "quality" in axes and problem.strategy == "pipeline":
        seed += 100
        problem = drawn(seed)
    *_, metrics, values = listed(problem)
    if not values.size:
        with pytest.raises(NoPlanError):
            frontier(problem, tuple(names))
        return
    expected = undominated(metrics[names[0]], metrics[names[1]])
    found = frontier(problem, parse_axes(axes, problem), most_points=60)
    assert found.complete
    step = RESOLUTION * (expected[0][1] - expected[-1][1])
    for point in found.points:
        assert any(np.allclose((point.first, point.second), pair, rtol=1e-6, atol=1e-9) for pair in expected)
    for pair in expected:  # what is missing is within the resolution of what is there
        assert any(
            point.first <= pair[0] * (1 + 1e-6) and point.second <= pair[1] + step + 1e-9 for point in found.points
        )
    assert [point.first for point in found.points] == sorted(point.first for point in found.points)


def test_few_points_are_no_claim_to_all_of_them():
    problem = drawn(150)
    whole = frontier(problem, ("latency", "energy"), most_points=60)
    few = frontier(problem, ("latency", "energy"), most_points=2)
    assert whole.complete
    assert len(whole.points) > 2
    assert not few.complete
    assert len(few.points) == 2
    assert (few.points[0].first, few.points[-1].second) == pytest.approx(
        (whole.points[0].first, whole.points[-1].second)
    )


def test_limits_of_the_problem_stay_in_force():
    free = frontier(drawn(150), ("latency", "energy"), most_points=60)
    middle = free.points[len(free.points) // 2]
    limits = drawn(150).constraints.model_copy(update={"energy": middle.second})
    held = frontier(drawn(150).model_copy(update={"constraints": limits}), ("latency", "energy"), most_points=60)
    assert all(point.second <= middle.second * (1 + 1e-9) for point in held.points)
    assert held.points[0].first == pytest.approx(middle.first)


def test_one_best_plan_is_a_frontier_of_one_point():
    alone = text_problem(devices=[device("server", memory=9e9, power={"busy": 5.0})])
    found = frontier(alone, ("latency", "energy"))
    assert found.complete
    assert len(found.points) == 1


@pytest.mark.parametrize("text", ["latency", "latency,latency", "latency,speed", "latency,energy,quality", ""])
def test_axes_that_are_none_are_refused(text):
    with pytest.raises(InputError, match="two of latency, throughput, energy, quality"):
        parse_axes(text, image_problem())


@pytest.mark.parametrize(
    ("text", "field"), [("latency,quality", "objective"), ("latency,energy", "devices[0].power.busy")]
)
def test_metrics_that_the_profiles_do_not_carry_are_refused(text, field):
    with pytest.raises(InputError) as caught:
        parse_axes(text, text_problem())
    assert caught.value.findings[0].field == field


def test_goals_that_pull_on_the_same_shares_are_refused():
    media = {"wifi": {"sharing": "reserved"}}
    links = network(media=media, default={"rate": 1e6, "latency": 0.01, "medium": "wifi"})
    with pytest.raises(InputError, match="pipeline cannot trade latency for throughput here"):
        frontier(text_problem(network=links), ("latency", "throughput"))
