"""Opt-in: plans with GPUs, run and compared with a single process; without a GPU skipped with the reason."""

from __future__ import annotations

import pytest

from edgeopt.executor import execute
from edgeopt.plan import Plan
from edgeopt.profiles.device import Runtime
from tests.edgeopt.programs.conftest import diffusion_plan, language_plan  # noqa: F401 (fixtures)

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")

COUNT = torch.cuda.device_count()
one = pytest.mark.skipif(COUNT < 1, reason="torch sees no CUDA device on this machine")
two = pytest.mark.skipif(COUNT < 2, reason=f"NCCL needs a GPU for each of two processes, torch sees {COUNT}")
pytestmark = [pytest.mark.gpu, pytest.mark.torch, pytest.mark.processes]


def on(plan: Plan, **accelerators: str) -> Plan:
    """Let devices of a plan compute on accelerators."""
    devices = [
        device.model_copy(update={"runtime": Runtime(threads=1, accelerator=accelerators.get(device.name, "cpu"))})
        for device in plan.problem.devices
    ]
    return plan.model_copy(update={"problem": plan.problem.model_copy(update={"devices": devices})})


def run(plan: Plan, **options: object):
    report = execute(plan, repeat=3, timeout_s=200, **options)
    assert report.output is not None
    assert report.output.repeats_equal
    return report


@two
def test_tokens_between_two_gpus_by_nccl(language_plan) -> None:  # noqa: F811
    report = run(on(language_plan([2, 6]), d0="cuda", d1="cuda"))
    assert any(note.startswith("NCCL") for note in report.notes)
    assert report.output.equal


@two
def test_requests_in_flight_between_two_gpus_go_by_gloo(language_plan) -> None:  # noqa: F811
    report = run(on(language_plan([2, 6]), d0="cuda", d1="cuda"), in_flight=3)
    assert any(note.startswith("gloo") for note in report.notes)
    assert report.output.equal


@one
@pytest.mark.parametrize("gpu", ["d0", "d1"])
def test_tokens_between_a_gpu_and_a_processor(language_plan, gpu) -> None:  # noqa: F811
    report = run(on(language_plan([2, 6]), **{gpu: "cuda"}))
    assert any(note.startswith("gloo") for note in report.notes)
    assert report.output.kind == "tokens"
    assert report.output.equal


@one
def test_latents_between_a_gpu_and_a_processor(diffusion_plan) -> None:  # noqa: F811
    report = run(on(diffusion_plan([1, 3, 7, 8], [None, "small", "large", None], steps=6), d1="cuda"))
    # Sums have another order on a GPU than in the single process, which computes on the processor.
    assert report.output.max_abs_diff is not None
    assert report.output.max_abs_diff < 1e-3
