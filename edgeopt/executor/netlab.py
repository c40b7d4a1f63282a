"""A laboratory network on one Linux machine: a network namespace per device, a shaped wire per pair of devices.

Every wire is a link of its own, as in the plan's cost model, so each direction has its rate and its delay whatever
the others do. The rate is set by the kernel's token bucket (tbf), the delay by a user-space relay between two TAP
devices (:mod:`edgeopt.executor.relay`), since many kernels come without netem.

Rates and delays are those an application sees. Ethernet and TCP headers take 66 of 1514 bytes, so the bucket is set
higher by that; the software on both ends needs some time of its own, which is taken off the delay.

Namespaces have no name and no file: the driver's open descriptors and the workers inside keep them alive. However a
run ends, SIGKILL included, the kernel then removes them with everything in them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from edgeopt.errors import ExecutionError
from edgeopt.executor.relay import COMMAND as RELAY
from edgeopt.executor.relay import Hop, open_tap

__all__ = ["Lab", "Wire", "missing"]

_T = TypeVar("_T")
_CLONE_NEWNET = 0x40000000
_INTERFACE = "eth0"
#: Bytes of a full Ethernet frame, and those of them that are the application's.
_FRAME, _PAYLOAD = 1514, 1448
#: Seconds that gloo, the kernel and the wake-up of the receiver take by themselves (measured 0.25-0.5 ms).
_SOFTWARE_S = 0.3e-3
#: Seconds that the relay adds to a packet besides the delay asked for.
_RELAY_S = 0.1e-3
#: A bucket holds what the rate fills in this time, and at least a frame: smaller ones under-deliver, larger ones let
#: whole messages through unshaped.
_BUCKET_S = 1e-3


@dataclass(frozen=True, slots=True)
class Wire:
    """A link between two devices: rates in bytes/s and one-way delays in seconds, ``a`` to ``b`` and back."""

    a: str
    b: str
    rates: tuple[float, float]
    delays: tuple[float, float]


def missing() -> str | None:
    """Say what this machine lacks for a laboratory; ``None``: nothing."""
    if sys.platform != "linux":
        return "network namespaces are a feature of Linux"
    if os.geteuid() != 0:
        return "making network namespaces needs root"
    tools = [name for name in ("ip", "tc", "nsenter") if not _which(name)]
    if tools:
        return f"the commands {', '.join(tools)} are not installed (packages iproute2 and util-linux)"
    try:
        os.close(_new_namespace())
    except OSError as error:
        return f"the kernel makes no network namespace ({error.strerror})"
    return None


class Lab(contextlib.AbstractContextManager["Lab"]):
    """Namespaces, wires and relays of one run; gone on exit.

    Parameters
    ----------
    devices
        Names, in the order of their addresses.
    wires
        At most one per pair.
    cores
        Where the relay runs; ``None``: anywhere.

    Raises
    ------
    ExecutionError
        A command failed; the message quotes it.
    """

    def __init__(self, devices: Sequence[str], wires: Sequence[Wire], cores: Sequence[int] | None = None) -> None:
        self.devices, self.wires, self._cores = list(devices), list(wires), cores
        self._namespaces: dict[str, int] = {}
        self._stack = contextlib.ExitStack()

    interface = _INTERFACE

    def address(self, device: str) -> str:
        """Address of a device, the same whichever wire is used."""
        return f"10.213.77.{self.devices.index(device) + 1}"

    def command(self, device: str, command: Sequence[str]) -> list[str]:
        """Put ``command`` inside a device."""
        return ["nsenter", f"--net={self._path(device)}", *command]

    def listen(self, device: str, port: int | None) -> socket.socket:
        """Listen on a device's address.

        Raises
        ------
        OSError
            The port is taken or not allowed.
        """

        def bind() -> socket.socket:
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((self.address(device), port or 0))
                listener.listen(128)
            except OSError:
                listener.close()
                raise
            return listener

        return _inside(self._namespaces[device], bind)

    def __enter__(self) -> Lab:
        with contextlib.ExitStack() as stack:
            for name in self.devices:
                self._namespaces[name] = _new_namespace()
                stack.callback(os.close, self._namespaces[name])
            for name in self.devices:
                self._furnish(name)
            hops: list[Hop] = []
            for number, wire in enumerate(self.wires):
                hops += self._lay(number, wire, stack)
            if hops:
                stack.enter_context(_relaying(hops, self._cores))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def set_rate(self, wire: Wire, rates: tuple[float, float]) -> None:
        """Change a wire's rates while it is in use; 0 lets nothing through."""
        number = self.wires.index(wire)
        for end, rate in zip((wire.a, wire.b), rates, strict=True):
            self._run(end, "tc", f"qdisc change dev w{number} root {_bucket(rate)}")

    def _path(self, device: str) -> str:
        return f"/proc/{os.getpid()}/fd/{self._namespaces[device]}"

    def _furnish(self, device: str) -> None:
        """Give a device its address, on an interface that is no wire."""
        kinds = ("dummy", "bridge")  # either holds an address; a kernel may lack the first
        for kind in kinds:
            try:
                self._run(device, "ip", f"link add {_INTERFACE} type {kind}")
                break
            except ExecutionError:
                if kind == kinds[-1]:
                    raise
        self._run(
            device,
            "ip",
            f"link set lo up\naddress add {self.address(device)}/32 dev {_INTERFACE}\nlink set {_INTERFACE} up",
        )
        # A connection that rests between requests keeps its window, as one in a session does.
        with contextlib.suppress(OSError):
            setting = "/proc/sys/net/ipv4/tcp_slow_start_after_idle"
            _inside(self._namespaces[device], lambda: Path(setting).write_text("0"))

    def _lay(self, number: int, wire: Wire, stack: contextlib.ExitStack) -> list[Hop]:
        """Lay a wire; return what the relay has to carry over it."""
        name, ends = f"w{number}", (wire.a, wire.b)
        delays = [max(delay - _SOFTWARE_S, 0.0) for delay in wire.delays]
        hops: list[Hop] = []
        if max(delays) > _RELAY_S:
            taps = [_inside(self._namespaces[end], lambda: open_tap(name)) for end in ends]
            for tap in taps:
                stack.callback(os.close, tap)
            lags = [max(delay - _RELAY_S, 0.0) for delay in delays]
            hops = [Hop(taps[0], taps[1], lags[0]), Hop(taps[1], taps[0], lags[1])]
        else:
            self._run(wire.a, "ip", f"link add {name} type veth peer name {name} netns {self._path(wire.b)}")
        for end, other, rate in zip(ends, reversed(ends), wire.rates, strict=True):
            self._run(
                end,
                "ip",
                f"link set {name} up\n"
                f"route add {self.address(other)}/32 dev {name} src {self.address(end)} congctl cubic",
            )
            self._run(end, "tc", f"qdisc add dev {name} root {_bucket(rate)}")
        return hops

    def _run(self, device: str, tool: str, lines: str) -> None:
        done = subprocess.run(
            self.command(device, [tool, "-batch", "-"]), input=lines, capture_output=True, text=True, timeout=20
        )
        if done.returncode != 0:
            raise ExecutionError(
                f"cannot lay out the emulated network: `{tool} {lines.splitlines()[0]} …` in device {device!r} "
                f"said {(done.stderr or done.stdout).strip()[:300]!r}"
            )


