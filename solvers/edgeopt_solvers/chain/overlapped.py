"""Chains whose stages also work on many equal jobs in a row: latency plus a weight times the longest of their turns.

A request that begins with C equal jobs (chunks of a prompt) takes the chain's latency for the first and C - 1 turns of
the slowest stage or transfer for the others:

    minimise  latency(cuts, devices) + w max(longest stage_s, longest transfer_s)

For a threshold on the maximum, the least latency of plans below it is a shortest path over (devices used, last device,
elements placed), since with ``reuse="once"`` every limit is one of a single stage. It falls as the threshold grows, so
that between two thresholds nothing can be better than the latency at the upper with the maximum at the lower: intervals
that cannot improve on the best plan are left out, the others halved.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.chain.instance import Chain, Solution

__all__ = ["MOST_DEVICES", "Overlapped", "least_overlapped"]

#: Subsets of the devices are enumerated.
MOST_DEVICES = 6


@dataclass(frozen=True)
class Overlapped:
    """The chain, seconds of each turn, and how many turns follow the first.

    Attributes
    ----------
    chain
        One variant, ``reuse="once"``, objective latency; no budgets.
    stage_s : (D, L)
        Seconds of an element's turn on a device; a stage's are their sum.
    transfer_s : (D, D, L + 1)
        Seconds that a turn occupies a link at a cut.
    weight
        Of the longest turn.
    """

    chain: Chain
    stage_s: Array
    transfer_s: Array
    weight: float

    @property
    def is_supported(self) -> bool:
        """Whether the chain is one that the method is for."""
        chain = self.chain
        budgets = (chain.max_latency_s, chain.max_period_s, chain.max_energy_j, chain.max_quality_loss)
        plain = chain.num_variants == 1 and chain.reuse == "once" and chain.objective == "latency"
        free = not chain.links_of("reserved").any() and chain.max_stages is None and not chain.charges_loads
        able = int(np.isfinite(chain.compute_s[:, 0]).any(axis=1).sum())
        return plain and free and able <= MOST_DEVICES and all(limit is None for limit in budgets)

    def value(self, solution: Solution) -> float:
        """Return latency and weighted turn of a solution, without asking for limits."""
        chain, total, longest = self.chain, 0.0, 0.0
        before: int | None = None
        for device, start, stop in zip(solution.devices, solution.starts, solution.cuts, strict=True):
            total += float(chain.compute_s[device, 0, start:stop].sum())
            longest = max(longest, float(self.stage_s[device, start:stop].sum()))
            if before is not None:
                total += chain.transfer_s(before, device, start)
                longest = max(longest, float(self.transfer_s[before, device, start]))
            before = device
        first, last = solution.devices[0], solution.devices[-1]
        total += chain.loop_s(last, first)
        if chain.source is not None:
            total += chain.transfer_s(chain.source, first, 0)
            total += chain.transfer_s(last, chain.source, chain.num_elements)
        return total + self.weight * longest

    @cached_property
    def devices(self) -> list[int]:
        """Devices that can run anything."""
        return [d for d in range(self.chain.num_devices) if np.isfinite(self.chain.compute_s[d, 0]).any()]

    @cached_property
    def segments(self) -> tuple[Array, Array]:
        """Seconds of the stage from a to b on each device in the whole latency and in a turn, (D, L + 1, L + 1).

        Infinite where it breaks a limit.
        """
        chain = self.chain
        D, L = chain.num_devices, chain.num_elements
        whole = np.full((D, L + 1, L + 1), math.inf)
        turn = np.full((D, L + 1, L + 1), math.inf)
        for d in self.devices:
            pinned = np.array([chain.pins.get(e, d) != d for e in range(L)])
            seconds = np.where(pinned, math.inf, chain.compute_s[d, 0])
            limit = chain.allowance(float(chain.memory_bytes[d]))
            for a in range(L):
                if a and not chain.cut_legal[a]:
                    continue
                held = np.cumsum(chain.resident_bytes[0, a:]) + np.maximum.accumulate(chain.transient_bytes[0, a:])
                fits = held + float(chain.shared_bytes[0]) <= limit
                fits[: chain.min_segment - 1] = False
                whole[d, a, a + 1 :] = np.where(fits, np.cumsum(seconds[a:]), math.inf)
                turn[d, a, a + 1 :] = np.cumsum(self.stage_s[d, a:])
        turn[np.isinf(whole)] = math.inf
        return whole, turn

    def best_below(self, threshold: float) -> tuple[float, Solution | None]:
        """Return the least latency of plans none of whose turns is longer, and such a plan."""
        chain, best, found = self.chain, math.inf, None
        L = chain.num_elements
        whole, turn = self.segments
        segment = np.where(turn <= threshold, whole, math.inf)
        moves = np.stack([chain.transfer_matrix(cut) for cut in range(L + 1)], axis=-1)
        moves = np.where(self.transfer_s <= threshold, moves, math.inf)
        loops = chain.loop_matrix()
        for first in self.devices:
            came = 0.0 if chain.source is None else chain.transfer_s(chain.source, first, 0)
            reached: dict[tuple[frozenset[int], int], Array] = {(frozenset({first}), first): came + segment[first, 0]}
            origin: dict[tuple[frozenset[int], int], tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
            layer = list(reached)
            while layer:
                made: dict[tuple[frozenset[int], int], None] = {}
                for used, last in layer:
                    cost = reached[used, last]
                    for after in self.devices:
                        if after in used:
                            continue
                        ways = (cost + moves[last, after])[:, None] + segment[after]
                        at = ways.argmin(axis=0)
                        value = ways[at, np.arange(L + 1)]
                        key = (used | {after}, after)
                        if key not in reached:
                            reached[key], made[key] = np.full(L + 1, math.inf), None
                            origin[key] = (np.full(L + 1, -1), np.full(L + 1, -1))
                        better = value < reached[key]
                        reached[key][better] = value[better]
                        origin[key][0][better], origin[key][1][better] = last, at[better]
                layer = list(made)
            for (used, last), cost in reached.items():
                back = 0.0 if chain.source is None else chain.transfer_s(last, chain.source, L)
                value_s = float(cost[L]) + float(loops[last, first]) + back
                if value_s < best:
                    best, found = value_s, _traced(origin, used, last, L)
        return best, found


def _traced(
    origin: dict[tuple[frozenset[int], int], tuple[NDArray[np.int64], NDArray[np.int64]]],
    used: frozenset[int],
    last: int,
    stop: int,
) -> Solution:
    """Follow a path back to its first device."""
    devices, cuts = [last], [stop]
    while len(used) > 1:
        before, at = origin[used, last]
        used, last, stop = used - {last}, int(before[stop]), int(at[stop])
        devices.append(last)
        cuts.append(stop)
    return Solution(tuple(cuts[::-1]), tuple(devices[::-1]), (0,) * len(cuts))


def least_overlapped(problem: Overlapped, time_limit_s: float = math.inf) -> tuple[Solution | None, float, float]:
    """Solve exactly, or as far as time allows.

    Returns
    -------
    Solution or None, float, float
        The best plan found, its value, and a lower bound of all plans' values (``inf``: there is no plan).
    """
    deadline = time.perf_counter() + time_limit_s
    _, turn = problem.segments
    values = np.concatenate([turn[np.isfinite(turn)], problem.transfer_s[np.isfinite(problem.transfer_s)], [0.0]])
    values = np.unique(values)
    best, found = math.inf, None

    def latency_at(index: int) -> float:
        nonlocal best, found
        latency, solution = problem.best_below(float(values[index]))
        if solution is not None and (value := problem.value(solution)) < best:
            best, found = value, solution
        return latency

    last = len(values) - 1
    open_: list[tuple[int, int, float]] = []  # thresholds between two that are done, and the latency at the upper
    top = latency_at(last)
    if math.isinf(top):
        return None, math.inf, math.inf
    latency_at(0)
    open_.append((0, last, top))
    bound = math.inf
    while open_:
        low, high, latency = open_.pop()
        if high - low < 2:
            continue
        least = latency + problem.weight * float(values[low + 1])
        if least >= best * (1 - 1e-12):
            continue
        if time.perf_counter() > deadline:
            bound = min(bound, least)
            continue
        middle = (low + high) // 2
        at = latency_at(middle)
        open_.append((middle, high, latency))
        if math.isfinite(at):
            open_.append((low, middle, at))
    return found, best, min(best, bound)
