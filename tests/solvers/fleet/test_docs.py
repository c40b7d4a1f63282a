from __future__ import annotations

import re
from pathlib import Path


def test_the_example_of_the_page_runs(capsys):
    page = (Path(__file__).parents[3] / "docs" / "formulations" / "fleet.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    exec(compile(code, "fleet.md", "exec"), {})
    words = capsys.readouterr().out.split()
    assert words[0] == "optimal"
    assert words[-1] == "True"
