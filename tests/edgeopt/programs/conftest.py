"""Plans made by hand: the cuts a test wants, whatever a planner would choose."""

from __future__ import annotations

import pytest

from edgeopt.plan import Plan, Stage
from edgeopt.profiles.device import Device, Efficiency, Runtime
from edgeopt.profiles.model import Architecture, CausalLM, Component, Diffusion, Layer, Sampler, Variant
from edgeopt.profiles.network import LinkQuality, Network
from edgeopt.profiles.problem import ImageWorkload, Problem, TextWorkload

SOURCE = "made up for a test"
TEXT_TOKENS, TEXT_WIDTH = 7, 32
LATENT = [4, 8, 8]


def device(name: str, threads: int | None = None) -> Device:
    return Device(
        name=name,
        source=SOURCE,
        compute={"float32": 1e10},
        memory=1e9,
        memory_bandwidth=1e10,
        launch_overhead=1e-5,
        efficiency=Efficiency(compute=0.5, memory_bandwidth=0.5, basis="assumed"),
        runtime=Runtime(threads=threads),
    )


def plan_of(strategy, model, workload, cuts, variants=None, threads=None) -> Plan:
    """Stage k ends at ``cuts[k]`` and runs on device ``d{k}`` with ``threads[k]`` threads."""
    threads = threads or [1] * len(cuts)
    problem = Problem(
        name="test",
        model=model,
        workload=workload,
        devices=[device(f"d{k}", count) for k, count in enumerate(threads)],
        network=Network(name="net", source=SOURCE, default=LinkQuality(rate=1e8, latency=1e-4)),
    )
    starts = [0, *cuts[:-1]]
    stages = [
        Stage(
            index=k, device=f"d{k}", variant=variants[k] if variants else None, start=start, stop=stop, elements="",
            compute_s=0.0, transfer_s=0.0, transfer_bytes=0.0, memory_bytes=0.0,
        )
        for k, (start, stop) in enumerate(zip(starts, cuts, strict=True))
    ]  # fmt: skip
    return Plan(
        edgeopt_version="0", problem=problem, strategy=strategy, backend="hand", status="optimal", objective=1.0,
        bound=1.0, gap=0.0, runtime_s=0.0, latency_s=1.0, throughput_per_s=1.0, cuts=cuts,
        devices=list(range(len(cuts))), variants=[0] * len(cuts), stages=stages, transfers=[],
    )  # fmt: skip


@pytest.fixture
def language_plan():
    """Return a maker of plans for a 4-layer language model (6 elements)."""

    def make(
        cuts, *, family="Llama", batch=1, prompt=9, new=6, threads=None, checkpoint=None, dtype="float32",
        temperature=0.0, chunk=None, **config,
    ):  # fmt: skip
        layer = {"weights": 1e5, "flop_per_token": 1e5, "flop_per_token_context": 1e2, "kv_per_token": 64.0}
        layers = [
            Layer(name=name, count=count, output_per_token=128.0, **layer)
            for name, count in [("embed", 1), ("block", 4), ("head", 1)]
        ]
        sizes = {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 199, "max_position_embeddings": 64, "bos_token_id": None,
            "eos_token_id": 7, "tie_word_embeddings": False,
        }  # fmt: skip
        architecture = Architecture(
            library="transformers",
            class_name=f"{family}ForCausalLM",
            config=sizes | config,
            seed=3,
            checkpoint=checkpoint,
        )
        model = CausalLM(
            name="tiny",
            source=SOURCE,
            family="causal_lm",
            architecture=architecture,
            dtype=dtype,
            layers=layers,
            token=8.0,
        )
        workload = TextWorkload(
            prompt_tokens=prompt, new_tokens=new, batch=batch, temperature=temperature, prefill_chunk=chunk
        )
        return plan_of("pipeline", model, workload, cuts, threads=threads)

    return make


def _unet(width: int) -> Architecture:
    config = {
        "sample_size": 8, "block_out_channels": [width, 2 * width], "layers_per_block": 1, "norm_num_groups": 8,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "cross_attention_dim": TEXT_WIDTH, "attention_head_dim": 8,
    }  # fmt: skip
    return Architecture(library="diffusers", class_name="UNet2DConditionModel", config=config, seed=width)


def _dit(layers: int) -> Architecture:
    config = {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 8, "num_layers": layers,
        "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 10,
    }  # fmt: skip
    return Architecture(library="diffusers", class_name="DiTTransformer2DModel", config=config, seed=layers)


