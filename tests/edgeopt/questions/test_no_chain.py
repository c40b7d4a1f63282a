"""A technique that is no chain, made up for these tests: solved, kept, verified and questioned like any other."""

from __future__ import annotations

import json

import numpy as np
import pytest

import edgeopt
from edgeopt import planner
from edgeopt.errors import InputError
from edgeopt.plan import Plan, Stage, Transfer
from edgeopt.profiles import load_plan, save_plan
from edgeopt.questions.compare import compare
from edgeopt.questions.diff import diff
from edgeopt.questions.explain import explain
from edgeopt.questions.figures import memory_by_device
from edgeopt.questions.why_not import why_not
from edgeopt.report import explanation as words
from edgeopt.report.tables import plan_view
from edgeopt.strategies import BUNDLED, Strategy, get_strategy, strategy_names
from edgeopt_solvers.divisible import Divisible, Solution
from tests.edgeopt.factories import device, text_problem

ROWS = 12


class Rows(Strategy):
    """Twelve rows of work; a device does ``gflops`` of them per second and sends each back."""

    name = "rows"

    def unfit(self, problem):
        return None if problem.workload.kind == "text" else "rows are of text"

    def build(self, problem):
        limits = problem.constraints
        able = np.array([d.name not in limits.forbid for d in problem.devices])
        rate = np.array([d.compute["float32"] / 1e9 for d in problem.devices])
        far = np.arange(len(able)) > 0
        return Divisible(
            num_units=ROWS,
            unit_s=np.where(able, 1 / rate, np.inf),
            unit_bytes=np.where(far, 1000.0, 0.0),
            rate_bytes_per_s=np.where(far, problem.network.default.rate, np.inf),
            memory_bytes=np.array([d.memory for d in problem.devices]),
            unit_memory_bytes=np.full(len(able), 1e9),
            max_makespan_s=limits.deadline,
        )

    def plan(self, problem, instance, result):
        names = [d.name for d in problem.devices]
        used = [d for d, load in enumerate(result.solution.loads) if load]
        stages, start = [], 0
        for k, d in enumerate(used):
            load = result.solution.loads[d]
            seconds = float(instance.unit_s[d] * load)
            stages.append(
                Stage(
                    index=k, device=names[d], variant=None, start=start, stop=start + load, elements=f"{load} rows",
                    compute_s=seconds, transfer_s=0.0, transfer_bytes=0.0, memory_bytes=1e9 * load,
                )
            )  # fmt: skip
            start += load
        return Plan(
            edgeopt_version=edgeopt.__version__, problem=problem, strategy=self.name, backend=result.backend,
            status=result.status.reason, objective=result.objective, bound=result.bound, gap=result.gap,
            runtime_s=result.runtime_s, latency_s=result.metrics["makespan_s"],
            throughput_per_s=1 / result.metrics["makespan_s"],
            decisions={"rows": list(result.solution.loads), "shares": list(result.solution.shares)},
            stages=stages,
            transfers=[
                Transfer(
                    purpose="rows", source=names[d], destination=names[0], bytes=1000.0 * result.solution.loads[d],
                    messages=1, seconds=0.1, rate_bytes_per_s=problem.network.default.rate,
                )
                for d in used if d
            ],
        )  # fmt: skip

    def solution(self, plan):
        return Solution(tuple(plan.decisions["rows"]), tuple(plan.decisions["shares"]))


@pytest.fixture(autouse=True)
def rows_is_known(monkeypatch):
    monkeypatch.setitem(BUNDLED, "rows", f"{__name__}:Rows")


@pytest.fixture
def problem():
    devices = [device("phone", gflops=1), device("laptop", gflops=2, memory=6.5e9), device("server", gflops=3)]
    return text_problem(devices=devices, strategy="rows")


def test_bundled_strategies_need_no_entry_point():
    assert {"rows", "pipeline", "multi_stage"} <= set(strategy_names())
    assert isinstance(get_strategy("rows"), Rows)
    with pytest.raises(KeyError):
        get_strategy("columns")


def test_it_is_solved_kept_and_verified(problem, tmp_path):
    plan = planner.solve(problem)
    assert plan.decisions["rows"] == [2, 4, 6]
    assert not plan.is_chain
    for name in ("plan.yaml", "plan.json"):
        save_plan(plan, tmp_path / name)
        back = load_plan(tmp_path / name)
        assert back == plan
        assert planner.verify(back) == []
    list(plan_view(plan))


