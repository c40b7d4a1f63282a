"""The bundled mixture: planned at once, and run by real processes that hold their own experts."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from edgeopt import planner
from edgeopt.executor import execute
from edgeopt.profiles import load_problem

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
