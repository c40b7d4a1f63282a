"""Workers that call back: whoever starts them, they connect to the coordinator and prove the token of the run."""

from __future__ import annotations

import contextlib
import queue
import secrets
import socket
import time
from abc import abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any, ClassVar

from pydantic import ValidationError

import edgeopt
from edgeopt.errors import ExecutionError
from edgeopt.executor.channel import PROTOCOL, keep_alive
from edgeopt.executor.endpoint import Command, Endpoint, ProcessEndpoint, SocketEndpoint
from edgeopt.executor.hardware import machine_id
from edgeopt.executor.launch import loopback_interface, start_process
from edgeopt.executor.launchers.base import Launcher, Settings
from edgeopt.executor.layout import Host, Layout
from edgeopt.executor.meeting import Gate, Meeting, listen
from edgeopt.executor.messages import Hello, Job
from edgeopt.plan import Plan

__all__ = ["Remote"]


class Remote(Launcher):
    """Machines that are elsewhere, or might be.

    Entering starts the workers, or says how to, and waits until every device has called. The coordinator listens on
    one address only, and no longer than that.
    """

    elsewhere: ClassVar[bool] = True

    def __init__(self, plan: Plan, layout: Layout, settings: Settings) -> None:
        super().__init__(plan, layout, settings)
        self.token = secrets.token_hex(16)
        self._stack = contextlib.ExitStack()
        self._called: dict[str, tuple[Meeting, Hello]] = {}
        self._commands: Mapping[str, Command] = {}

    @abstractmethod
    def coordinator(self) -> tuple[str, int]:
        """Address and port to listen on; port 0: the system chooses."""

    @abstractmethod
    def start_all(self, join: str) -> Mapping[str, Command]:
        """Start workers that call ``join`` (``HOST:PORT``); return what was started, by device."""

    def __enter__(self) -> Remote:
        deadline = time.monotonic() + self.settings.timeout_s
        with contextlib.ExitStack() as stack:
            stack.callback(self._end)
            address, port = self.coordinator()
            with listen(address, port, "coordinator") as listener:
                gate = Gate(listener, self.token, PROTOCOL, deadline, self._turned_away)
                with gate:
                    self._commands = self.start_all(_join(address, listener))
                    self._await_calls(gate, deadline)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start(self, host: Host, job: Job) -> tuple[Endpoint, Job]:
        """Hand over the worker that called; it runs already."""
        meeting, hello = self._called[host.device]
        _, source = self._called[self.layout.hosts[0].device]
        connection = meeting.detach()
        keep_alive(connection)
        pid = hello.pid if hello.machine == machine_id() else None
        endpoint = SocketEndpoint(connection, self._commands.get(host.device), pid)
        return endpoint, job.model_copy(update={"address": source.address, "port": source.port or 0})

    def start_reference(self, job: Job) -> Endpoint:
        """Start a process on the coordinator's machine."""
        fds = [job.result_fd] if job.result_fd is not None else []
        return ProcessEndpoint(start_process(job.threads, self.settings.command, fds, interface=loopback_interface()))

    def notes(self) -> list[str]:
        """Where the workers ran."""
        devices = [host.device for host in self.layout.hosts]
        where = ", ".join(f"{device} on {self._called[device][1].address}" for device in devices)
        return [f"workers: {where}; the hardware listed is the coordinator's"]

    def worker_options(self, host: Host, join: str, address: str | None) -> list[str]:
        """Options of the worker program; ``address`` is left to the caller where it is ``None``."""
        options = ["--join", join, "--device", host.device, "--threads", str(host.threads)]
        if host.rank == 0:
            options += ["--serve", str(self.settings.port or 0)]
        return options if address is None else [*options, "--bind", address]

    def _await_calls(self, gate: Gate, deadline: float) -> None:
        names = [host.device for host in self.layout.hosts]
        while missing := [name for name in names if name not in self._called]:
            with contextlib.suppress(queue.Empty):
                self._welcome(*gate.admitted.get(timeout=0.1), missing)
                continue
            for name in missing:
                command = self._commands.get(name)
                code = command.poll() if command is not None else None
                if command is not None and code is not None:
                    lines = [line for line in command.last_words().splitlines() if line.strip()]
                    words = f"; last words: {' | '.join(lines[-4:])}" if lines else ""
                    raise self._failed(name, f"what was to start its worker ended with exit code {code}{words}")
            if time.monotonic() > deadline:
                others = f" (nor did {', '.join(missing[1:])})" if missing[1:] else ""
                limit = f"its worker did not call within {self.settings.timeout_s:g} s{others}"
                mend = "start it with the command given, check address, firewall and token, or allow more time"
                raise self._failed(missing[0], f"{limit}; {mend}")

    def _welcome(self, meeting: Meeting, request: dict[str, Any], missing: list[str]) -> None:
        """Take a worker in, or send it away with a word why."""
        try:
            hello = Hello.model_validate(request)
        except ValidationError:
            self._refuse(meeting, "its greeting is of another version of edgeopt")
            return
        if hello.version != edgeopt.__version__:
            reason = f"it runs edgeopt {hello.version} and the coordinator {edgeopt.__version__}"
            self._refuse(meeting, f"{reason}; install the same version")
            if hello.device in missing:
                raise self._failed(hello.device, f"{reason}; install the same version on both")
            return
        if hello.device not in missing:
            known = any(host.device == hello.device for host in self.layout.hosts)
            reason = "is here already" if known else "has no part in this plan"
            self._refuse(meeting, f"the device '{hello.device}' {reason}")
            return
        if hello.device == self.layout.hosts[0].device and hello.port is None:
            self._refuse(meeting, "the source must serve the rendezvous: --serve PORT")
            return
        try:
            meeting.send({"welcome": hello.device})
        except ExecutionError:  # gone again; whoever started it will say
            meeting.close()
            return
        self._called[hello.device] = (meeting, hello)
        self.settings.progress(f"{hello.device} has called from {meeting.peer_address}")

    def _refuse(self, meeting: Meeting, reason: str) -> None:
        self.settings.progress(f"refused a worker at {meeting.peer_address}: {reason}")
        with contextlib.suppress(ExecutionError):
            meeting.send({"refused": reason})
        meeting.close()

    def _turned_away(self, address: str) -> None:
        self.settings.progress(f"turned away a connection from {address} that did not prove the token")

    def _failed(self, device: str, reason: str) -> ExecutionError:
        host = next(host for host in self.layout.hosts if host.device == device)
        return ExecutionError(reason, stage=host.stages[0] if host.stages else None, device=device)

    def _end(self) -> None:
        """Hang up and end what was started: all of it is over by now where the run went well."""
        for meeting, _ in self._called.values():
            meeting.close()
        for command in self._commands.values():
            command.kill()
        for command in self._commands.values():
            command.close()


def _join(address: str, listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
