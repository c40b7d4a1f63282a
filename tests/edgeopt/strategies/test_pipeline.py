"""The layer split against arithmetic done by hand."""

from __future__ import annotations

import numpy as np
import pytest

from edgeopt import planner
from edgeopt.errors import InputError, NoPlanError
from edgeopt.strategies.pipeline import Pipeline
from tests.edgeopt.factories import device, image_problem, network, text_problem


def test_split_forced_by_memory_costs_what_the_formulas_say():
    # Each device holds 2 blocks of 1 GB (3 GB of memory); 14 passes of tokens: 10 prompt + 4 decoded.
    plan = planner.solve(text_problem())
    assert (plan.status, plan.gap) == ("optimal", 0.0)
    assert [(s.device, s.start, s.stop) for s in plan.stages] == [("phone", 0, 3), ("server", 3, 6)]
    launches = 15e-9  # 5 rounds of 3 elements on each device
    phone = 14 * 2 * 0.1 / 1 + launches
    server = (14 * 2 * 0.1 + 5 * 0.001) / 10 + launches  # the head sees one token a round
    cut = 5 * 0.01 + 14 * 1000 / 1e6
    loop = 4 * (0.01 + 8 / 1e6)
    output = 0.01 + 5 * 8 / 1e6
    assert plan.stages[0].compute_s == pytest.approx(phone)
    assert plan.stages[1].compute_s == pytest.approx(server)
    assert {t.purpose: t.seconds for t in plan.transfers} == pytest.approx({"cut": cut, "loop": loop, "output": output})
    assert plan.latency_s == pytest.approx(phone + server + cut + loop + output)
    ttft = 10 * 2 * 0.1 + (10 * 0.2 + 0.001) / 10 + 0.01 + 10 * 1000 / 1e6 + 6e-9
    assert plan.metrics["ttft_s"] == pytest.approx(ttft)
    assert plan.metrics["tpot_s"] == pytest.approx((plan.latency_s - ttft - output) / 4)
    assert plan.metrics["tokens_per_s"] == pytest.approx(5 / plan.latency_s)


def test_one_new_token_has_no_decode_round_and_no_loop():
    plan = planner.solve(text_problem(workload={"kind": "text", "prompt_tokens": 10, "new_tokens": 1}))
    assert "tpot_s" not in plan.metrics
    assert [t.purpose for t in plan.transfers] == ["cut", "output"]


def test_device_that_only_slows_things_down_is_dropped():
    devices = [device("phone", gflops=1), device("server", gflops=50), device("snail", gflops=0.1)]
    plan = planner.solve(text_problem(devices=devices))
    assert [s.device for s in plan.stages] == ["server"]
    assert [t.purpose for t in plan.transfers] == ["input", "output"]


def test_pins_and_forbidden_devices_are_obeyed():
    devices = [device("phone", gflops=1), device("server", gflops=50)]
    ends = planner.solve(text_problem(devices=devices, constraints={"pin": {"embed": "phone", "block.*": "server"}}))
    assert [(s.device, s.start, s.stop) for s in ends.stages][:2] == [("phone", 0, 1), ("server", 1, 6)]
    alone = planner.solve(text_problem(devices=devices, constraints={"forbid": ["server"]}))
    assert [s.device for s in alone.stages] == ["phone"]
    with pytest.raises(InputError, match=r"pin.*blok"):
        planner.solve(text_problem(devices=devices, constraints={"pin": {"blok.*": "server"}}))


def test_memory_that_cannot_hold_the_model_names_the_limit():
    devices = [device("phone", memory=1.5e9), device("server", memory=2.5e9)]
    with pytest.raises(NoPlanError, match="memory"):
        planner.solve(text_problem(devices=devices))


def test_deadline_that_cannot_be_met_names_the_best_possible():
    with pytest.raises(NoPlanError, match="latency"):
        planner.solve(text_problem(constraints={"deadline": 0.5}))


