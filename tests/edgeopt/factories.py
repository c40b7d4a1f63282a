"""Small devices, models and problems with round numbers, for tests that check arithmetic by hand."""

from __future__ import annotations

from typing import Any

from edgeopt.profiles.device import Device
from edgeopt.profiles.model import CascadedDiffusion, CausalLM, Diffusion
from edgeopt.profiles.network import Network
from edgeopt.profiles.problem import Problem

SOURCE = "numbers made for a test"
GIGA = 1e9


def device(name: str, gflops: float = 100.0, memory: float = 8e9, **fields: Any) -> Device:
    """Return a device that reaches its peaks exactly and launches for free (1 ns)."""
    return Device.model_validate(
        {
            "name": name,
            "source": SOURCE,
            "compute": {"float32": gflops * GIGA},
            "memory": memory,
            "memory_bandwidth": 1e15,
            "launch_overhead": 1e-9,
            "efficiency": {"compute": 1.0, "memory_bandwidth": 1.0, "basis": "assumed"},
            **fields,
        }
    )


def network(rate: float = 1e6, latency: float = 0.01, **fields: Any) -> Network:
    """Return a network with one default link quality."""
    return Network.model_validate(
        {"name": "net", "source": SOURCE, "default": {"rate": rate, "latency": latency}, **fields}
    )


def language_model(num_blocks: int = 4, block_gflop: float = 0.1, weights: float = 1e9) -> CausalLM:
    """Return a language model whose blocks cost ``block_gflop`` per token and nothing for attention."""
    layer = {"flop_per_token_context": 0.0, "output_per_token": 1000.0}
    return CausalLM.model_validate(
        {
            "name": "toy-lm",
            "source": SOURCE,
            "family": "causal_lm",
            "dtype": "float32",
            "token": 8.0,
            "layers": [
                {"name": "embed", "weights": 0.0, "flop_per_token": 0.0, "kv_per_token": 0.0, **layer},
                {
                    "name": "block",
                    "count": num_blocks,
                    "weights": weights,
                    "flop_per_token": block_gflop * GIGA,
                    "kv_per_token": 100.0,
                    **layer,
                },
                {"name": "head", "weights": 1e6, "flop_per_token": 1e6, "kv_per_token": 0.0, **layer},
            ],
        }
    )


def diffusion_model(quality: dict[str, Any] | None = None, components: bool = True) -> Diffusion:
    """Return a family of two denoisers, ``large`` ten times as costly as ``small``."""
    fields: dict[str, Any] = {
        "name": "toy-diffusion",
        "source": SOURCE,
        "family": "diffusion",
        "dtype": "float32",
        "sampler": {"class": "DDIMScheduler"},
        "prompt": 100.0,
        "conditioning": 50_000.0,
        "latent": 10_000.0,
        "latent_shape": [4, 8, 8],
        "variants": {
            "large": {"weights": 3e9, "flop": 10 * GIGA, "activations": 1e6},
            "small": {"weights": 1e9, "flop": 1 * GIGA, "activations": 1e6},
        },
        "quality": quality,
    }
    if components:
        fields["text_encoder"] = {"weights": 5e8, "flop": 2 * GIGA, "output": 50_000.0, "activations": 0.0}
        fields["decoder"] = {"weights": 2e8, "flop": 5 * GIGA, "output": 200_000.0, "activations": 2e6}
    return Diffusion.model_validate(fields)


def text_problem(**fields: Any) -> Problem:
    """Return a problem of two devices and a toy language model; ``fields`` override."""
    return Problem.model_validate(
        {
            "name": "toy",
            "model": language_model(),
            "strategy": "pipeline",
            "workload": {"kind": "text", "prompt_tokens": 10, "new_tokens": 5},
            "devices": [device("phone", gflops=1, memory=3e9), device("server", gflops=10, memory=3e9)],
            "network": network(),
            **fields,
        }
    )


def image_problem(**fields: Any) -> Problem:
    """Return a problem of two devices and a toy diffusion family; ``fields`` override."""
    return Problem.model_validate(
        {
            "name": "toy",
            "model": diffusion_model(),
            "strategy": "multi_stage",
            "workload": {"kind": "image", "steps": 10},
            "devices": [device("phone", gflops=10, memory=2e9), device("server", gflops=100, memory=8e9)],
            "network": network(),
            **fields,
        }
    )


#: Both levels in two denoisers and two numbers of steps: (below, above), (steps below, steps above), quality.
CASCADE_RUNS = [
    (("large", "sharp"), (3, 2), 1.0),
    (("large", "sharp"), (2, 1), 2.0),
    (("large", "quick"), (3, 1), 2.5),
    (("small", "sharp"), (3, 2), 4.0),
    (("small", "quick"), (2, 1), 8.0),
]


def cascade_model(runs: Any = CASCADE_RUNS, **fields: Any) -> CascadedDiffusion:
    """Return two levels of two denoisers each; without ``runs`` nothing is known of their quality."""
    quality = None
    if runs:
        entries = [{"variants": list(names), "steps": list(steps), "quality": q} for names, steps, q in runs]
        quality = {"form": "runs", "metric": "FID", "runs": entries, "source": SOURCE}
    cost = {"weights": 1e9, "activations": 1e6}
    below = {"large": {"flop": 4 * GIGA, **cost}, "small": {"flop": 1 * GIGA, **cost}}
    above = {"sharp": {"flop": 8 * GIGA, **cost}, "quick": {"flop": 2 * GIGA, **cost}}
    sampler = {"class": "DDIMScheduler"}
    return CascadedDiffusion.model_validate(
        {
            "name": "toy-cascade",
            "source": SOURCE,
            "family": "cascaded_diffusion",
            "dtype": "float32",
            "prompt": 100.0,
            "conditioning": 5_000.0,
            "levels": [
                {"name": "low", "sampler": sampler, "latent": 10_000.0, "latent_shape": [3, 8, 8], "variants": below},
                {
                    "name": "high", "sampler": sampler, "latent": 40_000.0, "latent_shape": [3, 16, 16],
                    "augmentation": 0.1, "variants": above,
                },
            ],
            "quality": quality,
            **fields,
        }
    )  # fmt: skip


def cascade_problem(**fields: Any) -> Problem:
    """Return a problem of two devices and a toy cascade; ``fields`` override."""
    return Problem.model_validate(
        {
            "name": "toy",
            "model": cascade_model(),
            "strategy": "hierarchical",
            "workload": {"kind": "cascade"},
            "devices": [device("phone", gflops=10, memory=8e9), device("server", gflops=100, memory=8e9)],
            "network": network(),
            **fields,
        }
    )
