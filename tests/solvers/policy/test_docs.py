"""The example in the documentation runs and says what it promises; the family loads numpy alone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "formulations" / "policy.md"


def test_embedding_example(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(example.strip().splitlines()) <= 12
    scope: dict = {}
    exec(compile(example, str(PAGE), "exec"), scope)
    assert scope["result"].status.reason == "optimal"
    assert scope["result"].metrics["accuracy"] >= 0.8
    assert scope["curve"].accuracy[-1] >= 0.8
    assert capsys.readouterr().out


def test_numpy_is_all_that_is_imported():
    code = (
        "import sys\nfrom edgeopt_solvers import solve\nfrom edgeopt_solvers.policy import Speculative\n"
        "solve(Speculative([[0.1]], [[1.0]], [[0.5]], 4))\n"
        "assert not {'scipy', 'pulp', 'ortools', 'cvxpy', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
