"""Start worker processes on this machine, each in a session of its own, and give them a place to meet."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import edgeopt
from edgeopt.errors import ExecutionError
from edgeopt.executor.environment import worker_environment
from edgeopt.executor.layout import Host

__all__ = ["COMMAND", "LOOPBACK", "open_rendezvous", "start_process"]

LOOPBACK = "127.0.0.1"
COMMAND = (sys.executable, "-P", "-m", "edgeopt.executor.worker")
_INTERFACE = {"linux": "lo", "darwin": "lo0"}


def open_rendezvous(port: int | None, host: Host) -> socket.socket:
    """Listen on the loopback address, on ``port`` or on one that the system chooses.

    The socket itself is handed to the process of rank 0, so no other process can take the port in between.

    Raises
    ------
    ExecutionError
        The port is taken or not allowed.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that only lingers in TIME_WAIT is free
        listener.bind((LOOPBACK, port or 0))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else "no such port"
        raise ExecutionError(
            f"cannot listen for the other workers on {LOOPBACK}:{port}: {reason}. "
            "Choose another port, or leave it out and let the system choose",
            stage=host.stages[0] if host.stages else None,
            device=host.device,
        ) from error
    return listener


def start_process(threads: int, command: Sequence[str] = COMMAND, fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """Start one process that reads its job from a pipe, with the environment that ``threads`` threads need."""
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(threads),
        pass_fds=fds,
        start_new_session=True,  # Ctrl-C reaches the driver only, and a whole worker can be ended by its group
        bufsize=0,
    )


def _environment(threads: int) -> dict[str, str]:
    environment = {**os.environ, **worker_environment(threads)}
    # gloo listens on the interface that the host name resolves to, unless told otherwise.
    environment["GLOO_SOCKET_IFNAME"] = _INTERFACE.get(sys.platform, "lo")
    # The worker must run the same edgeopt as the driver, and nothing from the working directory (-P).
    home = str(Path(edgeopt.__file__).resolve().parent.parent)
    paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    environment["PYTHONPATH"] = os.pathsep.join([*paths, *([] if home in paths else [home])])
    return environment