def _pixart(layers: int) -> Architecture:
    config = {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 8, "num_layers": layers,
        "sample_size": 8, "patch_size": 2, "cross_attention_dim": 32, "caption_channels": TEXT_WIDTH,
        "use_additional_conditions": False,
    }  # fmt: skip
    return Architecture(library="diffusers", class_name="PixArtTransformer2DModel", config=config, seed=layers)


@pytest.fixture
def diffusion_plan():
    """Return a maker of plans for denoisers ``small`` and ``large`` with a text encoder and a decoder."""

    def make(
        cuts, variants, *, sampler="DDIMScheduler", sampler_config=None, denoiser="unet", steps=6, images=1,
        guidance=1.0, encoder=True, decoder=True, threads=None, dtype="float32",
    ):  # fmt: skip
        clip = {
            "vocab_size": 99, "hidden_size": TEXT_WIDTH, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": TEXT_TOKENS, "bos_token_id": 0, "eos_token_id": 1,
        }  # fmt: skip
        vae = {
            "block_out_channels": [16, 32], "down_block_types": ["DownEncoderBlock2D"] * 2, "norm_num_groups": 8,
            "up_block_types": ["UpDecoderBlock2D"] * 2, "latent_channels": 4, "sample_size": 16,
        }  # fmt: skip
        cost = {"weights": 1e5, "flop": 1e6, "activations": 1e4}
        build = {"unet": _unet, "dit": _dit, "pixart": _pixart}[denoiser]
        small, large = (build(16), build(32)) if denoiser == "unet" else (build(1), build(3))
        conditioning = 4.0 * TEXT_TOKENS * TEXT_WIDTH if encoder else 8.0
        model = Diffusion(
            name="tiny-diffusion",
            source=SOURCE,
            family="diffusion",
            dtype=dtype,
            sampler=Sampler(class_name=sampler, config=sampler_config or {}),
            prompt=8.0 * TEXT_TOKENS if encoder else 8.0,
            conditioning=conditioning,
            latent=4.0 * 4 * 8 * 8,
            latent_shape=LATENT,
            text_encoder=Component(
                architecture=Architecture(library="transformers", class_name="CLIPTextModel", config=clip, seed=1),
                output=conditioning, **cost,
            ) if encoder else None,
            decoder=Component(
                architecture=Architecture(library="diffusers", class_name="AutoencoderKL", config=vae, seed=2),
                output=4.0 * 3 * 16 * 16, **cost,
            ) if decoder else None,
            variants={"small": Variant(architecture=small, **cost), "large": Variant(architecture=large, **cost)},
        )  # fmt: skip
        workload = ImageWorkload(steps=steps, images=images, guidance=guidance, seed=5)
        return plan_of("multi_stage", model, workload, cuts, variants, threads)

    return make


@pytest.fixture
def run_plan():
    """Run every stage in its own program, as processes would, checking each message against its announcement."""
    import torch

    from edgeopt import programs
    from edgeopt.programs.placing import threads_restored

    def run(plan, seed=11, repeat=1, together=False):
        """``together``: one program hosts all stages (quicker to build); stages still share nothing but messages."""
        if together:
            parts = [programs.build(plan, range(len(plan.stages)))] * len(plan.stages)
        else:
            parts = [programs.build(plan, [k]) for k in range(len(plan.stages))]
        last = len(parts) - 1
        for _ in range(repeat):
            for part in dict.fromkeys(parts):
                part.begin()
            message = parts[0].request(seed)
            for round_index in range(parts[0].rounds):
                for k, part in enumerate(parts):
                    goes_on = k == 0 and round_index > 0 and not part.returns(round_index)
                    specs = [] if goes_on else part.specs(k, round_index)
                    assert [(tuple(x.shape), x.dtype) for x in message] == [(spec.shape, spec.dtype) for spec in specs]
                    assert all(x.is_contiguous() for x in message)
                    with threads_restored():
                        torch.set_num_threads(plan.problem.devices[k].runtime.threads)
                        message = part.run(k, round_index, message)
            specs = parts[last].specs(last + 1, parts[0].rounds - 1)
            assert [(tuple(x.shape), x.dtype) for x in message] == [(spec.shape, spec.dtype) for spec in specs]
        return message

    return run