@contextlib.contextmanager
def _relaying(hops: list[Hop], cores: Sequence[int] | None):  # type: ignore[no-untyped-def]
    """Hold the relay's process."""
    fds = sorted({hop.source for hop in hops})
    process = subprocess.Popen(
        [*RELAY, *(hop.text() for hop in hops)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        pass_fds=fds,
        start_new_session=True,
    )
    if cores is not None:
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, cores)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise ExecutionError("the relay that delays packets did not start")
        yield
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _bucket(rate_bytes_per_s: float) -> str:
    """Arguments of a token bucket that lets an application send at a rate; its queue never drops."""
    if rate_bytes_per_s <= 0:
        rate_bytes_per_s = 1.0
    wire_rate = rate_bytes_per_s * _FRAME / _PAYLOAD
    burst = max(round(wire_rate * _BUCKET_S), 1600)
    limit = max(round(wire_rate), 8 << 20)
    return f"tbf rate {max(round(8 * wire_rate), 8)}bit burst {burst} limit {limit}"


def _new_namespace() -> int:
    """Make a network namespace; return a descriptor that keeps it."""

    def make() -> int:
        _call("unshare", _CLONE_NEWNET)
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    return _in_thread(make)


def _inside(namespace: int, action: Callable[[], _T]) -> _T:
    """Call a function in a thread that is inside a network namespace."""

    def enter() -> _T:
        _call("setns", namespace, _CLONE_NEWNET)
        return action()

    return _in_thread(enter)


def _in_thread(action: Callable[[], _T]) -> _T:
    """Run in a thread of its own, since a thread cannot go back; what it raises is raised here."""
    results: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(action())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _call(name: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _which(name: str) -> str | None:
    import shutil

    return shutil.which(name)
