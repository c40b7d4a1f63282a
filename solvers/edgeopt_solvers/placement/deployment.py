"""Task experts kept at edge nodes, as data: variants with bytes and quality, requests, links, a store to load from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.data import JsonInstance
from edgeopt_solvers.errors import InstanceError
from edgeopt_solvers.policy.validate import amounts

__all__ = ["DEPLOYMENT_FEATURES", "Deployment", "DeploymentSolution"]

_ABSENT: Any = None

DEPLOYMENT_FEATURES = frozenset({"deployment", "neighbours", "download", "min_quality"})


@dataclass(frozen=True, eq=False)
class DeploymentSolution:
    """Decisions of a deployment.

    Attributes
    ----------
    kept : (J, N) of bool
        Which variants each node keeps.
    served : (N, J, N)
        Part of the requests at node n for the task of variant j that j kept at node m serves: ``served[n, j, m]``.
    downloaded : (N, J)
        Part of them for which node n loads variant j from the store first.
    """

    kept: NDArray[np.bool_]
    served: Array
    downloaded: Array

    def __post_init__(self) -> None:
        for name, dtype in (("kept", np.bool_), ("served", np.float64), ("downloaded", np.float64)):
            array = np.array(getattr(self, name), dtype=dtype)
            array.flags.writeable = False
            object.__setattr__(self, name, array)


@dataclass(frozen=True, eq=False)
class Deployment(JsonInstance):
    """Choose which variants each edge node keeps, and who serves what, at the least mean seconds per request.

    K tasks, J variants (each of one task), N nodes. A request at n for a task is served

    - by a variant j kept at n: ``run_s[j, n]``;
    - by a variant j kept at m: ``latency_s[n, m] + latency_s[m, n] + request_bytes / rate[n, m] + reply_bytes /
      rate[m, n] + run_s[j, m]``;
    - by a variant j loaded from the store for it: ``variant_bytes[j] / download_bytes_per_s[n] + run_s[j, n]``.

    Parameters
    ----------
    task : (J,)
        Index of the task that each variant is for.
    variant_bytes : (J,)
        Memory and download size.
    run_s : (J,) or (J, N)
        Seconds per request; ``inf``: cannot run there.
    request_per_s : (K, N)
        Requests per second for each task at each node.
    memory_bytes : (N,), optional
        Memory for kept variants.
    quality : (J,), optional
        Quality of the answers; larger is better.
    min_quality : float, optional
        Floor on the mean quality over all requests.
    download_bytes_per_s : (N,), optional
        Rate from the store; 0 (default): none.
    rate_bytes_per_s, latency_s : (N, N), optional
        Links between nodes; rate 0: no link.
    request_bytes, reply_bytes : float or (K,)
        What a request served by a neighbour sends and gets back.

    Raises
    ------
    InstanceError
        A shape, sign, magnitude or reference is wrong; the message names the field, the value and the mend.
    """

    family: ClassVar[str] = "placement"
    problem: ClassVar[str] = "deployment"

    task: NDArray[np.int64]
    variant_bytes: Array
    run_s: Array
    request_per_s: Array
    memory_bytes: Array = _ABSENT
    quality: Array = _ABSENT
    min_quality: float | None = None
    download_bytes_per_s: Array = _ABSENT
    rate_bytes_per_s: Array = _ABSENT
    latency_s: Array = _ABSENT
    request_bytes: Array = _ABSENT
    reply_bytes: Array = _ABSENT

    def __post_init__(self) -> None:
        for name, value in _normalised(self).items():
            object.__setattr__(self, name, value)

    @property
    def num_variants(self) -> int:
        """J."""
        return int(self.task.shape[0])

    @property
    def num_tasks(self) -> int:
        """K."""
        return int(self.request_per_s.shape[0])

    @property
    def num_nodes(self) -> int:
        """N."""
        return int(self.request_per_s.shape[1])

    def features(self) -> frozenset[str]:
        """Names (from :data:`DEPLOYMENT_FEATURES`) of the optional features that this instance uses."""
        used = {
            "deployment": True,
            "neighbours": bool(self.rate_bytes_per_s.any()),
            "download": bool(self.download_bytes_per_s.any()),
            "min_quality": self.min_quality is not None,
        }
        return frozenset(name for name, present in used.items() if present)


def _normalised(given: Deployment) -> dict[str, Any]:
    request = amounts(
        "request_per_s", given.request_per_s, [(None, None)], "give finite requests/s >= 0 per task, node"
    )
    K, N = request.shape
    if not request.any():
        raise InstanceError("request_per_s is 0 everywhere; give requests per second per task and node")
    sizes = amounts("variant_bytes", given.variant_bytes, [(None,)], "give finite bytes >= 0 per variant")
    J = sizes.shape[0]
    index = amounts("task", given.task, [(J,)], "give the index of each variant's task")
    bad = (index != np.floor(index)) | (index >= K)
    if bad.any():
        j = int(np.argmax(bad))
        raise InstanceError(f"task[{j}] is {index[j]:g}; give the index of a task, whole numbers 0..{K - 1}")
    task = index.astype(np.int64)
    run = amounts("run_s", given.run_s, [(J,), (J, N)], "give seconds >= 0 per variant, or variant and node", inf=True)
    run = np.array(np.broadcast_to(run if run.ndim == 2 else run[:, None], (J, N)))
    for array in (task, run):
        array.flags.writeable = False

    def optional(name: str, shape: tuple[int, ...], default: float, mend: str, inf: bool = False) -> Array:
        value = getattr(given, name)
        return amounts(name, np.full(shape, default) if value is None else value, [shape], mend, inf=inf)

    fields: dict[str, Any] = {
        "task": task,
        "variant_bytes": sizes,
        "run_s": run,
        "request_per_s": request,
        "memory_bytes": optional("memory_bytes", (N,), math.inf, "give bytes >= 0 per node, inf: unlimited", True),
        "quality": optional("quality", (J,), 0.0, "give a finite quality >= 0 per variant"),
        "download_bytes_per_s": optional("download_bytes_per_s", (N,), 0.0, "give bytes/s >= 0, 0: no store", True),
        "rate_bytes_per_s": optional("rate_bytes_per_s", (N, N), 0.0, "give bytes/s >= 0 per pair, 0: no link", True),
        "latency_s": optional("latency_s", (N, N), 0.0, "give finite seconds >= 0 per pair of nodes"),
        "min_quality": None,
    }
    for name in ("request_bytes", "reply_bytes"):
        value = getattr(given, name)
        value = amounts(name, 0.0 if value is None else value, [(), (K,)], "give finite bytes >= 0, or one per task")
        fields[name] = np.array(np.broadcast_to(value, (K,)))
        fields[name].flags.writeable = False
    if given.min_quality is not None:
        if given.quality is None:
            raise InstanceError("quality is missing: min_quality sets a floor; give one per variant")
        fields["min_quality"] = float(amounts("min_quality", given.min_quality, [()], "give a finite floor >= 0"))
    return fields
