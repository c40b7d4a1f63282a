"""The example in the documentation runs and says what it promises."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "formulations" / "bandwidth.md"


def test_embedding_example(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(example.strip().splitlines()) <= 11
    scope: dict = {}
    exec(compile(example, str(PAGE), "exec"), scope)
    assert scope["shares"].shape == (3,)
    assert abs(scope["shares"].sum() - 1) < 1e-12
    assert capsys.readouterr().out
