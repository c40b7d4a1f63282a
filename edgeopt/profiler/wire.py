"""One end of a link, as the executor uses it: gloo, receives posted before they are needed.

A message takes from the sender's call to the receiver's return. On one machine both read one clock; between two, the
offset of their clocks is taken anew before every round of messages from the quickest of some pings.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from edgeopt.profiler.jobs import LinkJob, LinkRun, LinkSamples

__all__ = ["measure_wire"]

_WARMUP = 5
_PINGS = 12
_MESSAGE, _ANSWER = 0, 1


def measure_wire(job: LinkJob) -> LinkSamples:
    """Send and receive messages of every size, with every pause, first from rank 0, then (``both_ways``) from rank 1.

    The sender computes during the pause: in a run the receiver has been waiting for a while, too, and the caches hold
    other things.
    """
    group = _group(job)
    runs = []
    for sender in (0, 1) if job.both_ways else (0,):
        for pause_s in job.pauses_s:
            _turn(group, job, sender, pause_s, _WARMUP)
            # Sizes take turns, so that a slow moment of the machine does not fall on one of them.
            pings, moments = zip(*(_turn(group, job, sender, pause_s, 1) for _ in range(job.repeats)), strict=True)
            runs.append(LinkRun(sender=sender, pause_s=pause_s, pings_s=list(pings), moments_s=list(moments)))
    group.barrier().wait()
    return LinkSamples(runs=runs)


def _group(job: LinkJob) -> Any:
    """Connect the two ends; gloo listens on the job's own address and nowhere else."""
    timeout = timedelta(seconds=job.timeout_s)
    own = {"master_listen_fd": job.listen_fd} if job.listen_fd is not None else {}
    store = dist.TCPStore(
        job.address, job.port, 2, job.listen_fd is not None, timeout=timeout, wait_for_workers=False, **own
    )
    options = dist.ProcessGroupGloo._Options()
    options._timeout = timeout
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=job.own_address)]
    return dist.ProcessGroupGloo(dist.PrefixStore(job.token, store), job.rank, 2, options)


def _turn(
    group: Any, job: LinkJob, sender: int, pause_s: float, times: int
) -> tuple[list[tuple[float, float]], list[float]]:
    """Pings, then one message of each size, ``times`` over; return the moments of the last."""
    pings: list[tuple[float, float]] = []
    moments: list[float] = []
    for _ in range(times):
        pings = [_ping(group, job.rank) for _ in range(_PINGS)]
        end = _send if job.rank == sender else _receive
        moments = [end(group, 1 - job.rank, size, pause_s) for size in job.sizes_bytes]
    return pings, moments


def _ping(group: Any, rank: int) -> tuple[float, float]:
    """One byte there and back; each end returns its two moments."""
    there, back = torch.zeros(1, dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8)
    if rank == 0:
        answer = group.recv([back], 1, _ANSWER)
        first = time.monotonic()
        group.send([there], 1, _MESSAGE).wait()
        answer.wait()
        return first, time.monotonic()
    group.recv([there], 0, _MESSAGE).wait()
    first = time.monotonic()
    group.send([back], 0, _ANSWER).wait()
    return first, first


def _send(group: Any, peer: int, size: int, pause_s: float) -> float:
    go, work, message = torch.zeros(1, dtype=torch.uint8), torch.rand(192, 192), torch.zeros(size, dtype=torch.uint8)
    answer = group.recv([go], peer, _ANSWER)
    until = time.monotonic() + pause_s
    while time.monotonic() < until:
        work @ work
    moment = time.monotonic()
    group.send([message], peer, _MESSAGE).wait()
    answer.wait()
    return moment


def _receive(group: Any, peer: int, size: int, pause_s: float) -> float:
    del pause_s  # the receiver sleeps in the wait
    message = torch.zeros(size, dtype=torch.uint8)
    group.recv([message], peer, _MESSAGE).wait()
    moment = time.monotonic()
    group.send([torch.zeros(1, dtype=torch.uint8)], peer, _ANSWER).wait()
    return moment
