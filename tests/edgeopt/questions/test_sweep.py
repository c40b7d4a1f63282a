"""A sweep's rows are the optima of its points, however often it was interrupted and wherever it was solved."""

from __future__ import annotations

import json

import pytest

from edgeopt import planner
from edgeopt.errors import InputError
from edgeopt.questions.grid import parse_grid
from edgeopt.questions.journal import Journal
from edgeopt.questions.sweep import FIGURES, Options, head_of, local, rows, solve_point, sweep, tasks_of
from tests.edgeopt.factories import device, image_problem, network, text_problem

WORDS = ["network.default.rate=1..64 MB/s log 4", "devices[server].memory=3,4,5 GB"]


@pytest.fixture(scope="module")
def grid():
    return parse_grid(text_problem(network=network(rate=1e5)), WORDS)


@pytest.fixture(scope="module")
def whole(grid):
    return sweep(grid, Options())


def test_rows_are_the_optima_of_the_points(grid, whole):
    table = rows(grid, whole)
    assert len(table) == len(grid) == 12
    assert [list(row) for row in table] == [list(table[0])] * 12
    assert set(FIGURES) < set(table[0])
    for index, row in enumerate(table):
        plan = planner.solve(grid.problem(index))
        assert row["point"] == index
        assert row["objective"] == pytest.approx(plan.objective, rel=1e-12)
        assert row["latency_s"] == pytest.approx(plan.latency_s, rel=1e-12)
        assert row["ttft_s"] == pytest.approx(plan.metrics["ttft_s"], rel=1e-12)
        assert row["network.default.rate"] == grid.problem(index).network.default.rate
    assert len({row["objective"] for row in table}) > 6, "the fields make a difference"


def test_each_point_starts_from_its_neighbour(grid, monkeypatch):
    starts = []
    real = planner.solve

    def record(problem, **options):
        starts.append(options["warm_start"])
        return real(problem, **options)

    monkeypatch.setattr(planner, "solve", record)
    found = sweep(grid, Options())
    lines = list(grid.lines())
    order = [index for line in lines for index in line]
    for index, start in zip(order, starts, strict=True):
        line = next(line for line in lines if index in line)
        if index == line[0]:
            assert start is None
        else:
            before = found[line[line.index(index) - 1]]["start"]
            assert (start.cuts, start.devices) == (before["cuts"], before["devices"])
            assert start.problem == grid.problem(index)


def test_options_reach_every_point(grid, monkeypatch):
    seen = []
    real = planner.solve
    monkeypatch.setattr(planner, "solve", lambda problem, **given: seen.append(given) or real(problem))
    sweep(grid, Options("pipeline", "pulp", 9.0, 0.25))
    assert len(seen) == len(grid)
    for given in seen:
        assert given | {"warm_start": None} == {
            "strategy": "pipeline", "backend": "pulp", "time_limit_s": 9.0, "gap": 0.25, "warm_start": None,
            "diagnose": False,
        }  # fmt: skip


def test_a_point_without_a_plan_says_why_and_stops_nobody():
    problem = text_problem(devices=[device("phone", gflops=1, memory=1e9), device("server", gflops=10, memory=1e9)])
    grid = parse_grid(problem, ["devices[server].memory=1..8 GB 8"])
    table = rows(grid, sweep(grid, Options()))
    assert [row["status"] for row in table][:2] == ["infeasible"] * 2
    assert table[-1]["status"] == "optimal"
    assert "no plan keeps every limit" in table[0]["message"]
    assert table[0]["objective"] is None
    assert table[-1]["message"] is None


def test_refused_points_are_rows_too(grid):
    problem = image_problem(strategy="pipeline")
    record = solve_point(problem, Options())
    assert record["row"]["status"] == "refused"
    assert "pipeline splits language models" in record["row"]["message"]


