"""Moments on the machine that computes: of the host, or of a GPU's own stream."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any, Protocol

import torch

__all__ = ["Clock", "CudaClock", "HostClock", "clock_for"]


class Clock(Protocol):
    """Takes marks while work is going on, and says afterwards how far they lie apart."""

    def mark(self) -> Any:
        """Note this moment, in the order of the work given out so far."""
        ...

    def seconds(self, marks: list[Any]) -> list[float]:
        """Seconds between consecutive marks; waits until the last is reached."""
        ...


class HostClock:
    """For devices that compute while the host waits."""

    def mark(self) -> float:
        """Read the clock."""
        return time.perf_counter()

    def seconds(self, marks: list[float]) -> list[float]:
        """Subtract."""
        return [later - earlier for earlier, later in pairwise(marks)]


class CudaClock:
    """CUDA events: the host runs ahead of the GPU, so its own clock would time the launches only."""

    def mark(self) -> torch.cuda.Event:
        """Record an event in the current stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, marks: list[torch.cuda.Event]) -> list[float]:
        """Wait for the last event, then subtract; events count in milliseconds."""
        marks[-1].synchronize()
        return [1e-3 * earlier.elapsed_time(later) for earlier, later in pairwise(marks)]


def clock_for(device: torch.device) -> Clock:
    """Return the clock of a device."""
    return CudaClock() if device.type == "cuda" else HostClock()
