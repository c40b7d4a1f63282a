"""Denoising by patches: fresh exchanges give the whole image, stale ones what is stated; rehearsed in one process."""

from __future__ import annotations

import pytest

from edgeopt import programs
from edgeopt.errors import InputError

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
from edgeopt.programs import patch  # noqa: E402
from edgeopt.programs.parties import rehearse  # noqa: E402
from edgeopt.programs.slabs import Recorder, cut_into_slabs  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture
def patch_plan(diffusion_plan):
    """Return a maker of plans: rows per device, with the parts around them on the first."""

    def make(rows, mode="synchronous", warmup_steps=1, variant="small", **options):
        ends = [1, 7, 8] if options.get("encoder", True) else [6, 7]
        whole = diffusion_plan(ends, [None, "small", None][-len(ends) :], **options)
        model = whole.problem.model
        if options.get("dtype") == "float64":  # the profile's bytes have to be the tensors'
            twice = {"latent": 2 * model.latent}
            if model.text_encoder:
                twice["conditioning"] = 2 * model.conditioning
            if model.decoder:
                twice["decoder"] = model.decoder.model_copy(update={"output": 2 * model.decoder.output})
            model = model.model_copy(update=twice)
        names = [device.name for device in whole.problem.devices]
        devices = whole.problem.devices
        while len(names) < len(rows):
            names.append(f"d{len(names)}")
            devices = [*devices, devices[0].model_copy(update={"name": names[-1]})]
        stages, start = [], 0
        for k, count in enumerate(rows):
            change = {"index": k, "device": names[k], "variant": variant, "start": start, "stop": start + count}
            stages.append(whole.stages[0].model_copy(update={**change, "elements": f"rows {start}"}))
            start += count
        for name in ("text_encoder", "decoder"):
            if getattr(model, name):
                change = {"index": len(stages), "device": names[0], "variant": None, "start": 0, "stop": 0}
                stages.append(whole.stages[0].model_copy(update={**change, "elements": name}))
        fields = {
            "strategy": "patch", "cuts": [], "devices": [], "variants": [], "stages": stages,
            "decisions": {"mode": mode, "warmup_steps": warmup_steps},
            "problem": whole.problem.model_copy(update={"devices": devices, "model": model}),
        }  # fmt: skip
        return whole.model_copy(update=fields)

    return make


def compared(plan, seed=11):
    return programs.compare(plan, rehearse(plan, seed), patch.reference(plan, seed))


@pytest.mark.parametrize(
    ("denoiser", "rows"), [("unet", [2, 4, 2]), ("dit", [2, 4, 2]), ("dit", [6, 2]), ("pixart", [4, 4])]
)
def test_fresh_exchanges_give_the_whole_image(patch_plan, denoiser, rows):
    options = {"denoiser": denoiser, "encoder": denoiser != "dit", "images": 2, "guidance": 3.0}
    precise = compared(patch_plan(rows, dtype="float64", **options))
    assert precise["max_abs_diff"] < 1e-6, "floats are added in another order, and no more"


def test_what_is_compared_can_differ(patch_plan):
    result = rehearse(patch_plan([4, 4]), 11)
    assert not programs.compare(patch_plan([4, 4]), result, patch.reference(patch_plan([4, 4], guidance=2.0), 11))[
        "equal"
    ]


def test_single_floats_are_within_the_stated_tolerance(patch_plan):
    verdict = compared(patch_plan([6, 2], guidance=3.0, variant="large"))
    assert verdict["equal"], verdict
    assert verdict["tolerance"] == patch.TOLERANCE


def test_a_single_patch_is_the_image(patch_plan):
    assert compared(patch_plan([8]))["equal"]


@pytest.mark.parametrize("sampler", ["DPMSolverMultistepScheduler"])
def test_solvers_work_row_by_row(patch_plan, sampler):
    assert compared(patch_plan([2, 6], sampler=sampler))["equal"]


@pytest.mark.parametrize("denoiser", ["unet", "dit"])
def test_stale_context_is_one_step_old_whoever_is_faster(patch_plan, denoiser):
    options = {"denoiser": denoiser, "encoder": denoiser != "dit"}
    fresh = rehearse(patch_plan([4, 4], **options), 11)
    stale = [rehearse(patch_plan([4, 4], "asynchronous", steps_, **options), 11) for steps_ in (1, 1, 3, 6)]
    assert torch.equal(stale[0][0], stale[1][0])
    errors = [float((one[0] - fresh[0]).abs().max()) for one in stale]
    assert errors[0] > errors[2] > errors[3] == 0.0, "the more fresh steps, the nearer"


def test_counted_exchanges_are_those_that_travel(patch_plan, monkeypatch):
    plan = patch_plan([4, 4], denoiser="unet", steps=2)
    sent = []
    original = patch._Swaps.swap

    def counting(self, kind, outgoing, expected):
        if self.me == 0:
            sent.extend((kind, tensor.nbytes) for tensor in outgoing.values())
        return original(self, kind, outgoing, expected)

    monkeypatch.setattr(patch._Swaps, "swap", counting)
    rehearse(plan, 0)
    architecture = plan.problem.model.variants["small"].architecture
    recorder = Recorder(4, 4)
    module = diffusers.UNet2DConditionModel(**architecture.config).to("meta").eval()
    cut_into_slabs(module, recorder)
    with torch.inference_mode():
        module(torch.empty(1, 4, 4, 8, device="meta"), 0, torch.empty(1, 7, 32, device="meta"))
    for kind in ("halo", "sums", "context"):
        assert 2 * recorder.num_bytes[kind] == sum(size for name, size in sent if name == kind) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decisions": {"mode": "sometimes"}}, "mode 'sometimes'"),
        ({"decisions": {"mode": "asynchronous", "warmup_steps": 0}}, "0 warm-up steps"),
        ("rows", "do not make up 8 rows"),
        ("variant", "one denoiser"),
    ],
)
def test_what_cannot_be_is_refused(patch_plan, change, message):
    plan = patch_plan([4, 4])
    if change == "rows":
        plan = patch_plan([4, 2])
    elif change == "variant":
        plan = patch_plan([4, 4], variant="huge")
    else:
        plan = plan.model_copy(update=change)
    with pytest.raises(InputError, match=message):
        programs.build(plan, [0])


def test_thresholding_looks_at_the_whole_image(patch_plan):
    with pytest.raises(InputError, match="quantile"):
        programs.build(patch_plan([4, 4], sampler_config={"thresholding": True}), [0])


def test_convolutions_that_slabs_do_not_know_are_refused():
    for layer in (torch.nn.Conv2d(2, 2, 5, padding=2), torch.nn.Conv2d(2, 2, 3, padding=2, dilation=2)):
        with pytest.raises(InputError, match="convolves"):
            cut_into_slabs(torch.nn.Sequential(layer), Recorder(4, 4))
