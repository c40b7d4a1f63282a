"""A deadline that compiled code can see: a flag in an array, raised by a timer thread."""

from __future__ import annotations

import math
import threading
import time
from types import TracebackType

import numpy as np

__all__ = ["Clock"]


class Clock:
    """Context in which ``stop[0]`` becomes 1 when the time is up; the kernels (which release the GIL) poll it."""

    def __init__(self, time_limit_s: float | None) -> None:
        self.stop = np.zeros(1, np.int64)
        self._started = time.perf_counter()
        self._limit_s = math.inf if time_limit_s is None else time_limit_s
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Clock:
        if self._limit_s < threading.TIMEOUT_MAX:
            self._timer = threading.Timer(max(0.0, self._limit_s - self.elapsed_s), self._raise_flag)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _raise_flag(self) -> None:
        self.stop[0] = 1

    @property
    def elapsed_s(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self._started

    @property
    def left_s(self) -> float:
        """Seconds until the flag goes up; ``inf`` without a limit."""
        return self._limit_s - self.elapsed_s

    @property
    def expired(self) -> bool:
        """Whether the time is up."""
        return bool(self.stop[0]) or self.left_s <= 0
