"""The campaign of cascades on paper: streams that are followed wait on average what the plan says."""

from __future__ import annotations

import statistics

import pytest

pytest.importorskip("transformers")

from edgeopt import planner
from tests.benchmarks.cascade import FLOOR, followed, problem_at, rate_of, section
from tests.benchmarks.routing import CONTEXTS, PROMPTS, Seconds

#: Milliseconds of a round; a prefill takes as long as that and a hundredth per token more.
ROUND_MS = {"text": 1.6, "text.medium": 1.1, "text.small": 0.6}

KNOWN = {
    name: Seconds({n: 1e-3 * each * (1 + n / 100) for n in PROMPTS}, {n: 1e-3 * each for n in CONTEXTS})
    for name, each in ROUND_MS.items()
}


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_streams_wait_on_average_what_the_plan_says(load):
    plan = planner.solve(problem_at(FLOOR, KNOWN, 1500, rate_of(load, KNOWN)))
    assert plan.metrics["load"] == pytest.approx(load)
    assert len(plan.stages) > 1
    streams = [followed(plan, seed) for seed in range(10)]
    assert statistics.fmean(streams) == pytest.approx(plan.latency_s, rel=0.06)
    row = {
        "load": load, "measured_load": load, "rate": 1.0, "requests": 3, "predicted_s": 1.0, "streams_s": 1.0,
        "followed_s": 1.0, "measured_s": 1.0, "low_s": None, "high_s": None, "error": 0.0, "equal": True,
    }  # fmt: skip
    lines = section([], [row], quick=True)
    assert len({line.count("|") for line in lines[-5:-2]}) == 1
