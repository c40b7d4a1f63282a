"""What the accuracy benchmark makes of samples: turns, retries, medians, and the page; nothing is measured here."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from edgeopt.profiler.jobs import ElementAnswer, ElementSamples
from edgeopt.profiles import load_device, load_model

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "costs.py"
ELEMENT_S = 0.01


@pytest.fixture
def costs():
    spec = importlib.util.spec_from_file_location("costs_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def machine(costs, monkeypatch):
    """A machine on which every element takes 10 ms, and whole models ``late`` as long in every second process."""
    state = {"processes": 0, "late": 1.0}

    def run_jobs(jobs, answer, timeout_s):
        (job,) = jobs
        state["processes"] += 1
        slow = state["late"] if job.whole and state["processes"] % 4 == 2 else 1.0
        samples = []
        for plan in job.plans:
            elements = sum(layer.count for layer in plan.problem.model.layers)
            per_round = [elements * ELEMENT_S * slow] if job.whole else [ELEMENT_S] * elements
            one = [per_round for _ in range(plan.problem.workload.new_tokens)]
            total = float(np.sum(one))
            samples.append(
                ElementSamples(
                    elements_s=[one] * job.repeats, requests_s=[total] * job.repeats, waited_s=[0.0] * job.repeats
                )
            )
        return [ElementAnswer(plans=samples)]

    monkeypatch.setattr(costs, "run_jobs", run_jobs)
    monkeypatch.setattr(costs, "profile_device", lambda name, **options: load_device("laptop-cpu"))
    return state


def settings_of(costs, processes):
    arguments = argparse.Namespace(device="cpu", processes=processes, repeats=2)
    return costs.measure([load_model("demo-llm")], [1], arguments, lambda text: None), arguments


def test_a_calm_machine_is_predicted_exactly_and_measured_once(costs, machine):
    settings, arguments = settings_of(costs, 3)
    assert machine["processes"] == 2 * 3
    assert {(s.phase, s.batch) for s in settings} == {(p, b) for p in ("prefill", "decode") for b in (1, 2, 3, 4)}
    for s in settings:
        assert s.tables_error == pytest.approx(0, abs=1e-6)
        assert (s.turns_differ, s.processes) == (pytest.approx(0), 3)
        assert s.roofline_s > 0
    facts = costs.summary(settings)
    assert facts["settings"] == 8
    assert facts["phases"]["decode"]["settings"] == facts["phases"]["prefill"]["settings"] == 4
    assert facts["threads"].keys() == {"1"}
    text = costs.page(settings, facts, 1.0, arguments)
    assert text.count("\n| demo-llm |") == 8
    assert "| all | 8 | 0.0% |" in text


def test_a_disturbed_machine_is_measured_again_and_says_so(costs, machine):
    machine["late"] = 1.5
    settings, arguments = settings_of(costs, 2)
    assert machine["processes"] == 2 * 4, "up to twice as many turns"
    for s in settings:
        assert s.turns_differ > 0.2
        assert s.tables_error == pytest.approx(1 / 1.25 - 1), "the middle of two calm and two late processes"
    text = costs.page(settings, costs.summary(settings), 1.0, arguments)
    assert "much of it is the machine" in text
