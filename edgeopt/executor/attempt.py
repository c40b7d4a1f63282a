"""One attempt at a run: start a worker on every device, let them serve, hear them out; then the reference.

Nothing is kept between attempts but what the log holds.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from edgeopt.errors import ExecutionError
from edgeopt.executor.launchers.base import Launcher
from edgeopt.executor.layout import Host
from edgeopt.executor.memory import available_bytes
from edgeopt.executor.messages import Checked, Done, Go, Handoff, Job, Ready, ResultPart, Trace, dump_job
from edgeopt.executor.supervise import Crew
from edgeopt.plan import Plan

__all__ = ["Log", "Options", "run_reference", "run_workers"]


#: Largest result that a worker elsewhere may send.
_RESULT_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller chose about the run."""

    repeat: int
    warmup: int
    in_flight: int
    timeout_s: float
    seed: int
    check: bool
    port: int | None
    enforce_memory: bool
    progress: Callable[[str], None]
    command: Sequence[str]
    on_fault: Literal["fail", "retry", "replan"]
    stall_s: float | None


@dataclass(slots=True)
class Log:
    """What the workers have said so far.

    ``serving_s`` is when the first request began, on the driver's clock; ``result_bytes`` what came of the result,
    where it comes in pieces.
    """

    traces: dict[int, dict[int, Trace]] = field(default_factory=dict)
    done: dict[int, Done] = field(default_factory=dict)
    ready: dict[int, Ready] = field(default_factory=dict)
    handoffs: list[Handoff] = field(default_factory=list)
    serving_s: float | None = None
    result_bytes: int = 0
    checked: Checked | None = None


def run_workers(
    plan: Plan,
    launcher: Launcher,
    options: Options,
    log: Log,
    result_fd: int,
    started_s: float,
    resume: Sequence[Handoff] = (),
) -> None:
    """Serve ``warmup + repeat`` requests, the first from where ``resume`` says it was.

    Raises
    ------
    ExecutionError
        A worker failed, or time is over; the log holds what was heard until then.
    """
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
        elif isinstance(event, Ready):
            log.ready[host.rank] = event
        elif isinstance(event, Handoff):
            log.handoffs = [old for old in log.handoffs if old.request == event.request] + [event]
        elif isinstance(event, ResultPart):
            _keep_part(event, host, log, result_fd)

    # The crew is entered last, so left first: the workers are gone before their machines are taken down.
    with launcher, Crew(options.timeout_s, heard, started_s, options.stall_s) as crew:
        hosts = launcher.layout.hosts
        options.progress(f"starting {len(hosts)} workers")
        free, token = available_bytes(), secrets.token_hex(16)
        for host in hosts:
            job = Job(
                role="worker",
                plan=plan,
                driver_pid=None if launcher.elsewhere else os.getpid(),
                rank=host.rank,
                threads=host.threads,
                repeat=options.repeat,
                warmup=options.warmup,
                in_flight=options.in_flight,
                seed=options.seed,
                timeout_s=options.timeout_s,
                token=token,
                result_fd=result_fd if host.rank == 0 and not launcher.elsewhere else None,
                return_result=host.rank == 0 and launcher.elsewhere,
                memory_bytes=_memory_limit(host, options, None if launcher.elsewhere else free),
                limit_to_free=launcher.elsewhere and host.accelerator == "cpu" and not options.enforce_memory,
                keep_handoffs=options.on_fault != "fail",
                resume=list(resume),
            )
            endpoint, job = launcher.start(host, job)
            crew.add(host, endpoint, dump_job(job))
        crew.wait_for(Ready)
        for member, endpoint in crew.endpoints():
            assert member is not None
            launcher.ready(member, endpoint)
        options.progress(f"workers ready after {time.monotonic() - started_s:.1f} s")
        log.serving_s = time.monotonic()
        crew.send(Go().model_dump_json().encode())
        crew.wait_for(Done)


def _keep_part(part: ResultPart, host: Host, log: Log, result_fd: int) -> None:
    """Write a piece of the result to the file that the reference is compared with."""
    if host.rank != 0 or log.result_bytes + len(part.data) > _RESULT_BYTES:
        what = "a result larger than" if host.rank == 0 else "a result that is not its to send, or larger than"
        raise ExecutionError(f"it sent {what} {_RESULT_BYTES >> 30} GiB", device=host.device)
    if log.result_bytes == 0:
        os.ftruncate(result_fd, 0)
    os.pwrite(result_fd, part.data, log.result_bytes)
    log.result_bytes += len(part.data)


def _memory_limit(host: Host, options: Options, free: float | None) -> float | None:
    """Bytes that a worker may add; an accelerator's driver maps far more addresses than it uses, so none there."""
    if host.accelerator != "cpu":
        return None
    return host.memory_bytes if options.enforce_memory else free


def run_reference(plan: Plan, launcher: Launcher, options: Options, log: Log, result_fd: int, started_s: float) -> None:
    """Compute the whole model in one process and compare."""

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
