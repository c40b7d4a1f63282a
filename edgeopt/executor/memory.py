"""Memory of this machine and of a worker process: what is free, what is held, where it ends."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

__all__ = [
    "available_bytes", "is_out_of_memory", "limit_growth", "offer_to_oom_killer", "oom_kills", "peak_bytes",
    "resident_bytes",
]  # fmt: skip

_PHRASES = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "Cannot allocate memory")


def available_bytes() -> int:
    """Bytes that new processes can use without swapping, as far as system and control group say."""
    import psutil

    free = int(psutil.virtual_memory().available)
    for limit, usage in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # absent, or "max"
            free = min(free, int(Path(limit).read_text()) - int(Path(usage).read_text()))
    return max(free, 0)


def limit_growth(num_bytes: float) -> None:
    """Let this process allocate at most ``num_bytes`` more; further allocations then fail.

    Private writable memory is limited (RLIMIT_DATA), not address space, which libraries reserve freely. Linux only;
    elsewhere nothing is done.
    """
    if not sys.platform.startswith("linux"):
        return
    import resource

    held = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmData:")
    )
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = held + int(num_bytes)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def offer_to_oom_killer() -> None:
    """If the machine runs out of memory, let the kernel end this worker rather than the driver or a neighbour."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900")


def oom_kills() -> int | None:
    """How many processes the kernel's out-of-memory killer has ended since boot; ``None`` where it does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out (torch raises plain RuntimeError for it)."""
    return isinstance(error, MemoryError) or any(phrase in str(error) for phrase in _PHRASES)


def resident_bytes() -> int:
    """Bytes of physical memory this process holds now."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_bytes()


def peak_bytes() -> int:
    """Most physical memory this process ever held."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
