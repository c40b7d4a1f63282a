"""One end of a link between two processes, as the executor uses it: gloo, receives posted before they are needed."""

from __future__ import annotations

import time
from datetime import timedelta

import torch
import torch.distributed as dist

from edgeopt.profiler.jobs import LinkJob, LinkSamples

__all__ = ["measure_wire"]

_WARMUP = 5


def measure_wire(job: LinkJob) -> LinkSamples:
    """Send (rank 0) or receive (rank 1) messages of every size.

    Both processes read one monotonic clock, so a message takes from the sender's call to the receiver's return. The
    sender computes for ``gap_s`` before each message: in a run the receiver has been waiting for a while, too, and the
    caches hold other things.
    """
    store = dist.FileStore(job.store, 2)
    dist.init_process_group("gloo", store=store, rank=job.rank, world_size=2, timeout=timedelta(seconds=job.timeout_s))
    end = _send if job.rank == 0 else _receive
    # Sizes take turns, so that a slow moment of the machine does not fall on one of them.
    turns = [end(job.sizes_bytes, job.gap_s) for _ in range(_WARMUP + job.repeats)][_WARMUP:]
    dist.barrier()
    return LinkSamples(moments_s=[list(moments) for moments in zip(*turns, strict=True)])


def _send(sizes: list[int], gap_s: float) -> list[float]:
    go, work = torch.zeros(1, dtype=torch.uint8), torch.rand(192, 192)
    moments = []
    for message in [torch.zeros(size, dtype=torch.uint8) for size in sizes]:
        answer = dist.irecv(go, 1, tag=1)
        until = time.monotonic() + gap_s
        while time.monotonic() < until:
            work @ work
        moments.append(time.monotonic())
        dist.isend(message, 1, tag=0).wait()
        answer.wait()
    return moments


def _receive(sizes: list[int], gap_s: float) -> list[float]:
    go = torch.zeros(1, dtype=torch.uint8)
    moments = []
    for message in [torch.zeros(size, dtype=torch.uint8) for size in sizes]:
        dist.irecv(message, 0, tag=0).wait()
        moments.append(time.monotonic())
        dist.isend(go, 0, tag=1).wait()
    return moments
