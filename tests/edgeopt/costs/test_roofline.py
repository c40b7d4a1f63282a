"""Costs against arithmetic done by hand: terms, few rows, experts, tables, memory, energy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt import planner
from edgeopt.costs.diffusion import DiffusionCosts
from edgeopt.costs.energy import busy_j, energy_terms
from edgeopt.costs.language import LanguageCosts, distinct_experts
from edgeopt.costs.memory import usable_bytes
from edgeopt.costs.roofline import Work, roofline
from edgeopt.costs.terms import Terms
from edgeopt.costs.timings import interpolate_s
from edgeopt.errors import NoPlanError
from edgeopt.profiles import load_device, load_model
from edgeopt.profiles.checks import check_device
from edgeopt.profiles.device import Timing
from edgeopt.profiles.problem import ImageWorkload, TextWorkload
from tests.edgeopt.factories import device, image_problem, language_model, text_problem

POSITIVE = st.floats(1e3, 1e12)


def real(**fields):
    """Return a device with every term: 100 GFLOP/s at one half, 10 GB/s at one half, 1 us a launch."""
    efficiency = {"compute": 0.5, "memory_bandwidth": 0.5, "basis": "assumed", **fields.pop("efficiency", {})}
    return device("one", memory_bandwidth=1e10, launch_overhead=1e-6, efficiency=efficiency, **fields)


def test_each_group_of_kernels_has_its_own_roofline():
    work = Work(
        flop=5e9, weights=1e6, activations=5e8, attention_flop=1e9, cache=5e8, kernels=30
    )  # products 0.1 s, activations 0.1 s, attention max(0.02, 0.1)
    terms = roofline(real(), "float32", work)
    assert float(terms.compute) == pytest.approx(0.1)
    assert float(terms.memory) == pytest.approx(0.1)
    assert float(terms.attention) == pytest.approx(0.1)
    assert float(terms.launch) == pytest.approx(30e-6)
    reading = roofline(real(), "float32", Work(flop=5e6, weights=5e9, kernels=0))
    assert (float(reading.compute), float(reading.memory)) == pytest.approx((0.0, 1.0))
    one = roofline(real(), "float32", Work(flop=5e9, weights=1e6))
    assert float(one.total) == pytest.approx(0.1 + 1e-6), "a kernel, unless more are said"


@settings(derandomize=True, max_examples=50, deadline=None)
@given(POSITIVE, POSITIVE, POSITIVE, POSITIVE, POSITIVE, st.integers(1, 500), st.integers(1, 1000))
def test_terms_add_up_and_more_work_never_takes_less(flop, weights, moved, attention, cache, kernels, rows):
    one = real(efficiency={"rows": [1, 4, 64], "compute_by_rows": [0.05, 0.1, 0.6]})
    figures = {
        "flop": flop, "weights": weights, "activations": moved, "attention_flop": attention, "cache": cache,
        "kernels": kernels,
    }  # fmt: skip
    terms = roofline(one, "float32", Work(rows=rows, **figures))
    assert all(float(value) >= 0 for _, value in terms)
    assert float(terms.total) == pytest.approx(sum(float(value) for _, value in terms), rel=1e-12)
    for name in figures:
        more = roofline(one, "float32", Work(rows=rows, **(figures | {name: 2 * figures[name]})))
        assert float(more.total) >= float(terms.total)


def test_few_rows_reach_what_was_measured_for_them():
    one = real(efficiency={"rows": [1, 4, 64], "compute_by_rows": [0.05, 0.1, 0.64]})

    def seconds(rows):
        return float(roofline(one, "float32", Work(flop=rows * 1e9, weights=1.0, rows=rows, kernels=0)).total)

    # A product of r rows does r GFLOP at 100 GFLOP/s times the share.
    assert [seconds(rows) for rows in (1, 4, 64, 128)] == pytest.approx([0.2, 0.4, 1.0, 2.0])
    assert seconds(2) == pytest.approx(0.2 + 0.2 / 3), "seconds, not shares, are interpolated"
    assert seconds(34) == pytest.approx(0.7)


@pytest.mark.parametrize(("rows", "shares"), [([4, 1], [0.1, 0.2]), ([1, 4], [0.1]), ([0, 4], [0.1, 0.2])])
def test_rows_that_do_not_fit_together_are_refused(rows, shares):
    (flaw,) = check_device(real(efficiency={"rows": rows, "compute_by_rows": shares}))
    assert flaw.path == ("efficiency", "rows")


@pytest.mark.parametrize(("experts", "active", "tokens"), [(8, 2, 1), (8, 2, 3), (6, 1, 5), (16, 4, 10)])
def test_distinct_experts_is_the_mean_of_random_routing(experts, active, tokens):
    draw = np.random.default_rng(0)
    scores = draw.random((4000, tokens, experts))
    chosen = np.argsort(scores, axis=2)[:, :, :active]
    seen = np.mean([len(np.unique(each)) for each in chosen])
    assert distinct_experts(experts, active, tokens) == pytest.approx(seen, rel=0.01)


def test_one_token_reads_its_active_experts_only():
    """Mixtral, batch 1: all but two of eight experts stay unread; a large batch reads all of them once."""
    model, card = load_model("mixtral-8x7b"), load_device("h100-sxm")
    block = model.layers[1]
    rate = card.memory_bandwidth * card.efficiency.memory_bandwidth

    def decode(batch):
        load = TextWorkload(prompt_tokens=1, new_tokens=2, batch=batch)
        return LanguageCosts(model, load).decode_terms(card)[0][0, 1]

    def floor(experts):
        return (block.weights - (8 - experts) * block.experts.weights) / rate

    assert floor(2) <= float(decode(1).memory) < 1.01 * floor(2)
    assert floor(8 * (1 - 0.75**4)) <= float(decode(4).memory) < 1.01 * floor(8 * (1 - 0.75**4))
    assert floor(7.99) <= float(decode(64).memory) < 1.1 * floor(8)
    load = TextWorkload(prompt_tokens=2, new_tokens=1)
    prefill = LanguageCosts(model, load).prefill_terms(card)[0][1]
    assert floor(3.5) <= float(prefill.memory) < 1.01 * floor(3.5), "two tokens touch 8 (1 - 0.75^2) = 3.5 experts"


def test_decode_is_bound_by_memory_and_grows_with_batch_and_context():
    model, card = load_model("llama-3.1-8b"), load_device("rtx-4090")

    def last(batch, prompt):
        costs = LanguageCosts(model, TextWorkload(prompt_tokens=prompt, new_tokens=2, batch=batch))
        return costs.decode_terms(card)[0][0].sum()

    one, eight, long = last(1, 100), last(8, 100), last(1, 4000)
    assert float(one.memory) > 0.9 * float(one.total) - float(one.launch)
    assert float(one.compute) == 0
    assert float(eight.total) < 2 * float(one.total), "weights are read once for the whole batch"
    assert float(eight.attention) == pytest.approx(8 * float(one.attention))
    assert float(long.attention) / float(one.attention) == pytest.approx(4001 / 101)
    small = last_of_quantised(card)
    assert float(small.memory) < 0.45 * float(one.memory)


def last_of_quantised(card):
    """Return a decode round of the same model with int4 weights."""
    costs = LanguageCosts(load_model("llama-3.1-8b-int4"), TextWorkload(prompt_tokens=100, new_tokens=2))
    return costs.decode_terms(card)[0][0].sum()


def test_a_denoiser_pays_for_its_traffic_and_its_launches():
    model, card = load_model("dit"), load_device("rtx-3090")
    variant = model.variants["s"]
    (terms,) = (DiffusionCosts(model, ImageWorkload(steps=1, images=2)).terms(card)[0][name] for name in ("s",))
    assert float(terms.launch) == pytest.approx(variant.kernels * card.launch_overhead)
    rate = card.memory_bandwidth * card.efficiency.memory_bandwidth
    assert float(terms.memory) == pytest.approx(2 * variant.traffic / rate)
    assert float(terms.compute) > 0


def _row(batch, tokens, elements, **fields):
    return Timing(
        model="m", phase="prefill", dtype="float32", batch=batch, tokens=tokens, unit="ms", elements=elements,
        repeats=3, source="made for a test", **fields,
    )  # fmt: skip


def test_tables_interpolate_in_tokens_then_in_batch():
    rows = [_row(1, 10, [1, 2]), _row(1, 20, [3, 6]), _row(4, 10, [4, 8]), _row(4, 20, [10, 20])]
    at = np.array([10, 15])
    np.testing.assert_allclose(interpolate_s(rows, 1, "tokens", at), [[1e-3, 2e-3], [2e-3, 4e-3]])
    np.testing.assert_allclose(interpolate_s(rows, 2, "tokens", at), [[2e-3, 4e-3], [11e-3 / 3, 22e-3 / 3]])
    assert interpolate_s(rows, 5, "tokens", at) is None, "beyond the largest batch"
    assert interpolate_s(rows, 1, "tokens", np.array([21])) is None
    assert interpolate_s([], 1, "tokens", at) is None
    # The batch in the middle covers only ten tokens: at 15 its neighbours are used.
    wider = [*rows, _row(2, 10, [100, 100])]
    np.testing.assert_allclose(interpolate_s(wider, 2, "tokens", np.array([15])), [[11e-3 / 3, 22e-3 / 3]])
    np.testing.assert_allclose(interpolate_s([*rows, _row(1, 10, [7, 7])], 1, "tokens", at[:1]), [[7e-3, 7e-3]])


def test_measured_terms_say_only_how_long():
    rows = [_row(1, 10, [1.0] * 6).model_copy(update={"model": "toy-lm"})]
    costs = LanguageCosts(language_model(), TextWorkload(prompt_tokens=10, new_tokens=1))
    terms, measured = costs.prefill_terms(device("one", timings=[row.model_dump() for row in rows]))
    assert measured
    assert float(terms.sum().measured) == pytest.approx(float(terms.total.sum())) == pytest.approx(6e-3)


def test_every_prediction_is_the_sum_of_its_terms():
    costs = LanguageCosts(load_model("qwen2.5-0.5b"), TextWorkload(prompt_tokens=9, new_tokens=4, batch=2))
    card = load_device("rtx-3090")
    for terms, seconds in (
        (costs.prefill_terms(card)[0], costs.prefill_s(card)[0]),
        (costs.decode_terms(card)[0], costs.decode_s(card)[0]),
    ):
        np.testing.assert_allclose(sum(value for _, value in terms), seconds)
        assert (terms.launch[..., 1] == 40 * card.launch_overhead).all(), "a block of Qwen 2 launches 40 operations"
    assert float(costs.prefill_terms(card)[0].sum().total) == pytest.approx(costs.prefill_s(card)[0].sum())


MARGIN = {"workspace": 1e9, "fragmentation": 0.1, "basis": "measured"}


def test_plans_leave_workspace_and_fragmentation_free():
    one = device("one", memory=6e9, margin=MARGIN)
    assert usable_bytes(one) == pytest.approx(4.5e9)
    assert usable_bytes(device("one", memory=6e9)) == 6e9
    # Four blocks of 1 GB: 5 GB hold all of them, the 3.6 GB that a margin leaves do not.
    free, kept = device("one", memory=5e9), device("one", memory=5e9, margin=MARGIN)
    assert len(planner.solve(text_problem(devices=[free])).stages) == 1
    with pytest.raises(NoPlanError, match="memory"):
        planner.solve(text_problem(devices=[kept]))


@pytest.mark.parametrize("make", [text_problem, image_problem])
def test_energy_splits_into_busy_radio_and_idle(make):
    power = {"busy": 20.0, "idle": 2.0, "send": 3.0, "receive": 1.0}
    devices = [device("phone", gflops=1, memory=3e9, power=power), device("server", gflops=10, memory=3e9, power=power)]
    plan = planner.solve(make(devices=devices))
    split = energy_terms(plan)
    assert sum(each.counted for each in split.values()) == pytest.approx(plan.energy_j)
    for name, each in split.items():
        own = sum(stage.compute_s for stage in plan.stages if stage.device == name)
        assert each.busy == pytest.approx(20 * own)
        radio_s = each.send / 3 + each.receive / 1
        assert each.idle == pytest.approx(2 * max(0.0, plan.latency_s - own - radio_s))
    unknown = planner.solve(make(devices=[each.model_copy(update={"power": None}) for each in devices]))
    assert all(each.busy is each.idle is each.send is None for each in energy_terms(unknown).values())


def test_joules_of_computing_by_cause():
    terms = roofline(real(power={"busy": 10.0}), "float32", Work(flop=5e9, weights=1e6, kernels=10))
    joules = busy_j(real(power={"busy": 10.0}), terms)
    assert float(joules.compute) == pytest.approx(1.0)
    assert float(joules.total) == pytest.approx(10 * float(terms.total))
    assert busy_j(real(), terms) is None
    assert float((terms + Terms.from_table(np.ones(()))).total) == pytest.approx(float(terms.total) + 1)
