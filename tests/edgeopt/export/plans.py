"""Splits of a tiny language model made by hand: the cuts and devices a test wants."""

from __future__ import annotations

from edgeopt.plan import Plan, Stage
from edgeopt.profiles.model import CausalLM
from tests.edgeopt.factories import SOURCE, device, network, text_problem

CONFIG = {
    "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 61,
    "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": 7, "tie_word_embeddings": False,
}  # fmt: skip


def tiny_model(num_blocks: int = 4, class_name: str | None = "LlamaForCausalLM", **config) -> CausalLM:
    layer = {"weights": 1e5, "flop_per_token": 1e5, "flop_per_token_context": 1e2, "kv_per_token": 64.0}
    architecture = {
        "library": "transformers", "class": class_name, "config": CONFIG | {"num_hidden_layers": num_blocks} | config,
    }  # fmt: skip
    return CausalLM.model_validate(
        {
            "name": "tiny", "source": SOURCE, "family": "causal_lm", "dtype": "float32", "token": 8.0,
            "layers": [
                {"name": name, "count": count, "output_per_token": 128.0, **layer}
                for name, count in [("embed", 1), ("block", num_blocks), ("head", 1)]
            ],
            "architecture": architecture if class_name else None,
            "tied_embeddings": bool(config.get("tie_word_embeddings")),
        }
    )  # fmt: skip


def split_plan(
    cuts: list[int], devices: list[int] | None = None, variants: list[str] | None = None, model: CausalLM | None = None,
    memory: float = 1e9,
) -> Plan:  # fmt: skip
    """Stage k ends at element ``cuts[k]``, holds 1 MB and runs on ``devices[k]``, called ``d0``, ``d1``, …."""
    devices = list(range(len(cuts))) if devices is None else devices
    names = [f"d{i}" for i in range(max(devices) + 1)]
    problem = text_problem(
        model=model or tiny_model(cuts[-1] - 2), devices=[device(name, memory=memory) for name in names],
        network=network(),
    )  # fmt: skip
    stages = [
        Stage(
            index=k, device=names[devices[k]], variant=variants[k] if variants else None, start=start, stop=stop,
            elements="", compute_s=0.0, transfer_s=0.0, transfer_bytes=0.0, memory_bytes=1e6,
        )
        for k, (start, stop) in enumerate(zip([0, *cuts[:-1]], cuts, strict=True))
    ]  # fmt: skip
    return Plan(
        edgeopt_version="0", problem=problem, strategy="pipeline", backend="hand", status="optimal", objective=1.0,
        bound=1.0, gap=0.0, runtime_s=0.0, latency_s=1.0, throughput_per_s=1.0, cuts=cuts, devices=devices,
        variants=[0] * len(cuts), stages=stages, transfers=[],
    )  # fmt: skip


def elements(plan: Plan) -> list[str]:
    """Return the device of every element: the embedding, the blocks, the head."""
    return [stage.device for stage in plan.stages for _ in range(stage.start, stage.stop)]
