"""A worker as its driver holds it: where it reads jobs, where it writes events, what it last said, how it ends.

The driver does not care whether the worker is its own child, a child of ``ssh``, or a process elsewhere that called
back: it reads lines, writes lines and asks whether the worker is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from abc import ABC, abstractmethod
from typing import IO, Any

__all__ = ["Endpoint", "ProcessEndpoint"]


class Endpoint(ABC):
    """Three non-blocking streams and an end.

    Attributes
    ----------
    jobs, events, words
        What the driver writes to; what it reads events from; what else the worker prints (``None``: nothing).
        Anything with a ``fileno``.
    pid
        On this machine; ``None`` where the worker runs elsewhere.
    """

    jobs: Any
    events: Any
    words: Any
    pid: int | None

    @abstractmethod
    def poll(self) -> int | None:
        """Exit code, negative for a signal; ``None`` while it runs, or where nobody can tell."""

    @abstractmethod
    def kill(self) -> None:
        """End it with everything it started, now."""

    @abstractmethod
    def close(self) -> None:
        """Wait until it is gone and free the streams."""


class ProcessEndpoint(Endpoint):
    """A child of this process, with its process group."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process = process
        self.jobs: IO[bytes] = process.stdin
        self.events: IO[bytes] = process.stdout
        self.words: IO[bytes] | None = process.stderr
        self.pid: int = process.pid
        for pipe in self._pipes():
            os.set_blocking(pipe.fileno(), False)

    def poll(self) -> int | None:
        """Exit code of the child."""
        return self.process.poll()

    def kill(self) -> None:
        """Kill the child's group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Reap the child."""
        self.process.wait()
        for pipe in self._pipes():
            with contextlib.suppress(OSError):
                pipe.close()

    def _pipes(self) -> list[IO[bytes]]:
        return [pipe for pipe in (self.jobs, self.events, self.words) if pipe is not None]
