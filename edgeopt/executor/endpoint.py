"""A worker as its driver holds it: where it reads jobs, where it writes events, what it last said, how it ends.

The driver does not care whether the worker is its own child, a child of ``ssh``, or a process elsewhere that called
back: it reads frames, writes frames and asks whether the worker is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from abc import ABC, abstractmethod
from typing import IO, Any, Protocol

__all__ = ["GONE", "Command", "Endpoint", "ProcessEndpoint", "SocketEndpoint"]

#: What :meth:`Endpoint.poll` answers when a worker is gone and nobody can tell its exit code.
GONE = 256


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

    @property
    def settled(self) -> bool:
        """Whether nothing of it is left that will end by itself."""
        return self.poll() is not None

    @abstractmethod
    def kill(self) -> None:
        """End it with everything it started, now."""

    @abstractmethod
    def close(self) -> None:
        """Wait until it is gone and free the streams."""

    def last_words(self) -> str:
        """What it printed before its end, where ``words`` is no stream to read that from."""
        return ""


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


class Command(Protocol):
    """What started a worker that calls back: a child of this process, or a process on a cluster."""

    def poll(self) -> int | None:
        """Exit code; ``None`` while it runs."""

    def kill(self) -> None:
        """End it."""

    def close(self) -> None:
        """Wait until it is gone."""

    @property
    def words(self) -> Any:
        """A non-blocking stream of what it prints, or ``None``."""

    def last_words(self) -> str:
        """What it printed before its end, as far as nobody has read it yet."""


class SocketEndpoint(Endpoint):
    """A worker that called back; the connection says whether it lives.

    Parameters
    ----------
    connection
        On which it has proven the token. When it closes, the worker ends, and the other way round.
    command
        What started it, if this program did.
    pid
        Of the worker, where it runs on this machine.
    """

    def __init__(self, connection: socket.socket, command: Command | None, pid: int | None) -> None:
        self._connection, self._command, self.pid = connection, command, pid
        connection.setblocking(False)
        # Reading and writing are registered one by one, which takes two descriptors.
        self.events = connection
        self.jobs = connection.dup()
        self.words = command.words if command is not None else None

    def poll(self) -> int | None:
        """Exit code of what started it once the connection is closed and read to its end."""
        if not self._closed():
            return None
        code = self._command.poll() if self._command is not None else None
        return GONE if code is None else code

    @property
    def settled(self) -> bool:
        """Whether what started it has ended, too: it has its own good-byes to say."""
        return self.poll() is not None and (self._command is None or self._command.poll() is not None)

    def kill(self) -> None:
        """Hang up, which ends the worker wherever it is, and end what started it."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        if self._command is not None:
            self._command.kill()

    def close(self) -> None:
        """Free the descriptors."""
        self._connection.close()
        self.jobs.close()
        if self._command is not None:
            self._command.close()

    def last_words(self) -> str:
        """Of what started it."""
        return self._command.last_words() if self._command is not None and self.words is None else ""

    def _closed(self) -> bool:
        try:
            return self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True
