"""``edgeopt execute``: flags reach the executor, and a report becomes tables, a document, a file, an exit code."""

from __future__ import annotations

import errno
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edgeopt import planner
from edgeopt.cli import main
from edgeopt.errors import ExecutionError, MissingDependencyError
from edgeopt.report.data import (
    Comparison,
    DeviceReport,
    ErrorSplit,
    Hardware,
    OutputCheck,
    Report,
    Samples,
    StageReport,
    TransferReport,
)
from tests.edgeopt.factories import text_problem

executor = pytest.importorskip("edgeopt.executor")


def a_report(plan, equal=True, repeats_equal=True):
    """Return the report of a run that took a quarter longer than predicted everywhere."""
    slower = 1.25

    def beside(seconds):
        return Comparison.between(seconds, [seconds * slower] * 3)

    measured = Samples.of([0.1, 0.2, 0.3])
    return Report(
        edgeopt_version="0", date=datetime.now(UTC), plan_digest=plan.digest(), problem=plan.problem.name,
        model=plan.problem.model.name, strategy=plan.strategy, launcher="local", emulated=False, repeat=3, warmup=1,
        seed=0, elapsed_s=3.0, latency_s=beside(plan.latency_s), metrics={"ttft_s": beside(plan.metrics["ttft_s"])},
        stages=[
            StageReport(
                index=s.index, device=s.device, variant=s.variant, start=s.start, stop=s.stop, elements=s.elements,
                compute_s=beside(s.compute_s), first_round_s=measured,
            )
            for s in plan.stages
        ],
        transfers=[
            TransferReport(
                purpose=t.purpose, cut=t.cut, source=t.source, destination=t.destination, predicted_bytes=t.bytes,
                bytes=t.bytes, predicted_messages=t.messages, messages=t.messages, seconds=beside(t.seconds),
            )
            for t in plan.transfers
        ],
        devices=[
            DeviceReport(
                device=s.device, stages=[s.index], threads=1, cpu_quota=None, compute_s=measured, waiting_s=measured,
                idle_s=measured, predicted_memory_bytes=1.0, peak_memory_bytes=2.0,
            )
            for s in plan.stages
        ],
        error=ErrorSplit(total_s=-0.25, compute_s=-0.2, transfer_s=-0.04, overhead_s=-0.01, overhead_ratio=1.01),
        output=OutputCheck(
            equal=equal, kind="bitwise", max_abs_diff=0.0 if equal else 0.5, repeats_equal=repeats_equal
        ),
        hardware=Hardware(
            cpu="a CPU", physical_cores=1, logical_cores=1, usable_cores=1, memory_bytes=1, system="an OS",
            python="3.11", versions={},
        ),
    )  # fmt: skip


@pytest.fixture(scope="module")
def plan():
    return planner.solve(text_problem())


