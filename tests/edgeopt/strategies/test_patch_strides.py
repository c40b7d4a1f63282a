"""Patches of which slow ones take fewer steps: the best of all rows and strides, by a second formulation."""

from __future__ import annotations

import itertools

import pytest
from pydantic import ValidationError

from edgeopt import planner
from edgeopt.costs.strides import context_step, own_steps, sent_steps, stride_vectors
from edgeopt.errors import InputError, NoPlanError
from edgeopt.strategies import get_strategy
from edgeopt.strategies.patch_shares import PatchShares
from edgeopt_solvers.divisible import Solution, evaluate
from tests.edgeopt.factories import device, network
from tests.edgeopt.strategies.test_patch import EXCHANGE, QUALITY, STALE, patch_problem

STRIDED = [
    {"stride": 2, "warmup_steps": [2], "loss": {"large": [0.7], "small": [0.3]}, "source": "made up"},
    {"stride": 4, "warmup_steps": [2], "loss": {"large": [1.5]}, "source": "made up"},
]


def strided_problem(max_stride=2, warmup_steps=2, constraints=None, **fields):
    options = {"mode": "asynchronous", "warmup_steps": warmup_steps, "max_stride": max_stride}
    limits = {"patch": options | (constraints or {}).pop("patch", {})} | (constraints or {})
    return patch_problem(constraints=limits, **fields)


def only(problem, variant):
    """Drop the other denoiser."""
    model = problem.model.model_copy(update={"variants": {variant: problem.model.variants[variant]}})
    return problem.model_copy(update={"model": model})


def seconds_of(problem, units, strides, gflop):
    """What a run of rows and strides takes: every device is summed up over the steps that it computes.

    In the warm-up all wait for the slowest.
    """
    load, options, link = problem.workload, problem.constraints.patch, problem.network.default
    used = [d for d, count in enumerate(units) if count]
    leads, ends = [], []
    for d in used:
        machine, share = problem.devices[d], units[d] / sum(units)
        weights_s = {10.0: 3e9, 1.0: 1e9}[gflop] / machine.memory_bandwidth
        whole = max(gflop * 1e9 / machine.compute["float32"], weights_s)
        whole += 1e6 / machine.memory_bandwidth + machine.launch_overhead
        start = weights_s + machine.launch_overhead
        step_s = start + share * (whole - start)
        sent_s = wait_s = late_s = 0.0
        if len(used) > 1:
            sent_s = (2 * EXCHANGE["per_row"] * units[d] + EXCHANGE["halo"] + EXCHANGE["sums"]) / link.rate
            wait_s, late_s = EXCHANGE["messages"] * link.latency, link.latency
        lead = computing = sending = 0.0
        for step in range(load.steps):
            if step < options.warmup_steps:
                lead += step_s + wait_s + sent_s
            elif (step - options.warmup_steps) % strides[d] == 0:
                computing += step_s
                sending += late_s + sent_s
        around = 0.0
        if d:
            around = 2 * link.latency + (problem.model.conditioning + problem.model.latent * share) / link.rate
        leads.append(lead)
        ends.append(max(computing, sending) + around)
    return max(leads) + max(ends)


def divisions(strides, num_devices=3, num_units=4):
    """All rows and strides of devices that get faster: some used one takes all steps, slower ones no more than it."""
    for units in itertools.product(range(num_units + 1), repeat=num_devices):
        used = [d for d in range(num_devices) if units[d]]
        if sum(units) == num_units:
            for chosen in itertools.product(strides, repeat=len(used)):
                if chosen[-1] == 1 and all(a >= b for a, b in itertools.pairwise(chosen)):
                    yield units, dict(zip(used, chosen, strict=True))


@pytest.mark.parametrize("max_stride", [2, 4])
@pytest.mark.parametrize("variant", ["large", "small"])
@pytest.mark.parametrize("rate", [2e5, 2e7, 1e9])
def test_the_plan_is_the_best_of_all_rows_and_strides(max_stride, variant, rate):
    problem = only(strided_problem(max_stride, network=network(rate=rate, latency=1e-4)), variant)
    gflop = {"large": 10.0, "small": 1.0}[variant]
    known = [stride for stride in (1, 2, 4) if stride <= max_stride]
    best = min(seconds_of(problem, units, strides, gflop) for units, strides in divisions(known))
    plan = planner.solve(problem)
    assert plan.latency_s == pytest.approx(best, rel=1e-6)
    assert plan.bound == pytest.approx(best, rel=1e-6)
    strides = dict(enumerate(plan.decisions["strides"]))
    assert seconds_of(problem, plan.decisions["units"], strides, gflop) == pytest.approx(plan.latency_s, rel=1e-6)
    assert planner.verify(plan) == []


