"""What machine and software a run was made on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

from edgeopt.executor.layout import usable_cores
from edgeopt.report.data import Hardware

__all__ = ["describe_hardware", "machine_id"]

_PACKAGES = ("edgeopt", "edgeopt-solvers", "torch", "transformers", "diffusers", "numpy")


def describe_hardware() -> Hardware:
    """Describe this machine; nothing heavy is imported."""
    import psutil

    return Hardware(
        cpu=_cpu_model(),
        physical_cores=psutil.cpu_count(logical=False),
        logical_cores=os.cpu_count() or 1,
        usable_cores=usable_cores(),
        memory_bytes=int(psutil.virtual_memory().total),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        versions=dict(filter(None, map(_version, _PACKAGES))),
    )


def machine_id() -> str:
    """Name this machine since its last start: processes of equal names read one monotonic clock."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()


def _version(package: str) -> tuple[str, str] | None:
    try:
        return package, importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model", "cpu model")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
