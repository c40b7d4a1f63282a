"""Tiny families of the pipelines that diffusers ships, with random weights, as profiles; and what these are given."""

from __future__ import annotations

import functools
from typing import Any

import torch

from edgeopt.profiles.model import Architecture, Diffusion, Sampler

__all__ = ["SIDE", "TEXT", "family", "parts_of", "vae"]

SIDE, TEXT = 8, 32


def _architecture(library: str, name: str, seed: int, **config: Any) -> Architecture:
    return Architecture.model_validate({"library": library, "class": name, "config": config, "seed": seed})


def _clip(name: str, seed: int, width: int = TEXT) -> tuple[Architecture, int]:
    config = {
        "vocab_size": 99, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 7, "projection_dim": 16, "bos_token_id": 0,
        "eos_token_id": 1,
    }  # fmt: skip
    return _architecture("transformers", name, seed, **config), 7


def _t5(name: str, tokens: int) -> tuple[Architecture, int]:
    config = {"vocab_size": 99, "d_model": TEXT, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    return _architecture("transformers", name, 3, **config), tokens


def _unet(seed: int, width: int = TEXT, **more: Any) -> Architecture:
    config = {
        "sample_size": SIDE, "block_out_channels": [16, 32], "layers_per_block": 1, "norm_num_groups": 8,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "cross_attention_dim": width, "attention_head_dim": 8,
    }  # fmt: skip
    return _architecture("diffusers", "UNet2DConditionModel", seed, **config, **more)


def _sdxl(seed: int, width: int, sizes: int) -> Architecture:
    return _unet(
        seed, width, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 4 * sizes,
    )  # fmt: skip


def _pixart(seed: int) -> Architecture:
    return _architecture(
        "diffusers", "PixArtTransformer2DModel", seed, num_attention_heads=2, attention_head_dim=16, in_channels=4,
        out_channels=8, num_layers=2, sample_size=SIDE, patch_size=2, cross_attention_dim=32, caption_channels=TEXT,
        use_additional_conditions=False,
    )  # fmt: skip


def _flux(seed: int) -> Architecture:
    return _architecture(
        "diffusers", "FluxTransformer2DModel", seed, patch_size=1, in_channels=16, num_layers=1, num_single_layers=2,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=TEXT, pooled_projection_dim=16,
        guidance_embeds=True, axes_dims_rope=[4, 6, 6],
    )  # fmt: skip


def _wan(seed: int) -> Architecture:
    return _architecture(
        "diffusers", "WanTransformer3DModel", seed, patch_size=[1, 2, 2], num_attention_heads=2, attention_head_dim=12,
        in_channels=4, out_channels=4, text_dim=TEXT, freq_dim=32, ffn_dim=48, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip


def vae() -> Any:
    """Return an image decoder that scales by eight, which no test runs."""
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=[8] * 4, down_block_types=["DownEncoderBlock2D"] * 4, norm_num_groups=8,
        up_block_types=["UpDecoderBlock2D"] * 4, latent_channels=4,
    )  # fmt: skip


_FLOW = Sampler.model_validate({"class": "FlowMatchEulerDiscreteScheduler", "config": {"shift": 3.0}})
_SHIFTED = Sampler.model_validate(
    {"class": "FlowMatchEulerDiscreteScheduler", "config": {"shift": 3.0, "use_dynamic_shifting": True}}
)
_EULER = Sampler.model_validate({"class": "EulerDiscreteScheduler", "config": {"beta_schedule": "scaled_linear"}})
_PNDM = Sampler.model_validate({"class": "PNDMScheduler", "config": {"skip_prk_steps": True, "steps_offset": 1}})
_DPM = Sampler.model_validate({"class": "DPMSolverMultistepScheduler"})


@functools.cache
def family(name: str) -> Diffusion:
    """Derive a family's profile, as ``edgeopt profile model`` does: blocks, bytes and conditioning from the modules."""
    from edgeopt.profiler.architectures.family import Family, diffusion

    wide = TEXT + 16
    encoders, variants, sampler, shape = {
        "sd15": ({"text_encoder": _clip("CLIPTextModel", 1)}, {"unet": _unet(5)}, _PNDM, [4, SIDE, SIDE]),
        "sdxl": (
            {"text_encoder": _clip("CLIPTextModel", 1), "text_encoder_2": _clip("CLIPTextModelWithProjection", 2, 16)},
            {"base": _sdxl(5, wide, 6), "refiner": _sdxl(6, 16, 5)},
            _EULER, [4, SIDE, SIDE],
        ),
        "pixart": ({"text_encoder": _t5("T5EncoderModel", 9)}, {"pixart": _pixart(5)}, _DPM, [4, SIDE, SIDE]),
        "flux": (
            {"text_encoder": _clip("CLIPTextModel", 1, 16), "text_encoder_2": _t5("T5EncoderModel", 9)},
            {"flux": _flux(5)}, _SHIFTED, [4, SIDE, SIDE],
        ),
        "wan": (
            {"text_encoder": _t5("UMT5EncoderModel", 9)}, {"high": _wan(5), "low": _wan(6)}, _FLOW, [4, 2, SIDE, SIDE],
        ),
    }[name]  # fmt: skip
    return diffusion(
        Family(latent_shape=shape, sampler=sampler, variants=variants, dtype="float32", text_encoders=encoders),
        name=name, source="made up for a test",
    )  # fmt: skip


def parts_of(plan: Any, seed: int) -> tuple[Any, list[torch.Tensor], dict[str, Any], Any]:
    """Return what a pipeline is given: noise, conditioning (by the encoders' own code), denoisers and scheduler."""
    import diffusers

    from edgeopt.programs.conditioning import encoder_parts, prompt_lengths
    from edgeopt.programs.diffusion import DiffusionRun
    from edgeopt.programs.sampling import draw_prompt, load_part

    facts, cpu = DiffusionRun(plan.model_copy(update={"strategy": "multi_stage"})), torch.device("cpu")
    encoders = load_part(facts, "text_encoder", cpu)
    lengths = prompt_lengths(facts.model, facts.prompt_tokens)
    ids = dict(
        zip(encoder_parts(facts.model), draw_prompt(facts, None, seed).split(list(lengths.values()), 1), strict=True)
    )
    outputs = {name: encoders[name](ids[name], output_hidden_states=True) for name in ids}
    noise = torch.randn(facts.latent().shape, generator=torch.Generator().manual_seed(facts.load.seed))
    denoisers = {name: load_part(facts, f"variant:{name}", cpu) for name in facts.model.variants}
    sampler = facts.model.sampler
    scheduler = getattr(diffusers, sampler.class_name).from_config(dict(sampler.config))
    return noise, outputs, denoisers, scheduler
