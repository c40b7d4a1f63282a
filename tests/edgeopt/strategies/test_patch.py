"""Patches: the seconds of every division by a second formulation, what they are held to, and what is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgeopt import planner
from edgeopt.errors import InputError, NoPlanError
from edgeopt.plan import Plan
from edgeopt.profiles import load_problem
from edgeopt.profiles.problem import Problem
from edgeopt.questions.explain import explain
from edgeopt.questions.why_not import why_not
from edgeopt.strategies import get_strategy
from edgeopt_solvers.divisible import Solution, evaluate
from tests.edgeopt.factories import device, diffusion_model, image_problem, network, text_problem

EXCHANGE = {"multiple": 2, "messages": 5, "halo_messages": 2, "per_row": 40_000.0, "halo": 3000.0, "sums": 500.0}
QUALITY = {"form": "whole", "metric": "distance", "quality": {"large": 2.0, "small": 3.0}, "source": "made up"}
STALE = {
    "steps": 8,
    "patches": 2,
    "warmup_steps": [2, 4],
    "loss": {"large": [0.5, 0.1], "small": [0.5, 0.1]},
    "source": "made up",
}
AIR = {"air": {"sharing": "time_shared"}}
PARTS = ("text_encoder", "decoder")


def patch_problem(mode="synchronous", warmup_steps=3, components=False, quality=None, stale=None, **fields) -> Problem:
    """Return three devices and the toy family by patches of 4 units; ``fields`` override."""
    model = diffusion_model(quality, components).model_dump(mode="json", by_alias=True)
    for variant in model["variants"].values():
        variant["patch"] = EXCHANGE
    model |= {"stale": stale}
    limits = {"patch": {"mode": mode, "warmup_steps": warmup_steps}} | fields.pop("constraints", {})
    names = {"phone": 10, "tablet": 25, "server": 40}
    devices = [device(name, gflops=rate, memory=8e9) for name, rate in names.items()]
    given = {"model": model, "strategy": "patch", "devices": devices, "constraints": limits}
    return image_problem(**{**given, **fields})


def seconds_of(problem: Problem, units: tuple[int, ...], gflop: float) -> float:
    """The run of a division, step by step; everybody sends to everybody, and waits for the slowest link."""
    options, load = problem.constraints.patch, problem.workload
    names = [d.name for d in problem.devices]
    source = names.index(problem.constraints.source or names[0])
    sharing = options.devices or [name for name, count in zip(names, units, strict=True) if count]
    able = [d for d, name in enumerate(names) if name in sharing]
    link = problem.network.default
    waiting_for_each_other = []
    leads = ends = 0.0  # in the synchronous steps before the stale ones all wait for the slowest
    for d in (d for d in range(len(units)) if units[d]):
        device_ = problem.devices[d]
        # One kernel whose operations and traffic shrink with the rows, on devices that reach their peaks.
        peak, share = device_.compute["float32"], units[d] / sum(units)
        weights_s = {10.0: 3e9, 1.0: 1e9}[gflop] / device_.memory_bandwidth
        whole = max(gflop * 1e9 / peak, weights_s) + 1e6 / device_.memory_bandwidth + device_.launch_overhead
        start = weights_s + device_.launch_overhead
        compute = start + share * (whole - start)
        num_bytes = 2 * EXCHANGE["per_row"] * units[d] + EXCHANGE["halo"] + EXCHANGE["sums"]
        travel = num_bytes / link.rate if len(able) > 1 else 0.0
        waiting = EXCHANGE["messages"] * link.latency if len(able) > 1 else 0.0
        late = link.latency if len(able) > 1 else 0.0
        around = 0.0
        if d != source:
            around = 2 * link.latency + problem.model.conditioning / link.rate
            around += problem.model.latent * share / link.rate
        steps = load.steps
        fresh = steps if options.mode == "synchronous" else min(options.warmup_steps, steps)
        computing = steps * compute + fresh * (waiting + travel)
        sending = fresh * (compute + waiting + travel) + (steps - fresh) * (late + travel)
        lead = fresh * (compute + waiting + travel) if fresh < steps else 0.0
        leads, ends = max(leads, lead), max(ends, max(computing, sending) - lead + around)
        waiting_for_each_other.append((steps * compute, computing + around))
    if options.mode == "synchronous":  # in every step; a device goes on as soon as it has what the others computed
        slowest = sorted(both for _, both in waiting_for_each_other)[-2:]
        return max(max(compute for compute, _ in waiting_for_each_other), sum(slowest) / len(slowest))
    return leads + ends


@pytest.mark.parametrize("mode", ["synchronous", "asynchronous"])
@pytest.mark.parametrize(
    "fields",
    [
        {}, {"network": network(rate=2e7, latency=1e-3)}, {"network": network(rate=2e5)},
        {"constraints": {"source": "server"}}, {"constraints": {"source": "phone", "forbid": ["phone"]}},
    ],
)  # fmt: skip
def test_the_plan_is_the_best_of_all_divisions(mode, fields):
    problem = patch_problem(mode, **fields)
    plan = planner.solve(problem)
    best = {}
    for gflop in (10.0, 1.0):
        for units in itertools.product(range(5), repeat=3):
            if sum(units) == 4 and not any(
                units[k] for k, d in enumerate(problem.devices) if d.name in problem.constraints.forbid
            ):
                best[gflop, units] = seconds_of(problem, units, gflop)
    assert plan.latency_s == pytest.approx(min(best.values()), rel=1e-6)
    assert best[1.0, tuple(plan.decisions["units"])] == pytest.approx(plan.latency_s, rel=1e-6)
    assert plan.bound == pytest.approx(plan.latency_s, rel=1e-6)
    assert planner.verify(plan) == []


@pytest.mark.parametrize("mode", ["synchronous", "asynchronous"])
def test_every_division_costs_what_a_run_of_it_takes(mode):
    problem = patch_problem(mode)
    technique = get_strategy("patch")
    case = next(one for one in technique.cases(problem) if len(one.constraints.patch.devices) == 3)
    instance = technique.build(case)
    for units in ((4, 0, 0), (1, 1, 2), (0, 2, 2), (2, 2, 0)):
        value = evaluate(instance, Solution(units, (1.0,) * 3))
        assert value.objective == pytest.approx(seconds_of(case, units, 10.0), rel=1e-9)


def test_stages_and_transfers_are_what_the_program_does():
    plan = planner.solve(patch_problem(network=network(rate=1e9, latency=1e-5), components=True))
    patches = [stage for stage in plan.stages if stage.variant]
    assert [(stage.start, stage.stop) for stage in patches] == [(0, 2), (2, 4), (4, 8)] or len(patches) > 1
    assert patches[0].start == 0
    assert patches[-1].stop == 8
    assert all(a.stop == b.start for a, b in itertools.pairwise(patches))
    assert [(stage.elements, stage.device) for stage in plan.stages if not stage.variant] == [
        (name, "phone") for name in PARTS
    ]
    steps = plan.problem.workload.steps
    context = {(t.source, t.destination): t for t in plan.transfers if t.purpose == "context"}
    rows = {stage.device: stage.stop - stage.start for stage in patches}
    names = [stage.device for stage in patches]
    for (a, b), moved in context.items():
        near = abs(names.index(a) - names.index(b)) == 1
        assert moved.messages == steps * (5 if near else 3)
        assert moved.bytes == steps * (rows[a] * 40_000.0 + 500.0 + (3000.0 if near else 0.0))
    assert plan.latency_s > sum(stage.compute_s for stage in plan.stages if not stage.variant)


def test_a_single_device_exchanges_nothing():
    alone = patch_problem(constraints={"forbid": ["tablet", "server"]})
    plan = planner.solve(alone)
    assert plan.transfers == []
    assert plan.latency_s == pytest.approx(plan.stages[0].compute_s)


def test_memory_and_deadline_are_kept():
    small = [device("phone", 10, memory=1.001e9), device("tablet", 25, memory=8e9), device("server", 40, memory=0.5e9)]
    plan = planner.solve(patch_problem(devices=small))
    assert plan.decisions["units"][2] == 0
    with pytest.raises(NoPlanError, match="makespan"):
        planner.solve(patch_problem(constraints={"deadline": 0.01}))


def test_the_margin_of_the_quality_is_left():
    known = QUALITY | {"margin": 0.2}
    assert planner.solve(patch_problem(quality=known, constraints={"quality": 3.6})).quality == 3.0
    best = planner.solve(patch_problem(quality=known, constraints={"quality": 3.5}))
    assert (best.quality, best.stages[0].variant) == (2.0, "large")
    with pytest.raises(NoPlanError, match=r"which samples may exceed by 0\.4"):
        planner.solve(patch_problem(quality=known, constraints={"quality": 2.3}))


def test_quality_chooses_the_denoiser_and_the_mode():
    assert planner.solve(patch_problem(quality=QUALITY)).quality == 3.0
    best = planner.solve(patch_problem(quality=QUALITY, constraints={"quality": 2.5}))
    assert (best.quality, best.stages[0].variant) == (2.0, "large")
    stale = {"mode": "asynchronous", "quality": QUALITY, "stale": STALE}
    assert planner.solve(patch_problem(**stale, constraints={"quality": 2.5})).quality == 2.5
    assert planner.solve(patch_problem(**stale, warmup_steps=4)).quality == pytest.approx(3.1)
    with pytest.raises(NoPlanError, match=r"'large' reaches 2.5 at best"):
        planner.solve(patch_problem(**stale, constraints={"quality": 2.4}))
    with pytest.raises(InputError, match="stale"):
        planner.solve(patch_problem("asynchronous", quality=QUALITY, constraints={"quality": 2.5}))
    sharp = planner.solve(patch_problem(quality=QUALITY, objective="quality", constraints={"deadline": 100.0}))
    assert (sharp.objective, sharp.bound, sharp.stages[0].variant) == (2.0, 2.0, "large")
    assert planner.verify(sharp) == []
    unknown = planner.solve(patch_problem("asynchronous", 1, quality=QUALITY, stale=STALE))
    assert unknown.quality is None
    assert any("quality is not known" in note for note in unknown.notes)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model": diffusion_model()}, "does not say it"),
        ({"objective": "energy"}, "weighs neither"),
        ({"constraints": {"first": "phone"}}, "nothing to pin or count (constraints.first)"),
        ({"network": network(media=AIR, default={"rate": 1e6, "latency": 0.0, "medium": "air"})}, "share a medium"),
    ],
)  # fmt: skip
def test_what_does_not_fit(fields, reason):
    fields = dict(fields)
    if "objective" in fields:
        power = {"busy": 5.0}
        fields["devices"] = [device(name, power=power) for name in ("phone", "server")]
    assert reason in (get_strategy("patch").unfit(patch_problem(**fields)) or "")


def test_language_models_do_not_fit():
    assert "rows of an image" in (get_strategy("patch").unfit(text_problem()) or "")


def test_missing_links_are_named():
    net = {"name": "n", "source": "made up", "links": [{"between": ["phone", "tablet"], "rate": 1e6, "latency": 0.0},
           {"between": ["phone", "server"], "rate": 1e6, "latency": 0.0}]}  # fmt: skip
    plan = planner.solve(patch_problem(network=net))
    assert {"tablet", "server"} - {stage.device for stage in plan.stages}, "not both can share"
    options = {"patch": {"devices": ["tablet", "server"]}}
    with pytest.raises(InputError, match="tablet has no link to server"):
        planner.solve(patch_problem(network=net, constraints=options))
    with pytest.raises(InputError, match="nobody cannot share"):
        planner.solve(patch_problem(constraints={"patch": {"devices": ["nobody"]}}))


def test_the_bundled_problem_pays_and_is_explained():
    problem = load_problem("demo-patch")
    plan = planner.solve(problem)
    assert plan.latency_s < 0.9 * planner.solve(problem, strategy="multi_stage").latency_s
    assert planner.verify(plan) == []
    explained = explain(plan, ["without tablet"])
    assert explained.answers[0].price > 0
    assert why_not(plan, "without desktop").price > explained.answers[0].price
    assert np.isfinite([bar.stop_s for bar in plan.timeline]).all()
    assert isinstance(plan, Plan)
