"""A Ray cluster: an actor per device starts that device's worker and watches it.

The worker is a process of its own: allocator and threads are set when a process starts, and one that runs out of memory
must not take Ray's with it. Ray carries its command line and its last words; job, tensors and results take the way of
every other worker that calls back.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from edgeopt.errors import ExecutionError, MissingDependencyError
from edgeopt.executor.channel import TOKEN
from edgeopt.executor.endpoint import GONE, Command
from edgeopt.executor.environment import worker_settings
from edgeopt.executor.hosts import Hosts, load_hosts
from edgeopt.executor.launchers.base import Settings
from edgeopt.executor.launchers.remote import Remote
from edgeopt.executor.layout import Host, Layout, usable_cores
from edgeopt.executor.meeting import parse_address
from edgeopt.plan import Plan

__all__ = ["OnRay", "cluster", "start_cluster"]

#: Least that Ray accepts; no tensor goes through its object store.
_STORE_BYTES = 80 << 20
_PINNED = 0.001


class OnRay(Remote):
    """Nodes of the cluster that ``RAY_ADDRESS`` names or that the caller is connected to, or a new one on this machine.

    With a hosts file every device runs on the node with its address; without, Ray chooses.

    Raises
    ------
    MissingDependencyError
        Ray is not installed.
    """

    name: ClassVar[str] = "ray"

    def __init__(self, plan: Plan, layout: Layout, settings: Settings) -> None:
        super().__init__(plan, layout, settings)
        if importlib.util.find_spec("ray") is None:
            raise MissingDependencyError("ray", "ray", "--on ray")
        devices = [host.device for host in layout.hosts]
        self.hosts: Hosts | None = load_hosts(settings.hosts, devices) if settings.hosts else None

    def __enter__(self) -> OnRay:
        with contextlib.ExitStack() as stack:
            self._connect(stack)
            super().__enter__()
            stack.push(self._stack.pop_all())
            self._stack = stack.pop_all()
        return self

    def can_start(self, device: str) -> bool:
        """Whether the hosts file, if there is one, says which node it is."""
        return self.hosts is None or device in self.hosts.devices

    def coordinator(self) -> tuple[str, int]:
        """As the hosts file says, or the address of this machine in the cluster."""
        if self.hosts is not None:
            return parse_address(self.hosts.coordinator, "coordinator", 0)
        return _node_address(), 0

    def start_all(self, join: str) -> Mapping[str, Command]:
        """Make the actors; they start the workers when Ray has placed them."""
        return {host.device: self._start(host, join) for host in self.layout.hosts}

    def _connect(self, stack: contextlib.ExitStack) -> None:
        self.settings.progress("connecting to Ray")
        threads = sum(host.threads for host in self.layout.hosts)
        gpus = sum(host.accelerator == "cuda" for host in self.layout.hosts)
        stack.enter_context(cluster(max(threads, usable_cores()), gpus))

    def _start(self, host: Host, join: str) -> Command:
        import ray

        entry = self.hosts.devices[host.device] if self.hosts is not None else None
        resources = dict(entry.resources) if entry is not None else {}
        if entry is not None:
            resources[f"node:{entry.address}"] = _PINNED
        actor = (
            ray.remote(_Starter)
            .options(
                num_cpus=host.threads,
                num_gpus=1 if host.accelerator == "cuda" else 0,
                resources=resources,
                max_restarts=0,
                scheduling_strategy="DEFAULT" if resources else "SPREAD",
            )
            .remote()
        )
        python = entry.python if entry is not None and entry.python != "python3" else None
        options = self.worker_options(host, join, entry.address if entry is not None else None)
        variables = {**worker_settings(host.threads), TOKEN: self.token}
        return _Started(actor, actor.run.remote(python, [*self.settings.command[1:], *options], variables))


@contextlib.contextmanager
def cluster(num_cpus: int, num_gpus: int = 0) -> Iterator[Any]:
    """Connect to the cluster that ``RAY_ADDRESS`` names, or start one here; one that is there already stays.

    Parameters
    ----------
    num_cpus, num_gpus
        Of a cluster that is started.

    Raises
    ------
    ExecutionError
        There is none at ``RAY_ADDRESS``.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield sys.modules["ray"]
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        import ray

        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise ExecutionError(f"no Ray cluster at RAY_ADDRESS={address}: {error}") from error
    else:
        ray = start_cluster(num_cpus, num_gpus)
    try:
        yield ray
    finally:
        ray.shutdown()


def start_cluster(num_cpus: int, num_gpus: int = 0) -> Any:
    """Start a cluster of one node, this machine, that listens on the loopback address; return the module ``ray``.

    Parameters
    ----------
    num_cpus, num_gpus
        That actors may ask for; the devices of a plan may have more threads in sum than this machine has cores.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # On Linux Ray listens on the address of the default route, even if told another, unless this is set before it is
    # loaded; elsewhere it is the default.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    gpus = {"num_gpus": num_gpus} if num_gpus else {}
    ray.init(
        address="local", num_cpus=num_cpus, include_dashboard=False, object_store_memory=_STORE_BYTES,
        log_to_driver=False, logging_level=logging.ERROR, **gpus,
    )  # fmt: skip
    return ray


def _node_address() -> str:
    """Address of this node as the cluster knows it; Ray's own function gives that of the default route."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    return next(str(node["NodeManagerAddress"]) for node in ray.nodes() if node["NodeID"] == own)


class _Starter:
    """An actor that runs one command to its end."""

    def run(self, python: str | None, options: list[str], variables: dict[str, str]) -> tuple[int, str]:
        """Run the worker; return its exit code and its last words. Its parent is this process, whose end is its own."""
        import subprocess
        import sys

        if "--bind" not in options:
            options = [*options, "--bind", _node_address()]
        done = subprocess.run(
            [python or sys.executable, *options],
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        return done.returncode, done.stderr.decode(errors="replace")[-2000:]


class _Started:
    """An actor's run, as the coordinator holds it."""

    words: Any = None

    def __init__(self, actor: Any, run: Any) -> None:
        self._actor, self._run = actor, run
        self._code: int | None = None
        self._words = ""

    def poll(self) -> int | None:
        """Exit code of the worker; ``GONE`` if the actor or its node is."""
        import ray

        if self._code is None and ray.is_initialized() and ray.wait([self._run], timeout=0)[0]:
            try:
                self._code, self._words = ray.get(self._run)
            except ray.exceptions.RayError as error:
                self._code, self._words = GONE, str(error)
        return self._code

    def last_words(self) -> str:
        """What the worker printed, once it has ended."""
        return self._words if self.poll() is not None else ""

    def kill(self) -> None:
        """End the actor's process, and with it the worker's."""
        import ray

        if ray.is_initialized():
            ray.kill(self._actor)

    def close(self) -> None:
        """Nothing of it is on this machine."""
