"""Patches on devices whose slabs and messages were measured: costs by hand, and the best of all divisions."""

from __future__ import annotations

import itertools

import pytest

from edgeopt import planner
from edgeopt.costs.diffusion import DiffusionCosts
from edgeopt.costs.patch import PatchCosts
from edgeopt.profiles.checks import check_device, check_timings
from edgeopt.profiles.device import Timing
from edgeopt.profiles.problem import Problem
from edgeopt.strategies import get_strategy
from edgeopt_solvers.divisible import Solution, evaluate
from tests.edgeopt.factories import device, network
from tests.edgeopt.strategies.test_patch import patch_problem

#: Milliseconds of a step without rows and per unit of two.
LINES = {"phone": (20.0, 50.0), "tablet": (30.0, 20.0), "server": (10.0, 20.0)}
MESSAGES = {"each": "0.5 ms", "per_mebibyte": "20 ms"}


def row(phase, value, batch=1, variant="small", **fields):
    return Timing(
        model="toy-diffusion", phase=phase, variant=variant, dtype="float32", batch=batch, unit="ms", elements=[value],
        repeats=3, source="made for a test", **fields,
    ).model_dump()  # fmt: skip


def timed(name, line, whole=100.0, rows=(2, 4, 6), **fields):
    """Return a device on which slabs take what a line says."""
    slabs = [row("slab", line[0] + line[1] * count / 2, rows=count) for count in rows]
    return device(name, gflops=1, timings=[row("step", whole), *slabs], **fields)


def slab_problem(mode="synchronous", messages=None, **fields) -> Problem:
    devices = fields.pop("devices", [timed(name, line, messages=messages) for name, line in LINES.items()])
    problem = patch_problem(mode, devices=devices, network=network(rate=1e8, latency=1e-3), **fields)
    small = {name: variant for name, variant in problem.model.variants.items() if name == "small"}
    return problem.model_copy(update={"model": problem.model.model_copy(update={"variants": small})})


def costs_of(problem):
    return PatchCosts(DiffusionCosts(problem.model, problem.workload), problem.constraints.patch)


def seconds_by_hand(problem, units):
    """A run of ten steps on devices that share: lines, messages, and the wire."""
    sharing = [d for d in range(3) if problem.devices[d].name in problem.constraints.patch.devices]
    peers, synchronous = len(sharing) - 1, problem.constraints.patch.mode == "synchronous"
    fresh = 10 if synchronous else 3
    lead = rest = 0.0
    ends, computing = [], []
    for d in sharing:
        if not units[d]:
            continue
        start, each = (1e-3 * value for value in LINES[problem.devices[d].name])
        compute = start + each * units[d] if peers else 0.1
        travel = (80_000.0 * units[d] + 3500.0) / 1e8 if peers else 0.0
        waits = 5e-3 if peers else 0.0
        around = 2e-3 + (problem.model.conditioning + problem.model.latent * units[d] / 4) / 1e8 if d else 0.0
        carry = 0.0
        if problem.devices[d].messages and peers:
            messages = 2 * (3 * peers + 2 * peers)  # three to everybody, two to neighbours, and as many from them
            moved = 2 * peers * (500.0 + 3000.0) + 80_000.0 * (units[d] * peers + 4 - units[d])
            carry = 0.5e-3 * messages + 20e-3 * moved / 2**20
        if synchronous:
            computing.append(10 * compute)
            ends.append(10 * (compute + waits + travel) + around)
        else:
            lead = max(lead, fresh * (compute + waits + travel))
            late = 1e-3 if peers else 0.0
            rest = max(rest, max((10 - fresh) * (compute + carry), (10 - fresh) * (late + travel)) + around)
    if synchronous:  # nobody waits longer than the two slowest for each other
        return max(max(computing), sum(sorted(ends)[-2:]) / min(len(ends), 2))
    return lead + rest


@pytest.mark.parametrize("mode", ["synchronous", "asynchronous"])
@pytest.mark.parametrize("messages", [None, MESSAGES])
def test_the_plan_is_the_best_of_all_divisions(mode, messages):
    problem, technique = slab_problem(mode, messages), get_strategy("patch")
    best = {}
    for case in technique.cases(problem):
        names = case.constraints.patch.devices
        instance = technique.build(case)
        for units in itertools.product(range(5), repeat=3):
            used = [d.name for d, count in zip(problem.devices, units, strict=True) if count]
            if sum(units) != 4 or not set(used) <= set(names):
                continue
            value = evaluate(instance, Solution(units, tuple(float(count > 0) for count in units)))
            by_hand = seconds_by_hand(case, units)
            assert value.metrics["makespan_s"] == pytest.approx(by_hand, rel=1e-9), (names, units)
            best[tuple(names), units] = by_hand
    plan = planner.solve(problem)
    assert plan.latency_s == pytest.approx(min(best.values()), rel=1e-9)
    assert planner.verify(plan) == []
    assert not any("shares of the measured" in note or "off the line" in note for note in plan.notes)


