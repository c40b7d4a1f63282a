"""Deriving from configurations on disk, following tensors, and writing files."""

from __future__ import annotations

import json
from datetime import date

import pytest

from edgeopt.errors import InputError
from edgeopt.profiles import load_model

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgeopt.profiler.architectures import derive_model, model_text
from edgeopt.profiler.architectures.__main__ import update
from edgeopt.profiler.architectures.building import build_module
from edgeopt.profiler.architectures.trace import Trace

pytestmark = pytest.mark.torch

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float16",
    "transformers_version": "4.45", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96, "vocab_size": 500, "tie_word_embeddings": False,
}  # fmt: skip
UNET = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.30", "sample_size": 16, "in_channels": 4,
    "out_channels": 4, "layers_per_block": 1, "block_out_channels": [32, 64], "cross_attention_dim": 32,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "attention_head_dim": 4, "norm_num_groups": 8,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip
TEXT = {
    "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "vocab_size": 100, "hidden_size": 32,
    "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 20,
}  # fmt: skip
VAE = {
    "_class_name": "AutoencoderKL", "latent_channels": 4, "block_out_channels": [16, 32], "norm_num_groups": 8,
    "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
}  # fmt: skip


def _write(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").write_text(json.dumps(content))
    return folder


def test_a_language_model_from_its_config_file(tmp_path):
    model = derive_model(_write(tmp_path / "my-llama", config=LLAMA) / "config.json")
    embed, block, head = model.layers
    attention, mlp = 2 * 64 * 64 + 2 * 64 * 32, 3 * 64 * 96
    assert (model.name, model.dtype, block.count) == ("my-llama", "float16", 3)
    assert block.weights == 2 * (attention + mlp + 2 * 64)
    assert block.flop_per_token == 2 * (attention + mlp)
    assert block.flop_per_token_context == 4 * 64
    assert block.kv_per_token == 2 * 32 * 2
    assert (embed.weights, embed.output_per_token) == (500 * 64 * 2, 128)
    assert (head.weights, head.flop_per_token, head.output_per_token) == ((500 * 64 + 64) * 2, 2 * 500 * 64, 8)


def test_layers_that_differ_get_their_own_entries(tmp_path):
    config = {**LLAMA, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 4,
              "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": [0]}  # fmt: skip
    model = derive_model(config, name="mixed", source="made for a test")
    assert [layer.name for layer in model.layers] == ["embed", "block.0", "block.1", "block.2", "head"]
    assert [layer.experts is None for layer in model.layers] == [True, True, False, False, True]
    dense, sparse = model.layers[1], model.layers[2]
    assert sparse.experts.weights == 3 * 64 * 32 * 2
    assert dense.flop_per_token - sparse.flop_per_token == 2 * (3 * 64 * 96 - (2 * 3 * 64 * 32 + 4 * 64))


@pytest.mark.parametrize("class_name", ["Llama", "Qwen2", "Gemma2"])
def test_flops_of_all_layers_are_those_of_the_whole_model(class_name):
    """One layer stands for all of its kind: the sum is what torch counts in a forward pass of the whole."""
    config = {**LLAMA, "architectures": [f"{class_name}ForCausalLM"], "model_type": class_name.lower()}
    model = derive_model(config, name="whole", source="made for a test")
    tokens = 24
    counted = sum(
        layer.count * tokens * (layer.flop_per_token + layer.flop_per_token_context * tokens) for layer in model.layers
    )
    module = build_module(model.architecture, torch.float32)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, tokens, dtype=torch.long), use_cache=True)
    assert counted == counter.get_total_flops()
    assert model.parameters == sum(parameter.numel() for parameter in module.parameters())


def test_a_denoiser_alone(tmp_path):
    model = derive_model(_write(tmp_path / "unet", config=UNET))
    assert (model.name, list(model.variants), model.latent_shape) == ("unet", ["denoiser"], [4, 16, 16])
    assert model.conditioning == 77 * 32 * 2
    assert model.sources["sampler"].startswith("assumed")
    names = [block.name for block in model.variants["denoiser"].blocks]
    assert (names[0], names[-1]) == ("input", "output")
    assert "mid_block.attentions.0" in names


