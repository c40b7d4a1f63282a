"""One run of ``edgeopt execute`` that something happens to: how it ended, and what it left.

It is the command line in a process of its own (:mod:`tests.benchmarks.campaign.victim`), with a folder for its files
and a mark in its environment, which everything it starts inherits.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from edgeopt.report.data import Report
from tests.benchmarks.campaign.victim import STRUCK
from tests.edgeopt.executor.plans import toy_plan
from tests.edgeopt.factories import network

__all__ = ["REQUEST_S", "Trial", "clear"]

#: A request takes at least this long, whatever the launcher: 40 rounds, two stages that sleep.
REQUEST_S = 1.92
_ROUNDS, _SLEEP_S = 40, 0.024
_VICTIM = Path(__file__).with_name("victim.py")
_MARK = "EDGEOPT_CAMPAIGN_RUN"
#: An idle machine needs 3 s for one start of the workers and ends a run in 6 to 25 s. What is under trial is how a run
#: ends, so a machine that is busy with other things gets ten times as long.
_TIMEOUT_S, _HUNG_S = 280, 300
#: For what was killed to be gone, too.
_GONE_S = 10.0


@dataclass(frozen=True)
class Trial:
    """What is done to a run, and in how many copies at once.

    Attributes
    ----------
    fault
        For the victim.
    options
        Words of the command line.
    rate
        Of the link, in bytes/s.
    loses
        The device that recovery does without, where there is a fault to recover from.
    """

    fault: dict[str, Any]
    options: tuple[str, ...]
    rate: float
    copies: int = 1
    full_disk: bool = False
    loses: str | None = None

    def run(self, home: Path) -> dict[str, Any]:
        """Run it in a folder of its own, which is gone again if nothing is left in it."""
        clear(home)
        copies = [home / f"copy-{number}" for number in range(self.copies)]
        with contextlib.ExitStack() as stack:
            victims = [self._start(copy, stack) for copy in copies]
            found = [self._ending(copy, victim) for copy, victim in zip(copies, victims, strict=True)]
            left = [
                thing for copy, victim in zip(copies, victims, strict=True) for thing in _left_over(copy, victim.pid)
            ]
        ends = sorted({one["end"] for one in found})
        return {
            "end": " and ".join(ends),
            "struck": all(one["struck"] for one in found),
            "recoveries": max(one["recoveries"] for one in found),
            "request_s": max((one["request_s"] for one in found if one["request_s"] is not None), default=None),
            "left": left,
            "words": " | ".join(one["words"] for one in found)[-800:],
        }

    def _start(self, home: Path, stack: contextlib.ExitStack) -> subprocess.Popen[str]:
        for part in ("tmp", "out"):
            (home / part).mkdir(parents=True)
        if self.full_disk:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(home / "out")], check=True)
            stack.callback(_unmount, home / "out")
            with contextlib.suppress(OSError), (home / "out" / "filler").open("wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(1024))
        devices = {"server": {"runtime": {"threads": 1, "cpu_quota": 0.5}}}
        plan = toy_plan(("phone", 3), ("server", 6), rounds=_ROUNDS, sleep_s=_SLEEP_S, devices=devices)
        problem = plan.problem.model_copy(update={"network": network(rate=self.rate, latency=0.003)})
        (home / "plan.json").write_text(plan.model_copy(update={"problem": problem}).model_dump_json(by_alias=True))
        words = [sys.executable, str(_VICTIM), json.dumps(self.fault), "plan.json", *self.options]
        words += ["--repeat", "1", "--warmup", "0", "--timeout", f"{_TIMEOUT_S}s", "-o", "out/report.json"]
        environment = {**os.environ, "TMPDIR": str(home / "tmp"), _MARK: str(home)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # or every process compiles edgeopt again
        victim = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment, cwd=home
        )
        stack.callback(victim.kill)
        return victim

    def _ending(self, home: Path, victim: subprocess.Popen[str]) -> dict[str, Any]:
        """How a copy ended, in the words of :class:`~tests.benchmarks.campaign.faults.Case`, and its own last words."""
        hung = False
        try:
            _, errors = victim.communicate(timeout=_HUNG_S)
        except subprocess.TimeoutExpired:
            victim.kill()
            _, errors = victim.communicate()
            hung = True
        report = home / "out" / "report.json"
        found = Report.model_validate_json(report.read_text()) if report.exists() else None
        return {
            "end": "hung" if hung else self._judge(victim.returncode, errors, found),
            "struck": self.fault["kind"] == "none" or STRUCK in errors,
            "recoveries": 0 if found is None else len(found.recoveries),
            "request_s": None if found is None else found.latency_s.median,
            "words": " / ".join(line for line in errors.splitlines() if line.strip())[-600:],
        }

    def _judge(self, code: int, errors: str, report: Report | None) -> str:
        if "Traceback" in errors:
            return f"traceback and exit {code}"
        if code == 0 and report is not None:
            return self._judge_result(report)
        if report is not None:
            return f"exit {code} with a report"
        named = re.search(r"error: stage (\d) on device '(\w+)': ", errors)
        if code == 1 and named:
            return "error" if named[2] == self.loses else f"error that blames {named[2]}"
        if code == 2 and "No space left" in errors and "out/report.json" in errors:
            return "full"
        if code == 130 and errors.rstrip().endswith("interrupted"):
            return "interrupted"
        return f"exit {code}"

    def _judge_result(self, report: Report) -> str:
        output = report.output
        if output is None or not (output.equal and output.repeats_equal):
            return "wrong result"
        if any(recovery.equal is False for recovery in report.recoveries):
            return "wrong result of the interrupted request"
        if self.loses is None or "fail" in self.options:
            return "finished"
        if not report.recoveries:
            return "finished, the fault unnoticed"
        if "replan" in self.options and any(self.loses in recovery.devices for recovery in report.recoveries):
            return "finished, but not without the device that was lost"
        return "finished"


def clear(home: Path) -> None:
    """Remove what an earlier campaign left there: one that was killed leaves its full disk mounted."""
    for mounted in home.glob("**/out"):
        while mounted.is_mount():
            _unmount(mounted)
    if home.exists():
        shutil.rmtree(home)


def _unmount(path: Path) -> None:
    """Take a disk away, at once for all to see even where somebody still holds a file of it."""
    subprocess.run(["umount", "-l", str(path)], check=True)


def _left_over(home: Path, pid: int) -> list[str]:
    """Processes with the run's mark, its control groups, temporary files, and files that are not what was asked for.

    Network namespaces of a run have no name: with the last process inside and the last descriptor they are gone.
    """
    deadline = time.monotonic() + _GONE_S
    while (alive := _marked(str(home))) and time.monotonic() < deadline:
        time.sleep(0.05)
    wanted = {home / "plan.json", home / "tmp", home / "out", home / "out" / "report.json", home / "out" / "filler"}
    files = [str(path.relative_to(home)) for path in home.rglob("*") if path not in wanted]
    groups = [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/edgeopt-{pid}-*")]
    return [*(f"process {words}" for words in alive), *(f"control group {path}" for path in groups), *files]


def _marked(mark: str) -> list[str]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(_MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline())[:120])
    return found
