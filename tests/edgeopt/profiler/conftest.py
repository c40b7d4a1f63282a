"""Small models to measure."""

from __future__ import annotations

import pytest

from edgeopt.profiles.model import Architecture, CausalLM, Component, Diffusion, Layer, Sampler, Variant

SOURCE = "made up for a test"
_LAYER = {
    "weights": 1.0,
    "flop_per_token": 1.0,
    "flop_per_token_context": 1.0,
    "kv_per_token": 1.0,
    "output_per_token": 1.0,
}
_COST = {"weights": 1.0, "flop": 1.0, "activations": 1.0}


@pytest.fixture
def language_model():
    config = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 256, "tie_word_embeddings": False,
    }  # fmt: skip
    architecture = Architecture(library="transformers", class_name="LlamaForCausalLM", config=config)
    counts = [("embed", 1), ("block", 3), ("head", 1)]
    layers = [Layer(name=name, count=count, **_LAYER) for name, count in counts]
    return CausalLM(
        name="lm",
        source=SOURCE,
        family="causal_lm",
        architecture=architecture,
        dtype="float32",
        layers=layers,
        token=8.0,
    )


@pytest.fixture
def diffusion_model():
    def denoiser(layers):
        config = {
            "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4,
            "num_layers": layers, "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 10,
        }  # fmt: skip
        architecture = Architecture(library="diffusers", class_name="DiTTransformer2DModel", config=config)
        return Variant(architecture=architecture, **_COST)

    vae = {"block_out_channels": [16], "norm_num_groups": 8, "latent_channels": 4, "sample_size": 8}
    return Diffusion(
        name="dm",
        source=SOURCE,
        family="diffusion",
        dtype="float32",
        sampler=Sampler(class_name="DDIMScheduler"),
        prompt=8.0,
        conditioning=8.0,
        latent=4.0 * 4 * 8 * 8,
        latent_shape=[4, 8, 8],
        variants={"small": denoiser(1), "large": denoiser(24)},
        decoder=Component(
            architecture=Architecture(library="diffusers", class_name="AutoencoderKL", config=vae),
            output=4.0 * 3 * 8 * 8,
            **_COST,
        ),
    )
