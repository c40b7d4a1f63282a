"""Strategies against each other: who is closed, who gets the time, and that the best of them wins."""

from __future__ import annotations

import time

import pytest

from edgeopt import planner
from edgeopt.errors import InputError, NoPlanError, TimeLimitError
from edgeopt.questions.baseline import ONE_DEVICE, one_device
from edgeopt.questions.compare import compare
from edgeopt.questions.contest import FIRST_SLICE_S, hold_contest
from edgeopt.report.document import plan_document
from edgeopt.strategies.multi_stage import MultiStage
from edgeopt.strategies.pipeline import Pipeline
from edgeopt_solvers import UnsupportedError
from edgeopt_solvers.errors import CheckError
from tests.edgeopt.factories import device, diffusion_model, image_problem, language_model, network, text_problem
from tests.edgeopt.questions.draws import drawn


class Fewer(Pipeline):
    """The pipeline on at most two devices."""

    name = "fewer"

    def build(self, problem):
        from dataclasses import replace

        return replace(super().build(problem), max_stages=2)

    def plan(self, problem, chain, result):
        return super().plan(problem, chain, result).model_copy(update={"strategy": self.name})


class Early(MultiStage):
    """Multi-stage plans whose first stage has two elements."""

    name = "early"

    def build(self, problem):
        from dataclasses import replace

        return replace(super().build(problem), min_segment=2)

    def plan(self, problem, chain, result):
        return super().plan(problem, chain, result).model_copy(update={"strategy": self.name})


@pytest.fixture
def four_strategies(monkeypatch):
    """Register two further strategies, named so that each comes before the one that it is a restriction of."""
    known = {"early": Early, "fewer": Fewer, "multi_stage": MultiStage, "pipeline": Pipeline}
    for module in ("edgeopt.planner", "edgeopt.questions.compare"):
        monkeypatch.setattr(f"{module}.strategy_names", lambda: list(known))
        monkeypatch.setattr(f"{module}.get_strategy", lambda name: known[name]())
    return list(known)


@pytest.fixture(scope="module")
def some_plan():
    return planner.solve(text_problem())


class Slow:
    """A way to plan whose bound and plan get better with every second that it is given."""

    def __init__(self, plan, steps, error=None):
        self.plan, self.steps, self.error, self.given = plan, steps, error, []

    def __call__(self, limit_s, start):
        self.given.append(limit_s)
        if self.error is not None:
            raise self.error
        objective, bound, status = self.steps[min(len(self.given), len(self.steps)) - 1]
        found = {"objective": objective, "latency_s": objective, "bound": bound, "status": status}
        return self.plan.model_copy(update=found)


def contest(ways, time_limit_s=None):
    return hold_contest(list(ways), lambda name, limit_s, start: ways[name](limit_s, start), time_limit_s)


