"""Plans of tiny models make what diffusers' own pipelines make of them: staged, and split into blocks."""

from __future__ import annotations

import pytest

from edgeopt import programs
from edgeopt.profiles.problem import ImageWorkload
from tests.edgeopt.programs.conftest import plan_of
from tests.edgeopt.programs.pipelines import SIDE, family, parts_of, vae

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.torch

SEED, STEPS = 11, 4
#: Pipelines give PixArt a mask that hides nothing, and Wan its two halves one after the other: sums in another order.
TOLERANCE = 1e-5


def staged(name, cuts, variants, guidance=4.0, steps=STEPS):
    return plan_of(
        "multi_stage", family(name), ImageWorkload(steps=steps, guidance=guidance, seed=5), [1, *cuts],
        [None, *variants],
    )  # fmt: skip


def split(name, guidance=4.0, steps=STEPS):
    """Cut every second place between blocks of the family's first denoiser."""
    model = family(name)
    variant, denoiser = next(iter(model.variants.items()))
    model = model.model_copy(update={"variants": {variant: denoiser}})
    ends = [1, *range(2, len(denoiser.blocks), 2), 1 + len(denoiser.blocks)]
    load = ImageWorkload(steps=steps, guidance=guidance, seed=5)
    return plan_of("split_diffusion", model, load, ends, [None] + [variant] * (len(ends) - 1))


@pytest.fixture
def one_thread():
    from edgeopt.programs.placing import threads_restored

    with threads_restored(), torch.inference_mode():
        torch.set_num_threads(1)
        yield


def same(result, expected, tolerance=0.0):
    assert result.shape == expected.shape
    assert result.isfinite().all()
    assert float(expected.std()) > 0.1
    difference = float((result - expected).abs().max())
    assert difference <= tolerance * float(expected.abs().max()), difference


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_stable_diffusion(run_plan, one_thread):
    plan = staged("sd15", [2, 4, 6], ["unet"] * 3)  # PNDM: five calls for four steps
    noise, text, denoisers, scheduler = parts_of(plan, SEED)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae(), text_encoder=None, tokenizer=None, unet=denoisers["unet"], scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    hidden = text["text_encoder"].last_hidden_state
    expected = quiet(pipeline)(
        prompt_embeds=hidden, negative_prompt_embeds=torch.zeros_like(hidden), latents=noise, guidance_scale=4.0,
        num_inference_steps=STEPS, height=8 * SIDE, width=8 * SIDE, output_type="latent",
    ).images  # fmt: skip
    same(run_plan(plan)[0], expected)
    same(run_plan(split("sd15"))[0], expected)


@pytest.mark.parametrize("cut", [1, 3])
def test_sdxl_base_and_refiner_are_two_experts(run_plan, one_thread, cut):
    plan = staged("sdxl", [1 + cut, 1 + STEPS], ["base", "refiner"])
    noise, text, denoisers, scheduler = parts_of(plan, SEED)
    clip, wide = text["text_encoder"], text["text_encoder_2"]
    embeds = {
        "base": torch.cat([clip.hidden_states[-2], wide.hidden_states[-2]], dim=-1),
        "refiner": wide.hidden_states[-2],
    }
    pooled = wide.text_embeds
    calls = dict.fromkeys(denoisers, 0)

    def common(name):
        def count(*_):
            calls[name] += 1

        denoisers[name].register_forward_hook(count)
        return {
            "prompt_embeds": embeds[name],
            "negative_prompt_embeds": torch.zeros_like(embeds[name]),
            "pooled_prompt_embeds": pooled,
            "negative_pooled_prompt_embeds": torch.zeros_like(pooled),
            "guidance_scale": 4.0,
            "num_inference_steps": STEPS,
            "output_type": "latent",
        }

    names = ["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"]
    parts = dict.fromkeys(names) | {"vae": vae(), "add_watermarker": False}
    base = quiet(diffusers.StableDiffusionXLPipeline(**parts, unet=denoisers["base"], scheduler=scheduler))
    again = type(scheduler).from_config(scheduler.config)
    refiner = diffusers.StableDiffusionXLImg2ImgPipeline(
        **parts, unet=denoisers["refiner"], scheduler=again, requires_aesthetics_score=True
    )
    quiet(refiner)
    # Plans count steps; the pipelines want a fraction that falls between two of them.
    scheduler.set_timesteps(STEPS)
    fraction = 1 - float(scheduler.timesteps[cut - 1 : cut + 1].mean()) / 1000
    latents = base(**common("base"), latents=noise, height=8 * SIDE, width=8 * SIDE, denoising_end=fraction).images
    expected = refiner(**common("refiner"), image=latents, denoising_start=fraction).images
    assert calls == {"base": cut, "refiner": STEPS - cut}
    same(run_plan(plan)[0], expected)


def test_sdxl_base_in_blocks(run_plan, one_thread):
    plan = split("sdxl")
    same(run_plan(plan)[0], programs.reference(plan, SEED)[0])
    whole = staged("sdxl", [1 + STEPS], ["base"])
    same(run_plan(plan)[0], run_plan(whole)[0])