def test_stages_compute_what_was_timed():
    options = {"patch": {"mode": "asynchronous", "warmup_steps": 3, "devices": ["tablet", "server"]}}
    for messages, carry_s in ((None, 0.0), (MESSAGES, 0.5e-3 * 10 + 20e-3 * (7000.0 + 4 * 80_000.0) / 2**20)):
        plan = planner.solve(slab_problem(messages=messages, constraints=options))
        patches = {stage.device: stage for stage in plan.stages}
        assert len(patches) == 2, "two share in any of the best plans"
        for name, stage in patches.items():
            start, each = LINES[name]
            step_s = 1e-3 * (start + each * (stage.stop - stage.start) / 2)
            assert stage.compute_s == pytest.approx(10 * step_s + 7 * carry_s)


def test_a_device_alone_takes_the_whole_step():
    plan = planner.solve(slab_problem(constraints={"forbid": ["tablet", "server"]}))
    assert plan.latency_s == pytest.approx(10 * 0.1)
    assert plan.notes[0].endswith("measured tables: phone")


def test_rests_and_accelerators_carry_messages_for_nothing():
    problem = slab_problem("asynchronous")
    costs = costs_of(problem)
    plain = timed("plain", (1.0, 1.0), messages=MESSAGES)
    assert min(costs.carry_s(plain, 2)) >= 0
    assert costs.carry_s(plain, 2)[0] > 0
    assert costs.carry_s(plain, 1) == (0.0, 0.0)
    for runtime in ({"cpu_quota": 0.5}, {"accelerator": "cuda"}):
        assert costs.carry_s(timed("other", (1.0, 1.0), messages=MESSAGES, runtime=runtime), 2) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("seconds", "line"),
    [
        ({2: 12.0, 6: 32.0}, (2.0, 10.0)),  # two heights: through both
        ({2: 10.0, 4: 20.0, 6: 30.0}, (0.0, 10.0)),
        ({2: 5.0, 6: 30.0}, (0.0, 6.0)),  # would begin below nought: least relative errors of b h
        ({2: 40.0, 6: 20.0}, (24.0, 0.0)),  # would fall: the same of a constant
    ],
)
def test_the_line_through_slabs(seconds, line):
    slabs = [row("slab", value, rows=rows) for rows, value in seconds.items()]
    found = costs_of(slab_problem()).slab_line(device("here", timings=slabs))
    start, each = found[:2]
    assert start + each > 0
    assert (1e3 * start, 1e3 * each) == pytest.approx(line, abs=1e-9)
    errors = [abs((start + each * rows / 2) / (1e-3 * value) - 1) for rows, value in seconds.items()]
    assert found[2] == pytest.approx(max(errors), abs=1e-9)


def test_slabs_between_batches():
    slabs = [row("slab", batch * (2.0 + rows), batch=batch, rows=rows) for batch in (1, 4) for rows in (2, 6)]
    here = device("here", timings=slabs)
    for images, factor in ((1, 1.0), (3, 3.0), (4, 4.0)):
        costs = costs_of(slab_problem(workload={"kind": "image", "steps": 10, "images": images}))
        start, each, error = costs.slab_line(here)
        assert (1e3 * start, 1e3 * each) == pytest.approx((2.0 * factor, 2.0 * factor))
        assert error < 1e-9
    beyond = costs_of(slab_problem(workload={"kind": "image", "steps": 10, "images": 5}))
    assert beyond.slab_line(here) is None
    assert costs_of(slab_problem()).slab_line(device("here", timings=slabs[:1])) is None, "one height is no line"


def test_what_seconds_rest_on_is_said():
    without = device("phone", gflops=1, timings=[row("step", 100.0)])
    bent = device("tablet", gflops=1, timings=[row("slab", value, rows=r) for r, value in ((2, 9), (4, 30), (6, 33))])
    straight = timed("server", LINES["server"])
    names = [d.name for d in (without, bent, straight)]
    problem = slab_problem(devices=[without, bent, straight], constraints={"patch": {"devices": names}})
    notes = planner.solve(problem).notes
    (shares,) = [note for note in notes if "shares of the measured whole step" in note]
    assert shares.endswith(": phone")
    (line,) = [note for note in notes if "off the line" in note]
    assert "tablet" in line
    assert "server" not in line


def test_rows_of_slabs_are_checked():
    problem = slab_problem()
    flaws = list(check_device(device("here", timings=[row("slab", 1.0)])))
    assert [flaw.path for flaw in flaws] == [("timings", 0, "rows")]
    assert "latent rows" in flaws[0].mend
    (flaw,) = check_timings(device("here", timings=[row("slab", 1.0, rows=2, variant="none")]), problem.model)
    assert flaw.path == ("timings", 0, "variant")
