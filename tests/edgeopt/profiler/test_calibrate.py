"""Calibration recovers known factors, refuses what it cannot trust, and overwrites nothing."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime

import numpy as np
import pytest

from edgeopt import planner
from edgeopt.cli import main
from edgeopt.profiler.calibrate import calibrate
from edgeopt.profiler.runs import Run
from edgeopt.profiles import load_device, load_network, load_problem, save_plan
from edgeopt.profiles.problem import TextWorkload
from edgeopt.report.data import Comparison, ErrorSplit, Hardware, OutputCheck, Report, Samples, StageReport
from edgeopt.report.data import TransferReport as Moved
from tests.edgeopt.factories import device, image_problem, language_model, network, text_problem

ROOFLINE = {
    "memory_bandwidth": 20e9,
    "launch_overhead": 1e-4,
    "efficiency": {"compute": 0.5, "memory_bandwidth": 0.5, "basis": "assumed"},
}
TRUE = {"compute": 0.8, "memory_bandwidth": 0.3}
HARDWARE = Hardware(
    cpu="a test",
    physical_cores=2,
    logical_cores=2,
    usable_cores=2,
    memory_bytes=8,
    system="none",
    python="3",
    versions={},
)


def problem(prompt_tokens, new_tokens, **fields):
    """Return a problem whose prefill the arithmetic bounds, its decoding the memory, with launches that can be seen."""
    devices = [device("phone", 100, 3e9, **ROOFLINE), device("server", 400, 3e9, **ROOFLINE)]
    load = {"kind": "text", "prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
    model = language_model(num_blocks=4, block_gflop=0.5, weights=1e8)
    limits = {"pin": {"embed": "phone", "head": "server"}}
    return text_problem(model=model, devices=devices, workload=load, constraints=limits, **fields)


def truth(plan, factors, launch, links):
    """Return the report of a world whose machines have other factors than the plan believes, without noise."""

    def world(workload):
        devices = [
            one.model_copy(
                update={"efficiency": one.efficiency.model_copy(update=factors), "launch_overhead": launch},
            )
            for one in plan.problem.devices
        ]
        actual = plan.problem.model_copy(update={"devices": devices, "workload": workload})
        return np.asarray(planner.choose_strategy(actual, plan.strategy).build(actual).compute_s)

    load = plan.problem.workload
    whole = world(load)
    first = world(load.model_copy(update={"new_tokens": 1})) if isinstance(load, TextWorkload) else whole
    stages = []
    for stage, d, v in zip(plan.stages, plan.devices, plan.variants, strict=True):
        seconds, prefill = (float(table[d, v, stage.start : stage.stop].sum()) for table in (whole, first))
        stages.append(
            StageReport(
                **stage.model_dump(include={"index", "device", "variant", "start", "stop", "elements"}),
                compute_s=Comparison.between(stage.compute_s, [seconds]),
                first_round_s=Samples.of([prefill]),
            )
        )
    transfers = [
        Moved(
            **one.model_dump(include={"purpose", "cut", "source", "destination", "bytes", "messages"}),
            predicted_bytes=one.bytes,
            predicted_messages=one.messages,
            seconds=Comparison.between(one.seconds, [one.messages * links[0] + one.bytes / links[1]]),
        )
        for one in plan.transfers
    ]
    return Report(
        edgeopt_version="0", date=datetime(2026, 1, 2, tzinfo=UTC), plan_digest=plan.digest(),
        problem=plan.problem.name, model=plan.problem.model.name, strategy=plan.strategy, launcher="local",
        emulated=False, repeat=1, warmup=0, seed=0, elapsed_s=1.0, latency_s=Comparison.between(1.0, [1.0]),
        metrics={}, stages=stages, transfers=transfers, devices=[],
        error=ErrorSplit(total_s=0, compute_s=0, transfer_s=0, overhead_s=0, overhead_ratio=1),
        output=OutputCheck(equal=True, kind="tokens", max_abs_diff=0.0, repeats_equal=True), hardware=HARDWARE,
    )  # fmt: skip


def run(plan, factors=TRUE, launch=3e-3, links=(0.02, 5e5)):
    return Run(truth(plan, factors, launch, links), plan, "0" * 64)


@pytest.fixture(scope="module")
def plans():
    return [planner.solve(problem(*sizes)) for sizes in ((400, 8), (40, 30))]


def test_known_factors_are_recovered(plans):
    found = calibrate([run(plan) for plan in plans], date(2026, 1, 2))
    assert [one.name for one in found.devices] == ["phone-calibrated", "server-calibrated"]
    server = found.devices[1]
    assert server.efficiency.compute == pytest.approx(0.8, rel=0.01)
    assert server.efficiency.memory_bandwidth == pytest.approx(0.3, rel=0.01)
    assert server.launch_overhead == pytest.approx(3e-3, rel=0.02)
    assert server.efficiency.basis == "measured"
    (net,) = found.networks
    assert net.default.latency == pytest.approx(0.02, rel=0.01)
    assert net.default.rate == pytest.approx(5e5, rel=0.01)
    for one in (server, net):
        assert max(abs(row.after) for row in one.calibration.residuals) < 0.005
        assert max(abs(row.before) for row in one.calibration.residuals) > 0.2
    assert server.calibration.base == "server"
    assert server.calibration.reports[0].plan_digest == plans[0].digest()


def test_what_runs_leave_open_stays_as_it_was():
    """Steps of a denoiser are bound by arithmetic alone: bandwidth and the link's rate cannot be told."""
    base = {"memory_bandwidth": 1e12, "launch_overhead": 1e-9, "efficiency": ROOFLINE["efficiency"]}
    asked = image_problem(devices=[device("phone", 10, 8e9, **base)], network=network())
    found = calibrate([run(planner.solve(asked), {"compute": 0.25}, 1e-9)], date(2026, 1, 2))
    (phone,) = found.devices
    assert phone.efficiency.compute == pytest.approx(0.25, rel=0.01)
    assert phone.efficiency.memory_bandwidth == pytest.approx(0.5, rel=0.01)
    assert phone.launch_overhead == pytest.approx(1e-9, rel=0.05)
    assert found.networks == []