class TestContest:
    def test_one_whose_bound_is_above_the_best_plan_is_closed(self, some_plan):
        hopeless = Slow(some_plan, [(9.0, 2.0, "time_limit"), (8.0, 3.2, "time_limit"), (4.0, 4.0, "optimal")])
        good = Slow(some_plan, [(2.9, 2.9, "optimal")])
        first, second = contest({"hopeless": hopeless, "good": good})
        assert (first.strategy, first.outcome, first.objective) == ("good", "optimal", 2.9)
        assert (second.outcome, second.bound, second.beaten_by) == ("closed", 3.2, 2.9)
        assert hopeless.given == [FIRST_SLICE_S, 4 * FIRST_SLICE_S], "not a third time"

    def test_an_objective_below_the_latency_wins_nothing(self, some_plan):
        def attempt(name, limit_s, start):
            seconds = {"honest": (0.7, 0.7), "hopeful": (0.6, 0.8)}[name]
            return some_plan.model_copy(update=dict(zip(("objective", "latency_s"), seconds, strict=True)))

        assert [entry.strategy for entry in hold_contest(["hopeful", "honest"], attempt)] == ["honest", "hopeful"]

    def test_the_later_winner_wins(self, some_plan):
        late = Slow(some_plan, [(9.0, 1.0, "time_limit"), (2.0, 2.0, "optimal")])
        quick = Slow(some_plan, [(2.9, 2.9, "optimal")])
        assert [entry.strategy for entry in contest({"quick": quick, "late": late})] == ["late", "quick"]

    def test_slices_start_from_the_plan_before(self, some_plan):
        starts = []

        def attempt(name, limit_s, start):
            starts.append(None if start is None else start.objective)
            status = "optimal" if len(starts) > 2 else "time_limit"
            return some_plan.model_copy(update={"objective": 9.0 - len(starts), "bound": 0.0, "status": status})

        hold_contest(["a", "b"], lambda name, *rest: attempt(name, *rest) if name == "a" else some_plan)
        assert starts == [None, 8.0, 7.0]

    def test_a_single_way_has_all_the_time_at_once(self, some_plan):
        for limit_s in (None, 30.0):
            way = Slow(some_plan, [(2.0, 2.0, "optimal")])
            contest({"only": way}, limit_s)
            assert way.given == [limit_s if limit_s is None else pytest.approx(limit_s, rel=1e-2)]

    def test_the_time_limit_holds_for_all_together(self):
        def attempt(name, limit_s, start):
            time.sleep(min(limit_s, 1.0))
            raise TimeLimitError("not yet")

        started = time.perf_counter()
        entries = hold_contest(["a", "b", "c"], attempt, 0.3)
        assert time.perf_counter() - started < 0.9  # one after the other they would take 3 s
        assert {entry.outcome for entry in entries} == {"time_limit"}
        assert all(entry.spent_s >= 0.05 for entry in entries), "each had its share"

    def test_who_cannot_does_not_stop_the_others(self, some_plan):
        ways = {
            "infeasible": Slow(some_plan, [], NoPlanError("too little memory")),
            "refused": Slow(some_plan, [], InputError("a number is missing")),
            "unsupported": Slow(some_plan, [], UnsupportedError("no such backend")),
            "able": Slow(some_plan, [(2.0, 2.0, "optimal")]),
        }
        entries = contest(ways)
        assert entries[0].strategy == "able"
        assert {entry.strategy: entry.outcome for entry in entries[1:]} == {
            "infeasible": "infeasible", "refused": "refused", "unsupported": "refused",
        }  # fmt: skip

    def test_a_defect_is_not_swallowed(self, some_plan):
        broken = Slow(some_plan, [], CheckError("solver and checker disagree"))
        with pytest.raises(CheckError):
            contest({"broken": broken, "able": Slow(some_plan, [(2.0, 2.0, "optimal")])})

    def test_a_requested_gap_that_is_reached_ends_a_way(self, some_plan):
        loose = Slow(some_plan, [(3.0, 2.0, "gap_reached")])
        better = Slow(some_plan, [(2.5, 2.4, "gap_reached")])
        assert [entry.outcome for entry in contest({"loose": loose, "better": better})] == ["gap_reached"] * 2
        assert len(loose.given) == len(better.given) == 1


