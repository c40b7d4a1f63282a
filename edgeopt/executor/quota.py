"""CPU quotas for worker processes, by Linux control groups; removed on exit.

A quota is a share of the CPU time that the device's threads could use: 0.5 with two threads is one core. The period is
20 ms: shorter ones were measured 23–84% off, longer ones let short stages run unthrottled.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from edgeopt.errors import InputError

__all__ = ["PERIOD_US", "CpuQuota", "cpu_quota"]

PERIOD_US = 20_000
_PREFIX = "edgeopt-"
_NUMBER = itertools.count()


class CpuQuota:
    """A control group with a bandwidth limit; processes are added while it exists."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, pid: int) -> None:
        """Throttle a process, all its threads and its later children."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def remove(self) -> None:
        """Remove the group; its processes must have ended (they are moved out if they have not)."""
        for attempt in range(2):
            try:
                self.folder.rmdir()
                return
            except FileNotFoundError:
                return
            except OSError:
                if attempt:
                    raise
                for pid in (self.folder / "cgroup.procs").read_text().split():
                    with contextlib.suppress(OSError):
                        (self.folder.parent / "cgroup.procs").write_text(pid)


@contextlib.contextmanager
def cpu_quota(name: str, fraction: float, threads: int, root: Path = Path("/")) -> Iterator[CpuQuota]:
    """Hold a group that gives its processes ``fraction`` of ``threads`` cores.

    Parameters
    ----------
    name
        Device name, for messages and the group's name.
    fraction
        Above 0, at most 1.
    threads
        Threads the device computes with.
    root
        Root of the file system, for tests.

    Raises
    ------
    InputError
        This machine gives no such limit; the message says what is missing and what to use instead.
    """
    missing = []
    quota_us = max(round(fraction * threads * PERIOD_US), 1000)  # the kernel takes no quota below 1 ms
    for make in (_version1, _version2):
        try:
            group = CpuQuota(make(root, f"{_PREFIX}{os.getpid()}-{next(_NUMBER)}-{_safe(name)}", quota_us, threads))
        except OSError as error:
            missing.append(str(error))
            continue
        try:
            yield group
        finally:
            group.remove()
        return
    raise InputError(
        f"device '{name}' asks for runtime.cpu_quota {fraction}, and this machine cannot limit CPU time: "
        f"{'; '.join(missing)}. Run as root on Linux with the cpu controller, or give the device fewer "
        f"runtime.threads instead of a quota"
    )


def _version1(root: Path, name: str, quota_us: int, threads: int) -> Path:
    mounts = [root / "sys/fs/cgroup/cpu", root / "sys/fs/cgroup/cpu,cpuacct"]
    mount = next((m for m in mounts if (m / "cpu.cfs_quota_us").exists() or (m / "cpu.shares").exists()), None)
    if mount is None:
        raise OSError("cgroup v1: the cpu controller is not mounted")
    parent = mount / _own_path(root, "cpu").lstrip("/")
    if not parent.is_dir():  # inside a container the path may be one of the host
        parent = mount
    return _group(
        parent / name,
        {"cpu.cfs_period_us": PERIOD_US, "cpu.cfs_quota_us": quota_us, "cpu.shares": 1024 * threads},
        "cgroup v1",
    )


def _version2(root: Path, name: str, quota_us: int, threads: int) -> Path:
    mount = root / "sys/fs/cgroup"
    if not (mount / "cgroup.controllers").exists():
        raise OSError("cgroup v2: not mounted at /sys/fs/cgroup")
    own = mount / _own_path(root, "").lstrip("/")
    # A group with processes of its own cannot pass controllers on (unless it is the root): then a sibling will do.
    for parent in dict.fromkeys((own, own.parent)):
        if not parent.is_relative_to(mount) or "cpu" not in _words(parent / "cgroup.controllers"):
            continue
        if "cpu" not in _words(parent / "cgroup.subtree_control"):
            with contextlib.suppress(OSError):
                (parent / "cgroup.subtree_control").write_text("+cpu")
        if "cpu" in _words(parent / "cgroup.subtree_control"):
            return _group(parent / name, {"cpu.max": f"{quota_us} {PERIOD_US}"}, "cgroup v2")
    raise OSError(
        "cgroup v2: the cpu controller is not delegated to this process (systemd-run --user --scope -p Delegate=yes)"
    )


def _group(folder: Path, settings: dict[str, int | str], version: str) -> Path:
    _sweep(folder.parent)
    try:
        folder.mkdir()
    except OSError as error:
        raise OSError(f"{version}: no group can be made ({error.strerror})") from error
    try:
        for key, value in settings.items():
            if version == "cgroup v1" and not (folder / key).exists():
                raise OSError(f"{version}: the kernel has no {key}")
            (folder / key).write_text(str(value))
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise OSError(f"{version}: {error.strerror or error}") from error
    return folder


def _sweep(parent: Path) -> None:
    """Remove groups of drivers that were killed before they could do so."""
    for folder in parent.glob(f"{_PREFIX}*"):
        pid = folder.name.removeprefix(_PREFIX).split("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            with contextlib.suppress(OSError):
                folder.rmdir()


def _own_path(root: Path, controller: str) -> str:
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                return path
    return "/"


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)[:80]