def test_pixart(run_plan, one_thread):
    plan = staged("pixart", [3, 5], ["pixart"] * 2)
    noise, text, denoisers, scheduler = parts_of(plan, SEED)
    pipeline = diffusers.PixArtAlphaPipeline(
        tokenizer=None, text_encoder=None, vae=vae(), transformer=denoisers["pixart"], scheduler=scheduler
    )
    hidden = text["text_encoder"].last_hidden_state
    mask = torch.ones(hidden.shape[:2], dtype=torch.int64)
    expected = quiet(pipeline)(
        prompt=None, negative_prompt=None, prompt_embeds=hidden, prompt_attention_mask=mask,
        negative_prompt_embeds=torch.zeros_like(hidden), negative_prompt_attention_mask=mask, latents=noise,
        guidance_scale=4.0, num_inference_steps=STEPS, height=8 * SIDE, width=8 * SIDE, output_type="latent",
        use_resolution_binning=False,
    ).images  # fmt: skip
    same(run_plan(plan)[0], expected, TOLERANCE)
    in_blocks = split("pixart")
    same(run_plan(in_blocks)[0], expected, TOLERANCE)
    same(run_plan(in_blocks)[0], run_plan(plan)[0])


def test_flux_is_told_its_guidance_and_shifted_by_resolution(run_plan, one_thread):
    plan = staged("flux", [2, 5], ["flux"] * 2, guidance=3.5)
    noise, text, denoisers, scheduler = parts_of(plan, SEED)
    pipeline = diffusers.FluxPipeline(
        scheduler=scheduler, vae=vae(), text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
        transformer=denoisers["flux"],
    )  # fmt: skip
    packed = pipeline._pack_latents(noise, 1, 4, SIDE, SIDE)
    expected = quiet(pipeline)(
        prompt_embeds=text["text_encoder_2"].last_hidden_state, pooled_prompt_embeds=text["text_encoder"].pooler_output,
        latents=packed, guidance_scale=3.5, num_inference_steps=STEPS, height=8 * SIDE, width=8 * SIDE,
        output_type="latent",
    ).images  # fmt: skip
    expected = expected.view(1, SIDE // 2, SIDE // 2, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(1, 4, SIDE, SIDE)
    same(run_plan(plan)[0], expected)
    same(run_plan(split("flux", guidance=3.5))[0], expected)


def test_wan_changes_experts_at_its_boundary(run_plan, one_thread):
    cut = 2
    plan = staged("wan", [1 + cut, 1 + STEPS], ["high", "low"])
    noise, text, denoisers, scheduler = parts_of(plan, SEED)
    scheduler.set_timesteps(STEPS)
    boundary = float(scheduler.timesteps[cut - 1 : cut + 1].mean()) / 1000
    pipeline = diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=scheduler, transformer=denoisers["high"],
        transformer_2=denoisers["low"], boundary_ratio=boundary,
    )  # fmt: skip
    hidden = text["text_encoder"].last_hidden_state
    expected = quiet(pipeline)(
        prompt_embeds=hidden, negative_prompt_embeds=torch.zeros_like(hidden), latents=noise, guidance_scale=4.0,
        num_inference_steps=STEPS, height=8 * SIDE, width=8 * SIDE, num_frames=5, output_type="latent",
    ).frames  # fmt: skip
    same(run_plan(plan)[0], expected, TOLERANCE)
    in_blocks = split("wan")
    same(run_plan(in_blocks)[0], programs.reference(in_blocks, SEED)[0])


def test_a_saved_pipeline_is_derived_planned_and_run_from_its_folder(run_plan, one_thread, tmp_path):
    from transformers import CLIPTextConfig, CLIPTextModel

    from edgeopt.profiler.architectures import derive_model

    torch.manual_seed(3)
    config = family("sd15").text_encoder.architecture.config
    unet = diffusers.UNet2DConditionModel(**family("sd15").variants["unet"].architecture.config).eval()
    text = CLIPTextModel(CLIPTextConfig(**config)).eval()
    scheduler = diffusers.DPMSolverMultistepScheduler()
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae().eval(), text_encoder=text, tokenizer=None, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(tmp_path)
    model = derive_model(tmp_path, name="saved", dtype="float32")
    assert model.variants["denoiser"].architecture.checkpoint == str(tmp_path / "unet")
    load = ImageWorkload(steps=STEPS, guidance=3.0, seed=5)
    plan = plan_of("multi_stage", model, load, [1, 3, 5, 6], [None, "denoiser", "denoiser", None])
    prompt = programs.build(plan, []).request(SEED)[0]
    noise = torch.randn(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
    hidden = text(prompt).last_hidden_state
    expected = quiet(pipeline)(
        prompt_embeds=hidden, negative_prompt_embeds=torch.zeros_like(hidden), latents=noise, guidance_scale=3.0,
        num_inference_steps=STEPS, height=8 * SIDE, width=8 * SIDE, output_type="pt",
    ).images  # fmt: skip
    (image,) = run_plan(plan)
    same((image / 2 + 0.5).clamp(0, 1), expected)
    ends = [1, 4, 1 + len(model.variants["denoiser"].blocks)]
    in_blocks = plan_of("split_diffusion", model, load, [*ends, ends[-1] + 1], [None, "denoiser", "denoiser", None])
    same(run_plan(in_blocks)[0], image)
