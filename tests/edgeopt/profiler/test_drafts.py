"""Drafting and verifying, timed between rests, as rows of a device's tables."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgeopt.costs.drafting import ModelPasses, draft_model
from edgeopt.profiler.drafts import pass_rows, profile_drafts
from edgeopt.profiler.jobs import PassJob
from edgeopt.profiler.passes import answer_passes
from edgeopt.profiles import load_device, load_model
from edgeopt.profiles.device import Runtime
from edgeopt.profiles.problem import TextWorkload

pytestmark = pytest.mark.torch

LOAD = TextWorkload(prompt_tokens=16, new_tokens=16)


def device_with(rows):
    return load_device("laptop-cpu").model_copy(update={"timings": rows})


def test_what_was_measured_prices_steps_rounds_passes_and_decoding_alone():
    model = load_model("text")
    passes = {"target": {-16: 4e-3, 1: 1e-3, 2: 2e-3, 5: 2.6e-3}, "draft": {-16: 1e-3, 0: 5e-4, 1: 2e-4}}
    device = device_with(pass_rows(model, "small", LOAD, passes, 3, "made up"))
    target, draft = ModelPasses(model, LOAD), ModelPasses(draft_model(model, "small"), LOAD)
    assert target.prefill_s(device) == pytest.approx(4e-3)
    assert target.alone_s(device) == pytest.approx(1e-3)
    assert target.passes_s(device, [1, 2, 3, 5])[0] == pytest.approx([2e-3, 2e-3, 2.2e-3, 2.6e-3])
    assert draft.prefill_s(device) == pytest.approx(1e-3)
    assert (draft.passes_s(device, [1])[0][0], draft.round_s(device)) == pytest.approx((2e-4, 5e-4))
    assert target.round_s(device) == 0


def test_without_tables_a_token_alone_is_a_pass_over_one():
    target = ModelPasses(load_model("text"), LOAD)
    device = device_with([])
    assert target.alone_s(device) == target.passes_s(device, [1])[0][0] > 0
    assert target.round_s(device) == 0


def test_every_draft_of_a_model_is_timed_between_rests():
    model = load_model("text")
    job = PassJob(threads=1, model=model, workload=LOAD, lengths=[1, 12], repeats=2, pace=0.5)
    found = answer_passes(PassJob.model_validate_json(job.model_dump_json(by_alias=True))).drafts
    assert set(found) == set(model.drafts)
    for passes in found.values():
        assert set(passes["target"]) == {-16, 1, 2, 13}
        assert set(passes["draft"]) == {-16, 0, 1}
        assert all(seconds > 0 for seconds in passes["target"].values())
        assert passes["draft"][1] < passes["target"][13]


@pytest.mark.parametrize("runtime", [Runtime(threads=2), Runtime(threads=1, accelerator="cuda")])
def test_other_devices_and_models_without_drafts_are_left_to_rooflines(runtime):
    def time(models, runtime):
        loads = [LOAD] * len(models)
        return profile_drafts(
            models, loads, runtime=runtime, repeats=1, timeout_s=1.0, source="none", progress=pytest.fail
        )

    assert time([load_model("text")], runtime) == []
    assert time([load_model("demo-llm")], Runtime(threads=1)) == []
