"""Emulated hosts: a network namespace per device, links shaped as the plan's network says, devices slowed down.

Everything but the machine is real: sockets, TCP, gloo, queues. A device with a CPU quota is paced: after computing
for c seconds it rests for c/quota - c. Control groups do that only for computations much longer than their period
(docs/design/emulated-hosts.md); a decoding round is shorter.
"""

from __future__ import annotations

import contextlib
import os
from itertools import combinations
from types import TracebackType
from typing import ClassVar

from edgeopt.costs.links import link_matrices
from edgeopt.errors import ExecutionError, InputError
from edgeopt.executor.cores import awake, split_cores
from edgeopt.executor.endpoint import Endpoint, ProcessEndpoint
from edgeopt.executor.launch import loopback_interface, start_process
from edgeopt.executor.launchers.base import Launcher, Settings
from edgeopt.executor.layout import Host, Layout, usable_cores
from edgeopt.executor.messages import Job
from edgeopt.executor.netlab import Lab, Wire, missing
from edgeopt.plan import Plan

__all__ = ["Emulated", "wires_of"]

#: A pair without a link still has to agree when to begin: bytes/s and seconds of a wire that no tensor crosses.
_CONTROL = (125e6, 0.0)


class Emulated(Launcher):
    """Devices in network namespaces of this machine.

    Raises
    ------
    InputError
        This machine has no such namespaces, or the caller may not make them.
    """

    name: ClassVar[str] = "emulated"
    emulated: ClassVar[bool] = True

    def __init__(self, plan: Plan, layout: Layout, settings: Settings) -> None:
        super().__init__(plan, layout, settings)
        if reason := missing():
            raise InputError(
                f"--on emulated cannot run here: {reason}. Run it as root on Linux, or use --on local, where every "
                "device is a process and links are the loopback interface"
            )
        self._stack = contextlib.ExitStack()
        threads = [host.threads for host in layout.hosts]
        self._computing, self._carrying = split_cores(threads, settings.one_at_a_time) or (None, None)
        self.lab = Lab([host.device for host in layout.hosts], wires_of(plan, layout), self._carrying)

    def __enter__(self) -> Emulated:
        with contextlib.ExitStack() as stack:
            stack.enter_context(awake())
            stack.enter_context(self.lab)
            first = self.layout.hosts[0]
            try:
                self._listener = stack.enter_context(self.lab.listen(first.device, self.settings.port))
            except (OSError, OverflowError) as error:
                raise ExecutionError(
                    f"cannot listen on port {self.settings.port}: {error}. Leave it out and let the system choose",
                    stage=first.stages[0] if first.stages else None,
                    device=first.device,
                ) from error
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start(self, host: Host, job: Job) -> tuple[Endpoint, Job]:
        """Start a process inside the device's namespace."""
        listen_fd = self._listener.fileno() if host.rank == 0 else None
        address, port = self._listener.getsockname()
        process = start_process(
            host.threads,
            self.lab.command(host.device, self.settings.command),
            [fd for fd in (listen_fd, job.result_fd) if fd is not None],
            interface=Lab.interface,
        )
        if self._carrying is not None:
            with contextlib.suppress(ProcessLookupError):  # it ended at once, which its watchers will say
                os.sched_setaffinity(process.pid, self._carrying)
        if host.rank == len(self.layout.hosts) - 1:
            self._listener.close()
        meeting = {"address": address, "port": port, "listen_fd": listen_fd, "pace": host.cpu_quota}
        meeting["compute_cores"] = self._computing
        return ProcessEndpoint(process), job.model_copy(update=meeting)

    def start_reference(self, job: Job) -> Endpoint:
        """Start a process outside all namespaces."""
        fds = [job.result_fd] if job.result_fd is not None else []
        return ProcessEndpoint(start_process(job.threads, self.settings.command, fds, interface=loopback_interface()))

    def notes(self) -> list[str]:
        """Emulated, and what of it is not like the real thing."""
        notes = ["hosts are emulated: network namespaces on one machine, links shaped to the plan's network"]
        if any(host.cpu_quota is not None for host in self.layout.hosts):
            notes.append("devices with a cpu_quota are paced: they rest after computing, as long as the quota says")
        total = sum(host.threads * (host.cpu_quota or 1.0) for host in self.layout.hosts)
        if total > usable_cores():
            notes.append(
                f"the devices compute with {total:g} cores in sum and this machine has {usable_cores()}: what runs at "
                "the same time is slower than on machines of their own"
            )
        fastest = max(max(wire.rates) for wire in self.lab.wires) if self.lab.wires else 0.0
        if fastest > _FAST:
            notes.append(
                f"the fastest link is set to {8 * fastest / 1e6:.0f} Mbit/s; above {8 * _FAST / 1e6:.0f} this "
                "machine's cores, which also compute, are the limit"
            )
        return notes


_FAST = 125e6


def wires_of(plan: Plan, layout: Layout) -> list[Wire]:
    """Wires between the hosts of a plan, as its network and its reserved shares say.

    A transfer that holds a share of a reserved medium gets its share of the rate and no more. Where transfers of
    different shares go the same way they use one wire, whose rate is such that together they take as long as reserved:
    all bytes over all their seconds of sending.

    A pair without a link in either direction gets a fast one for the control messages of the rendezvous; the plan
    sends no tensor over it.
    """
    names = [host.device for host in layout.hosts]
    rate, latency = link_matrices(plan.problem.network, [device.name for device in plan.problem.devices])
    index = {device.name: i for i, device in enumerate(plan.problem.devices)}
    for (a, b), reserved in _reserved_rates(plan).items():
        rate[index[a], index[b]] = reserved
    wires = []
    for a, b in combinations(names, 2):
        ends = [(index[a], index[b]), (index[b], index[a])]
        there, back = ((rate[end], latency[end]) if rate[end] > 0 else _CONTROL for end in ends)
        wires.append(Wire(a, b, (float(there[0]), float(back[0])), (float(there[1]), float(back[1]))))
    return wires


def _reserved_rates(plan: Plan) -> dict[tuple[str, str], float]:
    """Bytes/s by (source, destination) of the directions whose transfers hold shares of a reserved medium."""
    media = plan.problem.network.media
    sent: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for moved in plan.transfers:
        if moved.medium is None or media[moved.medium].sharing != "reserved" or not moved.rate_bytes_per_s:
            continue
        # A message without bytes still has its byte on the wire.
        sent.setdefault((moved.source, moved.destination), []).append((max(moved.bytes, 1.0), moved.rate_bytes_per_s))
    return {pair: sum(q for q, _ in parts) / sum(q / rate for q, rate in parts) for pair, parts in sent.items()}
