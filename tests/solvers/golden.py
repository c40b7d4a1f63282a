"""Stored programs: what a formulation writes, line by line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

__all__ = ["assert_is_golden"]


def assert_is_golden(problem: Any, golden: Path, folder: Path) -> None:
    """Compare a PuLP problem, written to ``folder``, with a stored file; UPDATE_GOLDEN=1 rewrites the file."""
    program = folder / "program.lp"
    problem.writeLP(str(program))
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(program.read_text())
    assert program.read_text() == golden.read_text()
