"""Several requests in flight: results stay right, stages overlap, throughput is that of the slowest."""

from __future__ import annotations

import pytest

from edgeopt.errors import ExecutionError, InputError
from edgeopt.executor import execute
from edgeopt.plan import Plan
from edgeopt.report.data import Report
from tests.edgeopt.executor.plans import toy_plan

torch = pytest.importorskip("torch")
from tests.edgeopt.executor import toy  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.processes]


def run(plan: Plan, **options: object) -> Report:
    return execute(plan, _command=toy.COMMAND, **({"timeout_s": 60.0, "repeat": 6} | options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("places", "source"),
    [
        ((("phone", 6),), None),
        ((("laptop", 6),), "phone"),
        ((("phone", 2), ("server", 6)), None),
        ((("laptop", 1), ("server", 4), ("phone", 6)), "phone"),
        ((("phone", 1), ("server", 3), ("phone", 4), ("server", 6)), "laptop"),
    ],
    ids=["alone", "source-without-stage", "two", "three", "reuse-many"],
)
def test_every_request_gets_its_own_result(places: tuple, source: str | None) -> None:
    report = run(toy_plan(*places, source=source, rounds=3), in_flight=3, seed=5)
    assert report.output is not None
    assert report.output.equal
    assert report.output.repeats_equal
    assert report.in_flight == 3
    assert len(report.latency_s.samples) == 6
    assert report.throughput_per_s is not None
    assert report.throughput_per_s.median > 0


def test_stages_work_at_the_same_time() -> None:
    plan = toy_plan(("phone", 2), ("server", 4), ("laptop", 6), rounds=1, sleep_s=0.03)
    alone = run(plan, check=False, repeat=4)
    together = run(plan, check=False, in_flight=4, repeat=12)
    assert alone.throughput_per_s is None
    assert together.throughput_per_s is not None
    assert alone.latency_s.median > 0.09
    # One result per 30 ms instead of one per 90 ms.
    assert together.throughput_per_s.median * alone.latency_s.median > 2.0
    assert together.throughput_per_s.median < 1 / 0.03
    assert together.latency_s.predicted is None
    assert any("in flight" in note for note in together.notes)
    again = Report.model_validate_json(together.model_dump_json())
    assert again == together


def test_a_throughput_plan_is_run_with_its_slots_full() -> None:
    plan = toy_plan(("phone", 3), ("server", 6), rounds=1)
    problem = plan.problem.model_copy(update={"objective": "throughput"})
    report = run(plan.model_copy(update={"problem": problem, "throughput_per_s": 50.0}))
    assert report.in_flight == 3
    assert report.throughput_per_s is not None
    assert report.throughput_per_s.predicted == 50.0


def test_a_fault_in_one_of_many_requests_ends_the_run() -> None:
    plan = toy_plan(("phone", 3), ("server", 6), rounds=3, fault="raise", stage=1, round=2)
    with pytest.raises(ExecutionError, match="the toy is broken") as caught:
        run(plan, in_flight=3)
    assert (caught.value.stage, caught.value.device) == (1, "server")


def test_no_slots_are_refused() -> None:
    with pytest.raises(InputError, match="in_flight"):
        run(toy_plan(("phone", 6)), in_flight=0)
