"""Terms add up to what they split, and two plans differ in what was changed between them."""

from __future__ import annotations

import pytest

from edgeopt import planner
from edgeopt.errors import InputError
from edgeopt.profiles import load_problem, save_plan
from edgeopt.questions.diff import diff, load_subject
from edgeopt.questions.figures import memory_by_device
from edgeopt.questions.terms import busy_seconds, element_names, latency_terms, variant_names
from tests.edgeopt.factories import device, network, text_problem
from tests.edgeopt.questions.draws import drawn, listed

LIBRARY = ["home-cluster", "edge-diffusion", "shared-wifi", "radio-cell", "demo-llm", "demo-diffusion"]


@pytest.fixture(scope="module")
def library_plans():
    return {name: planner.solve(load_problem(name)) for name in LIBRARY}


@pytest.mark.parametrize("name", LIBRARY)
def test_terms_add_up_to_the_latency_and_causes_to_their_term(library_plans, name):
    plan = library_plans[name]
    terms = latency_terms(plan)
    assert sum(term.seconds for term in terms) == pytest.approx(plan.latency_s, rel=1e-9)
    assert [term.stage for term in terms if term.term == "compute"] == list(range(len(plan.stages)))
    for term in terms:
        assert term.causes, "library models are costed by known causes"
        assert sum(term.causes.values()) == pytest.approx(term.seconds, rel=1e-9)
        assert min(term.causes.values()) >= 0


@pytest.mark.parametrize("name", LIBRARY)
def test_the_busiest_is_the_period(library_plans, name):
    plan = library_plans[name]
    busy = busy_seconds(plan)
    assert next(iter(busy.values())) == pytest.approx(1 / plan.throughput_per_s, rel=1e-9)
    assert list(busy.values()) == sorted(busy.values(), reverse=True)


@pytest.mark.parametrize("seed", range(8))
def test_so_is_it_in_drawn_problems(seed):
    problem = drawn(seed)
    if listed(problem)[-1].size:
        plan = planner.solve(problem)
        assert sum(term.seconds for term in latency_terms(plan)) == pytest.approx(plan.latency_s, rel=1e-9)
        assert max(busy_seconds(plan).values()) == pytest.approx(1 / plan.throughput_per_s, rel=1e-9)


def test_a_time_shared_medium_is_busy_for_all_of_its_transfers():
    media = {"wifi": {"sharing": "time_shared"}}
    links = network(media=media, default={"rate": 1e6, "latency": 0.01, "medium": "wifi"})
    devices = [device("phone", gflops=1, memory=3e9), device("server", gflops=10, memory=3e9)]
    plan = planner.solve(text_problem(devices=devices, network=links))
    assert len(plan.transfers) > 1
    assert busy_seconds(plan)["medium wifi"] == pytest.approx(sum(move.seconds for move in plan.transfers))


def test_weights_of_a_variant_count_once_on_a_device(library_plans):
    plan = library_plans["edge-diffusion"]
    held = memory_by_device(plan)
    assert list(held) == [one.name for i, one in enumerate(plan.problem.devices) if i in plan.devices]
    for one in plan.problem.devices:
        assert held.get(one.name, 0.0) <= one.memory


def test_names_are_those_of_stages_and_variants(library_plans):
    plan = library_plans["edge-diffusion"]
    names = element_names(plan.problem)
    assert len(names) == plan.cuts[-1]
    assert all(stage.elements.startswith(names[stage.start]) for stage in plan.stages)
    assert {stage.variant for stage in plan.stages} - {None} <= set(variant_names(plan.problem))
    assert variant_names(library_plans["demo-llm"].problem) == []


class TestDiff:
    def test_of_a_plan_and_itself_is_empty(self, library_plans):
        for plan in library_plans.values():
            found = diff(plan, plan)
            assert found.moves == ()
            assert found.problem == {}
            assert found.notes == ()
            assert all(figure.change == 0 for figure in found.figures)

    def test_shows_what_was_asked_what_moved_and_what_it_brought(self):
        devices = [device("phone", gflops=1, memory=3e9), device("server", gflops=10, memory=3e9)]
        before = planner.solve(text_problem(devices=devices))
        roomy = [devices[0], device("server", gflops=10, memory=9e9)]
        after = planner.solve(text_problem(devices=roomy))
        found = diff(before, after)
        assert set(found.problem) == {"devices[1].memory"}
        assert found.moves
        for move in found.moves:
            assert (move.before, move.after) == ("phone", "server")
        latency = next(figure for figure in found.figures if figure.name == "latency_s")
        assert latency.change == pytest.approx(after.latency_s - before.latency_s)
        assert latency.change < 0
        moved = {e for move in found.moves for e in range(move.start, move.stop)}
        where = [
            [stage.device for stage in plan.stages for _ in range(stage.start, stage.stop)] for plan in (before, after)
        ]
        assert moved == {e for e, (a, b) in enumerate(zip(*where, strict=True)) if a != b}

    def test_says_what_cannot_be_compared(self, library_plans):
        found = diff(library_plans["demo-llm"], library_plans["demo-diffusion"])
        assert found.moves == ()
        assert any("different elements" in note for note in found.notes)
        other = planner.solve(load_problem("demo-llm").model_copy(update={"objective": "throughput"}))
        assert any("objectives differ" in note for note in diff(library_plans["demo-llm"], other).notes)

    def test_a_variant_that_changes_is_a_move(self, library_plans):
        before = library_plans["edge-diffusion"]
        limits = before.problem.constraints.model_copy(update={"quality": 18.7})
        after = planner.solve(before.problem.model_copy(update={"constraints": limits}))
        found = diff(before, after)
        assert set(found.problem) == {"constraints.quality"}
        assert any("(small)" in move.after and "(large)" in move.before for move in found.moves)

    def test_files_of_both_kinds_are_read_and_others_refused(self, library_plans, tmp_path):
        for name in ("plan.yaml", "plan.json"):
            save_plan(library_plans["demo-llm"], tmp_path / name)
            assert load_subject(tmp_path / name) == library_plans["demo-llm"]
        (tmp_path / "other.yaml").write_text("name: x\n", encoding="utf-8")
        with pytest.raises(InputError, match="no plan"):
            load_subject(tmp_path / "other.yaml")
        (tmp_path / "report.json").write_text('{"format": "edgeopt-report/1"}', encoding="utf-8")
        with pytest.raises(InputError, match=r"report\.json.*latency_s"):
            load_subject(tmp_path / "report.json")
