"""A device at a fraction of this machine's speed: after computing it rests for as long as the fraction says.

What counts as computing is processor time where one thread computes: while the system runs something else, a real
device of that speed would have gone on. That wait is taken off the rest. With several threads, or on an accelerator, it
is the time that passed. "This machine's speed" is that of the moment, or, for a device with ``runtime.yardstick``, the
speed at which it was measured (:mod:`edgeopt.executor.yardstick`).
"""

from __future__ import annotations

import ctypes
import sys
import time
from dataclasses import dataclass

from edgeopt.executor.layout import Host
from edgeopt.profiles.device import Yardstick

__all__ = ["Started", "computing_begins", "exact_sleeps", "rest", "warm_up"]

#: The last bit of a rest is spent looking at the clock: a sleep ends some tens of microseconds late.
_WATCH_S = 1e-4
_PR_SET_TIMERSLACK = 29
#: A rest must be so many times longer than the yardstick for it to be applied; readings before anything is computed.
_ROOM, _FIRST = 2.0, 8


@dataclass(frozen=True, slots=True)
class Started:
    """When a computation began: seconds of the monotonic clock, and of this thread's processor time if that counts.

    ``yardstick_s`` is what the host's yardstick took when the device was measured, where that counts.
    """

    clock_s: float
    processor_s: float | None
    yardstick_s: float | None = None
    yardstick: Yardstick = "cached"


def computing_begins(host: Host) -> Started:
    """Note the moment, in the thread that is about to compute."""
    clock_s = time.monotonic()
    if host.accelerator != "cpu" or host.threads > 1:
        return Started(clock_s, None)
    if host.cpu_quota is None or host.yardstick_s is None:
        return Started(clock_s, time.thread_time())
    if host.yardstick == "cached":
        from edgeopt.executor import yardstick

        yardstick.lately(host.yardstick)
    return Started(clock_s, time.thread_time(), host.yardstick_s, host.yardstick)


def rest(since: Started, pace: float | None) -> float | None:
    """Return once a computation that just ended would have ended at ``pace`` of the speed; ``None``: at once.

    Returns
    -------
    float or None
        Seconds that it took at the whole speed.
    """
    if pace is None:
        return None
    now = time.monotonic()
    took = now - since.clock_s if since.processor_s is None else time.thread_time() - since.processor_s
    if since.yardstick_s is not None:
        from edgeopt.executor import yardstick

        # The one that reads memory takes a millisecond, which not every rest has.
        again = since.yardstick == "cached" or took * (1 / pace - 1) > _ROOM * since.yardstick_s
        took *= since.yardstick_s / yardstick.lately(since.yardstick, again=again)
        now = time.monotonic()
    until = since.clock_s + took / pace
    if until - now > _WATCH_S:
        time.sleep(until - now - _WATCH_S)
    while time.monotonic() < until:
        pass
    return took


def warm_up(host: Host) -> None:
    """Let the yardstick of a paced host allocate what it needs, and tell how fast the machine is."""
    if host.cpu_quota is not None and host.yardstick_s is not None:
        from edgeopt.executor import yardstick

        for _ in range(_FIRST):
            yardstick.lately(host.yardstick)


def exact_sleeps() -> None:
    """Let this thread's sleeps end when they should; by default Linux adds up to 50 microseconds."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1)