def test_every_case_is_the_best_of_its_own_strides():
    """Also where the fast device would rather have nothing: rows on devices with strides alone are no such run."""
    slow_start = [device("phone", 10, memory=8e9), device("server", 40, memory=8e9, launch_overhead=0.5)]
    problem = only(
        strided_problem(devices=slow_start, constraints={"patch": {"devices": ["phone", "server"]}}), "large"
    )
    technique = get_strategy("patch")
    for order in ([2, 1], [1, 2]):  # the second may be asked for, though no plan would choose it
        options = problem.constraints.patch.model_copy(update={"strides": order})
        limits = problem.constraints.model_copy(update={"patch": options})
        (case,) = technique.cases(problem.model_copy(update={"constraints": limits}))
        plan = planner.solve(case)
        whole = order.index(1)
        instance = technique.build(case)
        values = {
            (k, 4 - k): evaluate(instance, Solution((k, 4 - k), (1.0, 1.0))).objective
            for k in range(5)
            if (k, 4 - k)[whole]
        }
        assert plan.latency_s == pytest.approx(min(values.values()), rel=1e-9)
        assert plan.bound == pytest.approx(plan.latency_s, rel=1e-6)
        assert plan.decisions["units"][whole] > 0
        assert planner.verify(plan) == []


def test_vectors_rise_with_the_seconds():
    found = list(stride_vectors([3.0, 1.0, 2.0], 4))
    assert found[0] == (1, 1, 1)
    assert set(found) == {
        (slow, 1, middle) for slow in (1, 2, 4) for middle in (1, 2, 4) if middle <= slow
    }  # fmt: skip
    assert [max(vector) for vector in found] == sorted(max(vector) for vector in found)


@pytest.mark.parametrize(
    ("steps", "fresh", "stride", "to_stride"), [*itertools.product([9, 10], [1, 3], [1, 2, 4], [1, 2, 4])]
)
def test_context_is_the_newest_that_is_finished(steps, fresh, stride, to_stride):
    computed = own_steps(steps, fresh, stride)
    used = set(range(fresh))
    for step in own_steps(steps, fresh, to_stride)[fresh:]:
        # A fresh step is over when the next begins, another when as many have passed as it stands for.
        finished = [one for one in computed if one + (1 if one < fresh else stride) <= step]
        assert context_step(step, fresh, stride) == max(finished)
        used.add(max(finished))
    assert sent_steps(steps, fresh, stride, to_stride) == used


def test_slow_devices_take_fewer_steps_and_more_rows():
    net = network(rate=1e9, latency=1e-6)
    plain, strided = (only(strided_problem(top, network=net), "large") for top in (1, 2))
    before, after = planner.solve(plain), planner.solve(strided)
    assert before.decisions["strides"] == [1, 1, 1]
    assert after.latency_s < before.latency_s
    assert max(after.decisions["strides"]) == 2
    strides = dict(zip(("phone", "tablet", "server"), after.decisions["strides"], strict=True))
    steps = after.problem.workload.steps
    rows = {stage.device: stage.stop - stage.start for stage in after.stages}
    for moved in (t for t in after.transfers if t.purpose == "context"):
        sent = len(sent_steps(steps, 2, strides[moved.source], strides[moved.destination]))
        assert moved.bytes == pytest.approx(sent * (rows[moved.source] * 40_000.0 + 500.0), rel=0.2)
        assert sent <= 2 + (steps - 2) / strides[moved.source]
    assert any("steps computed after" in note and "every 2." in note for note in after.notes)


def test_quality_decides_whether_steps_are_left_out():
    net = network(rate=1e9, latency=1e-6)
    known = {"quality": QUALITY, "stale": STALE | {"strided": STRIDED}, "network": net}
    fast = planner.solve(strided_problem(**known))
    assert (fast.quality, fast.stages[0].variant) == (3.5, "small"), "no less than without strides"
    rough = planner.solve(strided_problem(**known, constraints={"quality": 2.8}))
    assert (rough.quality, rough.stages[0].variant, max(rough.decisions["strides"])) == (2.7, "large", 2)
    fine = planner.solve(strided_problem(**known, constraints={"quality": 2.6}))
    assert (fine.quality, fine.decisions["strides"]) == (2.5, [1, 1, 1])
    assert rough.latency_s < fine.latency_s
    assert planner.solve(strided_problem(4, **known, constraints={"quality": 3.4})).quality <= 3.4
    with pytest.raises(NoPlanError, match=r"'large' reaches 2.5 at best"):
        planner.solve(strided_problem(**known, constraints={"quality": 2.4}))
    with pytest.raises(InputError, match="none for patches with strides"):
        planner.solve(strided_problem(**(known | {"stale": STALE}), constraints={"quality": 2.6}))
    unknown = planner.solve(strided_problem(quality=QUALITY, stale=STALE, network=net))
    assert unknown.quality is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "synchronous"}, "leaves steps out"),
        ({"strides": [1, 2]}, "2 strides for 0 devices"),
        ({"devices": ["phone", "tablet"], "strides": [4, 1]}, "a stride is 4, max_stride is 2"),
        ({"devices": ["phone", "tablet"], "strides": [2, 2]}, "no device takes all steps"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValidationError, match=message):
        strided_problem(constraints={"patch": options})


