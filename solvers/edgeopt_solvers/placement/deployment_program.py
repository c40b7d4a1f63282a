"""The program of a deployment: x_io <= y_o with one row per way, memory per node, one row for the floor.

Relaxed, its bound is evaluated anew at the prices α of the first rows, λ of memory and ν of quality:

    Σ_i min_o (r_i (s_o − ν q_o) + α_io) + Σ_y min over {0, 1} (λ bytes − Σ α) y − Σ λ M + ν floor.

With whole y it goes to HiGHS, whose bound is taken as it is.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.chain.segments import unit_of
from edgeopt_solvers.placement.deployment import Deployment
from edgeopt_solvers.placement.deployment_ways import MET, Ways
from edgeopt_solvers.placement.tree import Bits

__all__ = ["Program"]

#: HiGHS stops at an absolute gap of 1e-6: this many units of the objective make that a relative one of about 1e-9.
FINE = 1e3


class Program:
    """Rows and columns for decisions between ``low`` and ``high``, (J·N,).

    Attributes
    ----------
    possible
        Whether every demand has a way.
    """

    def __init__(self, instance: Deployment, ways: Ways, at: NDArray[np.int64], low: Bits, high: Bits) -> None:
        self._instance, self._ways, self._low, self._high = instance, ways, low, high
        needs = at >= 0
        open_ways = ~needs | high[at]
        self.possible = len(np.unique(ways.demand[open_ways])) == ways.num_demands
        if not self.possible:
            return
        import scipy.sparse as sp

        self._w = w = np.flatnonzero(open_ways)
        self._at = at[w]
        n, num_y = len(w), len(low)
        weight = ways.weight[ways.demand[w]]
        self._seconds, self._quality = weight * ways.seconds[w], weight * ways.quality[w]
        self._unit = unit_of(self._seconds.tolist())
        self._tied = tied = np.flatnonzero(needs[w] & ~low[self._at])
        t = len(tied)
        entries = np.concatenate([np.ones(t), -np.ones(t)])
        place = np.tile(np.arange(t), 2), np.concatenate([tied, n + self._at[tied]])
        rows, below = [sp.csr_matrix((entries, place), shape=(t, n + num_y))], [np.zeros(t)]
        self._limited = np.flatnonzero(instance.memory_bytes < math.fsum(instance.variant_bytes.tolist()))
        self._sizes = np.repeat(instance.variant_bytes, instance.num_nodes)
        self._scale = float(self._sizes.max()) or 1.0
        if len(self._limited):
            held = np.tile(np.arange(instance.num_nodes), instance.num_variants), n + np.arange(num_y)
            shape = (instance.num_nodes, n + num_y)
            rows.append(sp.csr_matrix((self._sizes / self._scale, held), shape=shape)[self._limited])
            below.append(instance.memory_bytes[self._limited] / self._scale)
        self._top = max(float(ways.quality.max(initial=0.0)), 1e-300)
        self._floor = None if instance.min_quality is None else instance.min_quality * (1 - MET)
        if self._floor is not None:
            across = np.zeros(n, dtype=int), np.arange(n)
            rows.append(sp.csr_matrix((-self._quality / self._top, across), shape=(1, n + num_y)))
            below.append(np.array([-self._floor / self._top]))
        self._rows, self._below = sp.vstack(rows, format="csr"), np.concatenate(below)
        self._each = sp.csr_matrix((np.ones(n), (ways.demand[w], np.arange(n))), shape=(ways.num_demands, n + num_y))
        self._cost = np.concatenate([self._seconds / self._unit, np.zeros(num_y)])
        self._lower = np.concatenate([np.zeros(n), low])
        self._upper = np.concatenate([np.ones(n), high])

    def relaxed(self, stop_at: float) -> tuple[float, Array | None]:
        """Return the bound by prices and the relaxed decisions; ``inf``: there is no plan."""
        if not self.possible:
            return math.inf, None
        from scipy.optimize import linprog

        bounds = np.column_stack([self._lower, self._upper])
        ones = np.ones(self._ways.num_demands)
        answer = linprog(
            self._cost, self._rows, self._below, self._each, ones, bounds, method="highs-ds", options=_limit(stop_at)
        )
        if answer.status == 2:
            return math.inf, None
        if answer.status != 0 or answer.x is None:
            return self._bound(np.zeros(len(self._below))), None
        duals = np.maximum(-np.asarray(answer.ineqlin.marginals), 0.0) * self._unit
        return self._bound(duals), np.clip(answer.x[len(self._w) :], 0.0, 1.0)

    def whole(self, gap: float, stop_at: float) -> tuple[float, Bits | None]:
        """Return HiGHS's bound and its kept variants, (J, N), if it found any."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        ones, n = np.ones(self._ways.num_demands), len(self._w)
        whole = np.concatenate([np.zeros(n), np.ones(len(self._low))])
        rows = [LinearConstraint(self._rows, -np.inf, self._below), LinearConstraint(self._each, ones, ones)]
        answer = milp(
            FINE * self._cost, integrality=whole, bounds=Bounds(self._lower, self._upper), constraints=rows,
            options={"mip_rel_gap": gap, **_limit(stop_at)},
        )  # fmt: skip
        bound = getattr(answer, "mip_dual_bound", None)
        kept = None if answer.x is None else answer.x[n:].reshape(self._instance.num_variants, -1) > 0.5
        return (-math.inf if bound is None else float(bound) * self._unit / FINE), kept

    def _bound(self, duals: Array) -> float:
        instance, ways, t = self._instance, self._ways, len(self._tied)
        alpha, memory = duals[:t], duals[t : t + len(self._limited)] / self._scale
        nu = 0.0 if self._floor is None else float(duals[-1]) / self._top
        reduced = self._seconds - nu * self._quality
        reduced[self._tied] += alpha
        worth = np.zeros(len(self._low))
        np.add.at(worth, self._at[self._tied], -alpha)
        per_node = np.zeros(instance.num_nodes)
        per_node[self._limited] = memory
        worth += self._sizes * np.tile(per_node, instance.num_variants)
        fixed = np.where(self._low, worth, np.where(self._high, np.minimum(worth, 0.0), 0.0))
        spent = -memory * instance.memory_bytes[self._limited] * (1 + 0.5e-9)
        floor = nu * (self._floor or 0.0)
        priced = math.fsum([*self._least(reduced).tolist(), *fixed.tolist(), *spent.tolist(), floor])
        simple = math.fsum((ways.weight * self._least(ways.seconds[self._w])).tolist())
        return max(priced, simple) if math.isfinite(priced) else simple

    def _least(self, cost: Array) -> Array:
        least = np.full(self._ways.num_demands, math.inf)
        np.minimum.at(least, self._ways.demand[self._w], cost)
        return least


def _limit(stop_at: float) -> dict[str, Any]:
    left = stop_at - time.perf_counter()
    return {"time_limit": max(0.01, left)} if math.isfinite(left) else {}
