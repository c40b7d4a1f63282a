"""Run a plan: start its workers, let them serve, check the result, write the report."""

from __future__ import annotations

import importlib.util
import math
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import edgeopt
from edgeopt.errors import ExecutionError, Finding, InputError, MissingDependencyError
from edgeopt.executor import launch
from edgeopt.executor.hardware import describe_hardware
from edgeopt.executor.launchers import LAUNCHERS, launcher_named
from edgeopt.executor.launchers.base import Launcher, Settings
from edgeopt.executor.layout import Host, Layout
from edgeopt.executor.memory import available_bytes
from edgeopt.executor.messages import Checked, Done, Go, Job, Ready, Trace, dump_job
from edgeopt.executor.quota import PERIOD_US
from edgeopt.executor.supervise import Crew
from edgeopt.executor.trace import (
    RequestTimes,
    compare_metrics,
    compare_stages,
    compare_transfers,
    split_error,
    times_of,
)
from edgeopt.plan import Plan
from edgeopt.report.data import Comparison, DeviceReport, OutputCheck, Report, Samples

__all__ = ["LAUNCHERS", "execute"]


@dataclass(frozen=True, slots=True)
class _Options:
    repeat: int
    warmup: int
    timeout_s: float
    seed: int
    check: bool
    port: int | None
    enforce_memory: bool
    progress: Callable[[str], None]
    command: Sequence[str]


@dataclass(slots=True)
class _Log:
    """What the run has said so far."""

    traces: dict[int, dict[int, Trace]]
    done: dict[int, Done]
    checked: Checked | None = None


def execute(
    plan: Plan,
    *,
    on: str = "local",
    repeat: int = 5,
    warmup: int = 1,
    timeout_s: float = 120.0,
    seed: int = 0,
    check: bool = True,
    port: int | None = None,
    hosts: Path | None = None,
    enforce_memory: bool = False,
    progress: Callable[[str], None] | None = None,
    _command: Sequence[str] = launch.COMMAND,
) -> Report:
    """Run a plan and put its prediction beside the measurement.

    Parameters
    ----------
    on
        Launcher, one of :data:`~edgeopt.executor.launchers.LAUNCHERS`: ``local`` runs each device as a process of
        this machine, with its threads and CPU quota.
    repeat, warmup
        Requests that count, and requests before them that do not.
    timeout_s
        Seconds within which everything, the check included, is over; a run that is not ends with an error.
    seed
        Of the request.
    check
        Compare the result with that of a fresh single-process run.
    port
        Where the workers meet; ``None``: the system chooses.
    hosts
        Hosts file, for launchers that start workers on other machines.
    enforce_memory
        Hold every worker to its device's memory (libraries not counted) instead of to what the machine has left.
    progress
        Called with a line of text when something happens.

    Returns
    -------
    Report

    Raises
    ------
    InputError
        The plan cannot be run this way, or an argument is out of range.
    MissingDependencyError
        torch or the model's library is not installed.
    ExecutionError
        A worker died, was killed, ran out of memory or stalled; the port is taken. Names stage and device; no
        process is left.
    """
    options = _Options(
        repeat, warmup, timeout_s, seed, check, port, enforce_memory, progress or (lambda line: None), tuple(_command)
    )
    _validate(options)
    start_on = launcher_named(on)
    layout = Layout.of(plan)
    _need_libraries(plan)
    launcher = start_on(plan, layout, Settings(port, hosts, options.command))
    started_s, date = time.monotonic(), datetime.now(UTC)
    log = _Log(traces={}, done={})
    # The file has no name: it vanishes with the last process that holds it.
    with tempfile.TemporaryFile() as result:
        _run_workers(plan, launcher, options, log, result.fileno(), started_s)
        if check:
            _run_reference(plan, launcher, options, log, result.fileno(), started_s)
    try:
        requests = [times_of(layout, log.traces[i]) for i in range(warmup, warmup + repeat)]
    except (KeyError, ValueError) as error:
        raise ExecutionError(f"the workers' traces do not fit together: {error}") from error
    latency_s = Comparison.between(plan.latency_s, [request.latency_s for request in requests])
    return Report(
        edgeopt_version=edgeopt.__version__,
        date=date,
        plan_digest=plan.digest(),
        problem=plan.problem.name,
        model=plan.problem.model.name,
        strategy=plan.strategy,
        launcher=on,
        emulated=launcher.emulated,
        repeat=repeat,
        warmup=warmup,
        seed=seed,
        elapsed_s=time.monotonic() - started_s,
        latency_s=latency_s,
        metrics=compare_metrics(plan, layout, requests),
        stages=compare_stages(plan, requests),
        transfers=compare_transfers(plan, layout, requests),
        devices=[_device_report(plan, host, log.done[host.rank], requests) for host in layout.hosts],
        error=split_error(plan, latency_s, requests),
        output=_output(log),
        hardware=describe_hardware(),
        notes=[*launcher.notes(), *_notes(layout, requests)],
    )


