"""Plans with runs beside them, for tests of the page: one whose timeline is whole, one that predicts its beginning."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache

from edgeopt import planner
from edgeopt.plan import Interval, Plan
from edgeopt.profiles import load_problem
from edgeopt.report.data import DeviceReport, ErrorSplit, Report, Samples
from tests.edgeopt.factories import device, text_problem
from tests.edgeopt.test_cli_execute import a_report

DATE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

#: Figures of a run are those of its plan times this.
SLOWER = 1.25

HOSTILE = "<script>alert('x')</script> & \"quotes\" $\\frac{1}{0}$"


@cache
def language_plan() -> Plan:
    """Return a plan of a language model over four devices, two of which host stages."""
    return planner.solve(load_problem("home-cluster"))


@cache
def image_plan() -> Plan:
    """Return a plan of a diffusion run, with another strategy beside it."""
    return planner.solve(load_problem("demo-diffusion"))


def run_of(plan: Plan, rounds: int = 1) -> Report:
    """Return the report of a run in which everything took longer, its timeline repeated over ``rounds``."""
    once = [
        one.model_copy(update={"start_s": SLOWER * one.start_s, "stop_s": SLOWER * one.stop_s}) for one in plan.timeline
    ]
    length_s = max(one.stop_s for one in once)
    timeline = [
        Interval(lane=one.lane, label=f"{one.label}, round {r}", start_s=one.start_s + shift, stop_s=one.stop_s + shift)
        for r in range(rounds)
        for one in once
        for shift in [r * length_s]
    ]
    latency_s = SLOWER * plan.latency_s
    devices = []
    for name in dict.fromkeys(stage.device for stage in plan.stages):
        own = [stage for stage in plan.stages if stage.device == name]
        busy_s = SLOWER * sum(stage.compute_s for stage in own)
        memory = max(stage.memory_bytes for stage in own)
        devices.append(
            DeviceReport(
                device=name, stages=[stage.index for stage in own], threads=1, cpu_quota=None,
                compute_s=Samples.of([busy_s]), waiting_s=Samples.of([0.9 * (latency_s - busy_s)]),
                idle_s=Samples.of([latency_s - busy_s]), predicted_memory_bytes=memory,
                peak_memory_bytes=memory + 4e8,
            )
        )  # fmt: skip
    compute_s, transfer_s = (
        -0.25 * sum(values) for values in ([s.compute_s for s in plan.stages], [t.seconds for t in plan.transfers])
    )
    split = ErrorSplit(
        total_s=plan.latency_s - latency_s, compute_s=compute_s, transfer_s=transfer_s,
        overhead_s=plan.latency_s - latency_s - compute_s - transfer_s, overhead_ratio=1.0,
    )  # fmt: skip
    changes = {
        "error": split,
        "timeline": timeline,
        "devices": devices,
        "date": DATE,
        "emulated": True,
        "launcher": "emulated",
    }
    report = a_report(plan.model_copy(update={"metrics": {"ttft_s": 0.1} | plan.metrics}))
    return report.model_copy(update={**changes, "plan_digest": plan.digest()})


def hostile_plan() -> Plan:
    """Return a plan whose problem is full of markup."""
    devices = [device("phone", gflops=1, memory=3e9), device("server", gflops=10, memory=3e9)]
    devices = [one.model_copy(update={"source": HOSTILE, "description": HOSTILE}) for one in devices]
    problem = text_problem(name=HOSTILE, description=HOSTILE, devices=devices)
    layers = [layer.model_copy(update={"name": f"{layer.name} {HOSTILE}"}) for layer in problem.model.layers]
    model = problem.model.model_copy(update={"layers": layers})
    plan = planner.solve(problem.model_copy(update={"model": model}))
    return plan.model_copy(update={"notes": [HOSTILE]})
