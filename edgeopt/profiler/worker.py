"""A measuring process: ``python -m edgeopt.profiler.worker``, one job on standard input, one answer on standard output.

Every measurement runs in a fresh process of its own, with the environment in which plans are executed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Any

from edgeopt.errors import EdgeoptError, Finding, InputError
from edgeopt.profiler.jobs import ElementJob, Failure, LinkJob, MachineJob, PassJob, parse_job

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1


def _measure(job: MachineJob | ElementJob | PassJob | LinkJob) -> Any:
    import torch

    torch.set_num_threads(job.threads)
    if isinstance(job, MachineJob):
        if job.accelerator == "cuda" and not torch.cuda.is_available():
            raise InputError(Finding("accelerator", "torch sees no CUDA device on this machine", "use cpu"))
        from edgeopt.profiler.machine import measure_machine

        return measure_machine(job)
    if isinstance(job, ElementJob):
        from edgeopt.profiler.elements import measure_elements

        return measure_elements(job)
    if isinstance(job, PassJob):
        from edgeopt.profiler.passes import answer_passes

        return answer_passes(job)
    from edgeopt.profiler.wire import measure_wire

    return measure_wire(job)


def main() -> None:
    """Do one job and end, or end with the process that asked for it."""
    answer_fd = os.dup(1)
    os.dup2(2, 1)  # what libraries print must not get into the answer
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    job = parse_job(sys.stdin.buffer.readline())
    try:
        answer = _measure(job)
    except Exception as error:  # whatever it is, the process that asked has to know
        words = str(error) if isinstance(error, EdgeoptError) else f"{type(error).__name__}: {error}"
        answer = Failure(failure=words, wrong_input=isinstance(error, InputError))
    with os.fdopen(answer_fd, "w") as stream:
        stream.write(answer.model_dump_json())
    sys.stderr.flush()
    os._exit(0)  # tearing down thread pools and gloo helps nobody


if __name__ == "__main__":
    main()
