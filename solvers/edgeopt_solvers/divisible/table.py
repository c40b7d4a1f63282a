"""Seconds, joules and memory of every (device, units) pair; column 0 means "not used", the last what a device may hold.

For device d with h units: compute C, exchange offset (latency) and, with its whole link or medium, exchange seconds A.
A pair is possible at level τ if

    private, synchronous   C + latency + A <= τ          overlapped   max(C, latency + A) <= τ
    shared                 the same with A / b in place of A, so b = A / (τ − offset) of the medium is needed,
                           offset = C + latency (synchronous) or latency (overlapped, and C <= τ)

With a first part for which all wait, levels are those of the rest.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.bandwidth.validate import Array
from edgeopt_solvers.divisible.instance import LIMIT_TOLERANCE, Divisible, Solution
from edgeopt_solvers.divisible.shares import level_shares

__all__ = ["Table"]


class Table:
    """Matrices of one instance; rows are devices that can be used at all (``devices`` holds their indices)."""

    def __init__(self, instance: Divisible) -> None:
        self.instance = instance
        most = _most_units(instance)
        usable = np.isfinite(instance.unit_s) & np.isfinite(instance.fixed_s)
        usable &= (most >= instance.min_units) & (most > 0)
        self.devices = np.flatnonzero(usable)
        self.least, self.most = instance.min_units[usable], most[usable]
        steps = instance.num_steps[usable, None]
        units = np.arange(int(self.most.max(initial=0)) + 1.0)[None, :]
        compute = steps * (instance.fixed_s[usable, None] + instance.unit_s[usable, None] * units)
        num_bytes = steps * (instance.fixed_bytes[usable, None] + instance.unit_bytes[usable, None] * units)
        rate = instance.rate_bytes_per_s[usable, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            seconds = np.where((num_bytes == 0) | np.isinf(rate), 0.0, num_bytes / rate)
        latency = steps * instance.latency_s[usable, None]
        self.possible = (units >= self.least[:, None]) & (units <= self.most[:, None]) & np.isfinite(seconds)
        shared = instance.shared[usable, None]
        overlapped = instance.exchange == "overlapped"
        own = np.where(shared, 0.0, seconds)
        end = np.maximum(compute, latency + own) if overlapped else compute + latency + own
        lead = instance.lead_s[usable, None] + instance.lead_unit_s[usable, None] * units
        #: Seconds of the first part, for which all wait.
        self.lead: Array = np.where(self.possible, lead, 0.0)
        self.has_lead = bool(self.lead.any())
        #: Seconds until a pair is done without what the shared medium takes, and what it takes with all of it.
        self.end = np.where(self.possible, end, math.inf)
        self.compute: Array = np.where(self.possible, compute, math.inf)
        self.is_pairwise = instance.exchange == "pairwise"
        self.seconds: Array = np.where(shared & self.possible, seconds, 0.0)
        self.offset: Array = np.broadcast_to(latency, end.shape) if overlapped else end
        self.has_medium = bool(self.seconds.any())
        joules = instance.power_w[usable, None] * compute + instance.byte_j[usable, None] * num_bytes
        self.joules: Array = np.where(self.possible, joules, math.inf)
        self.joules[:, 0] = 0.0
        self.rows = np.arange(len(self.devices))

    @property
    def used(self) -> NDArray[np.bool_]:
        """Pairs that use their device and come to an end, (D, H + 1)."""
        used = self.possible & np.isfinite(self.end)
        used[:, 0] = False
        return used

    def most_of(self, allowed: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the largest load of each row among the pairs ``allowed``, (D, H + 1); 0 where there is none."""
        most: NDArray[np.int64] = np.where(allowed, np.arange(allowed.shape[1]), 0).max(axis=1, initial=0)
        return most

    def shares_at(self, level_s: float) -> Array:
        """Return the share that each pair needs to be done by ``level_s``; ``inf``: cannot."""
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(self.seconds > 0, self.seconds / (level_s - self.offset), 0.0)
        share = np.where((self.end <= level_s) & (share >= 0) & (share <= 1), share, math.inf)
        share[:, 0] = 0.0
        return share

    def level_s(self, loads: NDArray[np.int64]) -> float:
        """Return the least makespan of ``loads`` (one per row)."""
        ends = np.where(loads > 0, self.end[self.rows, loads], 0.0)
        level = float(ends.max(initial=0.0))
        if self.is_pairwise and (loads > 0).sum() > 1:
            computing = float(np.where(loads > 0, self.compute[self.rows, loads], 0.0).max())
            return max(computing, float(np.sort(ends)[-2:].mean()))
        sends = np.flatnonzero((loads > 0) & (self.seconds[self.rows, loads] > 0))
        if len(sends):
            offset, seconds = self.offset[sends, loads[sends]], self.seconds[sends, loads[sends]]
            level = max(level, float((offset + seconds / level_shares(offset, seconds)).max()))
        return level + float(np.where(loads > 0, self.lead[self.rows, loads], 0.0).max(initial=0.0))

    def energy_j(self, loads: NDArray[np.int64]) -> float:
        """Return the energy of ``loads``."""
        return math.fsum(self.joules[self.rows, loads].tolist())

    def solution(self, loads: NDArray[np.int64]) -> Solution:
        """Return the decisions with the shares that end soonest."""
        all_loads = np.zeros(self.instance.num_devices, dtype=np.int64)
        all_shares = np.zeros(self.instance.num_devices)
        all_loads[self.devices] = loads
        seconds = self.seconds[self.rows, loads]
        sends = np.flatnonzero((loads > 0) & (seconds > 0))
        if len(sends):
            shares = level_shares(self.offset[sends, loads[sends]], seconds[sends])
            total = math.fsum(shares.tolist())
            all_shares[self.devices[sends]] = shares / total if total > 1 else shares
        private = (all_loads > 0) & ~self.instance.shared
        all_shares[private] = 1.0
        return Solution(tuple(all_loads.tolist()), tuple(all_shares.tolist()))


def _most_units(instance: Divisible) -> NDArray[np.int64]:
    """Return the largest load that each memory holds, (D,)."""
    room = instance.memory_bytes * (1 + 0.5 * LIMIT_TOLERANCE) - instance.fixed_memory_bytes
    with np.errstate(divide="ignore", invalid="ignore"):
        most = np.where(instance.unit_memory_bytes > 0, np.floor(room / instance.unit_memory_bytes), math.inf)
    most = np.where(room < 0, 0.0, most)
    return np.minimum(most, instance.num_units).astype(np.int64)
