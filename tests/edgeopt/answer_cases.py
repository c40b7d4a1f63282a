"""A family of three models with recorded answers, for tests of strategies that decide from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.profiles.answers import Trace, write_answers
from edgeopt.profiles.model import CausalLM
from edgeopt.profiles.problem import Problem
from tests.edgeopt.factories import SOURCE, device, network
from tests.edgeopt.speculative_cases import acceptance, layers

MODELS = ("small", "medium", "big")


def trace(num_queries: int = 40, seed: int = 0, lengths: bool = True) -> Trace:
    """Larger models are right more often, and confidence says something about it; every fourth query is held out."""
    rng = np.random.default_rng(seed)
    hard = rng.random((num_queries, 1))
    correct = (rng.random((num_queries, 3)) > hard * [1.3, 0.8, 0.3]).astype(float)
    confidence = np.round(np.clip(0.5 * correct + 0.5 * rng.random((num_queries, 3)), 0, 1), 2)
    prompt = rng.integers(3, 9, num_queries) if lengths else None
    tokens = rng.integers(1, 5, (num_queries, 3)) if lengths else None
    splits = np.where(np.arange(num_queries) % 4 == 3, "held-out", "fit")
    classes = np.array(["odd", "even"])[np.arange(num_queries) % 2]
    return Trace(MODELS, np.arange(num_queries), classes, splits, correct, confidence, prompt, tokens)


def family(folder: Path, recorded: Trace | None = None, **fields: Any) -> CausalLM:
    """Blocks of 0.1, 0.4 and 1 GFLOP per token, 2 MB of weights for each of 3, 4 and 5 elements."""
    path = folder / "answers.csv"
    write_answers(path, recorded or trace())
    known = {"acceptance": [acceptance(0.8)]}
    return CausalLM.model_validate(
        {
            "name": "big", "source": SOURCE, "family": "causal_lm", "dtype": "float32", "token": 8.0,
            "layers": layers(3, 1.0),
            "drafts": {"small": {"layers": layers(1, 0.1), **known}, "medium": {"layers": layers(2, 0.4), **known}},
            "answers": {"trace": str(path), "source": SOURCE}, **fields,
        }
    )  # fmt: skip


def problem(folder: Path, recorded: Trace | None = None, **fields: Any) -> Problem:
    """A phone that asks and holds all but the largest model, and a server three times as fast."""
    return Problem.model_validate(
        {
            "name": "toy",
            "model": family(folder, recorded),
            "strategy": "cascade",
            "workload": {"kind": "text", "prompt_tokens": 8, "new_tokens": 4},
            "devices": [device("phone", gflops=10, memory=4.5e6), device("server", gflops=30)],
            "network": network(rate=1e5, latency=0.05),
            "constraints": {"accuracy": 0.5},
            **fields,
        }
    )
