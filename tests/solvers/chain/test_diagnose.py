"""Every limit, made to fail alone, is named with the amount that would do."""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np
import pytest

from edgeopt_solvers import solve
from edgeopt_solvers.chain import Chain, diagnose

BASE = {
    "compute_s": [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]],
    "cut_bytes": [10.0, 10.0, 10.0, 10.0],
    "rate_bytes_per_s": [[0, 10.0], [10.0, 0]],
    "latency_s": [[0, 0.0], [0.0, 0]],
}
NEVER = math.inf
LOSS = {"quality_loss": [[1.0, 1.0, 1.0]]}

CASES = {
    "deadline": ({"max_latency_s": 1}, ["max_latency_s is 1 s, but the best possible is 3 s"]),
    "period": ({"max_period_s": 0.5}, ["max_period_s is 0.5 s, but the best possible is 2 s"]),
    "energy": ({"max_energy_j": 2, "power_w": [2, 2]}, ["max_energy_j is 2 J, but the best possible is 6 J"]),
    "quality": ({"max_quality_loss": 2, **LOSS}, ["max_quality_loss is 2, but the best possible is 3"]),
    "memory": (
        {"memory_bytes": [4, 3], "resident_bytes": [3, 3, 3]},
        ["memory_bytes: device 0 would need at least 2 bytes more", "together have 7 bytes", "keep at least 9 bytes"],
    ),
    "memory on both": (
        {"memory_bytes": [2, 2], "resident_bytes": [3, 3, 3], "pins": {0: 0, 2: 1}},
        ["memory_bytes: element 0 alone needs 3 bytes, device 0 has 2 bytes, 1 bytes too few"],
    ),
    "stages": (
        {"max_stages": 1, "pins": {0: 0, 2: 1}},
        ["max_stages is 1, but a plan needs 2 stages", "pins: element 0 is pinned to device 0"],
    ),
    "links": (
        {"rate_bytes_per_s": [[0, 0], [10, 0]], "pins": {0: 1}},
        ["no link from device 0 to device 1 for the input", "pins: element 0 is pinned to device 1"],
    ),
    "nowhere": ({"compute_s": [[1, NEVER, 1], [1, NEVER, 1]]}, ["element 1 runs on no device (compute_s is inf"]),
    "pinned to where it cannot run": (
        {"compute_s": [[1, NEVER, 1], [1, 1, 1]], "pins": {1: 0}},
        ["element 1 is pinned to device 0, where compute_s is inf"],
    ),
    "back and forth": (
        {"pins": {0: 0, 1: 1, 2: 0}},
        ["pins: element 0 is pinned to device 0, and no plan runs it there", "reuse is 'once'"],
    ),
    "cuts": (
        {"pins": {0: 0, 2: 1}, "cut_legal": [1, 0, 0, 1]},
        ["cut_legal forbids the cuts that a plan needs (one exists with a stage beginning at"],
    ),
    "short segments": (
        {"pins": {0: 0, 1: 1}, "min_segment": 2},
        ["min_segment is 2, but a plan needs a stage of 1 elements"],
    ),
    "too long segments": ({"min_segment": 4}, ["min_segment is 4, and the chain has 3 elements"]),
    "hand-off": (
        {"pins": {0: 0, 2: 1}, "handoff_loss": np.full((1, 1, 4), NEVER)},
        ["handoff_loss forbids (inf) the hand-offs that a plan needs"],
    ),
    "some cannot run": (
        {"compute_s": [[1, NEVER, 1], [NEVER, 1, 1]], "max_stages": 1},
        ["max_stages is 1, but a plan needs 2 stages", "compute_s is inf where a plan needs a time"],
    ),
    "two at once": (
        {"max_latency_s": 1, "max_quality_loss": 2, **LOSS},
        ["max_latency_s and max_quality_loss fail together", "is 1 s, but the best possible is 3 s", "possible is 3"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_message_names_the_limit_and_the_amount(case):
    options, sentences = CASES[case]
    result = solve(Chain(**{**BASE, **options}))
    assert result.status.reason == "infeasible"
    for sentence in sentences:
        assert sentence in result.message, result.message


def test_what_memory_is_said_to_lack_is_enough():
    rng = np.random.default_rng(5)
    chain = Chain(
        rng.uniform(1, 2, (3, 10)), np.ones(11), np.full((3, 3), 10.0), np.zeros((3, 3)),
        memory_bytes=[3.0, 2.0, 2.5], resident_bytes=rng.uniform(0.5, 1.5, 10),
    )  # fmt: skip
    message = solve(chain).message
    device, extra = int(message.split("device ")[1][0]), float(message.split("at least ")[1].split()[0])
    more = np.zeros(3)
    more[device] = extra
    assert solve(dataclasses.replace(chain, memory_bytes=chain.memory_bytes + more * 1.0001)).status.has_solution
    assert not solve(dataclasses.replace(chain, memory_bytes=chain.memory_bytes + more * 0.999)).status.has_solution


def test_a_feasible_chain_has_no_diagnosis():
    assert diagnose(Chain(**BASE)) == "a plan exists: nothing to diagnose"


def test_the_time_is_bounded():
    rng = np.random.default_rng(0)
    chain = Chain(
        rng.uniform(1, 2, (8, 30)), rng.uniform(1, 9, 31), rng.uniform(5, 50, (8, 8)), np.zeros((8, 8)),
        memory_bytes=np.full(8, 3.0), resident_bytes=rng.uniform(0.5, 1.5, 30), max_latency_s=1e-3,
    )  # fmt: skip
    started = time.perf_counter()
    message = diagnose(chain)
    assert time.perf_counter() - started < 3.0
    assert message


def test_the_diagnosis_keeps_the_time_limit_of_the_solve():
    rng = np.random.default_rng(0)
    chain = Chain(
        rng.uniform(1, 2, (6, 20)), rng.uniform(1, 9, 21), rng.uniform(5, 50, (6, 6)), np.zeros((6, 6)),
        memory_bytes=np.full(6, 3.0), resident_bytes=rng.uniform(0.5, 1.5, 20), max_latency_s=1e-3,
    )  # fmt: skip
    started = time.perf_counter()
    result = solve(chain, time_limit_s=0.3)
    assert time.perf_counter() - started < 0.3 + 0.3  # 0.2 s promised; the rest is for a busy machine
    assert result.status.reason == "infeasible"
    assert result.message


def test_nothing_is_looked_for_where_nobody_asks():
    chain = Chain(
        [[1.0, 1.0]], [0.0] * 3, [[0.0]], [[0.0]], memory_bytes=[1.0], resident_bytes=[1.0, 1.0],
    )  # fmt: skip
    assert "memory" in solve(chain).message
    assert solve(chain, diagnose=False).message == ""
    assert solve(chain, diagnose=False).status.reason == "infeasible"
