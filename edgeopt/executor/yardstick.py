"""How fast this machine is at the moment: processor seconds of some small operations, always the same ones.

A shared machine is not equally fast from one second to the next: where others use the same cores by turns, the same
answer of a small language model took 7 to 13 ms of processor time within a minute. What a device is emulated on should
not show in it. The yardstick is applied right before and right after a computation, whose processor time is then scaled
to the speed that the machine had when the device was measured (``runtime.yardstick``).

The operations are those of a decoding round of a small model. Against it what is left of differences between
three-second means is 1 to 4 % of 15 to 35; with products of matrices alone, or without torch, it is 4 to 12 %.
"""

from __future__ import annotations

import time
from collections import deque

import torch

__all__ = ["RECENT", "applied", "lately"]

#: Readings that say how fast the machine is at the moment: those of a dozen computations.
RECENT = 24

_WIDTH, _HEADS, _CACHED = 128, 4, 96
#: Laps before those that count, which find caches as others left them, and laps that count.
_FIRST, _COUNTED = 5, 5

_x = torch.linspace(-1, 1, _WIDTH).reshape(1, 1, _WIDTH)
_matrix = torch.linspace(-1, 1, 3 * _WIDTH * _WIDTH).reshape(3 * _WIDTH, _WIDTH)
_keys = torch.linspace(-1, 1, _CACHED * _WIDTH).reshape(1, _HEADS, _CACHED, _WIDTH // _HEADS)
_readings: deque[float] = deque(maxlen=RECENT)
_query, _scale = _keys[:, :, :1], torch.ones(_WIDTH)


def applied() -> float:
    """Return the processor seconds of a lap on this thread, mean of some; 0.3 ms in all."""
    with torch.inference_mode():
        for lap in range(_FIRST + _COUNTED):
            if lap == _FIRST:
                started_s = time.thread_time()
            _lap()
        return (time.thread_time() - started_s) / _COUNTED


def lately() -> float:
    """Apply it, and return the mean of the last readings of this process, seconds."""
    _readings.append(applied())
    return sum(_readings) / len(_readings)


def _lap() -> None:
    torch.nn.functional.linear(_x, _matrix)
    torch.nn.functional.layer_norm(_x, (_WIDTH,), _scale)
    seen = torch.softmax(_query @ _keys.transpose(-1, -2), -1) @ _keys
    torch.nn.functional.silu(_x + seen.transpose(1, 2).reshape(1, 1, _WIDTH))
    torch.cat((_keys, _query), 2)
