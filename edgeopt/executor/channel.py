"""A worker's way to its driver: two pipes that it was started with, or a connection that it opens itself.

``--join HOST:PORT`` on the command line chooses the connection. The token of the run comes in ``EDGEOPT_TOKEN``, since
command lines are there for everybody on a machine to read.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import edgeopt
from edgeopt.errors import EdgeoptError, ExecutionError
from edgeopt.executor.environment import worker_settings
from edgeopt.executor.frames import FrameError, frame, read_frame
from edgeopt.executor.hardware import machine_id
from edgeopt.executor.meeting import Meeting, listen, parse_address
from edgeopt.executor.messages import Hello

__all__ = ["PROTOCOL", "TOKEN", "Channel", "keep_alive", "open_channel"]

#: What coordinator and workers speak; another version of either is refused.
PROTOCOL = "edgeopt-run/1"
#: The environment variable that holds the token of a run.
TOKEN = "EDGEOPT_TOKEN"

_CONNECT_S = 30.0
_QUIET_S = 20


@dataclass(slots=True)
class Channel:
    """Frames to and from the driver; what libraries print goes to standard error.

    Attributes
    ----------
    address
        Where this worker listens for its peers; ``None``: where its job says.
    listener
        On which it serves the rendezvous, if it does and the driver did not open it.
    """

    read: Callable[[int], bytes]
    fd: int
    address: str | None = None
    listener: socket.socket | None = None
    _lock: Any = None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def send(self, event: Any) -> None:
        """Send an event; a driver that is gone ends this process."""
        data = frame(event.model_dump_json().encode())
        with self._lock:
            try:
                while data:
                    data = data[os.write(self.fd, data) :]
            except OSError:
                os._exit(1)  # the driver is gone

    def receive(self) -> bytes:
        """Wait for a frame; a driver that is gone ends this process."""
        try:
            payload = read_frame(self.read)
        except FrameError as error:
            _give_up(f"the driver sent what cannot be read: {error}")
        except OSError:
            payload = None
        if payload is None:
            os._exit(1)
        return payload

    def wait_for_the_end(self) -> None:
        """End this process when the driver hangs up."""
        with contextlib.suppress(OSError):
            while self.read(1 << 16):
                pass
        os._exit(1)


def open_channel(arguments: Sequence[str]) -> Channel:
    """Return the way to the driver that the command line names; an error there ends this process with code 1."""
    own = os.dup(1)
    os.dup2(2, 1)
    if "--join" not in arguments:
        return Channel(lambda count: os.read(0, count), own)
    os.close(own)
    call = _parse(arguments)
    _settle_environment(call.threads)
    token = os.environ.pop(TOKEN, "")
    try:
        if not token:
            raise ExecutionError(f"{TOKEN} is not set; use the command that `edgeopt execute` printed")
        return _join(call, token)
    except EdgeoptError as error:
        _give_up(str(error))


def keep_alive(connection: socket.socket) -> None:
    """Let a connection break within half a minute when the machine at its other end vanishes without a word."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    options = {"TCP_KEEPIDLE": _QUIET_S // 2, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 2, "TCP_USER_TIMEOUT": _QUIET_S * 1000}
    for name, value in options.items():  # not every system has them all
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="edgeopt.executor.worker", description="A worker that calls its driver.")
    parser.add_argument("--join", required=True, metavar="HOST:PORT", help="where `edgeopt execute` waits")
    parser.add_argument("--device", required=True, help="the device of the plan that this machine is")
    parser.add_argument("--bind", required=True, metavar="ADDRESS", help="where to listen for the other workers")
    parser.add_argument("--threads", type=int, default=1, help="threads that compute")
    parser.add_argument("--serve", type=int, metavar="PORT", help="serve the rendezvous there; 0: the system chooses")
    return parser.parse_args(arguments)


def _settle_environment(threads: int) -> None:
    """Start this program again if its allocator and its threads are not set up: both are read at the start only."""
    wanted = worker_settings(threads)
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **wanted})


def _join(call: argparse.Namespace, token: str) -> Channel:
    host, port = parse_address(call.join, "--join")
    listener = None if call.serve is None else listen(call.bind, call.serve, "--bind")
    hello = Hello(
        device=call.device,
        version=edgeopt.__version__,
        address=call.bind,
        port=None if listener is None else listener.getsockname()[1],
        pid=os.getpid(),
        machine=machine_id(),
    )
    meeting = Meeting.connect(
        host, port, token, hello.model_dump(), time.monotonic() + _CONNECT_S,
        protocol=PROTOCOL, waiting="edgeopt execute", printed_by="`edgeopt execute`",
    )  # fmt: skip
    answer = meeting.receive()
    if "refused" in answer:
        raise ExecutionError(f"{host}:{port} refused this worker: {answer['refused']}")
    connection = meeting.detach()
    keep_alive(connection)
    return Channel(connection.recv, connection.fileno(), call.bind, listener)


def _give_up(words: str) -> Any:
    print(f"error: {words}", file=sys.stderr, flush=True)
    os._exit(1)
