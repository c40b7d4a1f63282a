"""What messages between parties take of a processor, whatever the wire does: both ends of a pair, in one process.

Packing, the system's way of sending and receiving, and putting pieces together again, by the executor's own links.
Processor time of all threads counts, since on a device that computes with all its cores they are taken from that.
"""

from __future__ import annotations

import queue
import threading
import time
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from edgeopt.executor.cores import awake
from edgeopt.executor.layout import Host, Layout
from edgeopt.executor.party import GlooLinks
from edgeopt.executor.state import State
from edgeopt.executor.transport import Peers

__all__ = ["message_seconds", "rested_message_seconds"]

#: Bytes of the messages that are timed: ones that nothing but their number matters of, and those of patches.
_SIZES = (1 << 12, 1 << 20)
_REPEATS, _MESSAGES = 12, 6
#: Seconds after which caches are as cold as they get, and messages that are timed after them and without them.
_REST_S, _RESTED = 0.03, 15
_PATIENCE = timedelta(seconds=60)


class _Anything:
    """A program as far as links look at it."""

    max_message_bytes = 2 * _SIZES[-1]


def message_seconds() -> tuple[float, float]:
    """Processor seconds that an end of a message takes: of any message, and per byte."""
    links = _pair()
    small_s, large_s = (_end_s(links, size) for size in _SIZES)
    per_byte = max(large_s - small_s, 0.0) / (_SIZES[1] - _SIZES[0])
    return max(small_s - per_byte * _SIZES[0], 0.0), per_byte


def rested_message_seconds() -> float:
    """Seconds by the clock that an end of a small message takes longer after a rest; half of what both ends do."""
    sender, receiver = _pair()
    for link in (sender, receiver):
        link.begin(0)
    arrived: queue.SimpleQueue[float] = queue.SimpleQueue()

    def listen() -> None:
        for _ in range(2 * (1 + _RESTED)):
            receiver.receive(0)
            arrived.put(time.monotonic())

    threading.Thread(target=listen, daemon=True).start()
    ways: dict[float, list[float]] = {0.0: [], _REST_S: []}
    word = torch.zeros(2, dtype=torch.int64)
    with awake():
        for _ in range(1 + _RESTED):
            for rest_s, found in ways.items():
                time.sleep(rest_s)
                started_s = time.monotonic()
                sender.send(1, [word], "reply")
                found.append(arrived.get(timeout=_PATIENCE.total_seconds()) - started_s)
    warm_s, cold_s = (float(np.median(found[1:])) for found in ways.values())
    return max(cold_s - warm_s, 0.0) / 2


def _pair() -> list[GlooLinks]:
    """Connect two ranks of this process."""
    hosts = tuple(Host(rank, f"end {rank}", (rank,), 1, None, 0.0, "cpu") for rank in (0, 1))
    layout, store = Layout(hosts, (), len(hosts)), dist.HashStore()
    groups: dict[int, dist.ProcessGroupGloo] = {}

    def connect(rank: int) -> None:
        options = dist.ProcessGroupGloo._Options()
        options._timeout = _PATIENCE
        options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        groups[rank] = dist.ProcessGroupGloo(store, rank, len(hosts), options)

    threads = [threading.Thread(target=connect, args=(host.rank,), daemon=True) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [
        GlooLinks(_Anything(), layout, host.rank, Peers(layout, groups[host.rank]), State())  # type: ignore[arg-type]
        for host in hosts
    ]


def _end_s(links: list[GlooLinks], size: int) -> float:
    """Median over requests of what one end of one message takes; messages cross in pairs, as those of patches do."""
    both = [torch.zeros(size, dtype=torch.uint8) for _ in links]
    found = []
    for request in range(_REPEATS + 1):
        for link in links:
            link.begin(request)
        before_s = time.process_time()
        for _ in range(_MESSAGES):
            for link, tensor in zip(links, both, strict=True):
                link.send(1 - link.rank, [tensor], "context")
            for link in links:
                link.receive(1 - link.rank)
        found.append((time.process_time() - before_s) / (4 * _MESSAGES))
        for link in links:
            link.end()
    return float(np.median(found[1:]))
