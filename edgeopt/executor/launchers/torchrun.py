"""Several hosts: a worker on each, started by torchrun or by Python alone, over SSH or by hand.

A hosts file says which machine is which device (:mod:`edgeopt.executor.hosts`). Every device is one node of torchrun
with one process, so that a machine with two devices has two.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping
from typing import IO, Any, ClassVar

from edgeopt.errors import Finding, InputError
from edgeopt.executor.channel import TOKEN
from edgeopt.executor.endpoint import Command
from edgeopt.executor.environment import worker_environment
from edgeopt.executor.hosts import HostEntry, load_hosts
from edgeopt.executor.launch import loopback_interface, worker_variables
from edgeopt.executor.launchers.base import Settings
from edgeopt.executor.launchers.remote import Remote
from edgeopt.executor.layout import Host, Layout
from edgeopt.executor.meeting import parse_address
from edgeopt.plan import Plan

__all__ = ["Torchrun"]

# Run by sh on the worker's machine. The token comes on standard input, where no list of processes shows it; when that
# stream ends, whoever started this is gone, and so must be what it started, at whatever point it is.
_SCRIPT = """\
IFS= read -r {token} && export {token} || exit 1
exec 3<&0
{command} </dev/null 3<&- &
worker=$!
(cat; kill -KILL $worker) <&3 >/dev/null 2>&1 3<&- &
watch=$!
exec 3<&- </dev/null
wait $worker
code=$?
kill $watch
exit $code
"""
_FAREWELL_S = 1.0


class Torchrun(Remote):
    """Hosts of a hosts file.

    Raises
    ------
    InputError
        No hosts file, or one that does not fit the plan.
    """

    name: ClassVar[str] = "torchrun"

    def __init__(self, plan: Plan, layout: Layout, settings: Settings) -> None:
        super().__init__(plan, layout, settings)
        if settings.hosts is None:
            mend = "write a hosts file and give it with --hosts, or use --on local"
            raise InputError(Finding("hosts", "nothing says which machine is which device", mend))
        self.hosts = load_hosts(settings.hosts, [host.device for host in layout.hosts])

    def can_start(self, device: str) -> bool:
        """Whether the hosts file says which machine it is."""
        return device in self.hosts.devices

    def coordinator(self) -> tuple[str, int]:
        """As the hosts file says."""
        return parse_address(self.hosts.coordinator, "coordinator", 0)

    def start_all(self, join: str) -> Mapping[str, Command]:
        """Start the workers over SSH, or say how to."""
        if not self.settings.ssh:
            self.settings.announce("\n".join(self._by_hand(join)))
            return {}
        started: dict[str, Command] = {}
        try:
            for host in self.layout.hosts:
                started[host.device] = self._start(host, join)
        except BaseException:
            for command in started.values():
                command.kill()
                command.close()
            raise
        return started

    def command(self, host: Host, join: str) -> list[str]:
        """Command that starts the worker of a device, without its token."""
        entry, first = self.hosts.devices[host.device], self.hosts.devices[self.layout.hosts[0].device]
        worker = [entry.python, *self.settings.command[1:], *self.worker_options(host, join, entry.address)]
        if not self.hosts.torchrun:
            return worker
        return [
            entry.python, "-P", "-m", "torch.distributed.run",
            f"--nnodes={len(self.layout.hosts)}", f"--node-rank={host.rank}", "--nproc-per-node=1",
            f"--master-addr={first.address}", f"--master-port={self.hosts.torchrun_port}",
            f"--local-addr={entry.address}", f"--rdzv-conf=timeout={max(1, round(self.settings.timeout_s))}",
            "--no-python", *worker,
        ]  # fmt: skip

    def _by_hand(self, join: str) -> list[str]:
        lines = [f"start one worker on each machine, within {self.settings.timeout_s:g} s:"]
        for host in self.layout.hosts:
            entry = self.hosts.devices[host.device]
            command = f"{TOKEN}={self.token} {shlex.join(self.command(host, join))}"
            lines += [f"# {host.device}, on {entry.address}", command]
        return lines

    def _start(self, host: Host, join: str) -> Command:
        entry = self.hosts.devices[host.device]
        script = _SCRIPT.format(token=TOKEN, command=shlex.join(self.command(host, join)))
        here = entry.address == self.coordinator()[0]
        command = ["sh", "-c", script] if here else [*_ssh(entry), script]
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={**worker_environment(host.threads), **worker_variables(loopback_interface())},
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            raise self._failed(host.device, f"cannot run {command[0]}: {error.strerror or error}") from error
        return _Started(process, self.token)


def _ssh(entry: HostEntry) -> list[str]:
    """SSH without questions: a key that is not there is an error at once."""
    target = entry.address if entry.user is None else f"{entry.user}@{entry.address}"
    port = [] if entry.ssh_port is None else ["-p", str(entry.ssh_port)]
    return ["ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", *port, "--", target]


class _Started:
    """A shell, here or at the other end of SSH, that holds a worker."""

    def __init__(self, process: subprocess.Popen[bytes], token: str) -> None:
        assert process.stdin is not None
        assert process.stderr is not None
        self._process = process
        self._stdin: IO[bytes] = process.stdin
        self.words: Any = process.stderr
        os.set_blocking(process.stderr.fileno(), False)
        with contextlib.suppress(OSError):  # it has ended; its exit tells the story
            self._stdin.write(token.encode() + b"\n")

    def poll(self) -> int | None:
        return self._process.poll()

    def kill(self) -> None:
        if self._stdin.closed:
            return
        self._stdin.close()  # which ends the worker's side, wherever it is
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_FAREWELL_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def last_words(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            return (self.words.read() or b"").decode(errors="replace")
        return ""

    def close(self) -> None:
        self._process.wait()
        self.words.close()
