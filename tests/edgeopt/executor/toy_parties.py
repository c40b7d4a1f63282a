"""A toy of three parties that all talk with all, run by real workers or rehearsed.

Every round each party sends every other a tensor whose size depends on round and rank, all at once, and mixes what it
gets into a number. Rank 1 also sends a hint that rank 0 polls for, and a message that nobody takes. What it should do
wrong stands in the problem's description, as JSON: ``fault`` (``oversize`` or ``silent``) at ``rank``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from edgeopt.plan import Plan
from edgeopt.programs.parties import Links, PartyProgram
from tests.edgeopt.executor.plans import toy_plan

ROUNDS = 3
#: Rows of the largest message: several pieces.
ROWS = 300_000


def rows_of(rank: int, round_index: int) -> int:
    return ROWS if rank == round_index else 3 + rank * round_index


def parties_plan(*devices: str, fields: dict[str, dict[str, Any]] | None = None, **options: Any) -> Plan:
    """Return a plan with a stage on each device; ``options`` go to the toy."""
    places = [(name, k + 1) for k, name in enumerate(devices)]
    plan = toy_plan(*places, devices=fields, **options)
    own = {"cuts": [], "devices": [], "variants": [], "decisions": {"rounds": ROUNDS}, "strategy": "toy_parties"}
    hops = [
        transfer.model_copy(update={"source": a, "destination": b, "purpose": "mix", "cut": 0})
        for a in devices
        for b in devices
        if a != b
        for transfer in plan.transfers[:1]
    ]
    return plan.model_copy(update={**own, "transfers": hops})


class ToyParties(PartyProgram):
    max_message_bytes = 8 * ROWS

    def __init__(self, plan: Plan, stages: Sequence[int]) -> None:
        super().__init__(plan, stages)
        self.options: dict[str, Any] = json.loads(plan.problem.description or "{}")
        self.total = 0.0

    def request(self, seed: int) -> list[torch.Tensor]:
        return [torch.tensor([float(seed + 1)])]

    def begin(self) -> None:
        self.total = 0.0

    def play(self, links: Links, inputs: list[torch.Tensor] | None) -> list[torch.Tensor] | None:
        ranks = list(range(len(self.plan.stages)))
        others = [rank for rank in ranks if rank != links.rank]
        if inputs is not None:
            for rank in others:
                links.send(rank, inputs, "input")
        else:
            inputs = links.receive(0)
        for round_index in range(ROUNDS):
            self.misbehave(links)
            for rank in others:
                links.send(rank, mixture(inputs[0], links.rank, round_index), "mix")
            heard = {rank: links.receive(rank) for rank in others}
            heard[links.rank] = mixture(inputs[0], links.rank, round_index)
            with links.computing(self.stages[0], round_index):
                self.total += sum(digest(heard[rank]) for rank in ranks)
        if links.rank == 1:
            links.send(0, [torch.tensor(7, dtype=torch.int8)], "hint")
            links.send(2, [], "nothing")
            links.send(2, [torch.zeros(5)], "forgotten")
        if links.rank == 2:
            assert links.receive(1) == []
        if links.rank != 0:
            links.send(0, [torch.tensor([self.total], dtype=torch.float64)], "output")
            return None
        hint = None
        while hint is None:
            hint = links.poll(1)
        links.send(0, [torch.tensor([self.total], dtype=torch.float64)])  # to itself
        totals = [links.receive(rank)[0] for rank in ranks]
        return [torch.cat(totals) * hint[0]]

    def misbehave(self, links: Links) -> None:
        fault = self.options.get("fault") if links.rank == self.options.get("rank") else None
        if fault == "oversize":
            links.send(0, [torch.zeros(self.max_message_bytes + 1, dtype=torch.uint8)], "mix")
        elif fault == "silent":
            links.receive(links.rank)


def mixture(seed: torch.Tensor, rank: int, round_index: int) -> list[torch.Tensor]:
    """Two tensors of different dtypes and of a shape that only the sender knows."""
    rows = torch.arange(rows_of(rank, round_index), dtype=torch.float32).reshape(-1, 1) % 7
    return [rows * seed + rank, torch.tensor(round_index, dtype=torch.bfloat16)]


def digest(tensors: list[torch.Tensor]) -> float:
    return float(tensors[0].double().sum()) + float(tensors[1])


def build(plan: Plan, stages: Sequence[int]) -> ToyParties:
    return ToyParties(plan, stages)


def reference(plan: Plan, seed: int) -> list[torch.Tensor]:
    """The same sums without any party."""
    ranks = range(len(plan.stages))
    start = torch.tensor([float(seed + 1)])
    total = 0.0
    for round_index in range(ROUNDS):
        total += sum(digest(mixture(start, rank, round_index)) for rank in ranks)
    return [torch.tensor([total] * len(plan.stages), dtype=torch.float64) * 7]


def compare(plan: Plan, result: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> dict[str, Any]:
    difference = (result[0] - expected[0]).abs().max().item()
    return {"equal": difference == 0, "kind": "tokens", "max_abs_diff": float(difference), "tolerance": None}


#: What ``execute`` starts instead of the real worker.
COMMAND = (sys.executable, "-P", str(Path(__file__).resolve()))

if __name__ == "__main__":
    from edgeopt.executor.worker import main

    main(build, reference, compare)
