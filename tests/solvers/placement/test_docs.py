"""The example in the documentation runs and says what it promises."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "formulations" / "placement.md"


def test_embedding_example(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(example.strip().splitlines()) <= 12
    scope: dict = {}
    exec(compile(example, str(PAGE), "exec"), scope)
    assert scope["placed"].gap <= 0.01
    assert scope["routed"].status.reason == "optimal"
    assert capsys.readouterr().out


def test_numpy_is_all_that_is_imported_before_solving():
    code = (
        "import sys\nimport edgeopt_solvers.placement\n"
        "assert not {'scipy', 'pulp', 'ortools', 'cvxpy', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
