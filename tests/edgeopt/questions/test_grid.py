"""Axes of a grid: what they say, what is refused before anything is solved, and whose problems they make."""

from __future__ import annotations

import math

import pytest

from edgeopt.errors import InputError
from edgeopt.profiles import load_problem
from edgeopt.profiles.change import Editor
from edgeopt.questions.grid import parse_grid
from tests.edgeopt.factories import device, image_problem, network, text_problem


@pytest.fixture(scope="module")
def problem():
    links = [{"between": ["phone", "server"], "rate": 5e6, "latency": 0.02}]
    devices = [device("phone", memory=3e9), device("laptop", memory=6e9), device("server", memory=6e9)]
    return text_problem(devices=devices, network=network(links=links))


@pytest.fixture(scope="module")
def home():
    return load_problem("home-cluster")


def axis(problem, word):
    (only,) = parse_grid(problem, [word]).axes
    return only


class TestValues:
    @pytest.mark.parametrize(
        ("word", "cells"),
        [
            ("workload.new_tokens=10,20,50", [10, 20, 50]),
            ("workload.new_tokens=10..50 step 20", [10, 30, 50]),
            ("workload.new_tokens=50..10 step -20", [50, 30, 10]),
            ("workload.new_tokens=1..10 4", [1, 4, 7, 10]),
            ("workload.new_tokens=1..3 9", [1, 2, 3]),
            ("workload.new_tokens=1..100 log 3", [1, 10, 100]),
            ("network.default.rate=8 Mbit/s", [1e6]),
            ("network.default.rate=8,16 Mbit/s", [1e6, 2e6]),
            ("network.default.rate=8 Mbit/s, 1 MB/s, 2 MB/s", [1e6, 1e6, 2e6]),
            ("network.default.rate=8, 8 Mbit/s", [1e6]),
            ("network.links[0].rate = 8..80 Mbit/s linear 3", [1e6, 5.5e6, 1e7]),
            ("network.links[0].rate=8Mbit/s..80Mbit/s 2", [1e6, 1e7]),
            ("network.links[0].latency=0..4 ms step 2", [0.0, 0.002, 0.004]),
            ("devices[server].memory=3,6 GB", [3e9, 6e9]),
            ("devices[2].efficiency.compute=0.25..1 4", [0.25, 0.5, 0.75, 1.0]),
            ("constraints.deadline=none, 90 s", [None, 90.0]),
            ("constraints.max_stages=none, 1, 2", [None, 1, 2]),
            ("constraints.source=phone,server", ["phone", "server"]),
            ("objective=latency,throughput", ["latency", "throughput"]),
            ("devices=all, without phone, laptop+server, phone", ["phone+laptop+server", "laptop+server", "phone"]),
            ("devices=leave one out", ["laptop+server", "phone+server", "phone+laptop"]),
        ],
    )
    def test_are_those_that_were_written_in_si_units(self, problem, word, cells):
        found = list(axis(problem, word).cells)
        assert found == (pytest.approx(cells, rel=1e-12) if _floats(cells) else cells)

    def test_of_a_logarithmic_range_are_equally_far_apart_and_its_ends_exact(self, problem):
        rates = axis(problem, "network.links[0].rate=10..1000 Mbit/s log 20")
        assert (len(rates), rates.unit, rates.scale) == (20, "Mbit/s", "log")
        assert (rates.cells[0], rates.cells[-1]) == (1.25e6, 1.25e8)
        steps = [b / a for a, b in zip(rates.cells, rates.cells[1:], strict=False)]
        assert steps == pytest.approx([math.pow(100, 1 / 19)] * 19, rel=1e-9)

    def test_parts_of_the_library_keep_their_name_in_the_problem(self, home):
        grid = parse_grid(
            home, ["devices[desktop]=rtx-3090,l4", "network=wifi-6-home,ethernet-1g", "model=llama-3.2-1b"]
        )
        last = grid.problem(len(grid) - 1)
        assert [one.name for one in last.devices] == [one.name for one in home.devices]
        assert last.devices[2].memory != home.devices[2].memory
        assert (last.network.name, last.model.name) == ("ethernet-1g", "llama-3.2-1b")


def _floats(cells):
    return all(isinstance(cell, float) for cell in cells)


class TestGrid:
    def test_the_last_axis_changes_fastest_and_neighbours_differ_by_a_step(self, problem):
        grid = parse_grid(problem, ["network.default.rate=1..4 MB/s 4", "workload.new_tokens=2,4", "objective=latency"])
        assert len(grid) == 8
        assert [grid.place(index) for index in range(3)] == [(0, 0, 0), (0, 1, 0), (1, 0, 0)]
        assert grid.cells(7) == {"network.default.rate": 4e6, "workload.new_tokens": 4, "objective": "latency"}
        assert list(grid.lines()) == [[0, 2, 4, 6], [1, 3, 5, 7]]
        assert grid.along == 0, "the longest axis of numbers"

    def test_a_point_is_the_problem_that_a_file_with_these_values_describes(self, tmp_path, home):
        from pathlib import Path

        text = (Path(__file__).parents[3] / "profiles" / "problems" / "home-cluster.yaml").read_text(encoding="utf-8")
        text = text.replace("memory: 10 GiB", "memory: 14 GiB").replace("new_tokens: 128", "new_tokens: 64")
        text = text.replace("- jetson-orin-nano-8gb", "- {profile: jetson-orin-nano-8gb, memory: 7 GiB}")
        (tmp_path / "other.yaml").write_text(text, encoding="utf-8")
        wanted = load_problem(tmp_path / "other.yaml")
        words = ["devices[desktop].memory=14 GiB", "workload.new_tokens=64", "devices[1].memory=7 GiB"]
        found = parse_grid(home, words).problem(0)

        def plain(problem):
            content = problem.model_dump(mode="json")
            return content | {"devices": [one | {"sources": {}} for one in content["devices"]]}

        assert plain(found) == plain(wanted)
        assert found.devices[1].margin is None, "as in a file: such memory is what plans may use"

    def test_who_is_left_out_stays_the_source(self, problem):
        grid = parse_grid(problem, ["devices=without phone"])
        found = grid.problem(0)
        assert found.constraints.forbid == ["phone"]
        assert [one.name for one in found.devices] == ["phone", "laptop", "server"]

    def test_the_problem_itself_is_not_touched(self, problem):
        before = problem.model_dump_json()
        Editor(problem).changed({("network", "links", 0, "rate"): "9 MB/s", ("devices", 1, "memory"): "1 GB"})
        assert problem.model_dump_json() == before


