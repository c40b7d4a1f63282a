"""Denoising by patches: fresh exchanges give the whole image, stale ones what is stated; rehearsed in one process."""

from __future__ import annotations

import pytest

from edgeopt import programs
from edgeopt.errors import InputError
from edgeopt.profiles.model import Sampler

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
from edgeopt.programs import patch  # noqa: E402
from edgeopt.programs.parties import rehearse  # noqa: E402
from edgeopt.programs.sampling import scaled  # noqa: E402
from edgeopt.programs.schedules import make_scheduler  # noqa: E402
from edgeopt.programs.slabs import Recorder, cut_into_slabs  # noqa: E402
from edgeopt.programs.strides import stepper  # noqa: E402
from tests.edgeopt.programs.pipelines import family  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture
def patch_plan(diffusion_plan):
    """Return a maker of plans: rows per device, with the parts around them on the first."""

    def make(rows, mode="synchronous", warmup_steps=1, variant="small", strides=None, **options):
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
            "decisions": {"mode": mode, "warmup_steps": warmup_steps}
            | ({"strides": strides + [1] * (len(devices) - len(strides))} if strides else {}),
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


SINGLE_STEP = ["DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"]


@pytest.mark.parametrize("name", SINGLE_STEP)
@pytest.mark.parametrize(("stride", "steps"), [(2, 10), (4, 10), (2, 25)])
def test_several_steps_at_once_follow_a_constant_output(name, stride, steps):
    """Where the denoised image does not change, one long step of a solver of first order is as good as its parts."""
    config = {"timestep_spacing": "trailing", "clip_sample": False} if name == "DDIMScheduler" else {}
    sampler = Sampler.model_validate({"class": name, "config": config})
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=generator) for _ in range(2))

    def run(calls):
        scheduler = make_scheduler(sampler, steps)
        sigmas = scheduler.sigmas.double() if hasattr(scheduler, "sigmas") else None
        move = stepper(scheduler, calls)
        times = list(scheduler.timesteps)
        assert len(times) == len(calls)
        x = {"DDIMScheduler": noise, "EulerDiscreteScheduler": clean + noise * (1.0 if sigmas is None else sigmas[0])}
        latent = x.get(name, noise)
        for call, timestep in zip(calls, times, strict=True):
            scaled(scheduler, latent, timestep)
            if name == "DDIMScheduler":
                alpha = scheduler.alphas_cumprod[timestep].double()
                output = (latent - alpha.sqrt() * clean) / (1 - alpha).sqrt()
            else:
                output = (latent - clean) / sigmas[call]
            latent = move(output, timestep, latent)
        return latent

    whole, few = run(list(range(steps))), run([0, 1, *range(2, steps, stride)])
    assert torch.allclose(whole, few, atol=1e-4)
    assert float((few - noise).abs().max()) > 0.5


@pytest.mark.parametrize("name", SINGLE_STEP)
def test_all_steps_are_the_schedulers_own(name):
    sampler = Sampler.model_validate({"class": name})
    ends = []
    for calls in (list(range(8)), None):
        scheduler = make_scheduler(sampler, 8)
        move = (
            stepper(scheduler, calls) if calls else lambda *given, to=scheduler: to.step(*given, return_dict=False)[0]
        )
        latent = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)
        for timestep in scheduler.timesteps:
            latent = move(0.3 * scaled(scheduler, latent, timestep), timestep, latent)
        ends.append(latent)
    assert torch.equal(*ends)


@pytest.mark.parametrize(("denoiser", "sampler"), [("unet", SINGLE_STEP[0]), ("dit", SINGLE_STEP[1])])
def test_strides_leave_steps_out_and_nothing_to_chance(patch_plan, monkeypatch, denoiser, sampler):
    options = {"denoiser": denoiser, "encoder": denoiser != "dit", "sampler": sampler, "steps": 9}
    made = {}
    for strides in (None, [1, 1, 1], [2, 1, 1], [2, 1, 4]):
        plan = patch_plan([4, 2, 2], "asynchronous", 2, strides=strides, **options)
        taken = []
        original = patch._Swaps.step

        def counting(self, step, taken=taken, original=original):
            taken.append((self.me, step))
            return original(self, step)

        with monkeypatch.context() as patched:
            patched.setattr(patch._Swaps, "step", counting)
            first = rehearse(plan, 11)
        for me, stride in enumerate(strides or [1, 1, 1]):
            assert [step for who, step in taken if who == me] == [0, 1, *range(2, 9, stride)]
        assert torch.equal(first[0], rehearse(plan, 11)[0])
        assert torch.isfinite(first[0]).all()
        made[str(strides)] = first[0]
    assert torch.equal(made["None"], made["[1, 1, 1]"])
    assert not torch.equal(made["[1, 1, 1]"], made["[2, 1, 1]"])
    assert not torch.equal(made["[2, 1, 4]"], made["[2, 1, 1]"])


def test_strides_after_the_last_warm_up_change_nothing(patch_plan):
    plans = [patch_plan([4, 4], "asynchronous", 6, strides=strides, steps=6) for strides in ([1, 1], [1, 2])]
    assert torch.equal(rehearse(plans[0], 3)[0], rehearse(plans[1], 3)[0])


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
        ({"decisions": {"mode": "asynchronous", "warmup_steps": 1, "strides": [3, 1]}}, "not a stride for each device"),
        ("sampler", "weighs earlier steps"),
        ("rows", "do not make up 8 rows"),
        ("variant", "one denoiser"),
    ],
)
def test_what_cannot_be_is_refused(patch_plan, change, message):
    plan = patch_plan([4, 4])
    if change == "rows":
        plan = patch_plan([4, 2])
    elif change == "sampler":
        plan = patch_plan([4, 4], "asynchronous", 1, strides=[2, 1], sampler="DPMSolverMultistepScheduler")
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


@pytest.mark.parametrize(("pipeline", "kind"), [("flux", "FluxAttention"), ("wan", "WanAttention")])
def test_attention_that_slabs_do_not_replace_is_refused_by_name(patch_plan, pipeline, kind):
    known = next(iter(family(pipeline).variants.values()))
    assert known.patch is None, "its profile says of no patches"
    with torch.device("meta"):
        module = getattr(diffusers, known.architecture.class_name)(**known.architecture.config)
    with pytest.raises(InputError, match=rf"\({kind}\) attends in a way that slabs do not know"):
        cut_into_slabs(module, Recorder(4, 4))


def test_a_plan_of_patches_that_attend_apart_is_refused(patch_plan):
    plan = patch_plan([4, 4], variant="flux")
    problem = plan.problem.model_copy(update={"model": family("flux")})
    with pytest.raises(InputError, match="FluxAttention"):
        programs.build(plan.model_copy(update={"problem": problem}), [0])