def test_measured_tables_are_scaled():
    rows = [
        {
            "model": "toy-diffusion", "variant": variant, "phase": phase, "dtype": "float32", "batch": 1,
            "unit": "s", "elements": [seconds], "repeats": 3, "source": "a test",
        }
        for phase, variant, seconds in (
            ("text_encoder", None, 1.0), ("step", "large", 2.0), ("step", "small", 0.5), ("decoder", None, 1.0)
        )
    ]  # fmt: skip
    asked = image_problem(devices=[device("phone", 10, 8e9, timings=rows)])
    plan = planner.solve(asked)
    report = truth(plan, {}, 1e-9, (0.0, 1.0))
    slower = report.model_copy(
        update={
            "stages": [
                one.model_copy(update={"compute_s": Comparison.between(None, [1.3 * one.compute_s.median])})
                for one in report.stages
            ]
        }
    )
    (phone,) = calibrate([Run(slower, plan, "0" * 64)], date(2026, 1, 2)).devices
    assert [row.elements[0] for row in phone.timings] == pytest.approx([1.3, 2.6, 0.65, 1.3], rel=0.01)
    assert phone.efficiency.compute == 1.0


def test_waking_up_does_not_scale_the_tables():
    base = {"model": "toy-lm", "dtype": "float32", "batch": 1, "unit": "ms", "repeats": 3, "source": "a test"}
    rows = [{**base, "phase": "prefill", "tokens": 10, "elements": [5.0] * 6}]
    rows += [{**base, "phase": "decode", "context": at, "elements": [1.0] * 6, "wake": 2.0} for at in (10, 14)]
    asked = text_problem(
        devices=[device("phone", memory=3e9), device("server", memory=3e9, timings=rows)],
        constraints={"first": "phone", "last": "server"},
    )
    plan = planner.solve(asked)
    report = truth(plan, {}, 1e-9, (0.01, 1e6))
    stages = [
        one.model_copy(
            update={
                "compute_s": Comparison.between(None, [1.3 * one.compute_s.median + 5 * 2e-3]),
                "first_round_s": Samples.of([1.3 * one.first_round_s.median + 2e-3]),
            }
        )
        for one in report.stages
    ]
    found = calibrate([Run(report.model_copy(update={"stages": stages}), plan, "0" * 64)], date(2026, 1, 2))
    server = next(one for one in found.devices if one.name == "server-calibrated")
    assert [row.elements[0] for row in server.timings] == pytest.approx([6.5, 1.3, 1.3], rel=0.01)
    assert [row.wake for row in server.timings] == [None, 2.0, 2.0]


