"""The campaign of pipelines: what it draws, and its arithmetic on findings made up for it."""

from __future__ import annotations

import pytest

pytest.importorskip("psutil")
pytest.importorskip("transformers")

from edgeopt import planner
from edgeopt.profiler.device import slowed
from tests.benchmarks.campaign.draws import SPEEDS
from tests.benchmarks.campaign.ledger import Ledger
from tests.benchmarks.llm_pipeline import METRICS, cases_of, model_of, plan_of, section, summary
from tests.edgeopt.factories import device

pytestmark = pytest.mark.torch


def test_every_second_plan_is_the_planners_and_all_keep_their_limits():
    devices = [slowed(device("whole", gflops=50.0), speed, f"speed-{round(100 * speed)}") for speed in SPEEDS]
    cases = cases_of({"Mixtral": model_of("Mixtral")}, seed=1, count=4)
    plans = [plan_of(*case, devices) for case in cases]
    assert [plan.backend == "drawn" for plan in plans] == [False, True, False, True]
    assert [plan.problem.workload.batch for plan in plans] == [1, 4, 1, 4]
    for plan in plans:
        assert 2 <= len(plan.problem.devices) <= 4
        assert len(plan.stages) > 1, "nothing fits on one device"
        assert planner.verify(plan, resolve_time_limit_s=None) == []


def test_errors_are_those_of_the_medians(tmp_path):
    ledger = Ledger(tmp_path, {}, resume=False)
    for key, batch, factor in (("p0", 1, 1.1), ("p1", 4, 0.8), ("p2", 4, 1.0)):
        ledger.put(
            "runs", key,
            {
                "model": "small-llama", "chosen": key == "p0", "stages": 2, "devices": 3, "batch": batch,
                "temperature": 0.0, "equal": key == "p0", "timed_s": factor,
                "predicted": {"ttft_s": factor, "tpot_s": 0.1}, "samples": {"ttft_s": [0.5, 1.0, 9.0], "tpot_s": [0.1]},
            },
        )  # fmt: skip
    found = summary(ledger)
    assert (found["plans"], found["equal"], found["reached"]) == (3, 1, False)
    assert found["ttft_s"]["error_worst"] == pytest.approx(0.2)
    assert found["ttft_s"]["signed_median"] == 0.0
    assert found["drift"] == {"median": pytest.approx(0.25), "most": pytest.approx(0.25)}
    assert found["groups"]["batch 1"]["ttft_s"] == pytest.approx(0.1)
    assert found["tpot_s"]["error_median"] == 0.0
    text = "\n".join(section(ledger, found))
    assert "| **p0** | small-llama | 2 | 1 | 1100.0, 1000.0 | +10.0% |" in text
    assert all(name in text for name in METRICS.values())
