"""Faults at random moments: every run ends as configured, and nothing of it is left.

Each run is the command line in a process of its own (:mod:`tests.benchmarks.campaign.victim`), with a folder for its
temporary files and a mark in its environment, which everything it starts inherits.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from edgeopt.report.data import Report
from tests.benchmarks.campaign.ledger import Ledger
from tests.edgeopt.executor.plans import toy_plan
from tests.edgeopt.factories import network

__all__ = ["CASES", "PART", "run", "summary"]

PART = "faults"
REPEATS = 20
_VICTIM = Path(__file__).with_name("victim.py")
_MARK = "EDGEOPT_CAMPAIGN_RUN"
#: A request takes about this long, so that moments up to it fall inside.
_REQUEST_S = 2.0
#: Most of a run is waiting or importing, so several are under way at a time.
_LANES = 4


@dataclass(frozen=True)
class Case:
    """A fault with the policies that take turns, and how each has to end.

    ``ends``: by policy ``finished`` (the result is right), ``error`` (exit 1, naming a device), ``full`` (the report
    could not be written) or ``interrupted``.
    """

    fault: dict[str, Any]
    ends: dict[str, str]
    twice: bool = False
    full_disk: bool = False


_FAIL, _RETRY, _REPLAN = "--on-fault fail", "--on-fault retry --stall 3s", "--on-fault replan --stall 3s"
CASES = {
    "kill -9, rank 0": Case(
        {"kind": "kill", "rank": 0}, {_FAIL: "error", _RETRY: "finished", _REPLAN: "error"}
    ),
    "kill -9, rank 1": Case(
        {"kind": "kill", "rank": 1}, {_FAIL: "error", _RETRY: "finished", _REPLAN: "finished"}
    ),
    "link down for 5 s": Case({"kind": "down"}, {_FAIL: "finished", _RETRY: "finished"}),
    "link at a tenth": Case({"kind": "slow"}, {_FAIL: "finished", _RETRY: "finished"}),
    "worker stopped for 10 s": Case({"kind": "stop", "rank": 1}, {_FAIL: "finished", _RETRY: "finished"}),
    "disk full at report": Case({"kind": "none"}, {_FAIL: "full"}, full_disk=True),
    "two runs at once": Case({"kind": "none"}, {_FAIL: "finished"}, twice=True),
    "Ctrl-C": Case({"kind": "interrupt"}, {_FAIL: "interrupted", _RETRY: "interrupted"}),
}  # fmt: skip


def run(ledger: Ledger, quick: bool, seed: int, say) -> None:
    """Run every case as often as asked for, several at a time."""
    repeats = 2 if quick else REPEATS
    before = _namespaces()
    due = [
        (name, number)
        for number in range(repeats)
        for name in CASES
        if ledger.get(PART, f"{name}.{number}") is None
    ]  # fmt: skip
    with ThreadPoolExecutor(_LANES) as lanes:
        jobs = {lanes.submit(_one, name, number, seed, ledger.folder): (name, number) for name, number in due}
        for done, (job, (name, number)) in enumerate(jobs.items(), start=1):
            record = job.result()
            ledger.put(PART, f"{name}.{number}", record)
            say(f"{name}, {number + 1} of {repeats}: {record['end']} ({done} of {len(due)})")
    # Namespaces have no name: with the last process inside and the last descriptor they are gone.
    ledger.put("namespaces", "", {"left": len(_namespaces() - before)})


def _one(name: str, number: int, seed: int, folder: Path) -> dict[str, Any]:
    case = CASES[name]
    policy = list(case.ends)[number % len(case.ends)]
    rng = random.Random(f"{seed} {name} {number}")
    fault = {**case.fault, "after_s": rng.uniform(0.0, 5.0 if case.fault["kind"] == "interrupt" else _REQUEST_S)}
    home = folder.resolve() / "faults" / f"{name.replace(' ', '-')}.{number}"
    shutil.rmtree(home, ignore_errors=True)
    copies = [home / "first", home / "second"] if case.twice else [home]
    begun = time.perf_counter()
    with contextlib.ExitStack() as stack:
        victims = [_start(copy, fault, policy, case, stack) for copy in copies]
        outcomes = [_ending(copy, victim) for copy, victim in zip(copies, victims, strict=True)]
        left = [thing for copy in copies for thing in _left_over(copy)]
    ends = {end for end, _ in outcomes}
    end = ends.pop() if len(ends) == 1 else " and ".join(sorted(ends))
    as_configured = end == case.ends[policy]
    if as_configured and not left:
        shutil.rmtree(home)
    return {
        "case": name, "policy": policy, "after_s": fault["after_s"], "end": end, "expected": case.ends[policy],
        "as_configured": as_configured, "left": left, "seconds": time.perf_counter() - begun,
        "words": " | ".join(words for _, words in outcomes)[-600:],
    }  # fmt: skip


def _start(home: Path, fault: dict[str, Any], policy: str, case: Case, stack: contextlib.ExitStack):
    for part in ("tmp", "out"):
        (home / part).mkdir(parents=True)
    if case.full_disk:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(home / "out")], check=True)
        stack.callback(subprocess.run, ["umount", str(home / "out")], check=True)
        with contextlib.suppress(OSError), (home / "out" / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(1024))
    plan = toy_plan(("phone", 3), ("server", 6), rounds=80, sleep_s=0.008)
    problem = plan.problem.model_copy(update={"network": network(rate=20e6 / 8, latency=0.003)})
    (home / "plan.json").write_text(plan.model_copy(update={"problem": problem}).model_dump_json(by_alias=True))
    words = [sys.executable, str(_VICTIM), json.dumps(fault), str(home / "plan.json"), *policy.split()]
    words += ["--repeat", "1", "--warmup", "0", "--timeout", "90s", "-o", str(home / "out" / "report.json")]
    environment = {**os.environ, "TMPDIR": str(home / "tmp"), _MARK: str(home)}
    victim = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    stack.callback(victim.kill)
    return victim


def _ending(home: Path, victim: subprocess.Popen[str]) -> tuple[str, str]:
    """How a run ended, in the words of :class:`Case`, and its own last words."""
    try:
        _, errors = victim.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        victim.kill()
        return "hung", victim.communicate()[1]
    words, report = errors.strip()[-500:], home / "out" / "report.json"
    if victim.returncode == 0 and report.exists():
        found = Report.model_validate_json(report.read_text())
        right = found.output is not None and found.output.equal and found.output.repeats_equal
        return ("finished" if right else "wrong result"), words
    if victim.returncode == 1 and "error: " in words and "device '" in words and not report.exists():
        return "error", words
    if victim.returncode == 2 and "No space left" in words and str(report) in words:
        return "full", words
    if victim.returncode == 130 and "interrupted" in words and not report.exists():
        return "interrupted", words
    return f"exit {victim.returncode}", words


def _left_over(home: Path) -> list[str]:
    """Processes with the run's mark, temporary files, and files that are not what was asked for."""
    deadline = time.monotonic() + 3.0
    while (alive := _marked(str(home))) and time.monotonic() < deadline:
        time.sleep(0.05)
    files = [f"tmp/{path.name}" for path in (home / "tmp").iterdir()]
    files += [f"out/{path.name}" for path in (home / "out").iterdir() if path.name not in ("report.json", "filler")]
    return [f"process {words}" for words in alive] + files


def _marked(mark: str) -> list[str]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(_MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline())[:120])
    return found


def _namespaces() -> set[str]:
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            found.add(os.readlink(f"/proc/{process.pid}/ns/net"))
    return found


def summary(ledger: Ledger) -> dict[str, Any] | None:
    """Count of runs, of those that ended as configured, and of those that left something, by case."""
    rows = ledger.of(PART).values()
    if not rows:
        return None
    cases = {
        name: {
            "runs": len(own),
            "as_configured": sum(row["as_configured"] for row in own),
            "left_something": sum(bool(row["left"]) for row in own),
            "ends": {end: sum(row["end"] == end for row in own) for end in sorted({row["end"] for row in own})},
        }
        for name in CASES
        if (own := [row for row in rows if row["case"] == name])
    }
    return {"cases": cases, "namespaces_left": (ledger.get("namespaces", "") or {}).get("left")}