def test_measured_tables_override_the_roofline_inside_their_range_only():
    timings = [
        {
            "model": "toy-lm", "phase": "prefill", "dtype": "float32", "batch": 1, "tokens": 10, "unit": "ms",
            "elements": [1, 10, 10, 10, 10, 1], "repeats": 3, "source": "measured for a test",
        },
        *(
            {
                "model": "toy-lm", "phase": "decode", "dtype": "float32", "batch": 1, "context": context, "unit": "ms",
                "elements": [0, each, each, each, each, 0], "repeats": 3, "source": "measured for a test",
            }
            for context, each in ((10, 2.0), (14, 4.0))
        ),
    ]  # fmt: skip
    devices = [device("phone", timings=timings)]
    plan = planner.solve(text_problem(devices=devices))
    # Contexts 10, 11, 12, 13 interpolate to 2, 2.5, 3, 3.5 ms on four blocks.
    assert plan.latency_s == pytest.approx(0.042 + 4 * 11e-3)
    assert plan.notes == ["compute from measured tables: phone"]
    longer = planner.solve(
        text_problem(devices=devices, workload={"kind": "text", "prompt_tokens": 10, "new_tokens": 9})
    )
    assert longer.notes == ["compute from roofline (datasheet peaks and efficiency factors): phone"]


def test_missing_rate_for_the_dtype_is_refused():
    wrong = device("phone").model_copy(update={"compute": {"float16": 1e9}})
    with pytest.raises(InputError, match=r"phone.*float32"):
        planner.solve(text_problem(devices=[wrong]))


def test_device_without_a_rate_for_the_dtype_is_left_out_and_named():
    phone = device("phone").model_copy(update={"compute": {"float16": 1e9}})
    plan = planner.solve(text_problem(devices=[phone, device("server")]))
    assert [s.device for s in plan.stages] == ["server"]
    assert "no float32 rate in the profile, so no compute there: phone" in plan.notes


def test_missing_link_keeps_a_plan_on_one_side():
    apart = network(default=None)
    plan = planner.solve(text_problem(devices=[device("phone", gflops=1), device("server", gflops=50)], network=apart))
    assert [s.device for s in plan.stages] == ["phone"]


def test_throughput_objective_balances_the_stages():
    devices = [device("a", gflops=10), device("b", gflops=10)]
    plan = planner.solve(text_problem(devices=devices, objective="throughput"))
    assert len(plan.stages) == 2
    assert plan.throughput_per_s == pytest.approx(1 / max(s.compute_s for s in plan.stages))


def test_chain_has_one_message_per_round_at_inner_cuts():
    chain = Pipeline().build(text_problem())
    assert np.asarray(chain.cut_messages).tolist() == [1, 5, 5, 5, 5, 5, 1]


def test_diffusion_model_is_refused_with_the_mend():
    with pytest.raises(InputError, match=r"diffusion.*strategy: auto"):
        planner.solve(image_problem(strategy="pipeline"))
    assert planner.solve(image_problem(strategy="auto")).strategy == "multi_stage"
    with pytest.raises(InputError, match=r"unknown strategy 'warp'.*multi_stage"):
        planner.solve(image_problem(strategy="warp"))


@pytest.mark.parametrize("make", [text_problem, image_problem])
def test_verify_accepts_a_plan_and_names_what_was_changed(make):
    plan = planner.solve(make())
    assert planner.verify(plan) == []
    tampered = plan.model_copy(update={"latency_s": plan.latency_s * 0.9})
    assert any("latency_s" in finding for finding in planner.verify(tampered))
    proud = plan.model_copy(update={"bound": plan.bound * 1.5})
    assert any("bound" in finding for finding in planner.verify(proud))
    moved = plan.model_copy(update={"devices": [0] * len(plan.devices)})
    assert planner.verify(moved)


def test_verify_refuses_a_bound_above_the_optimum():
    plan = planner.solve(text_problem(devices=[device("phone", gflops=1), device("server", gflops=50)]))
    worse = planner.solve(text_problem(devices=plan.problem.devices, constraints={"forbid": ["server"]}))
    lie = worse.model_copy(update={"problem": plan.problem})
    assert any("is not one" in finding for finding in planner.verify(lie))


def test_forbidding_every_device_leaves_no_plan():
    with pytest.raises(NoPlanError):
        planner.solve(text_problem(constraints={"forbid": ["phone", "server"]}))
