"""Faults at random moments: every run ends as configured, and nothing of it is left.

The runs of a case take turns with policies, launchers and what the fault interrupts (:mod:`.trial` is one run).
"""

from __future__ import annotations

import random
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.campaign.ledger import Ledger
from tests.benchmarks.campaign.trial import REQUEST_S, Trial

__all__ = ["CASES", "PART", "run", "summary"]

PART = "faults"
REPEATS = 20
#: Most of a run is waiting or importing, so several are under way at a time.
_LANES = 4
#: How often a fault that came too late is drawn again.
_DRAWS = 5
#: Seconds from a moment within which a fault happens; what begins then takes longer even on an idle machine.
_WITHIN_S = {"main": 3.0, "starting": 1.5, "workers ready": 0.9 * REQUEST_S, "checking": 1.0}
_NETNS = Path("/run/netns")


@dataclass(frozen=True)
class Case:
    """A fault with the policies that take turns, and how each has to end.

    Attributes
    ----------
    ends
        By policy ``finished`` (the result is right, with a recovery where the policy says so), ``error`` (exit 1,
        naming the stage and the device that was lost), ``full`` (the report could not be written), ``interrupted``.
    launchers, moments
        That take turns, too; moments as in :mod:`tests.benchmarks.campaign.victim`.
    rate
        Of the link in bytes/s. The toy sends 10 kB/s: it notices a tenth of the slow one.
    """

    fault: dict[str, Any]
    ends: dict[str, str]
    launchers: tuple[str, ...] = ("emulated", "local")
    moments: tuple[str, ...] = ("workers ready",)
    rate: float = 20e6 / 8
    loses: str | None = None
    copies: int = 1
    full_disk: bool = False

    def trial(self, number: int, rng: random.Random) -> Trial:
        """Return run ``number``, the fault at a random moment."""
        turns = list(product(self.moments, self.launchers, self.ends))
        moment, launcher, policy = turns[number % len(turns)]
        fault = {**self.fault, "moment": moment, "after_s": rng.uniform(0.0, _WITHIN_S[moment])}
        options = ("--on", launcher, *policy.split())
        return Trial(fault, options, self.rate, self.copies, self.full_disk, self.loses)


_FAIL, _RETRY, _REPLAN = "--on-fault fail", "--on-fault retry --stall 3s", "--on-fault replan --stall 3s"
_ALL_FINISH = dict.fromkeys((_FAIL, _RETRY, _REPLAN), "finished")
_BOTH = ("workers ready", "starting")
CASES = {
    "kill -9, rank 0": Case(
        {"kind": "kill", "rank": 0}, {_FAIL: "error", _RETRY: "finished", _REPLAN: "error"}, moments=_BOTH,
        loses="phone",
    ),
    "kill -9, rank 1": Case(
        {"kind": "kill", "rank": 1}, {_FAIL: "error", _RETRY: "finished", _REPLAN: "finished"}, moments=_BOTH,
        loses="server",
    ),
    "link down for 5 s": Case({"kind": "down"}, _ALL_FINISH, launchers=("emulated",), loses="server"),
    "link at a tenth": Case({"kind": "slow"}, _ALL_FINISH, launchers=("emulated",), rate=50e3),
    "worker stopped for 10 s": Case({"kind": "stop", "rank": 1}, _ALL_FINISH, loses="server"),
    "disk full at report": Case({"kind": "none"}, dict.fromkeys((_FAIL, _RETRY, _REPLAN), "full"), full_disk=True),
    "two runs at once": Case({"kind": "none"}, _ALL_FINISH, copies=2),
    "Ctrl-C": Case(
        {"kind": "interrupt"}, dict.fromkeys((_FAIL, _RETRY, _REPLAN), "interrupted"),
        moments=("main", "workers ready", "checking"),
    ),
}  # fmt: skip


def run(ledger: Ledger, quick: bool, seed: int, say) -> None:
    """Run every case as often as asked for, several at a time; findings are kept as they are made.

    Raises
    ------
    SystemExit
        The campaign itself failed at a run: that is no finding, and ``--resume`` does it again.
    """
    repeats = 2 if quick else REPEATS
    before = _named_namespaces()
    due = [
        (name, number)
        for number in range(repeats)
        for name in CASES
        if ledger.get(PART, f"{name}.{number}") is None
    ]  # fmt: skip
    failed: list[BaseException] = []
    lanes = ThreadPoolExecutor(_LANES)
    try:
        jobs: dict[Future[dict[str, Any]], tuple[str, int]] = {
            lanes.submit(_one, name, number, seed, ledger.folder): (name, number) for name, number in due
        }
        for done, job in enumerate(as_completed(jobs), start=1):
            name, number = jobs[job]
            count = f"({done} of {len(due)})"
            if error := job.exception():
                failed.append(error)
                say(f"{name}, {number + 1} of {repeats}: the campaign failed, {error!r} {count}")
                continue
            record = ledger.put(PART, f"{name}.{number}", job.result())
            odd = "" if record["as_configured"] and not record["left"] else f": expected {record['expected']}, {record}"
            say(f"{name}, {number + 1} of {repeats}: {record['end']} {count}{odd}")
    finally:
        lanes.shutdown(cancel_futures=True)
    ledger.put("namespaces", "", {"left": len(_named_namespaces() - before)})
    if failed:
        raise SystemExit(f"the campaign failed at {len(failed)} of {len(due)} runs, first: {failed[0]!r}")


def _one(name: str, number: int, seed: int, folder: Path) -> dict[str, Any]:
    """Run a trial; one whose fault came too late is drawn again."""
    case, rng = CASES[name], random.Random(f"{seed} {name} {number}")
    home = folder.resolve() / "faults" / f"{name.replace(' ', '-')}.{number}"
    begun = time.perf_counter()
    draws, found = 0, {"struck": False}
    while not found["struck"] and draws < _DRAWS:
        trial = case.trial(number, rng)
        found, draws = trial.run(home), draws + 1
    policy = " ".join(trial.options[2:])
    as_configured = found["struck"] and found["end"] == case.ends[policy]
    if as_configured and not found["left"]:
        shutil.rmtree(home)
    return {
        "case": name, "policy": policy, "launcher": trial.options[1], "moment": trial.fault["moment"],
        "after_s": trial.fault["after_s"], "expected": case.ends[policy], "as_configured": as_configured,
        "draws": draws, "seconds": time.perf_counter() - begun, **found,
    }  # fmt: skip


def _named_namespaces() -> set[str]:
    return {path.name for path in _NETNS.iterdir()} if _NETNS.is_dir() else set()


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
            "recovered": sum(row["recoveries"] > 0 for row in own),
            "request_s": median(times) if (times := [row["request_s"] for row in own if row["request_s"]]) else None,
            "ends": {end: sum(row["end"] == end for row in own) for end in sorted({row["end"] for row in own})},
        }
        for name in CASES
        if (own := [row for row in rows if row["case"] == name])
    }
    return {"cases": cases, "namespaces_left": (ledger.get("namespaces", "") or {}).get("left")}
