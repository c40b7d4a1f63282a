"""Problems of small mixtures of experts, for tests of their placement."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from edgeopt.profiles.model import CausalLM
from edgeopt.profiles.problem import Problem
from tests.edgeopt.factories import GIGA, SOURCE, device, network

#: Bytes of an expert and of the trunk's layers (embed, each block's rest, head).
EXPERT, REST = 1e6, 1e5

_COMMON = {
    "vocab_size": 29, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "tie_word_embeddings": False,
}  # fmt: skip
_FAMILIES: dict[str, dict[str, Any]] = {
    "MixtralForCausalLM": {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 24},
    "Qwen2MoeForCausalLM": {
        "num_experts": 4, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "intermediate_size": 32,
        "shared_expert_intermediate_size": 16, "decoder_sparse_step": 1,
    },
    "Qwen3MoeForCausalLM": {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "intermediate_size": 32,
        "decoder_sparse_step": 1, "norm_topk_prob": True,
    },
}  # fmt: skip


def architecture(family: str = "MixtralForCausalLM", layers: int = 2, **config: Any) -> dict[str, Any]:
    whole = {**_COMMON, **_FAMILIES[family], "num_hidden_layers": layers, **config}
    return {"library": "transformers", "class": family, "config": whole, "seed": 3}


def gates(frequencies: list[list[float]], pairs: list[list[float]] | None = None) -> dict[str, Any]:
    return {"frequencies": frequencies, "pairs": pairs or [], "source": SOURCE}


def pairs_of(sets: dict[tuple[int, int], float], num_experts: int) -> tuple[list[float], list[float]]:
    """Frequencies and pairs of a gate that chooses these pairs of experts with these chances."""
    frequencies = [sum(p for chosen, p in sets.items() if e in chosen) for e in range(num_experts)]
    return frequencies, [sets.get(pair, 0.0) for pair in combinations(range(num_experts), 2)]


def mixture(
    num_experts: int = 4, num_active: int = 1, layers: int = 1, family: str = "MixtralForCausalLM", **fields: Any
) -> CausalLM:
    """A mixture whose blocks do 1 GFLOP per token in each active expert and as much beside them."""
    each = {"flop_per_token_context": 0.0, "output_per_token": 1000.0, "kernels": 1}
    ends = {"flop_per_token": 0.0, "kv_per_token": 0.0, "weights": REST, **each}
    # The FLOPs of a layer go by weight: as many bytes beside the experts as in the active ones.
    block = {
        "name": "block", "count": layers, "flop_per_token": 2 * num_active * GIGA, "kv_per_token": 0.0,
        "weights": num_experts * EXPERT + num_active * EXPERT,
        "experts": {"num_experts": num_experts, "num_active": num_active, "weights": EXPERT}, **each,
    }  # fmt: skip
    return CausalLM.model_validate(
        {
            "name": "toy", "source": SOURCE, "family": "causal_lm", "dtype": "float32", "token": 8.0,
            "layers": [{"name": "embed", **ends}, block, {"name": "head", **ends}],
            "architecture": architecture(
                family, layers, num_experts=num_experts, num_local_experts=num_experts, num_experts_per_tok=num_active
            ),
            **fields,
        }
    )  # fmt: skip


def in_bits(model: CausalLM, int8: float = 0.01, int4: float = 0.1) -> CausalLM:
    """The mixture with sizes in 8 and 4 bits, a quarter and an eighth, and what a block loses in each."""
    parts = {"int8": 0.25, "int4": 0.125}
    layers = [
        layer.model_copy(
            update={
                "weights_by_dtype": {dtype: layer.weights * part for dtype, part in parts.items()},
                "experts": layer.experts.model_copy(
                    update={"weights_by_dtype": {dtype: layer.experts.weights * part for dtype, part in parts.items()}}
                ),
            }
        )
        if layer.experts is not None
        else layer
        for layer in model.layers
    ]
    blocks = [int(layer.experts is not None) for layer in layers for _ in range(layer.count)]
    loss = {"int8": [int8 * block for block in blocks], "int4": [int4 * block for block in blocks]}
    quality = {"form": "weights", "metric": "nats", "loss": loss, "source": SOURCE}
    return CausalLM.model_validate({**model.model_dump(by_alias=True), "layers": layers, "quality": quality})


def problem(**fields: Any) -> Problem:
    """Three equal devices; the first, the trunk, has room for two experts beside it, the others for four."""
    devices = [device("desk", gflops=10, memory=3.3e6), device("box", gflops=10, memory=4.1e6)]
    return Problem.model_validate(
        {
            "name": "toy",
            "model": mixture(),
            "strategy": "experts",
            "workload": {"kind": "text", "prompt_tokens": 5, "new_tokens": 6},
            "devices": [*devices, device("far", gflops=10, memory=4.1e6)],
            "network": network(rate=1e6, latency=0.01),
            **fields,
        }
    )


def write_skewed(path: Any, known: dict[str, Any], strength: float, seed: int = 0) -> dict[str, Any]:
    """Write a checkpoint whose gates favour some experts, others in each layer; return its architecture.

    Every embedding has a part in one direction, which residual connections carry to all layers; each expert's row of
    a gate has another part in it, in an order drawn from ``seed``. The rest are the architecture's random weights.
    """
    import torch
    from safetensors.torch import save_file

    from edgeopt.profiles.model import Architecture
    from edgeopt.programs.language import build_model, model_config
    from edgeopt.programs.weights import RandomWeights, fill

    architecture = Architecture.model_validate(known)
    model = fill(
        build_model(architecture, model_config(architecture)), RandomWeights(architecture.seed), dtype=torch.float32
    )
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: value.clone().contiguous() for name, value in model.state_dict().items()}
    width = tensors["model.embed_tokens.weight"].shape[1]
    direction = torch.nn.functional.normalize(torch.randn(width, generator=generator), dim=0)
    tensors["model.embed_tokens.weight"] += 0.5 * width**0.5 * tensors["model.embed_tokens.weight"].std() * direction
    for name, value in tensors.items():
        if name.endswith(".gate.weight"):
            place = torch.linspace(1, -1, len(value))[torch.randperm(len(value), generator=generator)]
            value += strength * place[:, None] * direction * width**-0.5
    save_file(tensors, path)
    return {**known, "checkpoint": str(path)}
