"""``edgeopt execute`` of a toy program that something happens to: the command line in this process, a fault on a timer.

Run as ``python victim.py FAULT PLAN.json …``; FAULT is JSON: ``kind`` (``kill``, ``stop``, ``down``, ``slow``,
``interrupt`` or ``none``), ``after_s`` from the moment the workers are ready (``interrupt``: from the start), ``rank``.
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
from tests.edgeopt.executor import toy

#: How long a link is down, and a worker stopped.
DOWN_S, STOPPED_S = 5.0, 10.0

_labs: list[Any] = []


def _worker(rank: int) -> psutil.Process:
    """Worker of a rank: they are started in that order, and the relay is none of them."""
    children = [p for p in psutil.Process().children() if any("toy.py" in word for word in p.cmdline())]
    return sorted(children, key=lambda p: (p.create_time(), p.pid))[rank]


def _act(fault: dict[str, Any]) -> None:
    kind = fault["kind"]
    with contextlib.suppress(psutil.Error, IndexError, ExecutionError, OSError):  # the run was over before
        if kind == "kill":
            _worker(fault["rank"]).kill()
        elif kind == "stop":
            worker = _worker(fault["rank"])
            worker.suspend()
            time.sleep(STOPPED_S)
            worker.resume()
        elif kind in ("down", "slow"):
            lab = _labs[-1]
            (wire,) = lab.wires
            factor = 0.1 if kind == "slow" else 0.0
            lab.set_rate(wire, tuple(factor * rate for rate in wire.rates))
            if kind == "down":
                time.sleep(DOWN_S)
                lab.set_rate(wire, wire.rates)
        elif kind == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)


def _arm(fault: dict[str, Any]) -> None:
    """Make the command line run the toy, and let the fault happen in time."""
    execute, enter = executor.execute, Emulated.__enter__
    starts_at = "starting" if fault["kind"] == "interrupt" else "workers ready"

    def noting(self: Emulated) -> Emulated:
        entered = enter(self)
        _labs.append(self.lab)
        return entered

    def with_fault(plan: Any, **options: Any) -> Any:
        armed = fault["kind"] != "none"

        def progress(line: str) -> None:
            nonlocal armed
            print(line, file=sys.stderr, flush=True)
            if armed and line.startswith(starts_at):
                armed = False
                timer = threading.Timer(fault["after_s"], _act, [fault])
                timer.daemon = True
                timer.start()

        return execute(plan, **{**options, "progress": progress, "_command": toy.COMMAND})

    executor.execute = with_fault
    Emulated.__enter__ = noting


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process inherits it ignored
    _arm(json.loads(sys.argv[1]))
    sys.exit(main(["execute", *sys.argv[2:], "--on", "emulated"]))
