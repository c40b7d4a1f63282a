"""The campaign of routing without running anything: plans at a load, streams followed on paper, the page."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from edgeopt import planner
from tests.benchmarks.answer_seconds import PROMPTS, ROUNDS, Known, Seconds
from tests.benchmarks.routing import FLOOR, busy_seconds, followed, problem_at, section

CONTEXTS = [tokens + ROUNDS // 2 for tokens in PROMPTS]

pytestmark = pytest.mark.torch


def known(**fields):
    """A prefill of 10 microseconds per token and rounds of 300 for the smallest, 2 and 5 times that for the others."""
    seconds = {
        name: Seconds({n: 1e-5 * n * k for n in PROMPTS}, dict.fromkeys(CONTEXTS, 3e-4 * k))
        for name, k in (("text.small", 1), ("text.medium", 2), ("text", 5))
    }
    return Known(seconds, 3e-5, **({"factors": {}, "between_s": {}} | fields))


def test_the_plan_is_what_its_streams_come_to_on_paper():
    plan = planner.solve(problem_at(45.0, 2000, known()), gap=1e-3)
    assert 0.4 < plan.metrics["load"] < 0.9
    means = [followed(plan, seed) for seed in range(6)]
    assert np.mean(means) == pytest.approx(plan.latency_s, rel=0.06)


def test_what_was_found_in_place_is_in_the_costs():
    factors = {(name, "server"): 1.5 for name in ("text.small", "text.medium", "text")}
    plain, slow = (
        planner.solve(problem_at(5.0, 100, one), gap=0.5)
        for one in (known(), known(factors=factors, between_s={"server": 0.01}))
    )
    for plan, each_s in ((plain, 3e-4 * 2 / 0.35), (slow, 1.5 * 3e-4 * 2 / 0.35)):
        stage = next((s for s in plan.stages if (s.variant, s.device) == ("medium", "server")), None)
        if stage is not None:
            busy, where = busy_seconds(plan)
            assert min(busy[stage.index][k] for k in where.values()) > each_s


def test_the_page_says_what_was_measured():
    row = {
        "load": 0.6, "measured_load": 0.61, "rate": 36.0, "requests": 2500, "before_s": 0.066, "predicted_s": 0.068,
        "followed_s": 0.0681,
        "measured_s": 0.07, "low_s": None, "high_s": None, "error": -0.0286, "accuracy": 0.9, "equal": True,
        "drift": 0.04,
        "predicted_accuracy": [0.896, 0.84, 0.95],
    }  # fmt: skip
    lines = section([row], quick=True)
    assert "A SHAKE-DOWN" in lines[0]
    assert f"{FLOOR:g}" in lines[2]
    line = "| 0.60 | 0.61 | 36.0 | 2500 | 4.0 % | 66.0 | 68.0 | 68.1 | 70.0 | – | 0.971 "
    assert line + "| 0.896 (0.840 to 0.950) | 0.900 |" in lines
    assert "NOT ALL" in section([row | {"equal": False}], quick=False)[-1]
