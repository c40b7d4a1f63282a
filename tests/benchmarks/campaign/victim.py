"""``edgeopt execute`` of a toy program that something happens to: the command line in this process, a fault on a timer.

Run as ``python victim.py FAULT PLAN.json …``; FAULT is JSON: ``kind`` (``kill``, ``stop``, ``down``, ``slow``,
``interrupt`` or ``none``), ``rank``, and ``after_s`` seconds from ``moment``: ``main`` (the command begins),
``starting`` (the workers do), ``workers ready`` (the request does) or ``checking`` (the check does). When the fault has
happened a line with :data:`STRUCK` says so: one that came too late is no trial of anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from edgeopt import executor
from edgeopt.cli import main
from edgeopt.errors import ExecutionError
from edgeopt.executor.launchers.emulated import Emulated

__all__ = ["STRUCK"]

STRUCK = "the fault has struck"
#: How long a link is down, and a worker stopped.
DOWN_S, STOPPED_S = 5.0, 10.0
#: How long a worker may take to appear once the driver says that it starts them.
_APPEARS_S = 10.0

_TOY = Path(__file__).resolve().parents[3] / "tests/edgeopt/executor/toy.py"
_COMMAND = (sys.executable, "-P", str(_TOY))  # as toy.COMMAND, which would load torch here
_labs: list[Any] = []


def _worker(rank: int) -> psutil.Process:
    """Worker of a rank: they are started in that order, and the relay is none of them."""
    deadline = time.monotonic() + _APPEARS_S
    while True:
        found = []
        for process in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and str(_TOY) in process.cmdline():
                    found.append(process)
        if rank < len(found) or time.monotonic() > deadline:
            return sorted(found, key=lambda p: (p.create_time(), p.pid))[rank]
        time.sleep(0.01)


def _act(fault: dict[str, Any]) -> None:
    kind = fault["kind"]
    with contextlib.suppress(psutil.Error, IndexError, ExecutionError, OSError):  # the run was over before
        if kind == "kill":
            _worker(fault["rank"]).kill()
            _say_struck()
        elif kind == "stop":
            worker = _worker(fault["rank"])
            worker.suspend()
            _say_struck()
            time.sleep(STOPPED_S)
            worker.resume()
        elif kind in ("down", "slow"):
            lab = _labs[-1]
            (wire,) = lab.wires
            factor = 0.1 if kind == "slow" else 0.0
            lab.set_rate(wire, tuple(factor * rate for rate in wire.rates))
            _say_struck()
            if kind == "down":
                time.sleep(DOWN_S)
                lab.set_rate(wire, wire.rates)
        elif kind == "interrupt":
            _say_struck()
            os.kill(os.getpid(), signal.SIGINT)


def _say_struck() -> None:
    os.write(2, f"{STRUCK}\n".encode())  # whole, whatever the main thread is writing


def _set_off(fault: dict[str, Any]) -> None:
    timer = threading.Timer(fault["after_s"], _act, [fault])
    timer.daemon = True
    timer.start()


def _arm(fault: dict[str, Any]) -> None:
    """Make the command line run the toy, and let the fault happen in time."""
    execute, enter = executor.execute, Emulated.__enter__

    def noting(self: Emulated) -> Emulated:
        entered = enter(self)
        _labs.append(self.lab)
        return entered

    def with_fault(plan: Any, **options: Any) -> Any:
        armed = fault["kind"] != "none"

        def progress(line: str) -> None:
            nonlocal armed
            print(line, file=sys.stderr, flush=True)
            if armed and line.startswith(fault["moment"]):
                armed = False
                _set_off(fault)

        return execute(plan, **{**options, "progress": progress, "_command": _COMMAND})

    executor.execute = with_fault
    Emulated.__enter__ = noting
    if fault["kind"] != "none" and fault["moment"] == "main":
        _set_off(fault)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process inherits it ignored
    _arm(json.loads(sys.argv[1]))
    sys.exit(main(["execute", *sys.argv[2:]]))