def test_a_pipeline_folder(tmp_path):
    index = {
        "_class_name": "StableDiffusionPipeline", "text_encoder": ["transformers", "CLIPTextModel"],
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"], "tokenizer": ["transformers", "CLIPTokenizer"],
    }  # fmt: skip
    schedule = {"_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.30", "num_train_timesteps": 1000}
    folder = _write(
        tmp_path / "pipe", model_index=index, unet__config=UNET, text_encoder__config=TEXT, vae__config=VAE,
        scheduler__scheduler_config=schedule,
    )  # fmt: skip
    model = derive_model(folder, dtype="float32")
    (tmp_path / "pipe.yaml").write_text(model_text(model), encoding="utf-8")
    assert (model.prompt, model.conditioning, model.latent) == (20 * 8, 20 * 32 * 4, 4 * 16 * 16 * 4)
    assert model.decoder.output == 3 * 32 * 32 * 4
    assert model.sampler.class_name == "EulerDiscreteScheduler"
    assert load_model(str(tmp_path / "pipe.yaml")) == model


class _Skip(nn.Module):
    """Two blocks and a skip around the second; a gate that does not depend on the latent."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.gate = nn.Linear(8, 16), nn.Linear(16, 32), nn.Linear(8, 32)
        self.last = nn.Linear(48, 8)

    def forward(self, x, condition):
        gate = self.gate(condition)
        skip = self.first(x)
        return self.last(torch.cat([self.second(skip) * gate, skip], dim=1))


def test_a_trace_knows_what_crosses_each_cut():
    with torch.device("meta"):
        module, x, condition = _Skip(), torch.empty(2, 8), torch.empty(2, 8)
    trace = Trace(module, [x])
    module.first.register_forward_hook(lambda *_: trace.mark("first", ""))
    module.second.register_forward_hook(lambda *_: trace.mark("second", "last"))
    with trace.running():
        module(x, condition)
    # After the first block the skip alone; after the second its output too; the gate is made again on each side.
    assert trace.cut_bytes() == [2 * 16 * 4, 2 * (16 + 32) * 4]
    assert [part.flop for part in trace.parts] == [2 * 2 * 8 * (32 + 16), 2 * 2 * 16 * 32, 2 * 2 * 48 * 8]
    assert trace.weight_bytes(trace.parts[1].weights) == 4 * (16 * 32 + 32)
    # Alive at once at most, while the gate is applied: skip, both factors and their product.
    assert trace.peak_bytes() == 2 * 4 * (16 + 3 * 32)
    assert trace.num_kernels == 6


def test_attention_takes_no_memory_for_scores():
    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(64))

        def forward(self, x):
            q = x * self.scale
            return nn.functional.scaled_dot_product_attention(q, q, q)

    with torch.device("meta"):
        module, x = Attend(), torch.empty(1, 2, 4096, 64)
    trace = Trace(module, [x])
    with trace.running():
        module(x)
    assert trace.flop == 2 * (2 * 2 * 4096 * 4096 * 64)
    assert trace.peak_bytes() == 2 * x.nbytes  # q and the result, not 128 MiB of scores
    assert trace.num_kernels == 2


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("llama-3.2-1", "did you mean 'llama-3.2-1b'"),
        ({"hidden_size": 4}, "names no model class"),
        ({"architectures": ["NoSuchForCausalLM"]}, "no class 'NoSuchForCausalLM'"),
        ({"_class_name": "AutoencoderKL"}, "not known how to call AutoencoderKL"),
        ({**TEXT}, "not built of embedding"),
        ({**LLAMA, "architectures": ["GPT2LMHeadModel"]}, "not built of embedding"),
        ({**LLAMA, "head_dim": 7}, "cannot be built"),
        ({**LLAMA, "num_key_value_heads": 3}, "cannot be run"),
        ({"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 500}, "no function of"),
        ({**UNET, "down_block_types": ["NoSuchBlock"] * 2}, "cannot be built"),
    ],
)
def test_what_cannot_be_derived_is_refused(config, words):
    with pytest.raises(InputError, match=words):
        derive_model(config, name="x", source="made for a test")


def test_weights_of_a_denoiser_are_not_quantised():
    with pytest.raises(InputError, match="no language model"):
        derive_model(UNET, name="x", source="made for a test", weights="int4")


def test_a_file_is_written_only_when_figures_change(tmp_path):
    path = tmp_path / "x.yaml"
    earlier = derive_model(LLAMA, name="x", source="made for a test", counted_on=date(2020, 1, 2))
    assert update(path, earlier)
    today = derive_model(LLAMA, name="x", source="made for a test")
    assert not update(path, today)
    assert "2020-01-02" in path.read_text()
    assert update(path, derive_model({**LLAMA, "vocab_size": 501}, name="x", source="made for a test"))
    assert load_model(str(path)).layers[0].weights == 501 * 64 * 2
