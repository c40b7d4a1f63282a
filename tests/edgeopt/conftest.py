"""What several tests of edgeopt start from."""

from __future__ import annotations

import pytest

from tests.edgeopt.cli_cases import PROBLEM


@pytest.fixture
def problem(tmp_path):
    """Return the path of a problem whose model fits no single device."""
    path = tmp_path / "problem.yaml"
    path.write_text(PROBLEM, encoding="utf-8")
    return path


@pytest.fixture
def plan(problem, tmp_path, capsys):
    """Return the path of that problem's plan."""
    from edgeopt.cli import main

    path = tmp_path / "plan.yaml"
    assert main(["solve", str(problem), "-o", str(path)]) == 0
    capsys.readouterr()
    return path


@pytest.fixture
def one_thread():
    """Let torch compute with one thread, so that sums are added in one order."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
