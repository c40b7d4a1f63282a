"""A denoising run in stages gives the very bits of one run in one process."""

from __future__ import annotations

import pytest

from edgeopt import programs
from edgeopt.errors import InputError

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.torch

EXACT = ["DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"]
STAGES = ([1, 3, 5, 7, 8], [None, "large", "small", "large", None])


@pytest.mark.parametrize("sampler", EXACT)
@pytest.mark.parametrize(("cuts", "variants"), [STAGES, ([1, 7, 8], [None, "small", None])])
def test_bitwise(diffusion_plan, run_plan, sampler, cuts, variants):
    plan = diffusion_plan(cuts, variants, sampler=sampler)
    result, expected = run_plan(plan), programs.reference(plan, seed=11)
    assert result[0].shape == (1, 3, 16, 16)
    assert result[0].isfinite().all()
    verdict = programs.compare(plan, result, expected)
    assert (verdict["equal"], verdict["kind"], verdict["max_abs_diff"]) == (True, "bitwise", 0.0)


@pytest.mark.parametrize("denoiser", ["unet", "pixart", "dit"])
@pytest.mark.parametrize(("images", "guidance"), [(2, 1.0), (2, 4.0)])
def test_denoisers_and_guidance(diffusion_plan, run_plan, denoiser, images, guidance):
    by_label = denoiser == "dit"
    cuts, variants = ([2, 6, 7], ["large", "small", None]) if by_label else STAGES
    plan = diffusion_plan(
        cuts, variants, denoiser=denoiser, images=images, guidance=guidance, encoder=not by_label, sampler=EXACT[1]
    )
    verdict = programs.compare(plan, run_plan(plan), programs.reference(plan, seed=11))
    assert verdict["kind"] == "bitwise"


@pytest.mark.parametrize("karras", [False, True])
def test_sampler_options_reach_the_scheduler(diffusion_plan, run_plan, karras):
    plan = diffusion_plan(*STAGES, sampler=EXACT[1], sampler_config={"use_karras_sigmas": karras})
    other = diffusion_plan(*STAGES, sampler=EXACT[1], sampler_config={"use_karras_sigmas": not karras})
    result = run_plan(plan)
    assert programs.compare(plan, result, programs.reference(plan, seed=11))["kind"] == "bitwise"
    assert not programs.compare(plan, result, programs.reference(other, seed=11))["equal"]


@pytest.mark.parametrize("change", ["variants", "guidance", "seed", "cut"])
def test_everything_matters(diffusion_plan, run_plan, change):
    plan = diffusion_plan(*STAGES, guidance=3.0)
    result = run_plan(plan)
    seed = 12 if change == "seed" else 11
    if change == "variants":
        plan = diffusion_plan(STAGES[0], [None, "small", "large", "small", None], guidance=3.0)
    elif change == "guidance":
        plan = diffusion_plan(*STAGES, guidance=1.0)
    elif change == "cut":
        plan = diffusion_plan([1, 2, 5, 7, 8], STAGES[1], guidance=3.0)
    assert not programs.compare(plan, result, programs.reference(plan, seed=seed))["equal"]


def test_without_decoder_the_latent_is_the_result(diffusion_plan, run_plan):
    plan = diffusion_plan([1, 4, 7], [None, "large", "small"], decoder=False)
    result = run_plan(plan, repeat=2)
    assert result[0].shape == (1, 4, 8, 8)
    assert programs.compare(plan, result, programs.reference(plan, seed=11))["kind"] == "bitwise"


def test_a_denoiser_is_held_once_and_nothing_foreign(diffusion_plan):
    plan = diffusion_plan(*STAGES)
    program = programs.build(plan, [1, 3])
    assert list(program._modules) == ["variant:large"]
    decoder = programs.build(plan, [4])._modules["decoder"]
    assert all(p.is_meta for p in decoder.encoder.parameters())
    assert not any(p.is_meta for p in decoder.decoder.parameters())
    assert programs.build(plan, [])._modules == {}


def test_message_bytes_are_what_the_cost_model_counts(diffusion_plan):
    from edgeopt.costs.diffusion import DiffusionCosts

    plan = diffusion_plan([1, 3, 5, 7, 8], STAGES[1], images=3, guidance=2.0)
    program = programs.build(plan, [])
    costs = DiffusionCosts(plan.problem.model, plan.problem.workload)
    for stage, cut in enumerate([0, 1, 3, 5, 7, 8]):
        sent = sum(torch.empty(spec.shape, dtype=spec.dtype).nbytes for spec in program.specs(stage, 0))
        assert sent == costs.cut_bytes[cut]


@pytest.mark.parametrize(
    ("sampler", "config", "why"),
    [
        ("EulerAncestralDiscreteScheduler", {}, "random"),
        ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, "random numbers"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "random numbers"),
        ("UniPCMultistepScheduler", {"solver_p": "x"}, "two solvers"),
        ("NoSuchScheduler", {}, "NoSuchScheduler"),
    ],
)
def test_solvers_that_cannot_be_run(diffusion_plan, sampler, config, why):
    plan = diffusion_plan([1, 7, 8], [None, "large", None], sampler=sampler, sampler_config=config)
    with pytest.raises(InputError, match=why):
        programs.build(plan, [0])


def test_profile_bytes_must_be_the_tensors(diffusion_plan):
    plan = diffusion_plan(*STAGES)
    model = plan.problem.model.model_copy(update={"latent": 1.0, "conditioning": 2.0})
    wrong = plan.model_copy(update={"problem": plan.problem.model_copy(update={"model": model})})
    with pytest.raises(InputError) as caught:
        programs.build(wrong, [0])
    assert [finding.field for finding in caught.value.findings] == ["model.conditioning", "model.latent"]


def test_threads_differ_by_stage(diffusion_plan, run_plan):
    plan = diffusion_plan(*STAGES, threads=[1, 2, 1, 2, 1])
    verdict = programs.compare(plan, run_plan(plan), programs.reference(plan, seed=11))
    assert verdict["kind"] == "bitwise"
    other = programs.reference(diffusion_plan(*STAGES, threads=[2, 1, 2, 1, 2]), seed=11)
    assert programs.compare(plan, other, programs.reference(plan, seed=11))["equal"]


def test_compare_kinds(diffusion_plan):
    plan = diffusion_plan(*STAGES)
    x = torch.linspace(-1, 1, 9)
    assert programs.compare(plan, [x], [x])["kind"] == "bitwise"
    near = programs.compare(plan, [x + 1e-5], [x])
    assert (near["kind"], near["equal"]) == ("tolerance", True)
    assert near["max_abs_diff"] == pytest.approx(1e-5, rel=0.1)
    assert not programs.compare(plan, [x + 1e-2], [x])["equal"]
    assert not programs.compare(plan, [x * float("nan")], [x])["equal"]
    assert not programs.compare(plan, [x[:3]], [x])["equal"]
