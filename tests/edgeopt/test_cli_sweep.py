"""The verb `sweep` as a user meets it: what it writes, what it refuses, and what kill -9 does to it."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from edgeopt.cli import main
from edgeopt.profiles import load_problem
from edgeopt.questions.grid import parse_grid
from edgeopt.questions.sweep import Options, rows, sweep
from tests.edgeopt.cli_cases import PROBLEM
from tests.edgeopt.terminal import converse

GRID = ["--over", "network.default.rate=10..1000 Mbit/s log 4", "--over", "devices=all, without phone"]


def document(capsys):
    return json.loads(capsys.readouterr().out)


class TestTables:
    def test_json_has_a_row_for_every_point(self, problem, capsys):
        assert main(["sweep", str(problem), *GRID, "--json"]) == 0
        shown = document(capsys)
        assert shown.keys() == {"problem", "axes", "points", "resumed", "files", "rows"}
        assert [axis["field"] for axis in shown["axes"]] == ["network.default.rate", "devices"]
        assert [axis["scale"] for axis in shown["axes"]] == ["log", ""]
        assert (shown["points"], shown["resumed"], len(shown["rows"])) == (8, 0, 8)
        assert shown["rows"][0]["network.default.rate"] == 1.25e6
        assert shown["rows"][1]["devices"] == "laptop+desktop"

    def test_csv_and_parquet_hold_the_same_rows(self, problem, tmp_path, capsys):
        parquet = pytest.importorskip("pyarrow.parquet")
        files = [tmp_path / "rows.csv", tmp_path / "rows.parquet"]
        targets = [word for file in files for word in ("-o", str(file))]
        tight = ["--over", "devices[desktop].memory=1 MB, 3 GB"]
        assert main(["sweep", str(problem), *GRID[:2], *tight, *targets, "--json"]) == 0
        shown = document(capsys)["rows"]
        table = parquet.read_table(files[1])
        assert table.to_pylist() == shown
        with files[0].open(encoding="utf-8", newline="") as stream:
            text = list(csv.DictReader(stream))
        assert [{key: "" if value is None else str(value) for key, value in row.items()} for row in shown] == text
        assert {row["status"] for row in shown} == {"optimal", "infeasible"}
        types = dict(zip(table.column_names, map(str, table.schema.types), strict=True))
        assert (types["energy_j"], types["message"], types["point"]) == ("double", "string", "int64")
        assert sorted(one.name for one in tmp_path.iterdir()) == [
            "problem.yaml", "rows.csv", "rows.csv.journal", "rows.parquet",
        ]  # fmt: skip

    def test_on_the_screen(self, problem, tmp_path, capsys):
        assert main(["sweep", str(problem), *GRID]) == 0
        printed = capsys.readouterr()
        assert "8 points: 8 optimal" in printed.out
        assert "smallest objective: 0.6606 s at network.default.rate = 1000 Mbit/s" in printed.out
        assert "keep the rows with -o" in printed.out
        assert printed.err == "", "no progress bar without a terminal"

    def test_a_terminal_sees_how_many_points_are_done(self, problem, tmp_path):
        code, seen = converse(["sweep", str(problem), *GRID, "-o", "rows.csv"], [], tmp_path)
        assert code == 0, seen
        assert re.search(r"points .*\d/8", seen), seen
        assert "8 points: 8 optimal" in seen

    def test_a_second_call_does_nothing_twice(self, problem, tmp_path, capsys, monkeypatch):
        words = ["sweep", str(problem), *GRID, "-o", str(tmp_path / "rows.csv")]
        assert main(words) == 0
        first = (tmp_path / "rows.csv").read_bytes()
        (tmp_path / "rows.csv").unlink()
        with monkeypatch.context() as patch:
            patch.setattr("edgeopt.planner.solve", lambda *_, **__: pytest.fail("solved again"))
            assert main(words) == 0
        assert "8 of them were kept from before" in capsys.readouterr().out
        assert (tmp_path / "rows.csv").read_bytes() == first
        assert main([*words, "--restart", "--json"]) == 0
        assert document(capsys)["resumed"] == 0

    def test_a_picture(self, problem, tmp_path, capsys):
        pytest.importorskip("matplotlib")
        for name, grid in {"curves.svg": GRID, "sets.png": GRID[2:]}.items():
            target = tmp_path / name
            assert main(["sweep", str(problem), *grid, "--plot", str(target)]) == 0
            assert f"picture written to {target}" in capsys.readouterr().out
            assert target.stat().st_size > 1000
        drawing = (tmp_path / "curves.svg").read_text(encoding="utf-8")
        for word in ("network.default.rate [Mbit/s]", "latency [s]", "devices laptop+desktop"):
            assert f"<!-- {word} -->" in drawing

    def test_many_curves_are_not_named_one_by_one(self, problem, tmp_path):
        pytest.importorskip("matplotlib")
        sets = ["--over", "devices=all, leave one out, phone, laptop", "--over", "objective=latency,throughput"]
        words = ["--over", "network.default.rate=1,9 MB/s", *sets, "--plot", str(tmp_path / "many.svg")]
        assert main(["sweep", str(problem), *words]) == 0
        assert "12 curves" in (tmp_path / "many.svg").read_text(encoding="utf-8")

    def test_ctrl_c_says_where_the_points_are(self, problem, tmp_path, capsys, monkeypatch):
        from edgeopt.questions import sweep as sweeping

        real, calls = sweeping.solve_point, []

        def interrupted(*words):
            calls.append(words)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return real(*words)

        words = ["sweep", str(problem), *GRID, "-o", str(tmp_path / "rows.csv")]
        with monkeypatch.context() as patch:
            patch.setattr(sweeping, "solve_point", interrupted)
            assert main(words) == 130
        assert "3 of 8 points are in" in capsys.readouterr().err
        assert not (tmp_path / "rows.csv").exists()
        assert main([*words, "--json"]) == 0
        assert document(capsys)["resumed"] == 3


@pytest.mark.parametrize(
    ("words", "named", "next_command"),
    [
        ([], "--over", "edgeopt sweep --help"),
        (["--over", "network.default.rat=1 MB/s"], "did you mean 'rate'", "edgeopt sweep --help"),
        (["--over", "network.default.rate=1..9 log 3"], "no unit", "edgeopt sweep --help"),
        (["--over", "workload.new_tokens=1,2", "--over", "devices=tablet"], "tablet", "edgeopt sweep --help"),
        ([*GRID, "-o", "{folder}/rows.txt"], ".csv or .parquet", "edgeopt sweep --help"),
        ([*GRID, "-o", "{folder}/no/rows.csv"], "no", "edgeopt sweep --help"),
        ([*GRID, "--plot", "{folder}/rows.gif"], ".svg", "edgeopt sweep --help"),
        ([*GRID, "--on", "moon"], "moon", "edgeopt sweep --help"),
        ([*GRID, "--restart"], "no journal", "edgeopt sweep --help"),
        ([*GRID, "--strategy", "magic"], "magic", "edgeopt sweep --help"),
        ([*GRID, "--backend", "magic"], "magic", "edgeopt sweep --help"),
        ([*GRID, "--time-limit", "9"], "no unit", "edgeopt sweep --help"),
        (["--over", "strategy=pipeline,magic"], "magic", "edgeopt sweep --help"),
        (["--over", "strategy=pipeline,auto", "--strategy", "auto"], "axis", "edgeopt sweep --help"),
        ([*GRID, "--gap", "-1"], "gap", "edgeopt"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    problem, tmp_path, capsys, monkeypatch, words, named, next_command
):
    monkeypatch.setattr("edgeopt.planner.solve", lambda *_, **__: pytest.fail("solved"))
    words = ["sweep", str(problem), *(word.format(folder=tmp_path) for word in words)]
    target = [] if "-o" in words or "--restart" in words else ["-o", str(tmp_path / "rows.csv")]
    assert main([*words, *target]) == 2
    printed = capsys.readouterr()
    assert named in printed.err
    assert f": {next_command}" in printed.err.splitlines()[-1]
    assert printed.out == ""
    assert [one.name for one in tmp_path.iterdir()] == ["problem.yaml"]
    assert main([*words, *target, "--json"]) == 2
    assert document(capsys)["error"]["exit_code"] == 2


def _points(path):
    """Return the whole lines of a journal after its head."""
    content = path.read_bytes() if path.exists() else b""
    return [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")][1:]


def test_a_thousand_points_survive_kill_9(tmp_path, capsys):
    problem, target = tmp_path / "small.yaml", tmp_path / "rows.csv"
    phone = PROBLEM[PROBLEM.index("  - name: phone") : PROBLEM.index("  - name: laptop")]
    problem.write_text(PROBLEM.replace(phone, "").replace("count: 4", "count: 2"), encoding="utf-8")
    axes = ["network.default.rate=10..1000 Mbit/s log 25", "workload.new_tokens=1..40 40"]
    words = ["sweep", str(problem), "--over", axes[0], "--over", axes[1], "-o", str(target)]
    journal = tmp_path / "rows.csv.journal"
    moment = random.randrange(20, 600)
    with subprocess.Popen([sys.executable, "-m", "edgeopt", *words], stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while len(_points(journal)) < moment and time.monotonic() < deadline:
            time.sleep(random.random() / 50)
        os.kill(process.pid, signal.SIGKILL)
    before = _points(journal)
    assert moment <= len(before) < 1000, moment
    assert not target.exists()
    assert main([*words, "--json"]) == 0
    shown = document(capsys)
    assert shown["resumed"] == len(before)
    after = _points(journal)
    assert after[: len(before)] == before, "nothing is lost"
    assert sorted(json.loads(line)["index"] for line in after) == list(range(1000)), "and nothing done twice"
    # The line that was interrupted, and the ones around it, are as if it never had been.
    grid = parse_grid(load_problem(problem), axes)
    lines = list(grid.lines())
    (k,) = [k for k, line in enumerate(lines) if json.loads(before[-1])["index"] in line]
    part = {index for line in lines[max(k - 1, 0) : k + 2] for index in line}
    wanted = sweep(_Part(grid, part), Options())
    assert [shown["rows"][index] for index in sorted(part)] == rows(grid, wanted)


class _Part:
    """Some lines of a grid."""

    def __init__(self, grid, points):
        self.grid, self.points = grid, points

    def __getattr__(self, name):
        return getattr(self.grid, name)

    def lines(self):
        return [line for line in self.grid.lines() if line[0] in self.points]


def test_without_pyarrow_it_says_how_to_get_it(problem, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["sweep", str(problem), *GRID, "-o", str(tmp_path / "rows.parquet")]) == 2
    assert "pip install 'edgeopt[table]'" in capsys.readouterr().err