@pytest.fixture
def plan_file(plan, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(plan.model_dump_json(by_alias=True), encoding="utf-8")
    return path


@pytest.fixture
def run(monkeypatch):
    """Replace the executor by a function that notes its options and returns, or raises, what it is told."""
    seen = {"answer": a_report}

    def execute(plan, **options):
        seen.update(options, plan=plan)
        options["progress"]("a line of progress")
        return seen["answer"](plan)

    monkeypatch.setattr(executor, "execute", execute)
    return seen


@pytest.mark.parametrize(
    ("words", "option", "value"),
    [
        (["--on", "local"], "on", "local"),
        (["--on", "ray"], "on", "ray"),
        (["--repeat", "9"], "repeat", 9),
        (["--warmup", "0"], "warmup", 0),
        (["--timeout", "2 min"], "timeout_s", 120.0),
        (["--seed", "7"], "seed", 7),
        (["--no-check"], "check", False),
        (["--port", "29500"], "port", 29500),
        (["--enforce-memory"], "enforce_memory", True),
        (["--ssh"], "ssh", True),
        (["--hosts", "hosts.yaml"], "hosts", Path("hosts.yaml")),
        ([], "ssh", False),
        ([], "hosts", None),
        ([], "repeat", 5),
        ([], "check", True),
        ([], "port", None),
        ([], "enforce_memory", False),
    ],
)
def test_every_flag_reaches_the_executor(plan, plan_file, run, words, option, value):
    assert main(["execute", str(plan_file), *words]) == 0
    assert run[option] == value
    assert run["plan"] == plan


def test_tables_put_prediction_beside_measurement(plan, plan_file, run, capsys):
    assert main(["execute", str(plan_file)]) == 0
    printed = capsys.readouterr()
    for word in ("predicted", "measured", "latency", "time to first token", "-20.0 %", "equals the single-process run"):
        assert word in printed.out
    for name in {stage.device for stage in plan.stages} | {transfer.purpose for transfer in plan.transfers}:
        assert name in printed.out
    assert printed.err == ""


def test_json_is_one_document(plan_file, run, capsys):
    assert main(["execute", str(plan_file), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["latency_s"]["relative_error"] == pytest.approx(-0.2)
    assert document["output"]["equal"] is True
    assert {"predicted", "median", "spread", "samples"} <= document["stages"][0]["compute_s"].keys()
    assert "hardware" in document


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_output_holds_the_report(plan, plan_file, tmp_path, run, suffix):
    target = tmp_path / f"report{suffix}"
    assert main(["execute", str(plan_file), "-o", str(target)]) == 0
    assert plan.digest() in target.read_text()


@pytest.mark.parametrize("wrong", [{"equal": False}, {"repeats_equal": False}])
def test_a_wrong_result_is_exit_1_and_still_reported(plan_file, tmp_path, run, capsys, wrong):
    run["answer"] = lambda plan: a_report(plan, **wrong)
    target = tmp_path / "report.json"
    assert main(["execute", str(plan_file), "-o", str(target)]) == 1
    assert "DIFFER" in capsys.readouterr().out
    assert target.is_file()


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ExecutionError("killed by signal 9", stage=1, device="server"), 1, ["stage 1", "server", "signal 9"]),
        (MissingDependencyError("torch", "torch", "executing a plan"), 2, ["pip install 'edgeopt[torch]'"]),
        (ModuleNotFoundError("No module named 'psutil'"), 2, ["psutil", "pip install"]),
    ],
)
def test_a_failed_run_writes_nothing_and_says_why(plan_file, tmp_path, run, capsys, error, code, words):
    def fail(plan):
        raise error

    run["answer"] = fail
    target = tmp_path / "report.json"
    assert main(["execute", str(plan_file), "-o", str(target)]) == code
    printed = capsys.readouterr()
    for word in words:
        assert word in printed.err
    assert "try: " in printed.err
    assert "Traceback" not in printed.err
    assert not target.exists()
    assert main(["execute", str(plan_file), "--json"]) == code
    document = json.loads(capsys.readouterr().out)["error"]
    assert document["exit_code"] == code
    if isinstance(error, ExecutionError):
        assert (document["stage"], document["device"]) == (1, "server")


def test_a_full_disk_costs_the_report_but_not_the_figures(plan_file, tmp_path, run, capsys, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "out"
    out.mkdir()
    assert main(["execute", str(plan_file), "-o", str(out / "report.json")]) == 2
    printed = capsys.readouterr()
    assert "latency" in printed.out
    for word in ("No space left on device", "make room", str(out / "report.json")):
        assert word in printed.err
    assert "report written" not in printed.out
    assert not list(out.iterdir())


def test_ctrl_c_is_said_and_is_exit_130(plan_file, run, capsys):
    def interrupt(plan):
        raise KeyboardInterrupt

    run["answer"] = interrupt
    assert main(["execute", str(plan_file)]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"


@pytest.mark.parametrize(
    "words", [["--timeout", "soon"], ["--timeout", "5"], ["--repeat", "many"], ["-o", "no/such/folder/report.json"]]
)
def test_bad_options_are_refused_before_anything_runs(plan_file, run, words):
    assert main(["execute", str(plan_file), *words]) == 2
    assert "plan" not in run
