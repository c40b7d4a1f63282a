"""Figures of shipped models follow from the architectures beside them."""

from __future__ import annotations

import pytest

from edgeopt.profiles import list_profiles, load_model

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PUBLISHED = {"llama-3.2-1b": 1.236e9, "llama-3.2-3b": 3.213e9, "llama-3.1-8b": 8.030e9}
MODELS = [entry["name"] for entry in list_profiles("model")]
LLAMAS = [*PUBLISHED, "demo-llm"]  # quantised ones hold scales beside their weights, so other rules apply
BUILT = [
    (name, part)
    for name in MODELS
    if load_model(name).family == "diffusion"
    for part in ("text_encoder", "decoder", *load_model(name).variants)
    if (found := getattr(load_model(name), part, None) or load_model(name).variants.get(part)) and found.architecture
]


@pytest.mark.parametrize("name", LLAMAS)
def test_llama_layers_follow_from_the_configuration(name):
    model = load_model(name)
    c, size = model.architecture.config, BYTES[model.dtype]
    width, heads, kv_heads = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
    head = c.get("head_dim", width // heads)
    matrices = 2 * width * heads * head + 2 * width * kv_heads * head + 3 * width * c["intermediate_size"]
    table = c["vocab_size"] * width
    embed, block, last = model.layers
    assert block.count == c["num_hidden_layers"]
    assert block.weights == size * (matrices + 2 * width)
    assert block.flop_per_token == 2 * matrices
    assert block.flop_per_token_context == 4 * heads * head
    assert block.kv_per_token == 2 * kv_heads * head * size
    assert block.output_per_token == embed.output_per_token == width * size
    assert embed.weights == size * table
    assert last.weights == size * (table + width)
    assert last.flop_per_token == 2 * table
    assert last.output_per_token == model.token == 8
    copies = 1 if c["tie_word_embeddings"] else 2
    parameters = block.count * (matrices + 2 * width) + copies * table + width
    assert parameters == pytest.approx(PUBLISHED.get(name, parameters), rel=5e-4)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["demo-llm"])
def test_llama_weights_are_those_of_the_class(name):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = load_model(name)
    with torch.device("meta"):
        built = transformers.LlamaForCausalLM(transformers.LlamaConfig(**model.architecture.config))
    expected = sum(parameter.numel() for parameter in built.parameters()) * BYTES[model.dtype]
    assert sum(layer.count * layer.weights for layer in model.layers) == expected


@pytest.mark.torch
@pytest.mark.parametrize(("name", "part"), [pair for pair in BUILT if pair[0].startswith("demo")])
def test_diffusion_weights_are_those_of_the_class(name, part):
    torch = pytest.importorskip("torch")
    libraries = {name: pytest.importorskip(name) for name in ("transformers", "diffusers")}
    model = load_model(name)
    figures = getattr(model, part, None) or model.variants[part]
    cls = getattr(libraries[figures.architecture.library], figures.architecture.class_name)
    config = figures.architecture.config
    with torch.device("meta"):
        built = cls(cls.config_class(**config)) if hasattr(cls, "config_class") and cls.config_class else cls(**config)
    # A decoder is the second half of an autoencoder.
    parts = [built.decoder, built.post_quant_conv] if part == "decoder" else [built]
    parameters = sum(parameter.numel() for one in parts for parameter in one.parameters())
    assert figures.weights == parameters * BYTES[model.dtype]


def test_the_published_curve_of_tstitch_is_carried_whole():
    quality = load_model("tstitch-ldm").quality
    assert quality.quality == [20.11, 19.54, 18.74, 18.64, 18.60, 19.33, 21.81, 26.03, 30.41, 35.24, 40.92]
    assert quality.fraction == [i / 10 for i in range(11)]
    assert (quality.first, quality.second) == ("small", "large")
