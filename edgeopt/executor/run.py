"""Run a plan: start its workers, let them serve, check the result, write the report."""

from __future__ import annotations

import importlib.util
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import edgeopt
from edgeopt.errors import ExecutionError, Finding, InputError, MissingDependencyError
from edgeopt.executor import launch
from edgeopt.executor.attempt import Log, Options, run_reference
from edgeopt.executor.hardware import describe_hardware
from edgeopt.executor.launchers import LAUNCHERS, launcher_named
from edgeopt.executor.launchers.base import Launcher, Settings
from edgeopt.executor.layout import Host, Layout
from edgeopt.executor.messages import Trace
from edgeopt.executor.quota import PERIOD_US
from edgeopt.executor.recovery import run_to_the_end
from edgeopt.executor.supervise import MIN_STALL_S
from edgeopt.executor.trace import (
    RequestTimes,
    compare_metrics,
    compare_stages,
    compare_throughput,
    compare_transfers,
    intervals_of,
    shifted,
    split_error,
    times_of,
)
from edgeopt.plan import Plan
from edgeopt.report.data import Comparison, DeviceReport, OutputCheck, Report, Responses, Samples

__all__ = ["LAUNCHERS", "execute"]


def execute(
    plan: Plan,
    *,
    on: str = "local",
    repeat: int = 5,
    warmup: int = 1,
    in_flight: int | None = None,
    timeout_s: float = 120.0,
    seed: int = 0,
    check: bool = True,
    port: int | None = None,
    hosts: Path | None = None,
    ssh: bool = False,
    enforce_memory: bool = False,
    on_fault: Literal["fail", "retry", "replan"] = "fail",
    stall_s: float | None = None,
    progress: Callable[[str], None] | None = None,
    announce: Callable[[str], None] | None = None,
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
    in_flight
        Requests under way at a time; default: 1, and one more than there are stages for a plan of a chain whose
        objective is throughput. Techniques that are no chain serve one at a time. As many requests more warm up.
    timeout_s
        Seconds within which everything, the check included, is over; a run that is not ends with an error.
    seed
        Of the request.
    check
        Compare the result with that of a fresh single-process run.
    port
        Where the workers meet; ``None``: the system chooses.
    hosts
        Hosts file, for launchers that start workers on other machines; see :mod:`edgeopt.executor.hosts`.
    ssh
        Start those workers over SSH, with keys that are there already; otherwise the commands are announced, and the
        run waits for somebody to type them.
    enforce_memory
        Hold every worker to its device's memory (libraries not counted) instead of to what the machine has left.
    on_fault
        What to do when a worker dies or stalls: end with an error; start all workers again; or plan again without the
        device and go on. The request is resumed from its last hand-off, that of a technique that is no chain from its
        start. A source that is lost ends the run.
    stall_s
        Seconds without a sign of life from a worker, or without progress of any, after which it counts as lost; must
        exceed the longest stage and transfer. ``None``: only ``timeout_s`` ends a run that hangs.
    progress
        Called with a line of text when something happens.
    announce
        Called with what must be done by hand for the run to begin, such as commands; default: print on standard error.

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
        A worker died, was killed, ran out of memory, stalled or never called; the port is taken. Names stage and
        device; no process is left.
    """
    if in_flight is None:
        in_flight = len(plan.stages) + 1 if plan.is_chain and plan.problem.objective == "throughput" else 1
    if in_flight > 1:
        warmup += in_flight  # the slots are full before anything counts
    options = Options(
        repeat,
        warmup,
        in_flight,
        timeout_s,
        seed,
        check,
        port,
        enforce_memory,
        progress or (lambda line: None),
        tuple(_command),
        on_fault,
        stall_s,
    )
    _validate(options)
    if in_flight > 1 and not plan.is_chain:
        message = f"{plan.strategy} serves one request at a time, not {in_flight}"
        raise InputError(Finding("in_flight", message, "leave it out, or use 1"))
    start_on = launcher_named(on)
    layout = Layout.of(plan)
    _need_libraries(plan)
    alone = in_flight == 1
    settings = Settings(
        port, hosts, options.command, ssh, timeout_s, announce or _print, options.progress, alone and bool(plan.cuts)
    )
    started_s, date = time.monotonic(), datetime.now(UTC)
    # The file has no name: it vanishes with the last process that holds it.
    with tempfile.TemporaryFile() as result:
        first = start_on(plan, layout, settings)
        ran = run_to_the_end(
            first, lambda other: start_on(other, Layout.of(other), settings), options, result.fileno(), started_s
        )
        plan, launcher, log = ran.launcher.plan, ran.launcher, ran.log
        layout = launcher.layout
        if check:
            run_reference(plan, launcher, options, log, result.fileno(), started_s)
    try:
        traces = [_on_one_clock(log, log.traces[i]) for i in range(warmup + repeat)]
        everything = [times_of(layout, request) for request in traces]
    except (KeyError, ValueError) as error:
        raise ExecutionError(f"the workers' traces do not fit together: {error}") from error
    before, requests = everything[:warmup], everything[warmup:]
    latency_s = Comparison.between(plan.latency_s if alone else None, [request.latency_s for request in requests])
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
        in_flight=in_flight,
        elapsed_s=time.monotonic() - started_s,
        latency_s=latency_s,
        throughput_per_s=None if alone else compare_throughput(plan, before, requests),
        metrics=compare_metrics(plan, layout, requests) if alone else {},
        responses=_responses(requests),
        stages=compare_stages(plan, requests),
        transfers=compare_transfers(plan, layout, requests),
        devices=[_device_report(plan, host, log, requests) for host in layout.hosts],
        error=split_error(plan, latency_s, requests),
        output=_output(log),
        hardware=describe_hardware(),
        timeline=intervals_of(plan, layout, traces[warmup + _typical(requests)]),
        recoveries=[
            r if r.digest is None else r.model_copy(update={"equal": r.digest in _digests(log)}) for r in ran.recoveries
        ],
        replanned=plan if any(recovery.policy == "replan" for recovery in ran.recoveries) else None,
        notes=[*launcher.notes(), *_notes(launcher, log, in_flight, requests)],
    )


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _clock(log: Log, rank: int) -> tuple[float, float]:
    """Offset and error of a host's clock; processes of one machine read the same."""
    ready = log.ready[rank]
    if ready.machine == log.ready[0].machine:
        return 0.0, 0.0
    return ready.clock_offset_s, ready.clock_error_s


def _on_one_clock(log: Log, traces: dict[int, Trace]) -> dict[int, Trace]:
    return {rank: shifted(trace, _clock(log, rank)[0]) for rank, trace in traces.items()}


def _device_report(plan: Plan, host: Host, log: Log, requests: Sequence[RequestTimes]) -> DeviceReport:
    # Stages of a chain on one device share weights, which each stage's figure counts: the largest is a lower bound.
    planned = [plan.stages[index].memory_bytes for index in host.stages]
    offset_s, error_s = _clock(log, host.rank)
    return DeviceReport(
        device=host.device,
        stages=list(host.stages),
        threads=host.threads,
        cpu_quota=host.cpu_quota,
        compute_s=Samples.of([r.busy_s[host.rank] for r in requests]),
        waiting_s=Samples.of([r.waiting_s[host.rank] for r in requests]),
        idle_s=Samples.of([r.span_s - r.busy_s[host.rank] for r in requests]),
        predicted_memory_bytes=max(planned, default=0.0) if plan.is_chain else sum(planned),
        peak_memory_bytes=log.done[host.rank].peak_memory_bytes,
        clock_offset_s=offset_s,
        clock_error_s=error_s,
    )


def _typical(requests: Sequence[RequestTimes]) -> int:
    """Index of the request whose latency is nearest to the median."""
    median = Samples.of([request.latency_s for request in requests]).median
    return min(range(len(requests)), key=lambda i: abs(requests[i].latency_s - median))


def _responses(requests: Sequence[RequestTimes]) -> Responses | None:
    """Response times, where requests arrived by themselves."""
    first = requests[0].response_s
    if not first:
        return None
    from edgeopt.programs.arrivals import mean_interval

    everything = sorted(seconds for request in requests for seconds in request.response_s)
    interval = mean_interval(first)
    known = math.isfinite(interval.low)
    return Responses(
        requests=len(first),
        mean_s=math.fsum(everything) / len(everything),
        low_s=interval.low if known else None,
        high_s=interval.high if known else None,
        median_s=everything[len(everything) // 2],
        p95_s=everything[min(len(everything) - 1, math.ceil(0.95 * len(everything)) - 1)],
        max_s=everything[-1],
    )


def _output(log: Log) -> OutputCheck | None:
    if log.checked is None:
        return None
    return OutputCheck(**log.checked.model_dump(exclude={"event"}), repeats_equal=len(_digests(log)) == 1)


def _digests(log: Log) -> set[str]:
    return {trace.digest for traces in log.traces.values() for trace in traces.values() if trace.digest}


def _notes(launcher: Launcher, log: Log, in_flight: int, requests: Sequence[RequestTimes]) -> list[str]:
    layout = launcher.layout
    notes = []
    if any(ready.carrier == "nccl" for ready in log.ready.values()):
        notes.append("NCCL moves the tensors, from the memory of one GPU to that of another")
    elif any(host.accelerator == "cuda" for host in layout.hosts):
        notes.append("gloo moves the tensors, through pinned main memory where a GPU computes")
    if in_flight > 1:
        notes.append(
            f"{in_flight} requests are in flight: latency holds the time they wait for each other and is not predicted"
        )
    for host in layout.hosts:
        rounds = [seconds for request in requests for stage in host.stages for seconds in request.compute_s[stage]]
        throttled = host.cpu_quota is not None and not launcher.emulated  # emulated devices rest instead
        if throttled and rounds and min(rounds) * 1e6 < PERIOD_US:
            notes.append(
                f"{host.device}: some rounds are shorter than the quota's period of {PERIOD_US / 1e3:g} ms; such "
                "bursts run faster than the quota, so it slows this device by less than it says"
            )
    return notes


def _validate(options: Options) -> None:
    findings = []
    if options.repeat < 1:
        findings.append(Finding("repeat", f"is {options.repeat}", "count at least 1 request"))
    if options.in_flight < 1:
        findings.append(Finding("in_flight", f"is {options.in_flight}", "keep at least 1 request under way"))
    if options.stall_s is not None and not (math.isfinite(options.stall_s) and options.stall_s >= MIN_STALL_S):
        findings.append(
            Finding("stall_s", f"is {options.stall_s} s", f"allow at least {MIN_STALL_S:g} s, two signs of life")
        )
    if options.on_fault not in ("fail", "retry", "replan"):
        findings.append(Finding("on_fault", f"is {options.on_fault!r}", "use fail, retry or replan"))
    elif options.on_fault != "fail" and options.in_flight > 1:
        findings.append(Finding("on_fault", "recovers one request at a time", "use in_flight 1, or on_fault fail"))
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
