"""Carry Ethernet frames between TAP devices, each after a fixed delay; one ``FROM:TO:SECONDS`` argument a direction.

It does what netem does, for kernels without it. Frames wait in order, one queue per direction, and none is ever
dropped here: the rate is the business of the token bucket in front of it. It runs as its own process so that no other
Python holds it up, and ends with the driver.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import struct
import sys
import time
from collections import deque
from dataclasses import dataclass

__all__ = ["COMMAND", "Hop", "main", "open_tap"]

COMMAND = (sys.executable, "-P", str(__file__))
_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_TUNSETVNETHDRSZ = 0x400454D8
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4 = 0x01, 0x02
_HEADER_BYTES = 10
_FRAME_BYTES = 70_000
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Hop:
    """Frames read from one descriptor are written to another after a delay in seconds."""

    source: int
    destination: int
    delay_s: float

    def text(self) -> str:
        """As an argument of the relay's command."""
        return f"{self.source}:{self.destination}:{self.delay_s!r}"


def open_tap(name: str) -> int:
    """Make a TAP device in the caller's network namespace; return its descriptor.

    Large segments pass whole, with the header that says how to cut them: that saves most of the relay's work.

    Raises
    ------
    OSError
        The kernel has no TAP devices, or does not let the caller make one.
    """
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
        fcntl.ioctl(tap, _TUNSETVNETHDRSZ, struct.pack("i", _HEADER_BYTES))
        fcntl.ioctl(tap, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4)
    except OSError:
        os.close(tap)
        raise
    return tap


def main(arguments: list[str]) -> None:
    """Relay until the driver is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.nice(-10)
    queues: dict[int, tuple[float, int, deque[tuple[float, bytes]]]] = {}
    for argument in arguments:
        source, destination, delay_s = argument.split(":")
        queues[int(source)] = (float(delay_s), int(destination), deque())
    print("ready", flush=True)
    while True:
        due = min((queue[0][0] for _, _, queue in queues.values() if queue), default=None)
        timeout = None if due is None else max(due - time.monotonic(), 0.0)
        readable, _, _ = select.select(list(queues), (), (), timeout)
        for source in readable:
            delay_s, _, queue = queues[source]
            with contextlib.suppress(BlockingIOError):
                for _ in range(64):
                    frame = os.read(source, _FRAME_BYTES)
                    queue.append((time.monotonic() + delay_s, frame))
        now = time.monotonic()
        for _, destination, queue in queues.values():
            while queue and queue[0][0] <= now:
                with contextlib.suppress(OSError):  # its device is going down
                    os.write(destination, queue[0][1])
                queue.popleft()


if __name__ == "__main__":
    main(sys.argv[1:])
