"""The environment of processes that compute: the same for profiling and for running, or the profile would not hold."""

from __future__ import annotations

import os

__all__ = ["worker_environment", "worker_settings"]

# glibc returns large blocks to the system at once and faults every page in again at the next allocation, which costs
# a U-Net or a DiT 3-9% and varies. These keep the memory. 32 MiB is the largest threshold glibc accepts; one arena, so
# that a computation in a side thread allocates like one in the main thread.
_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
    "MALLOC_ARENA_MAX": "1",
}

# OpenMP threads that wait for work burn their core: by default 6-10 ms after every computation (measured with libgomp
# on two cores), which the next stage needs, and with more runnable threads than cores everything takes several times
# as long. A thousand turns are some microseconds, enough to bridge the gap between two operations.
_SLEEP_SOON = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}

# Model libraries must not look anything up: weights are local or random.
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "DIFFUSERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


def worker_settings(threads: int | None) -> dict[str, str]:
    """Return the variables that a computing process needs set when it starts.

    Parameters
    ----------
    threads
        OpenMP and BLAS threads; ``None`` leaves them to the libraries. The process also has to call
        ``torch.set_num_threads``, since torch asks the machine where OpenMP is not told.
    """
    count = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    return {**_KEEP_MEMORY, **_SLEEP_SOON, **_OFFLINE, **(count if threads is not None else {})}


def worker_environment(threads: int | None) -> dict[str, str]:
    """Return the whole environment of a computing process: this process's own with :func:`worker_settings`."""
    return {**os.environ, **worker_settings(threads)}
