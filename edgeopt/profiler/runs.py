"""Reports of executed plans, each with the plan that it ran: what calibration learns from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from edgeopt.errors import Finding, InputError
from edgeopt.plan import Plan
from edgeopt.profiles.plans import load_plan
from edgeopt.report.data import Report

__all__ = ["Run", "hardware_words", "load_runs"]


@dataclass(frozen=True, slots=True)
class Run:
    """A report with the plan that it ran; ``sha256`` is that of the report's file."""

    report: Report
    plan: Plan
    sha256: str


def load_runs(reports: Sequence[Path], plans: Sequence[Path]) -> list[Run]:
    """Read reports and find the plan of each by its digest.

    Raises
    ------
    InputError
        A file cannot be read, no plan has a report's digest, the reports are of different hardware or launchers, or a
        run's output was wrong.
    """
    by_digest = {plan.digest(): plan for plan in map(load_plan, plans)}
    runs, wrong = [], []
    for path in reports:
        try:
            raw = path.read_bytes()
            report = Report.model_validate_json(raw)
        except (OSError, ValidationError) as error:
            mend = "give a file written by `edgeopt execute -o report.json`"
            wrong.append(Finding("REPORT", f"is no report: {str(error).splitlines()[0]}", mend, file=str(path)))
            continue
        if report.plan_digest not in by_digest:
            known = ", ".join(digest[:12] for digest in by_digest) or "none"
            message = f"ran plan {report.plan_digest[:12]}…, and the plans given are {known}"
            mend = "add its plan with --plan; a plan that was changed or solved again is another plan"
            wrong.append(Finding("plan_digest", message, mend, file=str(path)))
            continue
        if report.output is not None and not report.output.equal:
            wrong.append(
                Finding("output", "the result was wrong, so its times mean nothing", "leave it out", str(path))
            )
            continue
        runs.append(Run(report, by_digest[report.plan_digest], hashlib.sha256(raw).hexdigest()))
        if not runs[-1].plan.is_chain:
            wrong.append(
                Finding("strategy", f"{report.strategy} is no chain", "calibrate by those that are", str(path))
            )
    machines = {hardware_words(run.report): run for run in runs}
    if len(machines) > 1:
        message = f"the reports are of different machines: {'; '.join(machines)}"
        wrong.append(Finding("hardware", message, "calibrate each machine by its own reports"))
    if wrong:
        raise InputError(wrong)
    return runs


def hardware_words(report: Report) -> str:
    """Machine, software and launcher of a run in one line; runs are comparable where it is the same."""
    machine = report.hardware
    how = f"{report.launcher} (emulated)" if report.emulated else report.launcher
    torch = machine.versions.get("torch", "?")
    return f"{machine.usable_cores} of {machine.logical_cores} x {machine.cpu}, {machine.system}, torch {torch}, {how}"