@pytest.mark.parametrize(
    ("sampler", "reason"),
    [("DPMSolverMultistepScheduler", "weighs earlier steps"), ("HeunDiscreteScheduler", "several times in a step")],
)
def test_other_samplers_are_refused(sampler, reason):
    problem = strided_problem()
    other = problem.model.sampler.model_copy(update={"class_name": sampler})
    problem = problem.model_copy(update={"model": problem.model.model_copy(update={"sampler": other})})
    assert reason in (get_strategy("patch").unfit(problem) or "")
    with pytest.raises(InputError, match=reason):
        planner.solve(problem)


def schedule_s(step_s, strides, fresh, steps):
    """Walk through the run: a computation begins when the one before it is over and its context is there."""
    calls = [own_steps(steps, fresh, stride) for stride in strides]
    # In the warm-up an exchange within a step ends when everybody has computed what goes into it.
    over = [{step: (step + 1) * max(step_s) for step in range(fresh)} for _ in strides]
    for step in range(fresh, steps):
        for d in (d for d, own in enumerate(calls) if step in own):
            known = [over[k][context_step(step, fresh, strides[k])] for k in range(len(strides)) if k != d]
            over[d][step] = max(over[d][max(over[d])], *known, 0.0) + step_s[d]
    return max(max(done.values()) for done in over)


@pytest.mark.parametrize("fresh", [1, 2, 5, 6])
@pytest.mark.parametrize(
    ("units", "strides"),
    [
        ((2, 1, 1), (2, 1, 1)),
        ((3, 0, 1), (4, 1, 1)),
        ((1, 1, 2), (4, 2, 1)),
        ((1, 1, 2), (1, 1, 1)),
        ((4, 0, 0), (1,) * 3),
    ],
)
def test_the_prediction_is_that_of_the_schedule_step_by_step(units, strides, fresh):
    """Links that cost nothing, so that what is left is who waits for whom."""
    net = network(rate=1e15, latency=0.0)
    problem = only(strided_problem(4, fresh, network=net), "large")
    names = ["phone", "tablet", "server"]
    options = problem.constraints.patch.model_copy(update={"devices": names, "strides": list(strides)})
    limits = problem.constraints.model_copy(update={"patch": options})
    (case,) = get_strategy("patch").cases(problem.model_copy(update={"constraints": limits}))
    predicted = evaluate(get_strategy("patch").build(case), Solution(units, (1.0,) * 3)).objective
    costs = PatchShares.of(case).costs
    used = [d for d, count in enumerate(units) if count]
    seconds = [sum(x * y for x, y in zip(costs.step_s(case.devices[d])[:2], (1, units[d]), strict=True)) for d in used]
    steps = case.workload.steps
    expected = schedule_s(seconds, [strides[d] for d in used], fresh, steps)
    assert steps == 10
    if (steps - fresh) % max(strides) == 0:
        assert predicted == pytest.approx(expected, rel=1e-6)
    else:  # the last computation of a stride stands for fewer steps, and takes as long
        late = max(s for s, d in zip(seconds, used, strict=True) if strides[d] > 1)
        assert predicted * (1 - 1e-6) <= expected <= predicted + late


def test_waiting_in_the_warm_up_by_hand():
    # 10 steps, 2 of them synchronous. The phone takes 3 s for a step, the server 1 s, so that both take 6 s for the
    # warm-up. With a stride of 4 the phone computes 2 steps of the other 8 and waits for the server: 6 + 8 s, where
    # each on its own would be over after 6 + 6 and 2 + 8 s.
    assert schedule_s([3.0, 1.0], [2, 1], 2, 10) == 2 * 3 + 4 * 3
    assert schedule_s([3.0, 1.0], [4, 1], 2, 10) == 2 * 3 + 8 * 1
