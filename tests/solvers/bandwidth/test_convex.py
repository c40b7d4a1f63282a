"""The exact backend beside the cone formulation, feature by feature and together."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given, settings

from edgeopt_solvers import solve
from edgeopt_solvers.bandwidth import CAPABILITIES, FEATURES, Bandwidth
from edgeopt_solvers.bandwidth.check import diagnose
from edgeopt_solvers.errors import BackendError, UnsupportedError
from tests.solvers.bandwidth.draws import problems


def library(kind: str, num_flows: int, num_media: int, seed: int, objective: str, **more) -> Bandwidth:
    rng = np.random.default_rng(seed)
    band = {"fixed": 0.0, "radio": 2e7}.get(kind)
    return Bandwidth(
        rng.lognormal(13, 1.0, num_flows),
        rate_bytes_per_s=rng.lognormal(16, 1, num_flows),
        medium=np.arange(num_flows) % num_media,
        band_hz=np.where(np.arange(num_media) % 2, 0.0, 2e7) if band is None else np.full(num_media, band),
        snr=rng.lognormal(0, 1.5, num_flows),
        objective=objective,
        **{name: make(rng, num_flows) for name, make in more.items()},
    )


EXTRA = {
    "weight": lambda rng, n: rng.uniform(0.5, 2, n),
    "fixed_s": lambda rng, n: rng.lognormal(-2, 1, n),
    "min_share": lambda rng, n: np.where(rng.random(n) < 0.3, 0.5 / n, 0.0),
    "max_share": lambda rng, n: np.where(rng.random(n) < 0.3, 4.0 / n, np.inf),
}


@pytest.mark.parametrize("kind", ["fixed", "radio", "mixed"])
@pytest.mark.parametrize("seed", range(3))
def test_sum_within_1e8_of_cvxpy_at_200_flows(kind, seed):
    instance = library(kind, 200, 4, seed, "sum", weight=EXTRA["weight"], fixed_s=EXTRA["fixed_s"])
    ours, theirs = solve(instance), solve(instance, "cvxpy")
    assert ours.objective == pytest.approx(theirs.objective, rel=1e-8)
    assert ours.objective <= theirs.objective * (1 + 1e-13)
    assert theirs.bound <= ours.objective * (1 + 1e-13)


@pytest.mark.parametrize("kind", ["fixed", "radio", "mixed"])
@pytest.mark.parametrize("feature", [[], ["weight"], ["fixed_s"], ["min_share"], ["max_share"], list(EXTRA)])
@pytest.mark.parametrize("objective", ["sum", "max"])
def test_every_feature(kind, feature, objective):
    instance = library(kind, 30, 2, 7, objective, **{name: EXTRA[name] for name in feature})
    ours, theirs = solve(instance), solve(instance, "cvxpy")
    assert ours.objective == pytest.approx(theirs.objective, rel=1e-8 if objective == "sum" else 1e-6)
    assert ours.bound <= theirs.objective * (1 + 1e-12)
    assert theirs.bound <= ours.objective * (1 + 1e-12)


@pytest.mark.parametrize("kind", ["fixed", "radio"])
@pytest.mark.parametrize("objective", ["sum", "max"])
def test_deadlines_that_bind(kind, objective):
    free = library(kind, 20, 1, 3, "sum")
    best = solve(free)
    from edgeopt_solvers.bandwidth.check import flow_seconds

    ends = flow_seconds(free, best.solution.shares)[1]
    slowest = np.argsort(ends)[-3:]
    deadline = np.full(20, np.inf)
    deadline[slowest] = 0.8 * ends[slowest]
    instance = Bandwidth(
        free.size_bytes, free.rate_bytes_per_s, band_hz=free.band_hz, snr=free.snr, objective=objective,
        deadline_s=deadline,
    )  # fmt: skip
    ours, theirs = solve(instance), solve(instance, "cvxpy")
    assert ours.objective == pytest.approx(theirs.objective, rel=1e-8 if objective == "sum" else 1e-6)
    if objective == "sum":
        assert ours.objective > best.objective


@settings(max_examples=60, deadline=None)
@given(problems(most_flows=6))
def test_agreement_on_drawn_problems(instance):
    ours = solve(instance)
    try:
        theirs = solve(instance, "cvxpy")
    except BackendError:  # a cone solver may give up; it may not be wrong
        return
    if not ours.status.has_solution:
        assert not theirs.status.has_solution
        assert diagnose(instance) == ours.message
        return
    assume(theirs.status.has_solution and theirs.status.reason == "optimal")
    assert ours.objective <= theirs.objective * (1 + 1e-12)
    assert theirs.bound <= ours.objective * (1 + 1e-12)
    assert ours.objective == pytest.approx(theirs.objective, rel=2e-6)


def test_infeasible_for_both():
    instance = library("radio", 10, 1, 0, "sum", deadline_s=lambda rng, n: np.full(n, 0.5))
    assert solve(instance).status.reason == solve(instance, "cvxpy").status.reason == "infeasible"
    assert solve(instance).message == solve(instance, "cvxpy").message != ""


def test_time_limit_reaches_clarabel():
    result = solve(library("radio", 200, 1, 0, "max"), "cvxpy", time_limit_s=1e-9)
    assert result.status.reason == "time_limit"
    assert not result.status.has_solution


def test_capabilities_are_data():
    assert CAPABILITIES["exact"] == CAPABILITIES["cvxpy"] == FEATURES
    with pytest.raises(UnsupportedError, match="no formulation"):
        solve(library("fixed", 3, 1, 0, "sum"), "pulp")


def test_import_is_numpy_only():
    code = (
        "import sys, numpy, edgeopt_solvers.bandwidth, edgeopt_solvers.bandwidth.exact as e\n"
        "from edgeopt_solvers import solve\n"
        "solve(edgeopt_solvers.bandwidth.Bandwidth([1.0], [1.0]))\n"
        "assert not {'scipy', 'cvxpy', 'pulp', 'ortools', 'numba', 'torch'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
