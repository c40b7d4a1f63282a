"""Local processes: every device is a process of this machine with its threads, and its CPU quota where asked for."""

from __future__ import annotations

import contextlib
import socket
from types import TracebackType
from typing import ClassVar

from edgeopt.executor.endpoint import Endpoint, ProcessEndpoint
from edgeopt.executor.launch import LOOPBACK, loopback_interface, open_rendezvous, start_process
from edgeopt.executor.launchers.base import Launcher, Settings
from edgeopt.executor.layout import Host, Layout, usable_cores
from edgeopt.executor.messages import Job
from edgeopt.executor.quota import CpuQuota, cpu_quota
from edgeopt.plan import Plan

__all__ = ["Local"]


class Local(Launcher):
    """Processes that meet on the loopback address."""

    name: ClassVar[str] = "local"

    def __init__(self, plan: Plan, layout: Layout, settings: Settings) -> None:
        super().__init__(plan, layout, settings)
        self._stack = contextlib.ExitStack()
        self._quotas: dict[int, CpuQuota] = {}
        self._listener: socket.socket | None = None

    def __enter__(self) -> Local:
        with contextlib.ExitStack() as stack:
            for host in self.layout.hosts:
                if host.cpu_quota is not None:
                    self._quotas[host.rank] = stack.enter_context(cpu_quota(host.device, host.cpu_quota, host.threads))
            self._listener = stack.enter_context(open_rendezvous(self.settings.port, self.layout.hosts[0]))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start(self, host: Host, job: Job) -> tuple[Endpoint, Job]:
        """Start a process; rank 0 serves the rendezvous on a socket that is open already."""
        assert self._listener is not None
        first = host.rank == 0
        fds = [fd for fd in (self._listener.fileno() if first else None, job.result_fd) if fd is not None]
        process = start_process(host.threads, self.settings.command, fds, interface=loopback_interface())
        job = job.model_copy(
            update={
                "address": LOOPBACK,
                "port": self._listener.getsockname()[1],
                "listen_fd": self._listener.fileno() if first else None,
            }
        )
        if host.rank == len(self.layout.hosts) - 1:
            self._listener.close()  # rank 0 holds the only copy now
        return ProcessEndpoint(process), job

    def start_reference(self, job: Job) -> Endpoint:
        """Start one more process."""
        fds = [job.result_fd] if job.result_fd is not None else []
        return ProcessEndpoint(start_process(job.threads, self.settings.command, fds, interface=loopback_interface()))

    def ready(self, host: Host, endpoint: Endpoint) -> None:
        """Put the worker into its control group."""
        if host.rank in self._quotas and endpoint.pid is not None:
            self._quotas[host.rank].add(endpoint.pid)

    def notes(self) -> list[str]:
        """Links are the loopback interface, and devices share this machine's cores."""
        notes = ["links are this machine's loopback interface, whatever the plan's network says"]
        total = sum(host.threads for host in self.layout.hosts)
        if total > usable_cores():
            notes.append(
                f"the devices use {total} threads on {usable_cores()} cores; one request is in flight, so they take "
                "turns"
            )
        return notes
