"""Patches by real processes: a device is lost, the others share out its rows, and all is as planned again."""

from __future__ import annotations

import pytest

pytest.importorskip("diffusers")

from edgeopt import planner
from edgeopt.executor import execute
from edgeopt.plan import Plan
from edgeopt.profiles import load_model
from tests.edgeopt.executor.test_recovery import worker
from tests.edgeopt.factories import device, image_problem, network

pytestmark = [pytest.mark.torch, pytest.mark.processes]


def digits_plan() -> Plan:
    runtime = {"runtime": {"threads": 1}}
    devices = [device(name, gflops, **runtime) for name, gflops in (("phone", 1), ("tablet", 1.2), ("desktop", 1.4))]
    problem = image_problem(
        model=load_model("digits").model_copy(update={"quality": None}),
        devices=devices,
        network=network(rate=1e9, latency=1e-6),
        strategy="patch",
        workload={"kind": "image", "steps": 6, "images": 32},
        constraints={"patch": {"mode": "asynchronous", "warmup_steps": 2}},
    )
    narrow = problem.model.model_copy(update={"variants": {"unet": problem.model.variants["unet"]}})
    return planner.solve(problem.model_copy(update={"model": narrow}))


def test_a_lost_device_leaves_its_rows_to_the_others() -> None:
    plan = digits_plan()

    def kill(line: str) -> None:
        if line.startswith("workers ready") and not killed:
            killed.append(line)
            worker(1).kill()

    killed: list[str] = []
    report = execute(plan, repeat=1, warmup=0, timeout_s=180, on_fault="replan", progress=kill)
    (recovery,) = report.recoveries
    assert recovery.device == plan.stages[1].device
    assert recovery.resumed_from == "from its start"
    assert report.replanned is not None
    assert recovery.device not in {stage.device for stage in report.replanned.stages}
    assert report.output is not None
    assert report.output.equal
    assert {t.purpose for t in report.transfers} == {"input", "context", "output"}
    for moved in report.transfers:  # of the plan that was made again
        # A convolution with a stride of two asks the upper neighbour alone.
        assert moved.messages == pytest.approx(moved.predicted_messages, rel=0.05)
        assert moved.bytes == pytest.approx(moved.predicted_bytes, rel=0.05)
