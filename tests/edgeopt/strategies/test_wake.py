"""What a device takes longer after it waited: priced once a round it waits for, and told as computing."""

from __future__ import annotations

import pytest

from edgeopt import planner
from edgeopt.costs.language import LanguageCosts
from edgeopt.profiler.device import slowed
from tests.edgeopt.factories import device, text_problem


def tables(wake: float | None, batch: int = 1):
    common = {
        "model": "toy-lm", "dtype": "float32", "batch": batch, "unit": "ms", "elements": [1.0] * 6, "repeats": 3,
        "source": "made for a test",
    }  # fmt: skip
    decode = [{**common, "phase": "decode", "context": context, "wake": wake} for context in (10, 14)]
    return [{**common, "phase": "prefill", "tokens": 10}, *decode]


def plan(phone: float | None, server: float | None, **fields):
    devices = [device("phone", memory=3e9, timings=tables(phone)), device("server", memory=3e9, timings=tables(server))]
    return planner.solve(text_problem(devices=devices, **fields))


def test_every_stage_pays_for_the_rounds_that_it_waits_for():
    split = {"first": "phone", "last": "server"}
    without, woken = plan(None, None, constraints=split), plan(0.5, 2.0, constraints=split)
    assert [s.device for s in woken.stages] == ["phone", "server"]
    # The source is the phone: its first round waits for nobody, the four others for the loop.
    phone, server = (b.compute_s - a.compute_s for a, b in zip(without.stages, woken.stages, strict=True))
    assert phone == pytest.approx(4 * 0.5e-3)
    assert server == pytest.approx(5 * 2.0e-3)
    changed = [b.seconds - a.seconds for a, b in zip(without.transfers, woken.transfers, strict=True)]
    # The solver cannot tell the result from other messages: its way to the source holds one wake too many.
    assert changed == pytest.approx([0.0, 0.0, 0.5e-3], abs=1e-12)
    assert woken.latency_s == pytest.approx(
        sum(s.compute_s for s in woken.stages) + sum(t.seconds for t in woken.transfers)
    )
    assert planner.verify(woken) == []


def test_time_to_first_token_and_timeline_hold_the_wake():
    split = {"first": "phone", "last": "server"}
    without, woken = plan(None, None, constraints=split), plan(0.5, 2.0, constraints=split)
    assert woken.metrics["ttft_s"] - without.metrics["ttft_s"] == pytest.approx(2.0e-3)
    assert woken.metrics["tpot_s"] - without.metrics["tpot_s"] == pytest.approx(2.5e-3)
    two_rounds = woken.timeline[-1].stop_s - without.timeline[-1].stop_s
    assert two_rounds == pytest.approx(2 * 2.0e-3 + 0.5e-3)


def test_nobody_wakes_on_one_device_or_in_a_full_pipeline():
    alone = {"forbid": ["server"]}
    devices = [device("phone", memory=9e9, timings=tables(0.5)), device("server", timings=tables(0.5))]
    one = planner.solve(text_problem(devices=devices, constraints=alone))
    assert one.latency_s == pytest.approx(5 * 6e-3)
    full = plan(0.5, 2.0, objective="throughput")
    assert full.throughput_per_s == pytest.approx(plan(None, None, objective="throughput").throughput_per_s)


def test_the_nearest_batch_counts_and_slower_devices_wake_slower():
    here = device("phone", timings=[*tables(0.5), *tables(3.0, batch=8)])
    problem = text_problem(workload={"kind": "text", "prompt_tokens": 10, "new_tokens": 5, "batch": 6})
    costs = LanguageCosts(problem.model, problem.workload)
    assert costs.wake_s(here) == pytest.approx(3.0e-3)
    assert costs.wake_s(slowed(here, 0.25, "slow")) == pytest.approx(12.0e-3)
    assert costs.wake_s(device("unmeasured")) == 0.0
