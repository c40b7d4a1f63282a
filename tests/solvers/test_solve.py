"""The one verb: refusals with a way out, the independent check, import cost, the README's example."""

from __future__ import annotations

import contextlib
import io
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

import edgeopt_solvers
from edgeopt_solvers import CheckError, InstanceError, Result, Status, UnsupportedError, chain, solve
from edgeopt_solvers.chain import Chain, Solution, exact
from edgeopt_solvers.result import relative_gap

TINY = {
    "compute_s": [[1.0, 1.0], [0.5, 0.5]],
    "cut_bytes": [10.0, 10.0, 10.0],
    "rate_bytes_per_s": [[0, 100.0], [100.0, 0]],
    "latency_s": [[0, 0.01], [0.01, 0]],
}


def test_the_package_exports_what_it_says():
    for module in (edgeopt_solvers, chain):
        for name in module.__all__:
            assert hasattr(module, name), name


def test_an_unknown_backend_is_refused_with_the_choices():
    with pytest.raises(UnsupportedError, match=r"unknown backend 'gurobi': choose one of exact, pulp, ortools, cvxpy"):
        solve(Chain(**TINY), "gurobi")


def test_a_backend_without_a_feature_is_refused_before_building(monkeypatch):
    supported = {"pulp": frozenset({"pins"}), "exact": chain.FEATURES}
    monkeypatch.setattr(chain, "CAPABILITIES", supported)
    monkeypatch.setitem(sys.modules, "edgeopt_solvers.chain.milp", None)  # building would fail otherwise
    instance = Chain(**TINY, source=None, pins={0: 0})
    with pytest.raises(
        UnsupportedError, match=r"'pulp' cannot express free_ends in family 'chain'; use backend='exact'"
    ):
        solve(instance, "pulp")
    with pytest.raises(UnsupportedError, match=r"'cvxpy' has no formulation in family 'chain'; use backend='exact'"):
        solve(instance, "cvxpy")


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, bad) for name in ("time_limit_s", "gap") for bad in (-1.0, math.nan)]
    + [("time_limit_s", 0.0), ("gap", math.inf)],
)
def test_options_out_of_range_are_refused(name, value):
    with pytest.raises(InstanceError, match=name):
        solve(Chain(**TINY), **{name: value})


@pytest.mark.parametrize(
    ("claim", "complaint"),
    [
        (Result(Status("optimal", True), 1.0, 1.0, Solution((2,), (1,), (0,)), "exact", 0.0), "checker says 1.22"),
        (Result(Status("optimal", True), 2.0, 2.0, Solution((1, 2), (0, 0), (0, 0)), "exact", 0.0), "infeasible"),
        (Result(Status("optimal", True), 1.22, 1.3, Solution((2,), (1,), (0,)), "exact", 0.0), "bound 1.3 above"),
    ],
)
def test_a_lying_backend_is_caught(monkeypatch, claim, complaint):
    monkeypatch.setattr(exact, "solve", lambda instance, options: claim)
    with pytest.raises(CheckError, match=complaint):
        solve(Chain(**TINY))


def test_gaps():
    assert relative_gap(2.0, 1.0) == 0.5
    assert relative_gap(-1.0, -2.0) == 1.0
    assert relative_gap(math.inf, 3.0) == relative_gap(math.inf, -math.inf) == math.inf
    assert relative_gap(math.inf, math.inf) == relative_gap(0.0, 0.0) == 0.0


def test_importing_is_quick_and_takes_numpy_alone():
    code = """
import sys, time
started = time.process_time()  # other processes on this machine are not our cost
import edgeopt_solvers, edgeopt_solvers.chain
took = time.process_time() - started
result = edgeopt_solvers.solve(edgeopt_solvers.chain.Chain([[1.0]], [1, 1], [[0]], [[0]]))
heavy = {"scipy", "pulp", "highspy", "ortools", "cvxpy", "numba", "torch", "edgeopt"} & set(sys.modules)
print(took, sorted(heavy), result.objective)
"""
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    words = [run.stdout.split(" ", 1) for run in runs]
    assert {rest for _, rest in words} == {"[] 1.0\n"}
    assert min(float(took) for took, _ in words) < 0.3


def test_the_readme_example_runs():
    readme = Path(__file__).parents[2] / "solvers" / "README.md"
    code, output = re.search(r"```python\n(.*?)```\n+```text\n(.*?)```", readme.read_text(), re.S).groups()
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(readme), "exec"), {})
    assert printed.getvalue() == output
