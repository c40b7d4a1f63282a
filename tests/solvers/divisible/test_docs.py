"""The example in the documentation runs and says what it promises."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "formulations" / "divisible.md"


def test_embedding_example(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(example.strip().splitlines()) <= 12
    scope: dict = {}
    exec(compile(example, str(PAGE), "exec"), scope)
    assert sum(scope["rows"]) == 64
    assert abs(sum(scope["shares"]) - 1) < 1e-9
    assert scope["result"].status.reason == "optimal"
    assert capsys.readouterr().out
