"""Plans on emulated hosts: links deliver what the network says, devices are as slow as asked, nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from edgeopt.errors import InputError
from edgeopt.executor import execute, netlab
from edgeopt.executor.launchers.emulated import wires_of
from edgeopt.executor.layout import Layout
from edgeopt.executor.netlab import Lab, Wire
from edgeopt.plan import Plan
from edgeopt.report.data import Report
from tests.edgeopt.executor.plans import toy_plan
from tests.edgeopt.factories import network

torch = pytest.importorskip("torch")
from tests.edgeopt.executor import toy  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
LACK = netlab.missing()
pytestmark = [
    pytest.mark.torch,
    pytest.mark.processes,
    pytest.mark.root,
    pytest.mark.skipif(LACK is not None, reason=f"no emulated hosts here: {LACK}"),
]

MBIT = 1e6 / 8


def with_network(plan: Plan, **fields: object) -> Plan:
    return plan.model_copy(update={"problem": plan.problem.model_copy(update={"network": network(**fields)})})  # type: ignore[arg-type]


def run(plan: Plan, **options: object) -> Report:
    return execute(plan, on="emulated", _command=toy.COMMAND, **({"timeout_s": 60.0, "repeat": 3} | options))  # type: ignore[arg-type]


def namespaces() -> set[str]:
    """Network namespaces that any process of this machine is in."""
    found = set()
    for process in psutil.process_iter():
        try:
            found.add(os.readlink(f"/proc/{process.pid}/ns/net"))
        except OSError:
            continue
    return found


def relays() -> list[int]:
    return [p.pid for p in psutil.process_iter(["cmdline"]) if any("relay.py" in c for c in p.info["cmdline"] or [])]


def test_result_and_latency_follow_the_network() -> None:
    before = namespaces()
    plan = with_network(toy_plan(("phone", 2), ("server", 6), rounds=4), rate=20 * MBIT, latency=0.02)
    report = run(plan)
    assert report.emulated
    assert report.launcher == "emulated"
    assert report.output is not None
    assert report.output.equal
    for transfer in report.transfers:
        assert transfer.seconds.median / transfer.messages == pytest.approx(0.02, rel=0.35)
    assert namespaces() == before
    assert relays() == []


def test_a_large_message_takes_its_bytes_over_the_rate() -> None:
    rows = 4000  # of 48 floats: 768 kB
    plan = toy_plan(("phone", 2), ("server", 6), rounds=1)
    workload = plan.problem.workload.model_copy(update={"prompt_tokens": rows})
    plan = plan.model_copy(update={"problem": plan.problem.model_copy(update={"workload": workload})})
    plan = with_network(plan, rate=40 * MBIT, latency=0.002)
    report = run(plan, repeat=5)
    cut = next(t for t in report.transfers if t.purpose == "cut")
    assert cut.bytes == rows * toy.WIDTH * 4 + 2
    assert cut.seconds.median == pytest.approx(0.002 + cut.bytes / (40 * MBIT), rel=0.1)


def test_links_differ_by_direction_and_absent_ones_carry_control_only() -> None:
    plan = toy_plan(("laptop", 2), ("server", 6), source="laptop", rounds=2)
    links = [
        {"from": "laptop", "to": "server", "rate": 1e6, "latency": 0.001},
        {"from": "server", "to": "laptop", "rate": 2e6, "latency": 0.03},
    ]
    plan = with_network(plan, default=None, links=links)
    wires = wires_of(plan, Layout.of(plan))
    assert wires == [Wire("laptop", "server", (1e6, 2e6), (0.001, 0.03))]
    report = run(plan)
    seconds = {t.purpose: t.seconds.median / t.messages for t in report.transfers}
    assert seconds["loop"] == pytest.approx(0.03, rel=0.3)
    assert seconds["cut"] < 0.015
    three = with_network(toy_plan(("phone", 2), ("server", 4), ("laptop", 6)), default=None, links=links)
    assert {(w.a, w.b): w.rates for w in wires_of(three, Layout.of(three))}[("phone", "server")] == (125e6, 125e6)


def reserved(plan: Plan, shares: dict[str, float], rate: float) -> Plan:
    """Every transfer holds its share of a medium that all links are part of."""
    plan = with_network(
        plan,
        media={"air": {"sharing": "reserved"}},
        default={"rate": rate, "latency": 0.002, "medium": "air"},
    )
    transfers = [
        one.model_copy(
            update={
                "medium": "air", "share": shares[one.purpose], "rate_bytes_per_s": shares[one.purpose] * rate,
                "bytes": 1000.0 if one.purpose == "loop" else 100.0,
            }
        )
        for one in plan.transfers
    ]  # fmt: skip
    return plan.model_copy(update={"transfers": transfers})


def test_a_reserved_share_is_the_rate_of_its_link() -> None:
    plan = toy_plan(("laptop", 2), ("server", 4), ("phone", 6), source="laptop", rounds=2)
    plan = reserved(plan, {"cut": 0.25, "loop": 0.5, "output": 0.125}, 8e6)
    rates = {(wire.a, wire.b): wire.rates for wire in wires_of(plan, Layout.of(plan))}
    assert rates["laptop", "server"] == (2e6, 8e6), "nothing goes back, so nothing is reserved there"
    assert rates["server", "phone"] == (2e6, 8e6)
    # 1000 bytes at 4 MB/s and 100 at 1 MB/s share the way from phone to laptop: 350 us for 1100 bytes.
    assert rates["laptop", "phone"] == (8e6, pytest.approx(1100 / 350e-6))


def test_an_allocation_is_enforced() -> None:
    rows = 4000  # 768 kB at a quarter of 160 Mbit/s
    plan = toy_plan(("phone", 2), ("server", 6), rounds=1)
    workload = plan.problem.workload.model_copy(update={"prompt_tokens": rows})
    plan = plan.model_copy(update={"problem": plan.problem.model_copy(update={"workload": workload})})
    report = run(reserved(plan, {"cut": 0.25, "loop": 0.5, "output": 0.25}, 160 * MBIT), check=False)
    cut = next(t for t in report.transfers if t.purpose == "cut")
    assert cut.seconds.median == pytest.approx(0.002 + cut.bytes / (40 * MBIT), rel=0.1)


def test_a_request_begins_when_all_are_ready_and_not_before() -> None:
    """Hosts far from each other do not delay what a near source sends: nobody is still on the way out of a barrier."""
    near, far = {"rate": 1e7, "latency": 0.001}, {"rate": 1e7, "latency": 0.15}
    links = [{"between": ["laptop", "phone"], **near}, {"between": ["laptop", "server"], **near},
             {"between": ["phone", "server"], **far}]  # fmt: skip
    plan = with_network(toy_plan(("phone", 3), ("server", 6), source="laptop", rounds=1), default=None, links=links)
    report = run(plan, check=False, repeat=4)
    seconds = {moved.purpose: moved.seconds.median for moved in report.transfers}
    assert seconds["input"] < 0.05
    assert seconds["cut"] == pytest.approx(0.15, rel=0.3)


def test_a_quota_paces_a_device() -> None:
    slow = {"server": {"runtime": {"threads": 1, "cpu_quota": 0.25}}}
    plan = with_network(
        toy_plan(("phone", 3), ("server", 6), rounds=3, spin_s=0.004, devices=slow), rate=1e8, latency=0.0005
    )
    report = run(plan, check=False, repeat=6)
    fast, paced = (min(stage.compute_s.samples) for stage in report.stages)  # other work on this machine only adds
    assert fast >= 3 * 0.004
    assert 4 * 3 * 0.004 <= paced <= 1.5 * 4 * 3 * 0.004
    assert any("paced" in note for note in report.notes)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_the_driver_ends(number: signal.Signals) -> None:
    before = namespaces()
    script = (
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from edgeopt.executor import execute\n"
        "from tests.edgeopt.executor.plans import toy_plan\n"
        "from tests.edgeopt.executor import toy\n"
        "plan = toy_plan(('phone', 3), ('server', 6), rounds=400, sleep_s=0.02)\n"
        "execute(plan, on='emulated', check=False, _command=toy.COMMAND,\n"
        "        progress=lambda line: print(line, flush=True))\n"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert driver.stdout is not None
    for line in driver.stdout:
        if line.startswith("workers ready"):
            break
    assert len(namespaces() - before) == 2
    driver.send_signal(number)
    driver.wait(10)
    deadline = time.monotonic() + 5
    while namespaces() - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert namespaces() - before == set()
    assert relays() == []


def test_a_lab_says_which_command_failed() -> None:
    with (
        pytest.raises(Exception, match=r"link add w0|already exists|File exists"),
        Lab(["a", "b"], [Wire("a", "b", (1e6, 1e6), (0, 0)), Wire("a", "b", (1e6, 1e6), (0, 0))]) as lab,
    ):
        lab._run("a", "ip", "link add w0 type dummy")


def test_without_the_means_it_says_what_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeopt.executor.launchers.emulated.missing", lambda: "making network namespaces needs root")
    with pytest.raises(InputError, match=r"needs root.*--on local"):
        run(toy_plan(("phone", 6)))
