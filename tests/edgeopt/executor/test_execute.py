"""Plans run by real worker processes: results equal the reference, times add up, the report says so."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from edgeopt.errors import InputError
from edgeopt.executor import execute
from edgeopt.executor.quota import cpu_quota
from edgeopt.plan import Plan
from edgeopt.report.data import Report
from tests.edgeopt.executor.plans import toy_plan

torch = pytest.importorskip("torch")
from tests.edgeopt.executor import toy  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.processes]


def run(plan: Plan, **options: object) -> Report:
    return execute(plan, _command=toy.COMMAND, **({"timeout_s": 60.0, "repeat": 2} | options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("places", "source", "purposes"),
    [
        ((("phone", 6),), None, []),
        ((("laptop", 6),), "phone", ["input", "output"]),
        ((("phone", 2), ("server", 6)), None, ["cut", "loop", "output"]),
        ((("laptop", 1), ("server", 4), ("phone", 6)), "phone", ["input", "cut", "cut", "loop"]),
        (
            (("phone", 1), ("server", 3), ("phone", 4), ("server", 6)),
            "laptop",
            ["input", *["cut"] * 3, "loop", "output"],
        ),
        ((("phone", 1), ("phone", 3), ("server", 6)), None, ["cut", "loop", "output"]),
    ],
    ids=["alone", "source-without-stage", "two", "three", "reuse-many", "neighbours-on-one-device"],
)
def test_result_equals_the_reference(places: tuple, source: str | None, purposes: list[str]) -> None:
    plan = toy_plan(*places, source=source, rounds=4)
    report = run(plan, seed=3)
    assert report.output is not None
    assert report.output.equal
    assert report.output.repeats_equal
    assert [transfer.purpose for transfer in report.transfers] == purposes
    assert [stage.index for stage in report.stages] == list(range(len(places)))
    assert report.devices[0].device == (source or "phone")
    for transfer in report.transfers:
        rows = {"input": 10, "cut": 10 + 3, "loop": 3, "output": 4}[transfer.purpose]
        messages = {"input": 1, "cut": 4, "loop": 3, "output": 1}[transfer.purpose]
        width = 8 if transfer.purpose != "cut" else 4 * toy.WIDTH
        assert transfer.messages == messages
        assert transfer.bytes == rows * width + (2 * messages if transfer.purpose == "cut" else 0)
        assert all(0 < seconds < 5 for seconds in transfer.seconds.samples)
    for sample, latency_s in enumerate(report.latency_s.samples):
        known = sum(stage.compute_s.samples[sample] for stage in report.stages)
        known += sum(transfer.seconds.samples[sample] for transfer in report.transfers)
        assert known <= latency_s * (1 + 1e-6) + 1e-5


def test_a_wrong_result_is_reported() -> None:
    report = run(toy_plan(("phone", 2), ("server", 6), reference_offset=2))
    assert report.output is not None
    assert not report.output.equal
    assert report.output.max_abs_diff == 2


def test_stages_take_what_they_sleep_and_overhead_is_small() -> None:
    plan = toy_plan(("phone", 3), ("server", 6), rounds=5, sleep_s=0.02)
    report = run(plan, check=False, repeat=4)
    assert report.output is None
    for stage in report.stages:
        assert 0.1 <= stage.compute_s.median < 0.15
        assert 0.02 <= stage.first_round_s.median < 0.03
    assert report.latency_s.median >= 0.2
    assert report.error.overhead_ratio < 1.25  # about 1.01 on a quiet machine
    assert report.metrics["ttft_s"].predicted == 0.05
    assert 0.04 <= report.metrics["ttft_s"].median < 0.1
    assert 0.04 <= report.metrics["tpot_s"].median < 0.1
    assert report.metrics["tokens_per_s"].median == pytest.approx(5 / report.latency_s.median, rel=0.5)
    split = report.error
    assert split.total_s == pytest.approx(split.compute_s + split.transfer_s + split.overhead_s)
    assert split.total_s == pytest.approx(0.1 - report.latency_s.median)
    assert report.plan_digest == plan.digest()
    again = Report.model_validate_json(report.model_dump_json())
    assert again == report


def test_two_runs_at_once() -> None:
    plans = [toy_plan(("phone", 2), ("server", 6)), toy_plan(("laptop", 3), ("server", 6))]
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(run, plans))
    assert all(report.output is not None and report.output.equal for report in reports)
    assert len(reports[1].devices) == 3


def test_workers_listen_on_the_loopback_address_only() -> None:
    seen: set[str] = set()

    def look(line: str) -> None:
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):  # it may have ended
                seen.update(c.laddr.ip for c in child.net_connections("inet") if c.status == psutil.CONN_LISTEN)

    run(toy_plan(("phone", 2), ("server", 6), rounds=40), progress=look, check=False)
    assert seen == {"127.0.0.1"}


@pytest.mark.root
def test_a_quota_slows_a_device() -> None:
    try:
        with cpu_quota("probe", 0.5, 1):
            pass
    except InputError as error:
        pytest.skip(str(error))
    quota = {"server": {"runtime": {"threads": 1, "cpu_quota": 0.25}}}
    plan = toy_plan(("phone", 3), ("server", 6), rounds=2, devices=quota, spin_s=0.1)
    report = run(plan, check=False)
    # Two rounds of 0.1 s of CPU time: 0.8 s at a quarter of a core, 0.2 s without a quota. The stage without one is no
    # yardstick, since a busy neighbour stretches it as well.
    held = report.stages[1].compute_s.median
    assert held > 0.6
    assert report.devices[1].cpu_quota == 0.25
    assert not any("faster than the quota" in note for note in report.notes)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"on": "moon"}, "on"),
        ({"repeat": 0}, "repeat"),
        ({"warmup": -1}, "warmup"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"port": 70000}, "port"),
    ],
)
def test_arguments_are_checked(options: dict[str, object], field: str) -> None:
    with pytest.raises(InputError, match=field):
        run(toy_plan(("phone", 6)), **options)


def test_the_driver_loads_no_torch() -> None:
    code = "import sys, edgeopt.executor, edgeopt.report.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