class TestRefusals:
    @pytest.mark.parametrize(
        ("word", "field", "words"),
        [
            ("workload.steps=10", "workload.steps", ["there is no 'steps'", "known"]),
            ("workload.new_token=10", "workload.new_token", ["did you mean 'new_tokens'"]),
            ("network.link[0].rate=8 Mbit/s", "network.link", ["did you mean 'links'"]),
            ("network.links[3].rate=8 Mbit/s", "network.links[3]", ["network.links[0]"]),
            ("devices[fone].memory=8 GB", "devices[fone]", ["phone", "devices[0]"]),
            ("network.links[0].rate.low=8 Mbit/s", "network.links[0].rate", ["no field 'low'"]),
            ("network.links[0].rate=10..1000 log 20", "network.links[0].rate", ["no unit"]),
            ("network.links[0].rate=10..1000 s log 20", "network.links[0].rate", ["10 s", "data rate"]),
            ("network.links[0].rate=fast", "network.links[0].rate", ["fast"]),
            ("network.links[0].rate=0..8 Mbit/s 3", "network.links[0].rate", ["zero"]),
            ("network.links[0].rate=0..8 Mbit/s log 3", "network.links[0].rate", ["positive ends"]),
            ("network.links[0].rate=1 kB/s..8 Mbit/s 3", "network.links[0].rate", ["two units"]),
            ("network.links[0].rate=8..1 Mbit/s step 1", "network.links[0].rate", ["leads nowhere"]),
            ("network.links[0].rate=8..9 Mbit/s 1", "network.links[0].rate", ["two or more"]),
            ("network.links[0].rate=8,,9 Mbit/s", "network.links[0].rate", ["empty place"]),
            ("workload.new_tokens=0", "workload.new_tokens", ["greater than or equal to 1"]),
            ("workload.new_tokens=1.5", "workload.new_tokens", ["1.5"]),
            ("workload.new_tokens", "workload.new_tokens", ["FIELD=VALUES"]),
            ("workload.new_tokens=", "workload.new_tokens", ["FIELD=VALUES"]),
            ("=3", "=3", ["FIELD=VALUES"]),
            ("1.5=3", "1.5", ["is no field"]),
            ("objective=speed", "objective", ["latency"]),
            ("objective=energy", "power.busy", ["energy"]),
            ("model=lama-3.2-1b", "model", ["llama-3.2-1b"]),
            ("network=wifi-5", "network", ["wifi-5-home"]),
            ("devices[0]=rtx-4091", "devices[0]", ["rtx-4090"]),
            ("devices=tablet", "devices", ["tablet", "leave one out"]),
            ("devices=without phone+laptop+server", "devices", ["leaves no device"]),
            ("constraints.source=tablet", "constraints.source", ["tablet"]),
        ],
    )
    def test_name_the_field_and_the_mend(self, problem, word, field, words):
        with pytest.raises(InputError) as caught:
            parse_grid(problem, [word])
        text = str(caught.value)
        assert all(one.field.startswith("--over") for one in caught.value.findings)
        assert all(one.mend for one in caught.value.findings)
        assert [one for one in [field, *words] if one not in text] == [], text

    def test_come_all_at_once(self, problem):
        with pytest.raises(InputError) as caught:
            parse_grid(
                problem, ["workload.new_token=1", "network.default.rate=8", "objective=latency", "objective=energy"]
            )
        assert len(caught.value.findings) >= 2

    def test_of_a_field_that_is_given_twice(self, problem):
        with pytest.raises(InputError, match="given twice"):
            parse_grid(problem, ["workload.new_tokens=1", "workload.new_tokens=2"])

    def test_of_a_grid_without_end(self, problem):
        with pytest.raises(InputError, match="10000000 points"):
            parse_grid(problem, ["workload.new_tokens=1..10000 10000", "workload.batch=1..1000 1000"])

    def test_of_a_point_whose_values_do_not_fit_together(self, problem):
        pinned = problem.model_copy(
            update={"constraints": problem.constraints.model_copy(update={"pin": {"block.0": "phone"}})}
        )
        with pytest.raises(InputError, match=r"devices = laptop\+server.*'phone' is forbidden"):
            parse_grid(pinned, ["workload.new_tokens=1,2", "devices=all, without phone"])
        text = image_problem()
        with pytest.raises(InputError, match="llama"):
            parse_grid(text, ["model=llama-3.2-1b"])
