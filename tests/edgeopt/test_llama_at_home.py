"""Llama 3.1 70B on what a household has, from the bundled problem's name alone: what fits where, who is left out."""

from __future__ import annotations

import json

import pytest

from edgeopt import planner
from edgeopt.cli import main
from edgeopt.costs.language import LanguageCosts
from edgeopt.costs.memory import usable_bytes
from edgeopt.errors import NoPlanError
from edgeopt.profiles import load_problem
from edgeopt.profiles.problem import Constraints

NAME = "llama-70b-at-home"


@pytest.fixture(scope="module")
def problem():
    return load_problem(NAME)


@pytest.fixture(scope="module")
def plan(problem):
    return planner.solve(problem)


def test_the_problem_is_the_household_that_it_says(problem):
    assert [device.name for device in problem.devices] == ["macbook-m3-max", "desktop", "jetson", "phone"]
    links = load_problem(NAME).network
    assert links.default.rate == pytest.approx(700e6 / 8)
    assert links.links[0].rate == pytest.approx(941e6 / 8)
    assert "wifi-6-home" in links.source
    assert "ethernet-1g" in links.source


def test_no_device_holds_the_model_alone(problem):
    needed = LanguageCosts(problem.model, problem.workload).resident_bytes.sum()
    smaller = [device for device in problem.devices if usable_bytes(device) < needed]
    assert {"desktop", "jetson", "phone"} == {device.name for device in smaller}
    for device in smaller:
        others = [other.name for other in problem.devices if other is not device]
        with pytest.raises(NoPlanError, match="memory"):
            planner.solve(
                problem.model_copy(update={"constraints": Constraints(source="macbook-m3-max", forbid=others)})
            )


def test_the_command_says_what_fits_where_and_who_only_slows_it_down(plan, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["solve", NAME]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    for stage in plan.stages:
        row = next(line for line in lines if f" {stage.device} " in line and f"({stage.start}:{stage.stop})" in line)
        assert f"{stage.memory_bytes / 1e9:.3g} GB" in row, "what it holds"
    assert not any(line.startswith("│") and "phone" in line for line in lines)
    (left_out,) = [line for line in lines if "hosts no stage" in line]
    assert "no plan that gives it a stage is better: phone" in left_out
    assert "optimal" in printed
    assert "gap 0 %" in printed


def test_the_document_says_the_same(plan, capsys):
    assert main(["solve", NAME, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["status"], document["gap"]) == ("optimal", 0)
    stages = [(stage["device"], stage["start"], stage["stop"]) for stage in document["stages"]]
    assert stages == [(stage.device, stage.start, stage.stop) for stage in plan.stages]
    assert [stage["start"] for stage in document["stages"][1:]] == [stage["stop"] for stage in document["stages"][:-1]]
    assert (document["stages"][0]["start"], document["stages"][-1]["stop"]) == (0, 82)


def test_every_stage_fits(problem, plan):
    """Summed again from the model's layers, and held against what the margins leave."""
    costs = LanguageCosts(problem.model, problem.workload)
    devices = {device.name: device for device in problem.devices}
    for stage in plan.stages:
        held = costs.resident_bytes[stage.start : stage.stop].sum()
        assert held <= stage.memory_bytes <= usable_bytes(devices[stage.device])


def test_the_phone_would_only_slow_it_down(problem, plan):
    kept = {stage.device for stage in plan.stages}
    assert "phone" not in kept
    without = problem.model_copy(update={"devices": [device for device in problem.devices if device.name in kept]})
    assert planner.solve(without).latency_s == pytest.approx(plan.latency_s)
    for element in ("embed", "block.40", "head"):
        limits = problem.constraints.model_copy(update={"pin": {element: "phone"}})
        forced = planner.solve(problem.model_copy(update={"constraints": limits}), time_limit_s=20)
        assert forced.bound > plan.latency_s, f"with {element} on the phone"
    # The others earn their places: without any of them the plan is slower, or there is none.
    for name in kept - {problem.constraints.source}:
        fewer = problem.model_copy(
            update={"constraints": problem.constraints.model_copy(update={"forbid": [name, "phone"]})}
        )
        assert planner.solve(fewer, time_limit_s=20).bound > plan.latency_s
