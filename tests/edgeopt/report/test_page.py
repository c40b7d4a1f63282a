"""The page of a plan as a document: what is on it, that it is the same twice, that it does no harm."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from edgeopt import planner
from edgeopt.cli import main
from edgeopt.errors import InputError
from edgeopt.profiles import load_problem
from edgeopt.profiles.sources import provenance
from edgeopt.questions.frontier import frontier
from edgeopt.report.charts import split_rows
from edgeopt.report.data import Comparison, Recovery
from edgeopt.report.page import page_text
from tests.edgeopt.executor.toy_parties import parties_plan
from tests.edgeopt.factories import device, image_problem
from tests.edgeopt.report.examples import DATE, HOSTILE, hostile_plan, image_plan, language_plan, run_of

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")


class Reader(HTMLParser):
    """Collects tags, text and attributes; void elements need no end."""

    VOID = frozenset(("meta", "link", "br", "path", "use"))

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert tag in self.VOID or self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def page():
    plan = language_plan()
    return page_text(plan, run_of(plan, rounds=3), date=DATE)


def test_the_same_input_makes_the_same_page(page):
    plan = language_plan()
    assert page_text(plan, run_of(plan, rounds=3), date=DATE) == page


def test_it_is_well_formed_and_needs_no_network(page):
    reader = Reader(page)
    assert reader.open == []
    assert "script" not in reader.tags
    links = [
        value
        for _, found in reader.attributes
        for name, value in found.items()
        if name in ("src", "href", "xlink:href")
    ]
    assert [link for link in links if not link.startswith(("#", "data:,"))] == []
    targets = {found["id"] for _, found in reader.attributes if "id" in found}
    assert [link for link in links if link.startswith("#") and link[1:] not in targets] == []
    identities = [found["id"] for _, found in reader.attributes if "id" in found]
    assert len(identities) == len(set(identities))
    assert re.findall(r"url\((?!#)[^)]*\)|@import", page) == []
    assert "fe00" not in page, "a stand-in colour is left"


def test_every_figure_of_plan_and_run_is_there(page):
    plan = language_plan()
    words = "\n".join(Reader(page).words)
    for stage in plan.stages:
        assert f"{stage.elements} ({stage.start}:{stage.stop})" in words
    for name in (one.name for one in plan.problem.devices):
        assert name in words
    for text in (plan.digest(), "a CPU", "optimal", "+", "emulated", "equals the single-process run"):
        assert text in words


def test_every_number_has_its_source_on_the_page(page):
    words = set(Reader(page).words)
    problem = language_plan().problem
    for profile in (*problem.devices, problem.network, problem.model):
        rows = list(provenance(profile.model_dump(mode="json", by_alias=True, exclude_defaults=True)))
        assert rows
        for row in rows:
            assert {row.place, row.source} <= words
            assert len(row.source) >= 3


def test_the_nearest_entry_of_sources_speaks_for_a_number():
    data = {
        "source": "the sheet",
        "sources": {"power": "a meter", "power.idle": "a guess"},
        "memory": "8 GB",
        "power": {"busy": "15 W", "idle": "4 W"},
        "efficiency": {"rows": [1, 8], "basis": "measured"},
        "timings": [{"source": "a run", "model": "m", "batch": 1, "elements": [0.1, 0.2]}],
    }
    assert [tuple(row) for row in provenance(data)] == [
        ("memory", "8 GB", "the sheet"),
        ("power.busy", "15 W", "a meter"),
        ("power.idle", "4 W", "a guess"),
        ("efficiency.rows", [1, 8], "the sheet"),
        ("timings[0].batch", 1, "a run"),
        ("timings[0].elements", [0.1, 0.2], "a run"),
    ]


def test_hostile_names_stay_text():
    plan = hostile_plan()
    text = page_text(plan, run_of(plan), date=DATE)
    reader = Reader(text)
    assert reader.open == []
    assert "script" not in reader.tags
    assert "<script" not in text
    assert any(HOSTILE in words for words in reader.words)


def test_a_report_of_another_plan_is_refused():
    plan = language_plan()
    report = run_of(plan).model_copy(update={"plan_digest": "0" * 64})
    with pytest.raises(InputError, match="another plan"):
        page_text(plan, report)


def test_after_a_fault_the_page_is_about_the_plan_that_ran():
    plan, later = language_plan(), image_plan()
    report = run_of(later).model_copy(update={"replanned": later, "plan_digest": later.digest()})
    assert later.problem.name in page_text(plan, report)


def test_a_plan_that_was_tampered_with_is_marked():
    plan = language_plan()
    assert "Do not trust" not in page_text(plan)
    text = page_text(plan.model_copy(update={"latency_s": 0.5 * plan.latency_s}))
    assert "Do not trust this plan" in text
    assert "latency_s" in text


def test_a_technique_that_is_no_chain_has_its_decisions_on_the_page():
    plan = parties_plan("phone", "laptop", "server")
    text = page_text(plan.model_copy(update={"decisions": {"rows": [1, 2, 3], "of": {"whom": "<all>"}}}))
    words = Reader(text).words
    assert {"rows", "1, 2, 3", "of.whom", "<all>"} <= set(words)
    parts = dict(split_rows(plan, None)[0].parts)
    assert parts["compute"] == max(stage.compute_s for stage in plan.stages)
    assert sum(parts.values()) == pytest.approx(plan.latency_s)


def test_many_requests_in_flight_and_faults_are_told():
    plan = planner.solve(image_problem(objective="throughput"))
    recovery = Recovery(
        request=3, policy="retry", device="server", stage=1, reason="it <died>", resumed_from="cut", kept_bytes=8,
        served_before_s=1.0, planning_s=0.0, restart_s=2.5, rest_s=0.5, devices=["phone"], predicted_latency_s=1.0,
        digest=None,
    )  # fmt: skip
    changes = {
        "in_flight": 3, "throughput_per_s": Comparison.between(2.0, [1.0, 1.5]), "metrics": {},
        "latency_s": Comparison.between(None, [9.0]), "recoveries": [recovery], "output": None,
    }  # fmt: skip
    words = "\n".join(Reader(page_text(plan, run_of(plan).model_copy(update=changes))).words)
    for text in ("it <died>", "2.5 s", "measured 9 s", "1.25", "+60.0 %", "not compared with a single-process run"):
        assert text in words


def test_plans_of_one_device_and_of_many_can_be_drawn():
    alone = planner.solve(image_problem(devices=[device("only", gflops=10)]))
    assert alone.transfers == []
    many = planner.solve(image_problem(devices=[device(f"device-{i}", gflops=10 + i) for i in range(9)]))
    for plan in (alone, many):
        reader = Reader(page_text(plan))
        circles = [found for _, found in reader.attributes if found.get("data-device") and "data-stages" in found]
        assert len(circles) == 2 * len(plan.problem.devices)  # for wide and for narrow screens


def test_a_process_far_larger_than_its_device_can_be_drawn():
    plan = language_plan()
    report = run_of(plan)
    devices = [one.model_copy(update={"peak_memory_bytes": 1e13}) for one in report.devices]
    text = page_text(plan, report.model_copy(update={"devices": devices}))
    assert "10 TB measured" in text
    assert "data-peak" not in text


def test_the_frontier_is_drawn_and_listed():
    problem = load_problem("demo-diffusion")
    line = frontier(problem, ("latency", "quality"), most_points=3)
    reader = Reader(page_text(image_plan(), frontier=line))
    marks = [found for _, found in reader.attributes if "data-x" in found and "wide" in found["id"]]
    assert {(float(one["data-x"]), float(one["data-y"])) for one in marks} >= {(p.first, p.second) for p in line.points}


class TestCommand:
    def test_it_writes_beside_the_plan_and_where_it_is_told(self, plan, tmp_path, capsys):
        assert main(["report", str(plan)]) == 0
        assert str(plan.with_suffix(".html")) in capsys.readouterr().out
        assert plan.with_suffix(".html").read_text(encoding="utf-8").startswith("<!doctype html>")
        target = tmp_path / "other.html"
        assert main(["report", str(plan), "-o", str(target), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["page"] == str(target)
        assert target.is_file()

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["-o", "page.pdf"], "end it in .html"),
            (["-o", "nowhere/page.html"], "does not exist"),
            (["--pareto", "latency,beauty"], "not two different metrics"),
        ],
    )
    def test_refusals_write_nothing(self, plan, words, says, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        before = set(tmp_path.rglob("*"))
        assert main(["report", str(plan), *words]) == 2
        assert says in capsys.readouterr().err
        assert set(tmp_path.rglob("*")) == before

    def test_a_plan_in_place_of_a_report_is_refused(self, plan, capsys):
        assert main(["report", str(plan), str(plan)]) == 2
        assert "edgeopt execute -o" in capsys.readouterr().err

    def test_what_is_missing_is_named(self, plan, monkeypatch, capsys):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert main(["report", str(plan)]) == 2
        assert "pip install 'edgeopt[report]'" in capsys.readouterr().err
        assert not Path(plan).with_suffix(".html").exists()
