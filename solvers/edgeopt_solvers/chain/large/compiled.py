"""Whether the compiled loops are at hand: a time limit shorter than a compiler run must not wait for one."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

__all__ = ["COMPILE_S", "KERNELS", "LOAD_S", "affordable", "compiled"]

#: Seconds that compiling every kernel may take on a slow machine, and loading them once they are compiled.
COMPILE_S, LOAD_S = 30.0, 1.0

#: Engine → module → loops it calls; "" stands for every engine. Others must not wait for what one engine needs.
KERNELS: dict[str, dict[str, tuple[str, ...]]] = {
    "": {
        "kernels_knapsack": ("fill",),
        "kernels_labels": ("label_search",),
        "kernels_memory": ("memory_to_go",),
        "kernels_order": ("anneal",),
        "kernels_prices": ("ascend",),
    },
    "joint": {"kernels_joint": ("joint_search",)},
    "throughput": {"kernels_reach": ("balance", "farthest", "pieces", "reach_within", "value_to_go")},
}


def affordable(time_limit_s: float | None, *engines: str) -> bool:
    """Whether compiled code, and that of ``engines`` ("joint", "throughput"), can answer in time."""
    if time_limit_s is None or time_limit_s >= COMPILE_S:
        return True
    if time_limit_s < LOAD_S and "numba" not in sys.modules:
        return False
    return compiled(*engines)


def compiled(*engines: str) -> bool:
    """Whether the kernels were compiled before: in this process, or by an earlier one into numba's cache on disk."""
    kernels = [
        getattr(importlib.import_module(f"{__package__}.{module}"), name)
        for engine in ("", *engines)
        for module, names in KERNELS[engine].items()
        for name in names
    ]
    return all(kernel.signatures or _cached(kernel) for kernel in kernels)


def _cached(kernel: Any) -> bool:
    """Look for the index file of numba's cache; its place is numba's own business, so not finding it means no."""
    index = getattr(getattr(getattr(kernel, "_cache", None), "_cache_file", None), "_index_path", None)
    return index is not None and Path(index).exists()
