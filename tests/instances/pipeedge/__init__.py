"""PipeEdge's measured boards as chains: ViT layers on two kinds of edge board, bottleneck objective.

Source: PipeEdge ``README_Scheduler.md`` (BSD-3-Clause, LICENSE beside this file).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ruamel.yaml import YAML

from edgeopt_solvers.chain import Chain

__all__ = ["OPTIMA", "pipeedge_chain"]

BOARDS = ("Minnowboard-E3845", "RCC-VE-C2000")
VIT = {"base": "google/vit-base-patch16-224", "large": "google/vit-large-patch16-224"}
BATCH, FLOAT_BYTES = 8, 4

#: (model, boards of each kind) → optimal bottleneck in seconds.
OPTIMA = {
    ("base", (4, 4)): 1.5488, ("base", (2, 6)): 1.4303, ("base", (6, 2)): 1.6476, ("base", (8, 8)): 0.8008,
    ("large", (4, 4)): 5.0428, ("large", (2, 6)): 4.9227, ("large", (6, 2)): 5.4733, ("large", (8, 8)): 2.5732,
}  # fmt: skip


def pipeedge_chain(model: str, counts: tuple[int, int]) -> Chain:
    """Return the chain of one of :data:`OPTIMA`: compute and crossing floats as measured, 1000 Mbit/s everywhere."""
    here = Path(__file__).parent
    boards = YAML(typ="safe").load(here / "device_types.yml")
    layers = YAML(typ="safe").load(here / "models.yml")[VIT[model]]
    kinds = [board for board, count in zip(BOARDS, counts, strict=True) for _ in range(count)]
    seconds = {name: boards[name]["model_profiles"][VIT[model]][0]["time_s"] for name in BOARDS}
    crossing = [layers["parameters_in"], *layers["parameters_out"]]
    rate = np.full((len(kinds), len(kinds)), 1000e6 / 8)
    return Chain(
        compute_s=np.array([seconds[kind] for kind in kinds]),
        cut_bytes=np.array(crossing, float) * FLOAT_BYTES * BATCH,
        rate_bytes_per_s=rate,
        latency_s=np.zeros_like(rate),
        memory_bytes=np.array([boards[kind]["mem_MB"] * 1e6 for kind in kinds]),
        resident_bytes=np.array(layers["mem_MB"]) * 1e6,
        source=None,
        objective="throughput",
    )
