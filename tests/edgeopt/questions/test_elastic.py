"""A request whose devices change under way: held against every way to finish it, enumerated."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

from edgeopt import planner
from edgeopt.cli import main
from edgeopt.errors import InputError
from edgeopt.profiles import load_problem, save_plan
from edgeopt.questions.elastic import elastic
from edgeopt.questions.events import Event, changed, parse_event, slower
from tests.edgeopt.factories import SOURCE, device, diffusion_model, image_problem, network, text_problem

STEPS = 6
LOSS = {"large": [0.0] * STEPS, "small": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}
QUALITY = {"form": "additive", "metric": "loss", "base": 1.0, "steps": STEPS, "loss": LOSS, "source": SOURCE}


def a_problem(rng=None, quality=2.0, **fields):
    """Return three devices and a family without encoder and decoder; speeds and links are drawn if asked for."""
    speeds = (10, 60, 40) if rng is None else rng.uniform(5, 80, 3)
    rate = 1e5 if rng is None else float(rng.uniform(2e4, 2e6))
    names = ("phone", "server", "spare")
    devices = [device(name, gflops=float(speed)) for name, speed in zip(names, speeds, strict=True)]
    if "devices" not in fields and rng is not None:
        # Too little memory for both denoisers somewhere, so that devices have to share the run.
        devices[1] = devices[1].model_copy(update={"memory": 3.5e9})
        devices[2] = devices[2].model_copy(update={"memory": 1.5e9})
    return image_problem(
        model=diffusion_model(QUALITY, components=False), devices=devices, network=network(rate=rate),
        workload={"kind": "image", "steps": STEPS}, constraints={"quality": quality}, **fields,
    )  # fmt: skip


def best_end(plan, problem, cut, holder):
    """Enumerate the denoiser and the device of every step that is left; return the least seconds within the quality."""
    seconds = {
        d.name: {"large": 1e10 / d.compute["float32"], "small": 1e9 / d.compute["float32"]} for d in problem.devices
    }
    weights = {"large": 3e9, "small": 1e9}
    link = problem.network.default
    size = 60_000  # latent and conditioning
    done = [stage.variant for stage in plan.stages for step in range(stage.start, stage.stop) if step < cut]
    best = math.inf
    for variants in itertools.product(("large", "small"), repeat=STEPS - cut):
        loss = sum(LOSS[v][i] for i, v in enumerate([*done, *variants]))
        if 1.0 + loss > problem.constraints.quality + 1e-9:
            continue
        for where in itertools.product(problem.devices, repeat=STEPS - cut):
            names = [d.name for d in where]
            pairs = set(zip(names, variants, strict=True))
            held = {d.name: sum(weights[v] for name, v in pairs if name == d.name) for d in where}
            if any(held[d.name] + 1e6 > d.memory for d in where):
                continue
            total = sum(seconds[name][v] for name, v in zip(names, variants, strict=True))
            path = [holder, *names]
            total += sum(link.latency + size / link.rate for a, b in itertools.pairwise(path) if a != b)
            total += (link.latency + 10_000 / link.rate) if names[-1] != "phone" else 0.0
            if cut == 0 and names[0] != "phone":  # the prompt alone travels first
                total += 100 / link.rate - size / link.rate
            best = min(best, total)
    return best


@pytest.mark.parametrize("seed", range(6))
def test_the_rest_is_the_best_of_all_ways_to_finish(seed):
    rng = np.random.default_rng(seed)
    plan = planner.solve(a_problem(rng))
    step = 3
    names = {stage.device for stage in plan.stages} - {"phone"}
    leaver = sorted(names)[seed % len(names)] if names else "spare"
    for event in (Event("leave", leaver), Event("slow", "server", 5.0), Event("slow", "spare", 0.1)):
        found = elastic(plan, step, [event])
        problem = changed(plan, [event])
        expected = best_end(plan, problem, found.resumed_at, found.holder)
        if found.replanned.reason:
            assert math.isinf(expected)
            continue
        assert found.replanned.latency_s == pytest.approx(found.spent_s + expected, rel=1e-6)
        assert found.replanned.quality <= 2.0 + 1e-9
        losses = [LOSS[v][i] for i, v in enumerate(found.replanned.variants)]
        assert found.replanned.quality == pytest.approx(1.0 + sum(losses))
        assert len(losses) == STEPS
        if found.kept.latency_s is not None:
            assert found.replanned.latency_s <= found.kept.latency_s * (1 + 1e-9)


@pytest.mark.parametrize("components", [False, True])
def test_where_nothing_changes_the_best_plan_stays_the_best(components):
    model = diffusion_model(QUALITY, components=components)
    plan = planner.solve(a_relay()[0].problem.model_copy(update={"model": model}))
    assert len({stage.device for stage in plan.stages}) > 1
    for step in range(STEPS):
        found = elastic(plan, step, [Event("slow", "server", 1.0)])
        for outcome in (found.kept, found.replanned):
            assert outcome.latency_s == pytest.approx(plan.latency_s)
            assert outcome.quality == pytest.approx(plan.quality)
        assert found.resumed_at == step
        assert 0 <= found.spent_s < plan.latency_s
        assert found.stages[-1].stop == plan.cuts[-1]


def a_relay():
    """Return a plan of two stages: small on the phone, then large on the server."""
    phone, server = device("phone", gflops=30, memory=1.8e9), device("server", gflops=100, memory=3.5e9)
    devices = [phone, server, device("spare", gflops=60)]
    fast = {"devices": devices[:2], "network": network(rate=1e6)}
    plan = planner.solve(a_problem(quality=1.6001).model_copy(update=fast))
    assert [(s.device, s.variant, s.stop) for s in plan.stages] == [("phone", "small", 3), ("server", "large", 6)]
    return plan, devices[2]


def test_the_latent_stays_where_it_is_unless_its_device_leaves():
    plan, spare = a_relay()
    join = Event("join", "spare", profile=spare)
    staying = elastic(plan, 5, [join])
    assert (staying.resumed_at, staying.holder) == (5, "server")
    leaving = elastic(plan, 5, [Event("leave", "server"), join])
    assert (leaving.resumed_at, leaving.holder) == (3, "phone")
    assert leaving.kept.reason == "server left"
    # Two steps of the server are lost: 3 large steps at 60 GFLOP/s, latent and conditioning there, the image back.
    rest = 3 * 10 / 60 + (0.01 + 0.06) + (0.01 + 0.01)
    assert leaving.replanned.latency_s == pytest.approx(leaving.spent_s + rest, rel=1e-6)
    assert leaving.spent_s == pytest.approx(3 / 30 + 0.01 + 0.06 + 2 * 10 / 100, rel=1e-6)
    # At the hand-off itself the latent has not left the phone yet.
    assert elastic(plan, 3, [Event("leave", "server"), join]).holder == "phone"


def test_a_quality_that_cannot_be_kept_is_given_up_for_the_best_that_is_left():
    plan, _ = a_relay()
    found = elastic(plan, 4, [Event("leave", "server")])
    assert "max_quality_loss" in found.replanned.reason
    assert found.replanned.variants == ("small",) * 6
    assert found.replanned.quality == pytest.approx(1.0 + 2.1)
    assert found.kept.latency_s is None


def test_a_deadline_counts_from_the_start():
    plan, spare = a_relay()
    limits = plan.problem.constraints.model_copy(update={"deadline": plan.latency_s * 1.01, "quality": None})
    plan = planner.solve(plan.problem.model_copy(update={"constraints": limits, "objective": "quality"}))
    found = elastic(plan, 4, [Event("slow", "server", 10.0), Event("join", "spare", profile=spare)])
    assert found.replanned.latency_s is None or found.replanned.latency_s <= limits.deadline * (1 + 1e-9)
    late = elastic(plan, 4, [Event("leave", "server")])
    assert late.spent_s < limits.deadline


def test_slower_scales_everything_that_is_computed():
    problem = load_problem("tstitch-ldm")
    plan = planner.solve(problem)
    gpu = slower(problem.devices[0], 2.0)
    again = planner.solve(problem.model_copy(update={"devices": [gpu]}))
    assert again.latency_s == pytest.approx(2 * plan.latency_s)
    assert "times 2" in gpu.timings[0].source
    toy = planner.solve(a_problem())
    slow = [slower(d, 3.0) for d in toy.problem.devices]
    computing = sum(s.compute_s for s in planner.solve(toy.problem.model_copy(update={"devices": slow[:1]})).stages)
    alone = sum(
        s.compute_s for s in planner.solve(toy.problem.model_copy(update={"devices": toy.problem.devices[:1]})).stages
    )
    assert computing == pytest.approx(3 * alone)


class TestEvents:
    def test_spelling(self):
        assert parse_event("leave:phone") == Event("leave", "phone")
        assert parse_event("slow:my phone:2.5x") == parse_event("slow:my phone:2.5") == Event("slow", "my phone", 2.5)
        joined = parse_event("join:mine=laptop-cpu")
        assert (joined.kind, joined.device, joined.profile.name) == ("join", "mine", "laptop-cpu")
        assert parse_event("join:laptop-cpu").device == "laptop-cpu"
        assert [str(parse_event(text)) for text in ("leave:a", "slow:a:2x")] == ["a leaves", "a takes 2 times as long"]

    @pytest.mark.parametrize(
        "text", ["", "leave:", "stay:phone", "slow:phone", "slow:phone:0x", "slow:phone:1.2.3x", "join:"]
    )
    def test_nonsense(self, text):
        with pytest.raises(InputError, match="--event"):
            parse_event(text)

    @pytest.mark.parametrize(
        ("event", "why"),
        [
            (Event("leave", "servr"), "did you mean 'server'"),
            (Event("slow", "tablet", 2.0), "there is no device 'tablet'"),
            (Event("leave", "phone"), "is the source"),
            (Event("join", "server", profile=device("x")), "there is a device 'server' already"),
        ],
    )
    def test_events_that_cannot_be(self, event, why):
        with pytest.raises(InputError, match=why):
            changed(planner.solve(a_problem()), [event])

    def test_a_device_without_links_cannot_join(self):
        links = {"default": None, "links": [{"between": ["phone", "server"], "rate": 1e6, "latency": 0.01}]}
        problem = a_problem().model_copy(update={"network": network(**links)})
        plan = planner.solve(problem.model_copy(update={"devices": problem.devices[:2]}))
        with pytest.raises(InputError, match="has no link"):
            changed(plan, [Event("join", "spare", profile=device("x"))])

    @pytest.mark.parametrize("step", [-1, STEPS])
    def test_steps_that_the_run_does_not_have(self, step):
        with pytest.raises(InputError, match="at-step"):
            elastic(planner.solve(a_problem()), step, [Event("leave", "spare")])

    def test_other_plans_and_no_event(self):
        with pytest.raises(InputError, match="strategy is pipeline"):
            elastic(planner.solve(text_problem()), 1, [Event("leave", "server")])
        with pytest.raises(InputError, match="nothing happens"):
            elastic(planner.solve(a_problem()), 1, [])


class TestCommand:
    @pytest.fixture
    def plan(self, tmp_path):
        path = tmp_path / "plan.yaml"
        save_plan(a_relay()[0], path)
        return path

    def test_document(self, plan, capsys):
        words = ["elastic", str(plan), "--at-step", "4", "--event", "slow:server:2x", "--event", "join:laptop-cpu"]
        assert main([*words, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["events"][0] == {"kind": "slow", "device": "server", "factor": 2.0}
        assert found["events"][1]["device"] == "laptop-cpu"
        assert (found["step"], found["resumed_at"], found["holder"], found["status"]) == (4, 4, "server", "optimal")
        assert found["planned"]["latency_s"] < found["kept"]["latency_s"]
        assert found["replanned"]["latency_s"] <= found["kept"]["latency_s"]
        assert found["replanned"]["variants"][:3] == ["small"] * 3
        assert found["stages"][0].keys() == {"device", "variant", "start", "stop", "compute_s", "transfer_s"}
        assert main(words) == 0
        printed = capsys.readouterr().out
        for text in ("as planned", "planned again", "held by server", "laptop-cpu joins", "what is left"):
            assert text in printed

    def test_what_cannot_be_kept_exits_with_one(self, plan, capsys):
        assert main(["elastic", str(plan), "--at-step", "4", "--event", "leave:server"]) == 1
        printed = capsys.readouterr().out
        assert "1 steps are lost" in printed
        assert "given up" in printed

    def test_a_wrong_event_exits_with_two(self, plan, capsys):
        assert main(["elastic", str(plan), "--at-step", "4", "--event", "explode:server"]) == 2
        assert "leave:phone" in capsys.readouterr().err