class TestAuto:
    @pytest.mark.parametrize("seed", range(12))
    def test_it_is_never_worse_than_any_single_strategy(self, seed, four_strategies):
        problem = drawn(seed)
        singles = {}
        for name, technique in planner.fitting_strategies(problem).items():
            try:
                singles[name] = planner.solve(problem, strategy=name)
            except NoPlanError:
                singles[name] = None
            assert technique.name == name
        assert len(singles) == 2
        found = [plan.objective for plan in singles.values() if plan is not None]
        if not found:
            with pytest.raises(NoPlanError):
                planner.solve(problem, strategy="auto")
            return
        plan = planner.solve(problem, strategy="auto")
        assert plan.objective == pytest.approx(min(found), rel=1e-9)
        (other,) = plan.alternatives
        assert {plan.strategy, other.strategy} == set(singles)
        alone = singles[other.strategy]
        assert other.outcome == ("infeasible" if alone is None else "optimal")
        assert other.objective == (None if alone is None else pytest.approx(alone.objective, rel=1e-9))

    def test_alternatives_are_in_the_document_and_survive_a_file(self, four_strategies, tmp_path):
        from edgeopt.profiles import load_plan, save_plan

        plan = planner.solve(drawn(0), strategy="auto")
        (shown,) = plan_document(plan)["alternatives"]
        assert shown["strategy"] == plan.alternatives[0].strategy
        assert {"objective", "bound", "latency_s", "energy_j", "quality", "traffic_bytes", "memory_bytes"} <= set(shown)
        save_plan(plan, tmp_path / "plan.yaml")
        assert load_plan(tmp_path / "plan.yaml") == plan
        assert plan.digest() == plan.model_copy(update={"alternatives": []}).digest()

    def test_only_what_fits_takes_part(self):
        plan = planner.solve(image_problem(strategy="auto"))
        assert plan.strategy == "multi_stage"
        assert plan.alternatives == []
        assert planner.verify(plan) == []

    def test_no_plan_says_why_for_each(self, four_strategies):
        tiny = text_problem(strategy="auto", devices=[device("phone", memory=1e6), device("server", memory=1e6)])
        with pytest.raises(NoPlanError, match="memory"):
            planner.solve(tiny)


class TestCompare:
    def test_every_fitting_strategy_with_its_figures(self, four_strategies):
        problem = drawn(2)
        compared = compare(problem)
        assert {one.strategy for one in compared.strategies} == {"fewer", "pipeline"}
        assert set(compared.unfit) == {"early", "multi_stage"}
        best = compared.strategies[0]
        assert best.objective == compared.plan.objective
        assert best.traffic_bytes == sum(move.bytes for move in compared.plan.transfers)
        assert best.devices == list(dict.fromkeys(stage.device for stage in compared.plan.stages))
        for one in compared.strategies:
            assert one.bound <= one.objective
            assert one.latency_s > 0

    def test_one_device_is_the_best_that_any_single_one_can_do(self):
        devices = [
            device("phone", gflops=1, memory=9e9),
            device("server", gflops=2, memory=9e9),
            device("tiny", memory=1e6),
        ]
        problem = text_problem(devices=devices)
        alone = [
            planner.solve(text_problem(devices=devices, constraints={"forbid": others}))
            for others in (["server", "tiny"], ["phone", "tiny"])
        ]
        entry = one_device(problem)
        assert entry.strategy == ONE_DEVICE
        assert entry.objective == min(plan.objective for plan in alone)
        assert {stage.device for stage in entry.plan.stages} <= {"phone", "server"}
        assert one_device(text_problem()).outcome == "infeasible"

    def test_five_devices_take_less_than_five_seconds(self):
        names = ["phone", "tablet", "laptop", "desktop", "server"]
        devices = [device(name, gflops=10.0 * (k + 1), memory=8e9 + 3e9 * k) for k, name in enumerate(names)]
        blocks = language_model(num_blocks=32, weights=1e9)
        quality = {
            "form": "additive", "metric": "loss", "steps": 20, "base": 1.0, "handoff": 0.125,
            "source": "made for a test", "loss": {"large": [0.0] * 20, "small": [0.05 * k for k in range(20)]},
        }  # fmt: skip
        links = network(rate=5e6, latency=0.004)
        for problem in (
            text_problem(devices=devices, model=blocks, network=links),
            image_problem(
                devices=devices, model=diffusion_model(quality), network=links, workload={"kind": "image", "steps": 20},
                constraints={"quality": 2.0},
            ),
        ):  # fmt: skip
            started = time.process_time()
            compared = compare(problem)
            assert time.process_time() - started < 5.0
            assert {one.outcome for one in compared.strategies} <= {"optimal", "closed", "infeasible", "refused"}
            assert compared.strategies[0].outcome == "optimal"
            assert {one.strategy for one in compared.strategies} == set(planner.fitting_strategies(problem))
