"""Verbs that draw refuse what cannot be drawn, in the same words and before any work is done."""

import pytest

from edgeopt.cli import main

ASKED = [
    ["compare", "demo-diffusion", "--pareto", "latency,quality", "--picture"],
    ["sweep", "demo-diffusion", "--over", "objective=latency,energy", "--plot"],
    ["execute", "missing.yaml", "--picture"],  # the plan would be looked for next
]


@pytest.mark.parametrize("words", ASKED, ids=lambda words: words[0])
def test_it_is_refused_at_once(words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*words, "line.txt"]) == 2
    shown = capsys.readouterr().err
    assert f"{words[-1]}: 'line.txt' is no picture that can be drawn" in shown
    assert "end its name in .svg, .png, .pdf" in shown
    assert main([*words, "nowhere/line.svg"]) == 2
    assert f"{words[-1]}: the folder 'nowhere' does not exist" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([*words, "line.svg"]) == 2
    assert "try: pip install 'edgeopt[plot]'" in capsys.readouterr().err