class TestJournal:
    def filled(self, path, grid, whole):
        with Journal(path, head_of(grid, Options())) as journal:
            for line in grid.lines():
                for index in line:
                    journal.add(index, whole[index])
        return path.read_bytes()

    def resumed(self, path, grid):
        """Finish a sweep; return its records and the points that were solved."""
        solved = []

        def counted(grid, tasks, options):
            solved.extend(index for task in tasks for index in task.indices)
            return local(grid, tasks, options)

        with Journal(path, head_of(grid, Options())) as journal:
            return sweep(grid, Options(), journal, counted), solved

    def test_cut_anywhere_it_goes_on_from_the_last_whole_line(self, tmp_path, grid, whole):
        path = tmp_path / "sweep.csv.journal"
        content = self.filled(path, grid, whole)
        ends = [k + 1 for k, byte in enumerate(content) if byte == ord("\n")]
        for cut in [0, 1, ends[0] - 1, ends[0], ends[0] + 1, ends[4] - 1, ends[4] + 7, ends[7], ends[-1] - 1]:
            path.write_bytes(content[:cut])
            kept = max(sum(end <= cut for end in ends) - 1, 0)
            records, solved = self.resumed(path, grid)
            assert len(solved) == len(set(solved)) == len(grid) - kept
            assert rows(grid, records) == rows(grid, whole)
            lines = path.read_bytes().splitlines()[1:]
            assert sorted(json.loads(line)["index"] for line in lines) == list(range(len(grid)))
            assert path.read_bytes()[: ends[kept]] == content[: ends[kept]], "what was there stays as it was"

    def test_a_finished_sweep_does_nothing_again(self, tmp_path, grid, whole):
        path = tmp_path / "sweep.csv.journal"
        content = self.filled(path, grid, whole)
        records, solved = self.resumed(path, grid)
        assert solved == []
        assert rows(grid, records) == rows(grid, whole)
        assert path.read_bytes() == content

    def test_bytes_that_a_crash_left_are_cut_off(self, tmp_path, grid, whole):
        path = tmp_path / "sweep.csv.journal"
        content = self.filled(path, grid, whole)
        keep = content.splitlines(keepends=True)[:3]
        for torn in (b"\0\0\0\0\n", b'{"index": 9, "ro\n', b"[1]\n", b"\xff\xfe\n"):
            path.write_bytes(b"".join(keep) + torn)
            _, solved = self.resumed(path, grid)
            assert len(solved) == len(grid) - 2

    def test_another_sweep_is_refused_and_left_alone(self, tmp_path, grid, whole):
        path = tmp_path / "sweep.csv.journal"
        content = self.filled(path, grid, whole)
        other = parse_grid(text_problem(network=network(rate=1e5)), WORDS[:1])
        changed = parse_grid(text_problem(network=network(rate=1e5, latency=0.5)), WORDS)
        for head, word in [
            (head_of(other, Options()), "axes"),
            (head_of(changed, Options()), "content"),
            (head_of(grid, Options(gap=0.5)), "options"),
        ]:
            with pytest.raises(InputError, match=f"another {word}") as caught:
                Journal(path, head)
            assert "--restart" in caught.value.findings[0].mend
            assert path.read_bytes() == content
        with Journal(path, head_of(other, Options()), afresh=True) as journal:
            assert journal.records == {}

    @pytest.mark.parametrize("text", ["precious\n", "precious", '{"a": 1}\n', "\n"])
    def test_a_file_of_another_kind_is_never_cut(self, tmp_path, grid, text):
        path = tmp_path / "sweep.csv.journal"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match="no journal"):
            Journal(path, head_of(grid, Options()))
        assert path.read_text(encoding="utf-8") == text

    def test_two_at_once_are_refused(self, tmp_path, grid):
        path = tmp_path / "sweep.csv.journal"
        with Journal(path, head_of(grid, Options())), pytest.raises(InputError, match="another process writes"):
            Journal(path, head_of(grid, Options()))

    def test_tasks_go_on_from_the_last_point_of_each_line(self, grid, whole):
        first, second, third = list(grid.lines())
        known = {index: whole[index] for index in (*first, *second[:2])}
        assert [task.indices for task in tasks_of(grid, known)] == [tuple(second[2:]), tuple(third)]
        assert [task.start for task in tasks_of(grid, known)] == [whole[second[1]]["start"], None]