@pytest.fixture
def files(plans, tmp_path):
    """Write two plans and their reports; return the words of the command."""
    words = []
    for number, plan in enumerate(plans):
        save_plan(plan, tmp_path / f"plan{number}.yaml")
        (tmp_path / f"report{number}.json").write_text(run(plan).report.model_dump_json())
        words += [str(tmp_path / f"report{number}.json"), "--plan", str(tmp_path / f"plan{number}.yaml")]
    return ["calibrate", *words, "-o", str(tmp_path / "new")]


def test_the_command_writes_new_profiles_that_can_be_used(files, tmp_path, capsys):
    assert main(files) == 0
    printed = capsys.readouterr().out
    assert "efficiency.compute" in printed
    assert "error before" in printed
    server = load_device(str(tmp_path / "new" / "devices" / "server-calibrated.yaml"))
    assert server.efficiency.compute == pytest.approx(0.8, rel=0.01)
    assert server.calibration.date == date.today()
    assert len(server.calibration.reports) == 2
    assert load_network(str(tmp_path / "new" / "networks" / "net-calibrated.yaml")).default.rate > 0


def test_nothing_is_overwritten(files, tmp_path, capsys):
    assert main(files) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "new").rglob("*.yaml")}
    capsys.readouterr()
    assert main(files) == 2
    assert "is not overwritten" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in (tmp_path / "new").rglob("*.yaml")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plan_digest": "f" * 64}, "ran plan ffffffffffff"),
        ({"hardware": {**HARDWARE.model_dump(), "cpu": "another machine"}}, "of different machines"),
        ({"emulated": True}, "of different machines"),
        (
            {"output": {"equal": False, "kind": "tokens", "max_abs_diff": 1.0, "repeats_equal": True}},
            "result was wrong",
        ),
        ({"stages": 7}, "is no report"),
    ],
)
def test_reports_that_cannot_be_trusted_are_refused(files, tmp_path, change, message, capsys):
    path = tmp_path / "report1.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert main(files) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.torch
@pytest.mark.processes
def test_a_real_run_corrects_the_plan_of_another(tmp_path):
    """Two datasheet devices, the demo model on this machine: calibrated by one workload, better on another."""
    pytest.importorskip("transformers")
    base = load_problem("demo-llm")
    fast = [
        one.model_copy(update={"runtime": one.runtime.model_copy(update={"threads": 1})}) for one in base.devices[:2]
    ]
    fast = [one.model_copy(update={"memory": 4e8}) for one in fast]
    limits = base.constraints.model_copy(update={"pin": {"embed": fast[0].name, "head": fast[1].name}})

    def planned(devices, net, prompt_tokens, new_tokens):
        load = base.workload.model_copy(update={"prompt_tokens": prompt_tokens, "new_tokens": new_tokens})
        return planner.solve(
            base.model_copy(update={"devices": devices, "network": net, "workload": load, "constraints": limits})
        )

    from edgeopt.executor import execute

    runs = []
    for sizes in ((64, 8), (16, 24)):
        plan = planned(fast, base.network, *sizes)
        runs.append(Run(execute(plan, repeat=3, check=False, timeout_s=120.0), plan, "0" * 64))
    found = calibrate(runs, date.today())
    renamed = [one.model_copy(update={"name": old.name}) for one, old in zip(found.devices, fast, strict=True)]
    before = planned(fast, base.network, 32, 16)
    after = planned(renamed, found.networks[0], 32, 16)
    errors = [
        abs(execute(plan, repeat=3, check=False, timeout_s=120.0).latency_s.relative_error) for plan in (before, after)
    ]
    assert errors[1] <= errors[0], errors
