"""Every stored instance: its known value is reached, its bound is not beaten, and no restated planner is ahead."""

from __future__ import annotations

import importlib
import math

import pytest

from edgeopt_solvers import solve
from tests.benchmarks.baselines import BASELINES
from tests.instances import library

INDEX = library.read_index()
LIMIT_S = 120.0


def test_the_index_and_the_files_agree():
    assert set(INDEX) == {*library.STORED, *library.DRAWN}
    files = {path.name for path in library.HERE.glob("*.json")} - {"index.json"}
    assert files == {INDEX[name]["file"] for name in library.names()}
    assert sum((library.HERE / name).stat().st_size for name in files) < 3_000_000
    for name, known in INDEX.items():
        assert math.isfinite(known["best"]), name
        assert known["bound"] <= known["best"], name


@pytest.mark.parametrize("name", library.names())
def test_a_stored_instance_is_the_drawn_one(name):
    assert library.load(name).to_json() == library.STORED[name]().to_json()


@pytest.fixture(scope="module")
def solved():
    found = {}

    def result_of(name):
        if name not in found:
            instance = library.load(name)
            found[name] = instance, solve(instance, time_limit_s=LIMIT_S if INDEX[name]["proved_by"] else 2.0)
        return found[name]

    return result_of


@pytest.mark.parametrize("name", INDEX)
def test_the_known_value_is_reached(name, solved):
    known = INDEX[name]
    _, result = solved(name)
    assert result.objective >= known["bound"] - 1e-6 * abs(known["bound"]), "below a proven bound"
    assert result.bound <= known["best"] + 1e-6 * abs(known["best"]), "a bound above a known plan"
    if "exact" in known["proved_by"]:
        assert result.objective == pytest.approx(known["best"], rel=1e-6)


@pytest.mark.parametrize("name", [name for name in INDEX if name.startswith("chain")])
def test_no_planner_is_ahead(name, solved):
    chain, result = solved(name)
    if chain.num_variants > 1 or chain.num_elements > 300:
        pytest.skip("restated planners know one variant, and plan small chains in reasonable time")
    evaluate = importlib.import_module("edgeopt_solvers.chain").evaluate
    with_shares = importlib.import_module("edgeopt_solvers.chain.shares").with_shares
    for planner, plan_of in BASELINES.items():
        plan = plan_of(chain)
        if plan is None:
            continue
        judged = evaluate(chain, with_shares(chain, plan))
        if not judged.violations:
            assert judged.objective >= result.objective * (1 - 1e-9), planner
