"""How long a user waits for the command line, Python start included."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.edgeopt.cli_cases import PROBLEM


@pytest.fixture
def problem(tmp_path):
    path = tmp_path / "problem.yaml"
    path.write_text(PROBLEM, encoding="utf-8")
    return path


def _run(*words):
    subprocess.run([sys.executable, "-m", "edgeopt", *map(str, words)], check=True, capture_output=True, timeout=60)


def test_help(benchmark):
    benchmark.pedantic(_run, args=("--help",), rounds=5, warmup_rounds=1)


def test_solve_three_devices(benchmark, problem):
    benchmark.pedantic(_run, args=("solve", problem, "--json"), rounds=5, warmup_rounds=1)


def test_import_of_the_solvers(benchmark):
    def load():
        subprocess.run([sys.executable, "-c", "import edgeopt_solvers.chain"], check=True, timeout=60)

    benchmark.pedantic(load, rounds=5, warmup_rounds=1)
