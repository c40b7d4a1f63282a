"""Cores of a run on emulated hosts: some compute, others emulate, and none falls asleep.

Two things slow a stage on an emulated host that would not on a host of its own. The threads that carry messages, a
hundred wake-ups a second for every device, take its core and its caches. And a core that was idle is slow for some
ten milliseconds afterwards, on a virtual machine above all, where an idle core is given away.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator, Sequence

__all__ = ["awake", "bind_computing", "on_cores", "split_cores"]

_LATENCY = "/dev/cpu_dma_latency"


def split_cores(threads: Sequence[int], one_at_a_time: bool) -> tuple[list[int], list[int]] | None:
    """Divide the usable cores into those for computing and those for everything else.

    Parameters
    ----------
    threads
        Computing threads of each device.
    one_at_a_time
        Whether only one device computes at a moment.

    Returns
    -------
    (computing, other) or None
        ``None``: too few cores to keep one for the rest, or a system that binds no process to cores.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    needed = max(threads) if one_at_a_time else sum(threads)
    if needed >= len(cores):
        return None
    return cores[-needed:], cores[:-needed]


def bind_computing(cores: Sequence[int] | None) -> list[int] | None:
    """Bind this thread, and threads that it will start, to some cores; return those it could use before.

    ``None``: nothing is bound.
    """
    if cores is None:
        return None
    before = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores)
    return before


@contextlib.contextmanager
def on_cores(cores: Sequence[int] | None) -> Iterator[None]:
    """Run this thread, and threads that it starts meanwhile, on some cores; ``None``: wherever it may."""
    if not cores:
        yield
        return
    before = bind_computing(cores)
    try:
        yield
    finally:
        bind_computing(before)


@contextlib.contextmanager
def awake() -> Iterator[bool]:
    """Keep idle cores from sleeping (root on Linux); whether that was possible.

    The kernel ends it with this process, however that ends.
    """
    with contextlib.ExitStack() as stack:
        try:
            stream = stack.enter_context(open(_LATENCY, "wb", buffering=0))
            stream.write(struct.pack("i", 0))  # microseconds that an idle core may take to wake up
        except OSError:
            yield False
        else:
            yield True