@pytest.mark.parametrize(
    ("rows", "finding"),
    [
        ([4, 4, 4], "compute_s"),
        ([2, 4, 7], "add up to 13"),
        ([2, 8, 2], "memory"),
        ([2, 4], "3 devices"),
        (None, "fit"),
    ],
)
def test_tampering_is_found(problem, rows, finding):
    plan = planner.solve(problem)
    decisions = {**plan.decisions, "rows": rows} if rows else {"other": 1}
    assert finding in "; ".join(planner.verify(plan.model_copy(update={"decisions": decisions})))


def test_a_warm_start_of_another_technique_is_left_aside(problem):
    rows = planner.solve(problem)
    assert planner.solve(problem, strategy="pipeline", warm_start=rows).is_chain
    assert planner.solve(problem, strategy="rows", warm_start=rows).objective == rows.objective


def test_decisions_and_chains_are_told_apart(problem, tmp_path):
    plan = planner.solve(problem)
    document = plan.model_dump(mode="json", by_alias=True)
    for change, words_ in (
        ({"decisions": {}}, "neither cuts, devices and variants nor decisions"),
        ({"cuts": [3]}, "1 cuts, 0 devices and 0 variants"),
        ({"decisions": {"deep": [{"x": float("nan")}]}}, "nan is not a finite number"),
        ({"decisions": [1]}, "a mapping is needed"),
    ):
        path = tmp_path / "wrong.json"
        path.write_text(json.dumps(document | change))
        with pytest.raises(InputError, match=words_):
            load_plan(path)


def test_old_chain_plans_keep_their_digest(problem):
    plan = planner.solve(problem, strategy="pipeline")
    document = plan.model_dump(mode="json", by_alias=True)
    assert document.pop("decisions") == {}
    assert Plan.model_validate(document).digest() == plan.digest()


def test_memory_and_figures(problem):
    plan = planner.solve(problem)
    assert memory_by_device(plan) == {"phone": 2e9, "laptop": 4e9, "server": 6e9}
    compared = compare(problem)
    assert {one.strategy for one in compared.strategies} >= {"rows", "pipeline"}


def test_it_is_explained(problem):
    explained = explain(planner.solve(problem))
    assert [term.seconds for term in explained.terms if term.term == "compute"] == pytest.approx([2.0, 2.0, 2.0])
    assert sum(term.term == "rows" for term in explained.terms) == 2
    assert [price.change.limit for price in explained.prices or ()] == ["network.default.rate"]
    shown = "\n".join(str(part) for part in words.explanation_view(explained))
    assert "overlap" in shown


def test_memory_has_its_price(problem):
    devices = [d.model_copy(update={"memory": 5e9}) for d in problem.devices]
    explained = explain(planner.solve(problem.model_copy(update={"devices": devices})))
    assert next(price.change.limit for price in explained.prices or ()) == "devices[2].memory"


def test_why_not_without_a_device(problem):
    plan = planner.solve(problem)
    answer = why_not(plan, "without phone")
    assert answer.price == pytest.approx(12 / 5 - 2, abs=0.2)
    assert answer.plan is not None
    assert answer.plan.problem == plan.problem
    assert answer.proven
    assert why_not(plan, "phone").granted
    assert why_not(answer.plan, "without phone").granted
    tight = problem.model_copy(update={"constraints": problem.constraints.model_copy(update={"deadline": 2.1})})
    assert "makespan" in why_not(planner.solve(tight), "without server").broken


@pytest.mark.parametrize("question", ["stage 0 on phone", "block.0 on phone", "0:2 on laptop", "phone"])
def test_why_not_says_what_it_cannot_ask(problem, question):
    forbidden = problem.constraints.model_copy(update={"forbid": ["phone"]})
    plan = planner.solve(problem.model_copy(update={"constraints": forbidden}))
    with pytest.raises(InputError, match=r"rows places no elements of a chain.*without laptop"):
        why_not(plan, question)


def test_plans_are_compared(problem):
    plan = planner.solve(problem)
    faster = [*problem.devices[:2], device("server", gflops=9)]
    other = planner.solve(problem.model_copy(update={"devices": faster}))
    difference = diff(plan, other)
    assert [(move.elements, move.before, move.after) for move in difference.moves][-1] == (
        "stage 2", "server: 6 rows", "server: 8 rows",
    )  # fmt: skip
    chain = planner.solve(problem, strategy="pipeline")
    assert "other parts" in " ".join(diff(plan, chain).notes)
