"""Start measuring processes and bring back what they found; none outlives its time or its caller."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from edgeopt.errors import ExecutionError, InputError
from edgeopt.executor.launch import loopback_interface, start_process
from edgeopt.profiler.jobs import Failure

__all__ = ["run_jobs"]

_COMMAND = (sys.executable, "-P", "-m", "edgeopt.profiler.worker")
_Answer = TypeVar("_Answer", bound=BaseModel)


def run_jobs(jobs: Sequence[Any], answer: type[_Answer], timeout_s: float) -> list[_Answer]:
    """Run jobs at the same time, each in a fresh process.

    Raises
    ------
    ExecutionError
        A process failed, or is not done after ``timeout_s``; all are ended.
    InputError
        A job asks for something that cannot be measured.
    """
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for job in jobs:
            fd = getattr(job, "listen_fd", None)
            fds = () if fd is None else (fd,)
            processes.append(start_process(job.threads, _COMMAND, fds, interface=loopback_interface()))
        return _collect(processes, jobs, answer, timeout_s)
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


def _collect(
    processes: Sequence[subprocess.Popen[bytes]], jobs: Sequence[Any], answer: type[_Answer], timeout_s: float
) -> list[_Answer]:
    deadline = time.monotonic() + timeout_s
    outputs: list[tuple[bytes, bytes] | None] = [None] * len(processes)

    def talk(index: int) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired, ValueError, OSError):
            data = jobs[index].model_dump_json(by_alias=True).encode() + b"\n"
            outputs[index] = processes[index].communicate(data, timeout=max(0.1, deadline - time.monotonic()))

    # Processes that talk to each other must all be read, or one that waits for a full pipe would stall its peer.
    threads = [threading.Thread(target=talk, args=(index,), daemon=True) for index in range(len(processes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.1, deadline + 1.0 - time.monotonic()))
    answers = []
    for process, output in zip(processes, outputs, strict=True):
        if output is None:
            raise ExecutionError(f"measuring was not done after {timeout_s:g} s; allow more time or measure less")
        answers.append(_read(process, output, answer))
    return answers


def _read(process: subprocess.Popen[bytes], output: tuple[bytes, bytes], answer: type[_Answer]) -> _Answer:
    text, errors = output
    with contextlib.suppress(ValidationError):
        return answer.model_validate_json(text)
    with contextlib.suppress(ValidationError):
        failure = Failure.model_validate_json(text)
        if failure.wrong_input:
            raise InputError(failure.failure)
        raise ExecutionError(f"measuring failed: {failure.failure}")
    last = errors.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
    raise ExecutionError(f"a measuring process ended with code {process.returncode}: {last[0]}")
