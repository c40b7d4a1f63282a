"""Problems of a small target and its drafts, for tests of speculative decoding."""

from __future__ import annotations

from typing import Any

from edgeopt.profiles.model import CausalLM
from edgeopt.profiles.problem import Problem
from tests.edgeopt.factories import GIGA, SOURCE, device, network


def architecture(layers: int, vocabulary: int, seed: int = 0) -> dict[str, Any]:
    config = {
        "vocab_size": vocabulary, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": layers,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "tie_word_embeddings": True,
    }  # fmt: skip
    return {"library": "transformers", "class": "LlamaForCausalLM", "config": config, "seed": seed}


def layers(num_blocks: int, gflop: float) -> list[dict[str, Any]]:
    """Blocks of ``gflop`` per token; embedding and head for free."""
    each = {"flop_per_token_context": 0.0, "output_per_token": 1000.0, "weights": 1e6}
    ends = {"flop_per_token": 0.0, "kv_per_token": 0.0, **each}
    block = {"name": "block", "count": num_blocks, "flop_per_token": gflop * GIGA, "kv_per_token": 100.0, **each}
    return [{"name": "embed", **ends}, block, {"name": "head", **ends}]


def acceptance(*positions: float, temperature: float = 0.0) -> dict[str, Any]:
    return {"temperature": temperature, "by_position": positions, "source": SOURCE}


def target(vocabulary: int = 11, **fields: Any) -> CausalLM:
    """A target of two blocks of 1 GFLOP and a draft ``small`` of one of 0.1; ``twin`` is the target itself."""
    known = [acceptance(*[0.8] * 6), acceptance(*[0.6] * 6, temperature=1.0)]
    drafts = {
        "small": {"architecture": architecture(1, vocabulary, seed=1), "layers": layers(1, 0.1), "acceptance": known},
        "twin": {"architecture": architecture(2, vocabulary), "layers": layers(2, 1.0), "acceptance": known},
    }
    return CausalLM.model_validate(
        {
            "name": "toy", "source": SOURCE, "family": "causal_lm", "dtype": "float32", "token": 8.0,
            "architecture": architecture(2, vocabulary), "layers": layers(2, 1.0), "drafts": drafts, **fields,
        }
    )  # fmt: skip


def problem(**fields: Any) -> Problem:
    """The target fits on the server only, which is as fast as the phone."""
    return Problem.model_validate(
        {
            "name": "toy",
            "model": target(),
            "strategy": "speculative",
            "workload": {"kind": "text", "prompt_tokens": 6, "new_tokens": 13},
            "devices": [device("phone", gflops=10, memory=3.1e6), device("server", gflops=10)],
            "network": network(rate=1e6, latency=0.01),
            **fields,
        }
    )