def _run_workers(
    plan: Plan, launcher: Launcher, options: _Options, log: _Log, result_fd: int, started_s: float
) -> None:
    total = options.warmup + options.repeat

    def heard(host: Host | None, event: Any) -> None:
        assert host is not None
        if isinstance(event, Trace):
            log.traces.setdefault(event.request, {})[host.rank] = event
            if event.start is not None and event.stop is not None:
                kind = "warm-up" if event.warmup else "request"
                options.progress(f"{kind} {event.request + 1} of {total}: {event.stop - event.start:.4g} s")
        elif isinstance(event, Done):
            log.done[host.rank] = event

    # The crew is entered last, so left first: the workers are gone before their machines are taken down.
    with launcher, Crew(options.timeout_s, heard, started_s) as crew:
        hosts = launcher.layout.hosts
        options.progress(f"starting {len(hosts)} workers")
        free, token = available_bytes(), secrets.token_hex(16)
        for host in hosts:
            job = Job(
                role="worker",
                plan=plan,
                driver_pid=os.getpid(),
                rank=host.rank,
                threads=host.threads,
                repeat=options.repeat,
                warmup=options.warmup,
                seed=options.seed,
                timeout_s=options.timeout_s,
                token=token,
                result_fd=result_fd if host.rank == 0 else None,
                memory_bytes=_memory_limit(host, options, free),
            )
            endpoint, job = launcher.start(host, job)
            crew.add(host, endpoint, dump_job(job))
        crew.wait_for(Ready)
        for member, endpoint in crew.endpoints():
            assert member is not None
            launcher.ready(member, endpoint)
        options.progress(f"workers ready after {time.monotonic() - started_s:.1f} s")
        crew.send(Go().model_dump_json().encode() + b"\n")
        crew.wait_for(Done)


def _memory_limit(host: Host, options: _Options, free: float) -> float | None:
    """Bytes that a worker may add; an accelerator's driver maps far more addresses than it uses, so none there."""
    if host.accelerator != "cpu":
        return None
    return host.memory_bytes if options.enforce_memory else free


def _run_reference(
    plan: Plan, launcher: Launcher, options: _Options, log: _Log, result_fd: int, started_s: float
) -> None:
    def heard(host: Host | None, event: Any) -> None:
        if isinstance(event, Checked):
            log.checked = event

    options.progress("checking against a single process")
    with Crew(options.timeout_s, heard, started_s) as crew:
        job = Job(
            role="reference",
            plan=plan,
            driver_pid=os.getpid(),
            threads=max(host.threads for host in launcher.layout.hosts),
            seed=options.seed,
            timeout_s=options.timeout_s,
            result_fd=result_fd,
            memory_bytes=available_bytes(),
        )
        crew.add(None, launcher.start_reference(job), dump_job(job))
        crew.wait_for(Done)


def _device_report(plan: Plan, host: Host, done: Done, requests: Sequence[RequestTimes]) -> DeviceReport:
    # Several stages on one device share weights, which each stage's figure counts: the largest is a lower bound.
    planned = [plan.stages[index].memory_bytes for index in host.stages]
    return DeviceReport(
        device=host.device,
        stages=list(host.stages),
        threads=host.threads,
        cpu_quota=host.cpu_quota,
        compute_s=Samples.of([r.busy_s[host.rank] for r in requests]),
        waiting_s=Samples.of([r.waiting_s[host.rank] for r in requests]),
        idle_s=Samples.of([r.latency_s - r.busy_s[host.rank] for r in requests]),
        predicted_memory_bytes=max(planned, default=0.0),
        peak_memory_bytes=done.peak_memory_bytes,
    )


def _output(log: _Log) -> OutputCheck | None:
    if log.checked is None:
        return None
    digests = {trace.digest for traces in log.traces.values() for trace in traces.values() if trace.digest}
    return OutputCheck(**log.checked.model_dump(exclude={"event"}), repeats_equal=len(digests) == 1)


def _notes(layout: Layout, requests: Sequence[RequestTimes]) -> list[str]:
    notes = []
    for host in layout.hosts:
        rounds = [seconds for request in requests for stage in host.stages for seconds in request.compute_s[stage]]
        if host.cpu_quota is not None and rounds and min(rounds) * 1e6 < PERIOD_US:
            notes.append(
                f"{host.device}: some rounds are shorter than the quota's period of {PERIOD_US / 1e3:g} ms; such "
                "bursts run faster than the quota, so it slows this device by less than it says"
            )
    return notes


def _validate(options: _Options) -> None:
    findings = []
    if options.repeat < 1:
        findings.append(Finding("repeat", f"is {options.repeat}", "count at least 1 request"))
    if options.warmup < 0:
        findings.append(Finding("warmup", f"is {options.warmup}", "use 0 or more requests"))
    if not (math.isfinite(options.timeout_s) and options.timeout_s > 0):
        findings.append(Finding("timeout_s", f"is {options.timeout_s} s", "allow a positive time, for example 120"))
    if options.port is not None and not 1 <= options.port <= 65535:
        findings.append(Finding("port", f"is {options.port}", "choose 1 to 65535, or leave it out"))
    if findings:
        raise InputError(findings)


def _need_libraries(plan: Plan) -> None:
    model = plan.problem.model
    parts = [model, *getattr(model, "variants", {}).values()]
    parts += [getattr(model, name, None) for name in ("text_encoder", "decoder")]
    libraries = {part.architecture.library for part in parts if getattr(part, "architecture", None)}
    for package in ("torch", *sorted(libraries)):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(package, "models", "executing a plan")
