"""The ways to serve each request of a deployment, and their cheapest use for given kept variants."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.placement.deployment import Deployment

__all__ = ["MET", "Ways", "cheapest", "ways_of"]

#: A quality floor counts as met up to this part of it.
MET = 0.5e-9


@dataclass(frozen=True, slots=True)
class Ways:
    """All ways to serve a request, (n,) each: of demand ``demand``, by ``variant`` at ``node`` (−1: downloaded)."""

    demand: NDArray[np.int64]
    variant: NDArray[np.int64]
    node: NDArray[np.int64]
    seconds: Array
    quality: Array
    weight: Array
    task: NDArray[np.int64]
    origin: NDArray[np.int64]

    @property
    def num_demands(self) -> int:
        """Demands with requests."""
        return len(self.weight)


def ways_of(instance: Deployment) -> Ways:
    """List the ways that take finite time; ``weight``, ``task`` and ``origin`` are by demand, weights sum to 1."""
    N = instance.num_nodes
    rates = instance.rate_bytes_per_s
    task, origin = np.nonzero(instance.request_per_s > 0)
    parts: list[tuple[Any, Any, Any, Array]] = []
    for i, (k, n) in enumerate(zip(task.tolist(), origin.tolist(), strict=True)):
        js = np.flatnonzero(instance.task == k)
        if not len(js):
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            sends = np.where(instance.request_bytes[k] > 0, instance.request_bytes[k] / rates[n], 0.0)
            gets = np.where(instance.reply_bytes[k] > 0, instance.reply_bytes[k] / rates[:, n], 0.0)
            travel = sends + gets + instance.latency_s[n] + instance.latency_s[:, n]
            travel[(rates[n] == 0) | (rates[:, n] == 0)] = math.inf
            travel[n] = 0.0
            load_s = instance.variant_bytes[js] / instance.download_bytes_per_s[n]
        if instance.download_bytes_per_s[n] == 0:
            load_s = np.full(len(js), math.inf)
        seconds = np.column_stack([travel + instance.run_s[js], load_s + instance.run_s[js, n]])
        rows, columns = np.nonzero(np.isfinite(seconds))
        where = np.where(columns == N, -1, columns)
        parts.append((np.full(len(rows), i), js[rows], where, seconds[rows, columns]))
    joined = [np.concatenate(part) for part in zip(*parts, strict=True)] if parts else [np.zeros(0)] * 4
    demand, variant, node = (part.astype(np.int64) for part in joined[:3])
    request = instance.request_per_s[task, origin]
    return Ways(
        demand, variant, node, joined[3], instance.quality[variant], request / math.fsum(request.tolist()), task, origin
    )


def cheapest(ways: Ways, usable: NDArray[np.bool_], floor: float | None) -> tuple[float, Array] | None:
    """Return the least mean seconds and the part of each demand on each way; ``None``: not all can be served."""
    value = np.where(usable, ways.seconds, math.inf)
    part = np.zeros(len(value))
    order = np.lexsort((-ways.quality, value, ways.demand))
    firsts = order[np.unique(ways.demand[order], return_index=True)[1]]
    if len(firsts) < ways.num_demands or not np.isfinite(value[firsts]).all():
        return None
    part[firsts] = 1.0
    need = 0.0 if floor is None else floor * (1 - MET) - math.fsum((ways.weight * ways.quality[firsts]).tolist())
    if need > 0:
        steps: list[tuple[float, int, int, int]] = []
        for i, first in enumerate(firsts.tolist()):
            mine = np.flatnonzero((ways.demand == i) & usable)
            at, hull = first, 0
            while True:
                better = mine[ways.quality[mine] > ways.quality[at]]
                if not len(better):
                    break
                slope = (ways.seconds[better] - ways.seconds[at]) / (ways.quality[better] - ways.quality[at])
                best = np.lexsort((-ways.quality[better], slope))[0]
                steps.append((float(slope[best]), hull, at, int(better[best])))
                at, hull = int(better[best]), hull + 1
        for _, _, at, to in sorted(steps):
            gain = float(ways.weight[ways.demand[to]] * (ways.quality[to] - ways.quality[at]))
            moved = min(1.0, need / gain)
            part[to], part[at] = moved, 1.0 - moved
            need -= moved * gain
            if need <= 0:
                break
        if need > MET * (floor or 0.0):
            return None
    used = part > 0
    return math.fsum((ways.weight[ways.demand[used]] * ways.seconds[used] * part[used]).tolist()), part
