"""The bundled mixture: planned at once, and run by real processes that hold their own experts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("transformers")

from edgeopt import planner
from edgeopt.executor import execute
from edgeopt.executor.layout import Layout
from edgeopt.plan import Plan
from edgeopt.profiles import load_problem
from edgeopt.profiles.problem import Problem
from tests.edgeopt.executor.test_recovery import worker

pytestmark = [pytest.mark.torch, pytest.mark.processes]


def test_the_bundled_mixture_runs_as_planned() -> None:
    problem = load_problem("mixture-experts")
    plan = planner.solve(problem)
    assert plan.status == "optimal"
    assert [stage.device for stage in plan.stages] == ["desk", "shelf", "hall"]
    assert all(stage.memory_bytes <= device.memory for stage, device in zip(plan.stages, problem.devices, strict=True))
    report = execute(plan, repeat=1, warmup=0, timeout_s=180)
    assert report.output is not None
    assert report.output.equal
    assert report.output.kind == "tokens"
    assert {t.purpose for t in report.transfers} == {t.purpose for t in plan.transfers}
    for purpose in ("dispatch", "combine"):  # of one request; the plan's are expectations
        moved = [t for t in report.transfers if t.purpose == purpose]
        assert sum(t.bytes for t in moved) == pytest.approx(sum(t.predicted_bytes or 0 for t in moved), rel=0.25)
        assert sum(t.messages for t in moved) == pytest.approx(sum(t.predicted_messages or 0 for t in moved), rel=0.25)


def roomy(memory: float, **constraints: object) -> Problem:
    """The bundled mixture with as much memory on every device, and few tokens."""
    problem = load_problem("mixture-experts")
    devices = [each.model_copy(update={"memory": memory}) for each in problem.devices]
    load = problem.workload.model_copy(update={"prompt_tokens": 8, "new_tokens": 6})
    limits = problem.constraints.model_copy(
        update={"source": "desk", "experts": problem.constraints.experts.model_copy(update=constraints)}
    )
    return problem.model_copy(update={"devices": devices, "workload": load, "constraints": limits})


def killing(plan: Plan, stage: int, times: int = 1) -> Callable[[str], None]:
    """Kill the process of a stage when workers are ready."""
    left = [times]

    def kill(line: str) -> None:
        if line.startswith("workers ready") and left[0]:
            left[0] -= 1
            worker(Layout.of(plan).host_of(stage).rank).kill()

    return kill


def test_a_trunk_that_is_lost_goes_to_another_device() -> None:
    plan = planner.solve(roomy(16e6, trunk="shelf"))
    assert plan.stages[0].device == "shelf"
    report = execute(plan, repeat=1, warmup=0, timeout_s=180, on_fault="replan", progress=killing(plan, 0))
    (recovery,) = report.recoveries
    assert (recovery.device, recovery.resumed_from) == ("shelf", "from its start")
    assert report.replanned is not None
    assert "shelf" not in {stage.device for stage in report.replanned.stages}
    assert report.replanned.decisions["trunk"] in ("desk", "hall")
    assert report.output is not None
    assert report.output.equal
