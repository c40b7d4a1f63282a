"""What goes wrong ends a run in time, with an error that names stage and device, and leaves no process."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from edgeopt.errors import ExecutionError
from edgeopt.executor import execute
from edgeopt.plan import Plan
from tests.edgeopt.executor.plans import toy_plan

torch = pytest.importorskip("torch")
from tests.edgeopt.executor import toy  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.processes]

ROOT = Path(__file__).resolve().parents[3]
LONG = {"rounds": 400, "sleep_s": 0.02}


def workers(driver: int) -> list[psutil.Process]:
    """Worker processes of a driver; they are started in the order of their ranks."""
    return sorted(psutil.Process(driver).children(recursive=True), key=lambda p: (p.create_time(), p.pid))


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Hold that every process started inside has ended, and that their groups are empty."""
    seen: set[int] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            seen.update(p.pid for p in psutil.Process().children(recursive=True))
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    for pid in seen:
        assert not psutil.pid_exists(pid) or not psutil.Process(pid).cmdline()
        with pytest.raises(ProcessLookupError):
            os.killpg(pid, 0)


def fail(
    plan: Plan, timeout_s: float = 30.0, once: Callable[[], None] | None = None, **options: object
) -> ExecutionError:
    """Run a plan that must fail, calling ``once`` when its workers are ready."""

    def progress(line: str) -> None:
        if once is not None and line.startswith("workers ready"):
            once()

    started_s = time.monotonic()
    with nothing_left(), pytest.raises(ExecutionError) as caught:
        execute(
            plan, _command=toy.COMMAND, check=False, timeout_s=timeout_s, progress=progress, **options  # type: ignore[arg-type]
        )  # fmt: skip
    assert time.monotonic() - started_s < timeout_s + 1.5
    return caught.value


def later(seconds: float, action: Callable[[], None]) -> Callable[[], None]:
    return lambda: threading.Timer(seconds, action).start()


@pytest.mark.parametrize(("rank", "stage", "device"), [(0, None, "laptop"), (1, 0, "phone"), (2, 1, "server")])
def test_a_killed_worker(rank: int, stage: int | None, device: str) -> None:
    plan = toy_plan(("phone", 3), ("server", 6), source="laptop", **LONG)
    moment_s = random.Random(rank).uniform(0.0, 1.0)
    error = fail(plan, once=later(moment_s, lambda: workers(os.getpid())[rank].kill()))
    assert (error.stage, error.device) == (stage, device)
    assert "SIGKILL" in error.reason


def test_a_worker_killed_while_starting() -> None:
    plan = toy_plan(("phone", 3), ("server", 6), **LONG)
    later(0.4, lambda: workers(os.getpid())[1].kill())()
    error = fail(plan)
    assert (error.stage, error.device) == (1, "server")
    assert "SIGKILL" in error.reason


def test_a_stopped_worker() -> None:
    plan = toy_plan(("phone", 3), ("server", 6), **LONG)
    error = fail(plan, timeout_s=9.0, once=later(0.2, lambda: workers(os.getpid())[1].suspend()))
    assert (error.stage, error.device) == (1, "server")
    assert "SIGSTOP" in error.reason
    assert "9 s" in error.reason


def test_a_stage_that_never_ends() -> None:
    plan = toy_plan(("phone", 3), ("server", 6), fault="hang", stage=0, round=1)
    error = fail(plan, timeout_s=9.0)
    assert (error.stage, error.device) == (0, "phone")
    assert "compute" in error.reason
    assert "round 1" in error.reason


def test_a_worker_out_of_memory() -> None:
    small = {"server": {"memory": 200e6, "runtime": {"threads": 1}}}
    plan = toy_plan(("phone", 3), ("server", 6), fault="memory", stage=1, devices=small)
    error = fail(plan, enforce_memory=True)
    assert (error.stage, error.device) == (1, "server")
    assert "out of memory" in error.reason


@pytest.mark.root
def test_a_worker_that_the_kernel_ends_for_memory() -> None:
    group = Path(f"/sys/fs/cgroup/memory/edgeopt-test-{os.getpid()}")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(500 << 20))
    except OSError as error:
        pytest.skip(f"no memory control group: {error}")
    try:
        plan = toy_plan(("phone", 3), ("server", 6), fault="memory", stage=1, round=1, sleep_s=0.3)
        error = fail(plan, once=lambda: (group / "cgroup.procs").write_text(str(workers(os.getpid())[1].pid)) and None)
    finally:
        group.rmdir()
    assert (error.stage, error.device) == (1, "server")
    assert "SIGKILL" in error.reason
    assert "memory ran out" in error.reason


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raise", "ValueError: the toy is broken"),
        ("exit", "exit code 7.*a last word"),
        ("shape", "should hold int64 .1, 3., and the program made int64 .1, 5."),
    ],
)
def test_a_worker_that_fails_by_itself(fault: str, words: str) -> None:
    round_index = 2 if fault != "shape" else 1
    plan = toy_plan(("phone", 3), ("server", 6), source="laptop", fault=fault, stage=1, round=round_index)
    error = fail(plan)
    assert (error.stage, error.device) == (1, "server")
    import re

    assert re.search(words, str(error))


def test_a_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        error = fail(toy_plan(("phone", 3), ("server", 6)), port=port)
    assert (error.stage, error.device) == (0, "phone")
    assert f"127.0.0.1:{port}" in error.reason
    assert "in use" in error.reason
    report = execute(toy_plan(("phone", 6)), port=port, check=False, repeat=1, _command=toy.COMMAND)
    assert report.repeat == 1


def test_a_reference_that_dies() -> None:
    with nothing_left(), pytest.raises(ExecutionError, match=r"reference run.*exit code 5"):
        execute(toy_plan(("phone", 6), fault="reference", stage=0), repeat=1, timeout_s=30.0, _command=toy.COMMAND)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_driver(number: signal.Signals, tmp_path: Path) -> None:
    script = (
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs inherit it ignored
        "from edgeopt.executor import execute\n"
        "from tests.edgeopt.executor.plans import toy_plan\n"
        "from tests.edgeopt.executor import toy\n"
        "plan = toy_plan(('phone', 3), ('server', 6), rounds=400, sleep_s=0.02)\n"
        "execute(plan, check=False, _command=toy.COMMAND, progress=lambda line: print(line, flush=True))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    driver = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert driver.stdout is not None
    for line in driver.stdout:
        if line.startswith("workers ready"):
            break
    pids = [process.pid for process in workers(driver.pid)]
    assert len(pids) == 2
    driver.send_signal(number)
    _, words = driver.communicate(timeout=10)
    assert driver.returncode != 0
    assert number != signal.SIGINT or "KeyboardInterrupt" in words
    deadline = time.monotonic() + 5
    while any(map(_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_alive, pids))
    assert not list(tmp_path.iterdir())


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
