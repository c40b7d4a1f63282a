"""Every shipped model is derived anew and held against its file and against published figures."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import pytest

from edgeopt.profiles import load_model

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from edgeopt.profiler.architectures import derive_model, known_names, with_weights
from edgeopt.profiler.architectures.__main__ import QUANTISED

pytestmark = pytest.mark.torch

LIBRARY = Path(__file__).parents[3] / "profiles" / "models"
MIB = 2**20

# Parameters in 10^9 as published, parameters of a layer in 10^6, KV cache per token in KiB at 16 bit.
LANGUAGE = {
    "llama-3.2-1b": (1.236, 60.8, 32),
    "llama-3.2-3b": (3.213, 100.7, 112),
    "llama-3.1-8b": (8.030, 218.1, 128),
    "llama-3.1-70b": (70.554, 855.7, 320),
    "qwen2.5-0.5b": (0.494, 14.9, 12),
    "qwen2.5-1.5b": (1.544, 46.8, 28),
    "qwen2.5-3b": (3.086, 77.1, 36),
    "qwen2.5-7b": (7.616, 233.1, 56),
    "qwen2.5-14b": (14.770, 275.3, 192),
    "qwen2.5-32b": (32.764, 487.6, 256),
    "qwen3-0.6b": (0.596, 15.7, 112),
    "qwen3-1.7b": (1.721, 50.3, 112),
    "qwen3-4b": (4.022, 100.9, 144),
    "qwen3-8b": (8.191, 193.0, 144),
    "qwen3-14b": (14.768, 330.3, 160),
    "qwen3-32b": (32.762, 487.6, 256),
    "qwen3-30b-a3b": (30.532, 623.1, 96),
    "mixtral-8x7b": (46.703, 1451.3, 128),
    "gemma-2-2b": (2.614, 77.9, 104),
}
TIED = {
    "llama-3.2-1b", "llama-3.2-3b", "qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-3b", "qwen3-0.6b", "qwen3-1.7b",
    "qwen3-4b", "gemma-2-2b",
}  # fmt: skip

# Parameters in 10^6 and TFLOP of one forward pass at batch 1.
DENOISERS = {
    ("sd15-bksdm", "sd15"): (859.52, 0.803),
    ("sd15-bksdm", "bk-base"): (579.38, 0.523),
    ("sd15-bksdm", "bk-small"): (482.35, 0.511),
    ("sd15-bksdm", "bk-tiny"): (323.38, 0.486),
    ("sdxl", "base"): (2567.46, 6.761),
    ("sdxl", "refiner"): (2259.53, 7.286),
    ("ssd-1b", "ssd-1b"): (1331.33, 4.208),
    ("sd3-medium", "sd3-medium"): (2028.33, 8.904),
    ("flux.1-dev", "flux.1-dev"): (11901.41, 74.385),
    ("pixart-alpha", "pixart-alpha"): (611.35, 6.510),
    ("dit", "xl"): (749.83, 2 * 0.11864),  # DiT paper, table 4: 118.64 G multiply-adds
}


@pytest.fixture(scope="module")
def derivation():
    before = time.process_time()
    models = {name: derive_model(name) for name in known_names()}
    return models, time.process_time() - before


@pytest.fixture(scope="module")
def models(derivation):
    return derivation[0]


def test_all_models_are_derived_within_a_minute_and_little_memory(derivation):
    assert derivation[1] < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < 4e9


@pytest.mark.parametrize("name", known_names())
def test_the_shipped_file_says_what_is_counted(models, name):
    assert _figures(load_model(str(LIBRARY / f"{name}.yaml"))) == _figures(models[name])


@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name, dtypes in QUANTISED.items() for dtype in dtypes])
def test_the_shipped_quantised_file_says_what_is_counted(models, name, dtype):
    shipped = load_model(str(LIBRARY / f"{name}-{dtype}.yaml"))
    assert _figures(shipped) == _figures(with_weights(models[name], dtype))


def _figures(model):
    """All but the source, which names versions and the day; kernels and traffic differ between versions of torch."""
    data = model.model_dump(mode="json", exclude={"source"})
    parts = [data.get("text_encoder"), data.get("decoder"), *data.get("variants", {}).values()]
    parts += list((data.get("text_encoder") or {}).get("parts", {}).values())
    for part in filter(None, parts):
        for key in ("activations", "traffic", "kernels"):
            assert part.pop(key)
    for layer in data.get("layers", []):
        assert layer.pop("kernels")
        for key in ("traffic_per_token", "traffic_per_cached_token"):
            layer.pop(key)
    return data


@pytest.mark.parametrize("name", LANGUAGE)
def test_language_models_have_their_published_sizes(models, name):
    parameters, per_layer, cache = LANGUAGE[name]
    model = models[name]
    blocks = [layer for layer in model.layers for _ in range(layer.count)][1:-1]
    assert round(model.parameters / 1e9, 3) == parameters
    assert all(block.weights / 2 / 1e6 == pytest.approx(per_layer, abs=0.06) for block in blocks)  # tables round
    assert sum(block.kv_per_token for block in blocks) / 1024 == cache
    assert model.tied_embeddings == (name in TIED)
    # A tied matrix is in embedding and head, as each may lie on another device; otherwise every weight is in one part.
    once = sum(layer.weights * layer.count for layer in model.layers) - model.tied_embeddings * model.layers[0].weights
    assert once == 2 * model.parameters


@pytest.mark.parametrize(("name", "teraflop"), [("llama-3.1-8b", 32.94), ("mixtral-8x7b", 54.42)])
def test_prefill_flops_are_those_of_a_whole_forward_pass(models, name, teraflop):
    tokens, layers = 2048, models[name].layers
    per_token = sum(layer.count * (layer.flop_per_token + layer.flop_per_token_context * tokens) for layer in layers)
    assert tokens * per_token / 1e12 == pytest.approx(teraflop, rel=0.001)  # Mixtral: of its active experts


def test_experts_are_all_resident_and_few_work(models):
    block = models["qwen3-30b-a3b"].layers[1]
    assert (block.experts.num_experts, block.experts.num_active) == (128, 8)
    assert block.experts.weights == 3 * 2048 * 768 * 2
    active = sum(layer.flop_per_token * layer.count for layer in models["qwen3-30b-a3b"].layers) / 2
    assert 3.0e9 < active < 3.4e9  # "A3B": about 3.3 billion active parameters, the embedding's lookup apart


def test_quantised_blocks_are_smaller_by_the_scales_rule(models):
    block = models["llama-3.1-70b"].layers[1]
    matrices, vectors = (block.weights - 2 * 2 * 8192) / 2, 2 * 2 * 8192
    assert block.weights_by_dtype["int4"] == matrices * (0.5 + 2 / 128) + vectors
    assert block.weights_by_dtype["int8"] == matrices + vectors + 2 * (8192 * 3 + 2 * 1024 + 2 * 28672)
    small = with_weights(models["llama-3.1-70b"], "int4")
    assert small.layers[1].weights == block.weights_by_dtype["int4"]
    assert small.layers[2] == models["llama-3.1-70b"].layers[2]
    assert small.dtype == "bfloat16"


@pytest.mark.parametrize(("name", "variant"), DENOISERS)
def test_denoisers_have_their_published_sizes(models, name, variant):
    parameters, teraflop = DENOISERS[name, variant]
    denoiser = models[name].variants[variant]
    assert round(denoiser.parameters / 1e6, 2) == parameters
    assert denoiser.flop / 1e12 == pytest.approx(teraflop, rel=0.01 if name == "dit" else 0.0015)


def test_dit_without_the_repeated_embedders_has_the_published_parameters(models):
    """Diffusers embeds timestep and class in each block; the original does it once: 33 M, 131 M, 675 M."""
    for variant, depth, width, published in (("s", 12, 384, 33), ("b", 12, 768, 131), ("xl", 28, 1152, 675)):
        embedder = (256 * width + width) + (width * width + width) + 1001 * width
        once = models["dit"].variants[variant].parameters - (depth - 1) * embedder
        assert once / 1e6 == pytest.approx(published, abs=1)


def test_tstitch_denoisers_have_the_published_parameters(models):
    large, small = (models["tstitch-ldm"].variants[name].parameters / 1e6 for name in ("large", "small"))
    assert (large, small) == (pytest.approx(394, abs=1), pytest.approx(25, abs=0.5))


@pytest.mark.parametrize(("name", "variant"), DENOISERS)
def test_blocks_add_up_to_the_step(models, name, variant):
    denoiser = models[name].variants[variant]
    assert sum(block.flop for block in denoiser.blocks) == denoiser.flop
    shared = sum(block.weights for block in denoiser.blocks) / denoiser.weights
    assert 1 <= shared < (1.02 if name == "dit" else 1 + 1e-9)  # DiT's last layer reads the first block's embedder
    assert denoiser.blocks[-1].output == models[name].latent
    assert len({block.name for block in denoiser.blocks}) == len(denoiser.blocks)


def test_cuts_count_skips_and_both_streams(models):
    blocks = {block.name: block for block in models["sdxl"].variants["base"].blocks}
    # With guidance, batch 2: 5.0 MiB of hidden states and 97.5 MiB of skips.
    assert 2 * blocks["mid_block.resnets.1"].output == 102.5 * MIB
    assert not blocks["up_blocks.0.resnets.0"].legal
    assert blocks["up_blocks.0.upsamplers.0"].legal
    assert blocks["down_blocks.1.resnets.0"].legal
    flux = {block.name: block for block in models["flux.1-dev"].variants["flux.1-dev"].blocks}
    assert flux["input"].output == 4096 * 3072 * 2  # the text does not depend on the latent yet
    assert flux["transformer_blocks.0"].output == flux["single_transformer_blocks.20"].output == 27 * MIB
    assert sum(block.flop for name, block in blocks.items() if name.startswith("down_blocks.2")) * 2 == pytest.approx(
        2.9e12, rel=0.02
    )


def test_conditioning_and_latents_have_their_published_bytes(models):
    """Guidance doubles what the published table counts (batch 2) for all but FLUX."""
    for name, (latent, conditioning) in _CROSSING.items():
        assert models[name].latent / 1024 == latent
        assert models[name].conditioning / 1024 == pytest.approx(conditioning, rel=0.02)


_CROSSING = {
    "sd15-bksdm": (32, 231 / 2),
    "sdxl": (128, 621 / 2),
    "sd3-medium": (512, 5.2 * 1024 / 2),
    "flux.1-dev": (512, 4.0 * 1024),
    "pixart-alpha": (128, 1.9 * 1024 / 2),
}


def test_encoders_and_decoders(models):
    decoder = models["sd15-bksdm"].decoder
    assert round(decoder.parameters / 1e6, 2) == 49.49
    assert decoder.flop / 1e12 == pytest.approx(2.515, rel=0.001)
    assert decoder.flop / models["sd15-bksdm"].variants["sd15"].flop == pytest.approx(3.1, abs=0.05)
    assert models["sd15-bksdm"].text_encoder.parameters == 123_060_480  # CLIP ViT-L/14, text tower
    encoder = models["sd3-medium"].text_encoder
    assert list(encoder.parts) == ["clip-l-projected", "openclip-bigg", "t5-xxl"]
    assert encoder.parts["t5-xxl"].parameters == 4_762_310_656
    assert encoder.weights == sum(part.weights for part in encoder.parts.values())
    assert models["dit"].text_encoder is None


def test_distilled_unets_shrink_in_parameters_more_than_in_flops(models):
    family = models["sd15-bksdm"].variants
    tiny, whole = family["bk-tiny"], family["sd15"]
    assert tiny.parameters / whole.parameters == pytest.approx(0.38, abs=0.01)
    assert tiny.flop / whole.flop == pytest.approx(0.61, abs=0.01)
