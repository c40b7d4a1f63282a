"""How fast this machine is at the moment: processor seconds of some small operations, always the same ones.

A shared machine is not equally fast from one second to the next: where others use the same cores by turns, the same
answer of a small language model took 7 to 13 ms of processor time within a minute. What a device is emulated on
should not show in it. The yardstick is applied right before and right after every computation, whose processor time
is scaled to the speed that the machine had when the device was measured (``runtime.yardstick``). The mean of the last
:data:`RECENT` readings counts: half of what a single one shows is over within milliseconds, and the mean of quotients
by readings that scatter by a third is 1 to 3 % above the quotient of the means.

What disturbs a model that lies in the caches is not what disturbs one that is read from memory, so there are two. For
the first, the operations are those of a decoding round of a small model. Scaled by it, means over three seconds
differed from the overall mean by 4 % at most in all but two of 48 cases, and by 7 % in the worst, where unscaled ones
differed by up to 35 %. Products of matrices alone leave up to 16 %, arithmetic without torch up to 13 %. For the
second, 12 MiB of matrices are read: means over forty rounds of a model of 400 MB have a standard deviation of 3 %,
unscaled ones, and those scaled by the small operations, one of 9 %. A prompt's products follow neither much.
"""

from __future__ import annotations

import time
from collections import deque
from functools import cache

import torch

from edgeopt.profiles.device import Yardstick

__all__ = ["RECENT", "applied", "lately"]

#: Readings that say how fast the machine is at the moment: those of a dozen computations.
RECENT = 24

_WIDTH, _HEADS, _CACHED = 128, 4, 96
#: Laps before those that count, which find caches as others left them, and laps that count.
_FIRST, _COUNTED = 5, 5

#: Width and number of the matrices that are streamed, 12 MiB.
_WIDE, _STREAMED = 1024, 3

_x = torch.linspace(-1, 1, _WIDTH).reshape(1, 1, _WIDTH)
_matrix = torch.linspace(-1, 1, 3 * _WIDTH * _WIDTH).reshape(3 * _WIDTH, _WIDTH)
_keys = torch.linspace(-1, 1, _CACHED * _WIDTH).reshape(1, _HEADS, _CACHED, _WIDTH // _HEADS)
_readings: dict[Yardstick, deque[float]] = {"cached": deque(maxlen=RECENT), "streamed": deque(maxlen=RECENT)}
_row = torch.linspace(-1, 1, _WIDE).reshape(1, _WIDE)
_query, _scale = _keys[:, :, :1], torch.ones(_WIDTH)


def applied(which: Yardstick = "cached") -> float:
    """Return the processor seconds of a lap on this thread: mean of some, 0.3 ms in all; or one of 1.3 ms, streamed."""
    with torch.inference_mode():
        if which == "streamed":
            matrices = _matrices()
            started_s = time.thread_time()
            for matrix in matrices:
                torch.nn.functional.linear(_row, matrix)
            return time.thread_time() - started_s
        for lap in range(_FIRST + _COUNTED):
            if lap == _FIRST:
                started_s = time.thread_time()
            _lap()
        return (time.thread_time() - started_s) / _COUNTED


def lately(which: Yardstick = "cached", *, again: bool = True) -> float:
    """Apply it again, and return the mean of the last readings of this process, seconds."""
    readings = _readings[which]
    if again or not readings:
        readings.append(applied(which))
    return sum(readings) / len(readings)


@cache
def _matrices() -> list[torch.Tensor]:
    return [torch.full((_WIDE, _WIDE), 0.1) for _ in range(_STREAMED)]


def _lap() -> None:
    torch.nn.functional.linear(_x, _matrix)
    torch.nn.functional.layer_norm(_x, (_WIDTH,), _scale)
    seen = torch.softmax(_query @ _keys.transpose(-1, -2), -1) @ _keys
    torch.nn.functional.silu(_x + seen.transpose(1, 2).reshape(1, 1, _WIDTH))
    torch.cat((_keys, _query), 2)
