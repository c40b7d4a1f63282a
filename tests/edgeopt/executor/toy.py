"""A toy program run by real workers: every element keeps state, as caches do, and misbehaves on request.

Run as a script it is a worker; what it should do wrong stands in the problem's description, as JSON:
``sleep_s`` and ``spin_s`` (CPU time) per stage and round; ``fault`` (``memory``, ``raise``, ``exit``, ``shape``,
``hang``) at ``stage``, ``round``.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from edgeopt.plan import Plan
from edgeopt.programs.base import Program, TensorSpec

WIDTH = 48
VOCABULARY = 50


class Element:
    """x → tanh(x W + mean of all rows seen so far)."""

    def __init__(self, index: int) -> None:
        generator = torch.Generator().manual_seed(index)
        self.weight = torch.randn(WIDTH, WIDTH, generator=generator) * 0.3
        self.begin()

    def begin(self) -> None:
        self.total, self.rows = torch.zeros(WIDTH), 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.total, self.rows = self.total + x.sum(0), self.rows + len(x)
        return torch.tanh(x @ self.weight + self.total / self.rows)


def embed(tokens: torch.Tensor) -> torch.Tensor:
    table = torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(999))
    return table[tokens[0]]


def sample(x: torch.Tensor) -> torch.Tensor:
    return (x[-1].sum() * 1000).long().remainder(VOCABULARY).reshape(1, 1)


class Toy(Program):
    def __init__(self, plan: Plan, stages: Sequence[int]) -> None:
        super().__init__(plan, stages)
        self.options: dict[str, Any] = json.loads(plan.problem.description or "{}")
        self.elements = {s: [Element(i) for i in range(plan.stages[s].start, plan.stages[s].stop)] for s in self.stages}
        self.begin()

    @property
    def rounds(self) -> int:
        return self.plan.problem.workload.new_tokens

    def request(self, seed: int) -> list[torch.Tensor]:
        tokens = self.plan.problem.workload.prompt_tokens
        return [torch.randint(VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(seed))]

    def specs(self, stage: int, round_index: int) -> list[TensorSpec]:
        rows = self.plan.problem.workload.prompt_tokens if round_index == 0 else 1
        if stage == len(self.plan.stages):
            return [TensorSpec((1, self.rounds), torch.int64)]
        if stage == 0:
            return [TensorSpec((1, rows), torch.int64)]
        # Two tensors of different dtypes: both must arrive as they were.
        return [TensorSpec((rows, WIDTH), torch.float32), TensorSpec((), torch.bfloat16)]

    def begin(self) -> None:
        self.sampled: list[torch.Tensor] = []
        for elements in self.elements.values():
            for element in elements:
                element.begin()

    def fork(self) -> Toy:
        return copy.deepcopy(self)

    def run(self, stage: int, round_index: int, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        self.misbehave(stage, round_index)
        assert stage in self.elements
        assert [TensorSpec(tuple(t.shape), t.dtype) for t in inputs] == self.specs(stage, round_index)
        x = embed(inputs[0]) if stage == 0 else inputs[0]
        assert stage == 0 or float(inputs[1]) == stage * 0.5
        for element in self.elements[stage]:
            x = element(x)
        if stage < len(self.plan.stages) - 1:
            return [x, torch.tensor((stage + 1) * 0.5, dtype=torch.bfloat16)]
        self.sampled.append(sample(x))
        return [torch.cat(self.sampled, 1)] if round_index == self.rounds - 1 else [self.sampled[-1]]

    def misbehave(self, stage: int, round_index: int) -> None:
        time.sleep(self.options.get("sleep_s", 0.0))
        until = time.thread_time() + self.options.get("spin_s", 0.0)
        while time.thread_time() < until:
            pass
        fault = self.options.get("fault")
        if fault is None or (stage, round_index) != (self.options["stage"], self.options.get("round", 0)):
            return
        if fault == "memory":
            held = []
            while True:
                held.append(torch.ones(4_000_000))
        elif fault == "raise":
            raise ValueError("the toy is broken")
        elif fault == "exit":
            print("a last word", file=sys.stderr, flush=True)
            os._exit(7)
        elif fault == "shape":
            self.sampled.append(torch.zeros(1, 2, dtype=torch.int64))
        elif fault == "hang":
            time.sleep(1000)


def reference(plan: Plan, seed: int) -> list[torch.Tensor]:
    """The same arithmetic in one loop that knows nothing of stages."""
    options = json.loads(plan.problem.description or "{}")
    if options.get("fault") == "reference":
        os._exit(5)
    toy = Toy(plan, ())
    elements = [Element(i) for i in range(plan.stages[-1].stop)]
    tokens, sampled = toy.request(seed)[0], []
    for _ in range(toy.rounds):
        x = embed(tokens)
        for element in elements:
            x = element(x)
        tokens = sample(x)
        sampled.append(tokens)
    return [torch.cat(sampled, 1) + options.get("reference_offset", 0)]


def compare(plan: Plan, result: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> dict[str, Any]:
    difference = (result[0] - expected[0]).abs().max().item()
    return {"equal": difference == 0, "kind": "tokens", "max_abs_diff": float(difference), "tolerance": None}


#: What ``execute`` starts instead of the real worker.
COMMAND = (sys.executable, "-P", str(Path(__file__).resolve()))

if __name__ == "__main__":
    from edgeopt.executor.worker import main

    main(Toy, reference, compare)
