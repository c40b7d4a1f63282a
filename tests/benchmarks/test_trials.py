"""What programs of measurements share says and prints what it should."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from tests.benchmarks import trials
from tests.benchmarks.sections import table


def test_options_are_those_that_a_program_has_use_for():
    asked = trials.options("What it does.", "one plan", folder="toys").parse_args(["--quick", "--resume"])
    assert (asked.quick, asked.resume, asked.folder, asked.write) == (True, True, Path("build/toys"), None)
    with pytest.raises(SystemExit):
        trials.options("What it does.", "one plan").parse_args(["--resume"])


def test_it_says_how_long_it_has_been_at_work_and_ends_with_a_document(capsys):
    trials.teller()("half done")
    trials.print_document("toys", quick=False, gap=math.inf, rows=[1])
    printed = capsys.readouterr()
    assert re.fullmatch(r"\[ +\d\.\d s\] half done\n", printed.err)
    assert json.loads(printed.out) == {"benchmark": "toys", "quick": False, "gap": None, "rows": [1]}


def test_without_emulated_hosts_it_leaves_and_says_why(monkeypatch):
    monkeypatch.setattr("edgeopt.executor.netlab.missing", lambda: "not root")
    with pytest.raises(SystemExit, match="no emulated hosts here: not root"):
        trials.need_hosts()


def test_a_table_has_as_many_columns_as_heads():
    assert table(["a", "b"], [[1, "x"], [2, ""]]) == ["| a | b |", "|---|---|", "| 1 | x |", "| 2 |  |"]
