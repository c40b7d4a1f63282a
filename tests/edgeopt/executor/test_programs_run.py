"""The real worker with real, small models: planned by the planner, run across processes, equal to one process."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")
pytest.importorskip("diffusers")

from edgeopt import planner
from edgeopt.errors import InputError
from edgeopt.executor import execute
from edgeopt.profiles import load_model
from edgeopt.profiles.problem import Constraints, ImageWorkload
from tests.edgeopt.programs.conftest import diffusion_plan, language_plan, plan_of  # noqa: F401 (fixtures)

pytestmark = [pytest.mark.torch, pytest.mark.processes]


def test_a_planned_language_model_that_draws_after_a_prompt_in_chunks(language_plan) -> None:  # noqa: F811
    problem = language_plan([2, 6], temperature=0.9, batch=2, chunk=4).problem
    pins = Constraints(source="d0", pin={"embed": "d0", "block.1": "d1", "head": "d1"})
    plan = planner.solve(problem.model_copy(update={"constraints": pins}), strategy="pipeline")
    report = execute(plan, repeat=2, timeout_s=100)
    assert report.output is not None
    assert report.output.equal
    assert report.output.kind == "tokens"
    assert report.output.repeats_equal
    assert [t.purpose for t in report.transfers] == ["cut", "loop", "output"]
    for transfer in report.transfers:  # what the planner priced is what went over the wire
        assert transfer.predicted_messages == transfer.messages
        assert transfer.predicted_bytes == transfer.bytes
    assert report.transfers[0].messages == 3 + 5, "three chunks of nine tokens, five more tokens"
    assert report.transfers[1].bytes == 5 * 2 * 8, "tokens return, not what they were chosen from"
    assert set(report.metrics) == set(plan.metrics)
    assert all(comparison.relative_error is not None for comparison in report.metrics.values())


def test_a_diffusion_run_that_returns_to_a_device(diffusion_plan) -> None:  # noqa: F811
    plan = diffusion_plan([1, 3, 7, 8], [None, "small", "large", None], steps=6)
    stages = [
        stage.model_copy(update={"device": name})
        for stage, name in zip(plan.stages, ["d0", "d1", "d0", "d1"], strict=True)
    ]
    problem = plan.problem.model_copy(update={"constraints": Constraints(source="d2")})
    report = execute(plan.model_copy(update={"stages": stages, "problem": problem}), repeat=2, timeout_s=100)
    assert report.output is not None
    assert report.output.equal
    assert report.output.kind == "bitwise"
    assert report.output.max_abs_diff == 0
    assert [device.stages for device in report.devices] == [[], [0, 2], [1, 3]]
    assert [t.purpose for t in report.transfers] == ["input", "cut", "cut", "cut", "output"]


def test_a_denoiser_in_blocks_that_loops() -> None:
    model = load_model("digits")
    model = model.model_copy(update={"variants": {"unet": model.variants["unet"]}, "quality": None})
    pins = Constraints(source="d0", pin={"input": "d0", "mid_block.resnets.0": "d1", "output": "d0"})
    load = ImageWorkload(steps=3, images=2, guidance=2.0)
    problem = plan_of("split_diffusion", model, load, [8, 16]).problem
    plan = planner.solve(problem.model_copy(update={"constraints": pins}), strategy="split_diffusion")
    report = execute(plan, repeat=2, timeout_s=100)
    assert report.output is not None
    assert report.output.equal
    assert report.output.kind == "bitwise"
    assert [t.purpose for t in report.transfers] == ["cut", "cut"]
    for transfer in report.transfers:  # skips and features in every step, the label with the first
        assert (transfer.predicted_messages, transfer.predicted_bytes) == (transfer.messages, transfer.bytes)
        assert transfer.messages == 3
    assert set(report.metrics) == set(plan.metrics)


def test_an_accelerator_that_is_not_there_is_an_input_error(language_plan) -> None:  # noqa: F811
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has the accelerator that should be missing")
    plan = language_plan([2, 6])
    devices = [d.model_copy(update={"runtime": d.runtime.model_copy(update={"accelerator": "cuda"})})
               for d in plan.problem.devices]  # fmt: skip
    plan = plan.model_copy(update={"problem": plan.problem.model_copy(update={"devices": devices})})
    with pytest.raises(InputError, match=r"runtime\.accelerator.*cuda"):
        execute(plan, repeat=1, timeout_s=60)


def test_a_model_that_cannot_be_built_is_an_input_error(language_plan) -> None:  # noqa: F811
    with pytest.raises(InputError, match=r"model\.layers.*num_hidden_layers"):
        execute(language_plan([2, 6], num_hidden_layers=3), repeat=1, timeout_s=100)
