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

__all__ = ["COMMAND", "LOOPBACK", "loopback_interface", "open_rendezvous", "start_process", "worker_variables"]

LOOPBACK = "127.0.0.1"
COMMAND = (sys.executable, "-P", "-m", "edgeopt.executor.worker")


def loopback_interface() -> str:
    """Name of the loopback interface."""
    return "lo0" if sys.platform == "darwin" else "lo"


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


def start_process(
    threads: int, command: Sequence[str] = COMMAND, fds: Sequence[int] = (), *, interface: str
) -> subprocess.Popen[bytes]:
    """Start one process that reads its job from a pipe, with the environment that ``threads`` threads need.

    Parameters
    ----------
    interface
        The network interface that gloo listens on; it asks the host name for one unless told.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**worker_environment(threads), **worker_variables(interface)},
        pass_fds=fds,
        start_new_session=True,  # Ctrl-C reaches the driver only, and a whole worker can be ended by its group
        bufsize=0,
    )


def worker_variables(interface: str) -> dict[str, str]:
    """Variables that a worker needs besides those that computing needs."""
    # The worker must run the same edgeopt as the driver, and nothing from the working directory (-P).
    home = str(Path(edgeopt.__file__).resolve().parent.parent)
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {
        "GLOO_SOCKET_IFNAME": interface,
        "PYTHONPATH": os.pathsep.join([*paths, *([] if home in paths else [home])]),
    }
