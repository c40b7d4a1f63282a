"""Several hosts: what a hosts file may say, and runs whose workers call back, started by torchrun, Python and hand."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgeopt import planner
from edgeopt.cli import main
from edgeopt.errors import ExecutionError, InputError
from edgeopt.executor import execute
from edgeopt.executor.channel import PROTOCOL, TOKEN
from edgeopt.executor.hosts import load_hosts
from edgeopt.executor.meeting import Meeting
from edgeopt.executor.messages import Hello
from edgeopt.plan import Plan
from edgeopt.profiles.problem import Constraints
from edgeopt.report.data import Report
from tests.edgeopt.executor.hosting import hosts_file
from tests.edgeopt.executor.plans import toy_plan
from tests.edgeopt.programs.conftest import diffusion_plan, language_plan  # noqa: F401 (fixtures)

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("devices: {phone: {address: 10.0.0.2}}", ["coordinator", "is missing"]),
        ("coordinator: 10.0.0.1", ["devices", "is missing"]),
        ("coordinator: 0.0.0.0\ndevices: {phone: {address: 10.0.0.2}}", ["coordinator", "every interface"]),
        ("coordinator: '::'\ndevices: {phone: {address: 10.0.0.2}}", ["coordinator", "every interface"]),
        ("coordinator: 10.0.0.1:99999\ndevices: {phone: {address: 10.0.0.2}}", ["coordinator", "is not an address"]),
        ("coordinator: 10.0.0.1\ndevices: {phone: {address: 0.0.0.0}}", ["devices.phone.address", "every interface"]),
        ("coordinator: 127.0.0.1\ndevices: {phone: {address: 10.0.0.2}}", ["coordinator", "cannot be reached from"]),
        ("coordinator: 10.0.0.1\ndevices: {fone: {address: 10.0.0.2}}", ["devices", "'phone'", "phone: {address: …}"]),
        ("coordinator: 10.0.0.1\ndevices: {phone: {adress: 10.0.0.2}}", ["adress", "address"]),
        ("coordinator: 10.0.0.1\ndevices: {phone: {address: '-oProxyCommand=x'}}", ["devices.phone.address"]),
        ("coordinator: 10.0.0.1\ndevices: {phone: {address: '10.0.0.2; reboot'}}", ["devices.phone.address"]),
        ("coordinator: 10.0.0.1\ndevices: {phone: {address: a, user: '-l root'}}", ["devices.phone.user"]),
        ("coordinator: 10.0.0.1\ndevices: {phone: {address: a, ssh_port: 0}}", ["devices.phone.ssh_port"]),
        ("coordinator: 10.0.0.1\ndevices: {phone: {address: a, python: '-c x'}}", ["devices.phone.python"]),
        ("- phone", ["a list, not a mapping"]),
    ],
)
def test_a_wrong_hosts_file_is_refused_with_field_and_mend(text: str, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "hosts.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_hosts(path, ["phone"])
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
    assert "hosts.yaml" in str(caught.value)


def test_the_command_says_what_is_missing(tmp_path: Path, capsys) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(toy_plan(("phone", 6)).model_dump_json(by_alias=True))
    assert main(["execute", str(plan), "--on", "torchrun"]) == 2
    assert "hosts file" in capsys.readouterr().err
    assert main(["execute", str(plan), "--on", "torchrun", "--hosts", str(tmp_path / "none.yaml")]) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch) -> Path:
    """Let ``ssh`` run its command here, and note the words it was called with."""
    log, program = tmp_path / "ssh.log", tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {log}\nfor last; do :; done\nexec sh -c "$last"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return log


@contextlib.contextmanager
def nothing_left(within_s: float = 10.0):
    """Hold that what was started inside is gone, soon after."""
    seen: dict[int, psutil.Process] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            seen.update({p.pid: p for p in psutil.Process().children(recursive=True)})
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    assert seen
    gone_by = time.monotonic() + within_s
    while left := [p for p in seen.values() if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]:
        assert time.monotonic() < gone_by, [p.cmdline() for p in left]
        time.sleep(0.05)


def run(plan: Plan, hosts: Path, **options: Any) -> Report:
    from tests.edgeopt.executor import toy

    words = {"on": "torchrun", "ssh": True, "repeat": 2, "timeout_s": 100.0, "_command": toy.COMMAND} | options
    return execute(plan, hosts=hosts, **words)


@pytest.mark.torch
@pytest.mark.processes
def test_torchrun_runs_a_language_model(language_plan, tmp_path: Path, ssh: Path) -> None:  # noqa: F811
    pytest.importorskip("transformers")
    problem = language_plan([2, 6]).problem
    pins = Constraints(source="d0", pin={"embed": "d0", "block.1": "d1", "head": "d1"})
    plan = planner.solve(problem.model_copy(update={"constraints": pins}), strategy="pipeline")
    from edgeopt.executor.launch import COMMAND

    with nothing_left():
        report = run(plan, hosts_file(tmp_path, "d0", "d1"), repeat=1, _command=COMMAND)
    assert report.output is not None
    assert report.output.equal
    assert report.output.kind == "tokens"
    assert (report.launcher, report.emulated) == ("torchrun", False)
    assert any("d0 on 127.0.0.1, d1 on 127.0.0.2" in note for note in report.notes)
    (called,) = ssh.read_text().splitlines()[:1]
    assert "BatchMode=yes" in called
    assert "torch.distributed.run --nnodes=2 --node-rank=1" in ssh.read_text()
    assert "127.0.0.2" in called


@pytest.mark.torch
@pytest.mark.processes
def test_torchrun_runs_a_diffusion_model(diffusion_plan, tmp_path: Path, ssh: Path) -> None:  # noqa: F811
    pytest.importorskip("diffusers")
    plan = diffusion_plan([1, 3, 7, 8], [None, "small", "large", None], steps=6)
    stages = [
        stage.model_copy(update={"device": name})
        for stage, name in zip(plan.stages, ["d0", "d0", "d1", "d0"], strict=True)
    ]
    from edgeopt.executor.launch import COMMAND

    hosts = hosts_file(tmp_path, "d0", "d1")
    with nothing_left():
        report = run(plan.model_copy(update={"stages": stages}), hosts, repeat=1, warmup=0, _command=COMMAND)
    assert report.output is not None
    assert (report.output.equal, report.output.kind, report.output.max_abs_diff) == (True, "bitwise", 0)
    assert [device.stages for device in report.devices] == [[0, 1, 3], [2]]


@pytest.mark.torch
@pytest.mark.processes
def test_torchrun_runs_parties_that_talk_freely(tmp_path: Path, ssh: Path) -> None:
    from tests.edgeopt.executor import toy_parties

    names = ("phone", "laptop", "server")
    plan = toy_parties.parties_plan(*names)
    with nothing_left():
        report = run(plan, hosts_file(tmp_path, *names), warmup=0, seed=3, _command=toy_parties.COMMAND)
    assert report.output is not None
    assert report.output.equal
    assert report.output.repeats_equal
    mixed = [moved for moved in report.transfers if moved.purpose == "mix"]
    assert {moved.messages for moved in mixed} == {toy_parties.ROUNDS}
    assert len(mixed) == 6
    assert (report.launcher, ssh.read_text().count("torch.distributed.run --nnodes=3")) == ("torchrun", 2)


@pytest.mark.torch
@pytest.mark.processes
def test_printed_commands_typed_by_hand_and_where_workers_listen(tmp_path: Path) -> None:
    from tests.edgeopt.executor import toy

    typed: list[subprocess.Popen[bytes]] = []
    listening: set[str] = set()

    def type_them(text: str) -> None:
        commands = [line for line in text.splitlines() if line.startswith(TOKEN)]
        token = commands[0].partition("=")[2].split()[0]
        wrong = [
            commands[1].replace(token, "0" * 32),
            commands[1].replace("--device server", "--device fridge"),
            commands[1].partition(" ")[2],
        ]

        def type_all() -> None:
            for command in wrong:
                command = command.replace(shlex.join(toy.COMMAND[1:]), "-m edgeopt.executor.worker")  # starts faster
                done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
                refused.append((done.returncode, done.stderr))
            typed.extend(subprocess.Popen(["sh", "-c", command]) for command in commands)

        threading.Thread(target=type_all).start()

    def look(line: str) -> None:
        if line.startswith("workers ready"):  # and wait for the word to begin
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    listening.update(c.laddr.ip for c in child.net_connections("inet") if c.status == "LISTEN")

    refused: list[tuple[int, str]] = []
    hosts = hosts_file(tmp_path, "phone", "server", torchrun=False)
    with nothing_left():
        plan = toy_plan(("phone", 2), ("server", 6))
        report = run(plan, hosts, ssh=False, check=False, announce=type_them, progress=look)
        assert [process.wait(10) for process in typed] == [0, 0]
    assert len(report.latency_s.samples) == 2
    assert listening == {"127.0.0.1", "127.0.0.2"}
    assert [code for code, _ in refused] == [1, 1, 1]
    for (_, said), words in zip(
        refused, ["the token is another", "'fridge' has no part in this plan", "EDGEOPT_TOKEN is not set"], strict=True
    ):
        assert words in said
        assert "Traceback" not in said


@pytest.mark.torch
@pytest.mark.processes
def test_a_worker_of_torchrun_that_is_killed(tmp_path: Path, ssh: Path) -> None:
    plan = toy_plan(("phone", 3), ("server", 6), rounds=2000, sleep_s=0.02)

    def progress(line: str) -> None:
        if line.startswith("workers ready"):
            victims = [p for p in psutil.Process().children(recursive=True) if _is_worker(p, "server")]
            threading.Timer(0.3, victims[0].kill).start()

    with nothing_left(), pytest.raises(ExecutionError) as caught:
        run(plan, hosts_file(tmp_path, "phone", "server"), check=False, progress=progress)
    assert (caught.value.stage, caught.value.device) == (1, "server")
    assert "closed" in caught.value.reason or "exit code" in caught.value.reason


@pytest.mark.parametrize(
    ("policy", "act", "words"),
    [("retry", "kill", "connection to it closed|exit code"), ("replan", "suspend", "no sign of life")],
)
@pytest.mark.torch
@pytest.mark.processes
def test_a_run_on_hosts_gets_over_a_lost_worker(policy: str, act: str, words: str, tmp_path: Path, ssh: Path) -> None:
    plan = toy_plan(("phone", 3), ("server", 6), rounds=40, sleep_s=0.02)
    armed = True

    def progress(line: str) -> None:
        nonlocal armed
        if armed and line.startswith("workers ready"):
            armed = False
            victims = [p for p in psutil.Process().children(recursive=True) if _is_worker(p, "server")]
            threading.Timer(0.3, getattr(victims[0], act)).start()

    # The problem has a laptop, too, which would be of use: but nobody knows which machine it is.
    hosts = hosts_file(tmp_path, "phone", "server", torchrun=False)
    with nothing_left():
        report = run(
            plan, hosts, repeat=1, warmup=0, on_fault=policy, stall_s=5.0, timeout_s=200.0, progress=progress
        )  # fmt: skip
    assert report.output is not None
    assert report.output.equal
    (recovery,) = report.recoveries
    assert (recovery.policy, recovery.device, recovery.stage, recovery.equal) == (policy, "server", 1, True)
    assert re.search(words, recovery.reason)
    assert recovery.devices == (["phone", "server"] if policy == "retry" else ["phone"])
    assert [device.device for device in report.devices] == recovery.devices
    assert ssh.read_text().count("--device server") == (3 if policy == "retry" else 1)


def _is_worker(process: psutil.Process, device: str) -> bool:
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        at = words.index("--device") if "--device" in words else None
        return at is not None and words[at + 1] == device and "torch.distributed.run" not in words
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("moment", ["starting", "workers ready"])
@pytest.mark.torch
@pytest.mark.processes
def test_nothing_outlives_the_coordinator(number: signal.Signals, moment: str, tmp_path: Path, ssh: Path) -> None:
    hosts = hosts_file(tmp_path, "phone", "server", torchrun=moment == "starting")
    script = (
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path\n"
        "from edgeopt.executor import execute\n"
        "from tests.edgeopt.executor.plans import toy_plan\n"
        "from tests.edgeopt.executor import toy\n"
        "plan = toy_plan(('phone', 3), ('server', 6), rounds=2000, sleep_s=0.02)\n"
        "say = lambda line: print(line, flush=True)\n"
        "say('starting')\n"
        f"execute(plan, on='torchrun', hosts=Path({str(hosts)!r}), ssh=True, check=False, _command=toy.COMMAND,"
        " progress=say)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "solvers")])}
    with nothing_left():
        driver = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
        assert driver.stdout is not None
        for line in driver.stdout:
            if line.startswith(moment):
                break
        deadline = time.monotonic() + 60
        while moment == "starting" and not _has_torchrun(driver.pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        driver.send_signal(number)
        driver.communicate(timeout=20)
    assert driver.returncode != 0


def _has_torchrun(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return any("torch.distributed.run" in p.cmdline() for p in psutil.Process(pid).children(recursive=True))
    return False


def test_a_device_that_never_calls_is_named(tmp_path: Path) -> None:
    said: list[str] = []
    hosts = hosts_file(tmp_path, "phone", "server")
    with pytest.raises(ExecutionError) as caught:
        execute(
            toy_plan(("phone", 2), ("server", 6)), on="torchrun", hosts=hosts, timeout_s=0.5, announce=said.append
        )  # fmt: skip
    assert caught.value.device == "phone"
    assert "did not call within 0.5 s (nor did server)" in caught.value.reason
    assert "# server, on 127.0.0.2" in said[0]
    assert "torch.distributed.run --nnodes=2 --node-rank=1" in said[0]


def test_ssh_that_fails_ends_the_run_with_its_words(tmp_path: Path, monkeypatch) -> None:
    program = tmp_path / "ssh"
    program.write_text("#!/bin/sh\necho 'Permission denied (publickey).' >&2\nexit 255\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    entries = {name: {"address": address} for name, address in (("phone", "127.0.0.2"), ("server", "127.0.0.3"))}
    with nothing_left(), pytest.raises(ExecutionError) as caught:
        run(toy_plan(("phone", 2), ("server", 6)), hosts_file(tmp_path, devices=entries), timeout_s=20.0)
    assert "exit code 255" in caught.value.reason
    assert "Permission denied" in caught.value.reason


def test_a_worker_of_another_version_is_refused_on_both_sides(tmp_path: Path) -> None:
    refused: list[dict[str, Any]] = []

    def call(text: str) -> None:
        words = next(line for line in text.splitlines() if line.startswith(TOKEN)).split()
        host, port = words[words.index("--join") + 1].split(":")
        hello = Hello(device="phone", version="0.0.1", address="127.0.0.1", port=1, pid=1, machine="m").model_dump()

        def talk() -> None:
            token = words[0].partition("=")[2]
            meeting = Meeting.connect(host, int(port), token, hello, time.monotonic() + 10, protocol=PROTOCOL)
            with contextlib.closing(meeting):
                refused.append(meeting.receive())

        threads.append(threading.Thread(target=talk))
        threads[0].start()

    threads: list[threading.Thread] = []
    with pytest.raises(ExecutionError, match=r"'phone': it runs edgeopt 0\.0\.1 and the coordinator .*same version"):
        execute(
            toy_plan(("phone", 6)), on="torchrun", hosts=hosts_file(tmp_path, "phone"), timeout_s=20, announce=call
        )  # fmt: skip
    threads[0].join()
    assert "install the same version" in refused[0]["refused"]
