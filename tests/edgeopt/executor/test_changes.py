"""A device leaves a diffusion request half-way: what `edgeopt elastic` plans is what is executed, image for image."""

from __future__ import annotations

import pytest

pytest.importorskip("diffusers")

import torch

from edgeopt import planner, programs
from edgeopt.executor import execute
from edgeopt.executor.serve import digest
from edgeopt.profiles import load_model
from edgeopt.programs import multi_stage
from edgeopt.programs.placing import threads_restored
from edgeopt.questions.elastic import elastic
from edgeopt.questions.events import Event
from edgeopt.questions.followed import followed_plan
from tests.edgeopt.executor.test_recovery import Killer
from tests.edgeopt.factories import device, image_problem, network

pytestmark = [pytest.mark.torch, pytest.mark.processes]

STEPS, HANDED = 40, 16


def digits_plan():
    """Return a plan of the phone's steps, which are pinned, and the server's; the spare one cannot hold the largest."""
    runtime = {"runtime": {"threads": 1}}
    devices = [
        device("phone", 3, memory=8e9, **runtime),
        device("server", 9, memory=8e9, **runtime),
        device("spare", 6, memory=5.0e6, **runtime),
    ]
    pins = {f"step.{i}": "phone" for i in range(HANDED)}
    problem = image_problem(
        model=load_model("digits"), devices=devices, network=network(rate=1e7, latency=1e-3),
        workload={"kind": "image", "steps": STEPS, "images": 96}, constraints={"quality": 2.8, "pin": pins},
    )  # fmt: skip
    return planner.solve(problem)


def test_a_device_leaves_and_the_planned_rest_is_what_runs() -> None:
    plan = digits_plan()
    for part in (0.75, 0.85, 0.65):  # of the time that a warm-up took: a busy machine kills before or after the stage
        report = execute(plan, repeat=1, timeout_s=180, on_fault="replan", check=False, progress=Killer(1, part))
        if any(recovery.resumed_from.startswith("from cut") for recovery in report.recoveries):
            break
    (recovery,) = report.recoveries
    assert recovery.device == "server"
    assert "server" not in recovery.devices
    cut = int(recovery.resumed_from.removeprefix("from cut "))
    assert cut >= HANDED, "the server had begun"

    found = elastic(plan, cut + 1, [Event("leave", "server")])
    assert (found.resumed_at, found.holder) == (cut, "phone")
    assert recovery.predicted_rest_s == pytest.approx(found.replanned.latency_s - found.spent_s)
    whole = followed_plan(found)
    assert whole.quality == pytest.approx(found.replanned.quality)
    assert "spare" in {stage.device for stage in whole.stages if stage.stop > cut}
    assert recovery.digest == digest(multi_stage.reference(whole, 0)), "bitwise the images of one process"
    assert found.replanned.variants != found.planned.variants


LAPTOP = device("laptop", 30, memory=8e9, runtime={"threads": 1})


@pytest.mark.parametrize(
    ("stage", "event"), [(2, Event("join", "laptop", profile=LAPTOP)), (1, Event("slow", "server", 9.0))], ids=str
)
def test_the_rest_goes_on_from_the_latent_that_the_old_plan_hands_over(stage: int, event: Event) -> None:
    plan = digits_plan()
    step = plan.stages[stage].start
    found = elastic(plan, step, [event])
    whole = followed_plan(found)
    assert found.replanned.latency_s < found.kept.latency_s
    assert whole.latency_s == pytest.approx(found.replanned.latency_s), "no step was lost"
    assert whole.quality == pytest.approx(found.replanned.quality)
    with threads_restored():
        torch.set_num_threads(1)
        latent = programs.build(plan, []).request(0)
        for one, stages in (
            (plan, [s.index for s in plan.stages if s.stop <= step]),
            (whole, [s.index for s in whole.stages if s.start >= step]),
        ):
            assert stages
            program = programs.build(one, stages)
            program.begin()
            for index in stages:
                latent = program.run(index, 0, latent)
        assert torch.equal(latent[0], multi_stage.reference(whole, 0)[0])
