"""Carrying a plan over to an instance whose devices have changed: a feasible plan near the old one, to start from.

The order of stages is kept. Where a device has left, its stage is left out or goes to an idle device, and further idle
ones join there until everything fits. For each such order the best cuts are a dynamic program over (stage, cut).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.chain.certificate import Certificate
from edgeopt_solvers.chain.check import evaluate
from edgeopt_solvers.chain.instance import Chain, Solution
from edgeopt_solvers.chain.movement import element_loads, variant_loads
from edgeopt_solvers.chain.shares import with_shares
from edgeopt_solvers.errors import InstanceError
from edgeopt_solvers.result import Result
from edgeopt_solvers.solve import WarmStart

__all__ = ["carried_over", "carried_start", "plans_at_sight"]

#: Device and variant of a stage.
_State = tuple[int, int]

#: Idle devices that may join at once, and how many are looked at.
MOST_JOINING, MOST_IDLE = 4, 16


def carried_over(chain: Chain, previous: Solution, devices: Sequence[int | None]) -> Solution | None:
    """Map a plan to an instance whose devices changed, mended where a device has left: a warm start.

    Parameters
    ----------
    chain
        The new instance; elements and variants are those of the old one.
    previous
        A plan of the old instance.
    devices
        For each device of the old instance its index in the new one, ``None`` if it has left.

    Returns
    -------
    Solution or None
        A feasible plan; ``None`` where none was found so (there may still be one).

    Raises
    ------
    InstanceError
        ``devices`` is shorter than the plan needs, or names a device that the new instance lacks.
    """
    if any(not 0 <= d < len(devices) for d in previous.devices):
        raise InstanceError(f"devices maps {len(devices)} devices, and the plan uses device {max(previous.devices)}")
    for d in devices:
        if d is not None and not 0 <= d < chain.num_devices:
            raise InstanceError(f"devices names {d}, and the new instance has {chain.num_devices} devices")
    if previous.cuts[-1] != chain.num_elements or max(previous.variants) >= chain.num_variants:
        return None
    mapped = [(devices[d], v) for d, v in zip(previous.devices, previous.variants, strict=True)]
    order = [(d, v) for d, v in mapped if d is not None]
    if len(order) == len(mapped):
        same = with_shares(chain, replace(previous, devices=tuple(d for d, _ in order)))
        if not evaluate(chain, same).violations:
            return same
    place = next((k for k, (d, _) in enumerate(mapped) if d is None), len(order))
    variant = previous.variants[min(place, len(mapped) - 1)]
    idle = [d for d in np.argsort(-chain.memory_bytes, kind="stable").tolist() if d not in {d for d, _ in order}]
    windows = _Windows(chain)
    for joining in range(MOST_JOINING):
        orders = [order, *([*order[:place], (d, variant), *order[place:]] for d in idle[joining : joining + MOST_IDLE])]
        found = [plan for plan in (_best_cuts(windows, _joined(way)) for way in orders if way) if plan is not None]
        judged = [(evaluate(chain, plan), plan) for plan in found]
        feasible = [(outcome.objective, k) for k, (outcome, _) in enumerate(judged) if not outcome.violations]
        if feasible:
            return judged[min(feasible)[1]][1]
        if joining >= len(idle):
            break
        order = [*order[:place], (idle[joining], variant), *order[place:]]
    return None


def carried_start(chain: Chain, previous: Result, devices: Sequence[int | None]) -> WarmStart:
    """Map a result to an instance whose devices changed: its plan by :func:`carried_over`, and its certificate."""
    solution = None if previous.solution is None else carried_over(chain, previous.solution, devices)
    known = previous.certificate
    if not isinstance(known, Certificate) or len(known.price) != len(devices):
        return WarmStart(solution)
    return WarmStart(solution, known.renumbered(devices, chain.num_devices))


def plans_at_sight(chain: Chain, deadline: float) -> Iterator[Solution]:
    """Yield a few plans on the fastest, or the roomiest, devices in that order; not all of them need be feasible."""
    windows = _Windows(chain, deadline)
    runs = np.isfinite(chain.compute_s)
    pace = np.where(runs, chain.compute_s, 0.0).sum(axis=2) / np.maximum(runs.sum(axis=2), 1)
    pace = np.where(runs.any(axis=2), pace, np.inf)
    most = min(chain.num_devices, chain.num_elements // chain.min_segment, chain.max_stages or chain.num_elements)
    for variant in range(chain.num_variants):
        for order in (np.argsort(pace[:, variant], kind="stable"), np.argsort(-chain.memory_bytes, kind="stable")):
            count = 1
            while count <= most and time.perf_counter() < deadline:
                plan = _best_cuts(windows, [(int(d), variant) for d in order[:count]])
                if plan is not None:
                    yield plan
                    break
                count = min(2 * count, most) if count < most else most + 1


def _joined(order: list[_State]) -> list[_State]:
    """Neighbours of the same device and variant are one stage."""
    return [state for state, _ in itertools.groupby(order)]


def _best_cuts(windows: _Windows, order: list[_State]) -> Solution | None:
    """Best cuts for stages in a given order, budgets and reserved shares aside; ``None`` where they cannot hold all."""
    chain = windows.chain
    combine = np.maximum if "throughput" in chain.weights else np.add
    L = chain.num_elements
    value = np.full(L + 1, np.inf)
    value[0] = 0.0 if chain.source is None else chain.transfer_s(chain.source, order[0][0], 0)
    chosen: list[Array] = []
    for k, state in enumerate(order):
        if time.perf_counter() > windows.deadline:
            return None
        through = combine(value[:, None], windows.of(state))
        chosen.append(through.argmin(axis=0))
        value = through.min(axis=0)
        if k + 1 < len(order):
            value = combine(value, _handover(chain, state, order[k + 1]))
    if not np.isfinite(value[L]):
        return None
    cuts = [L]
    for starts in chosen[:0:-1]:
        cuts.append(int(starts[cuts[-1]]))
    devices, variants = zip(*order, strict=True)
    return with_shares(chain, Solution(tuple(cuts[::-1]), devices, variants))


class _Windows:
    """What every segment costs a device with a variant, each computed once."""

    def __init__(self, chain: Chain, deadline: float = math.inf) -> None:
        self.chain, self.deadline = chain, deadline
        self.element_load, self.shared_load = element_loads(chain), variant_loads(chain)
        self.known: dict[_State, Array] = {}

    def of(self, state: _State) -> Array:
        """Cost by (start, end), (L + 1, L + 1); ``inf``: not allowed."""
        if state not in self.known:
            self.known[state] = self._computed(*state)
        return self.known[state]

    def _computed(self, device: int, variant: int) -> Array:
        chain = self.chain
        L = chain.num_elements
        weights = chain.weights
        watts = 0.0 if chain.power_w is None else float(chain.power_w[device])
        second = weights.get("latency", 0.0) + weights.get("throughput", 0.0) + weights.get("energy", 0.0) * watts
        seconds = chain.compute_s[device, variant]
        barred = np.isinf(seconds)
        for element, pinned in chain.pins.items():
            barred[element] |= pinned != device
        cost = np.where(barred, 0.0, seconds) * second + weights.get("quality", 0.0) * chain.quality_loss[variant]
        cost = cost + self.element_load[device, variant]
        prefix, size, bars = (
            np.concatenate(([0.0], np.cumsum(amount))) for amount in (cost, chain.resident_bytes[variant], barred)
        )
        windows: Array = prefix[None, :] - prefix[:, None] + self.shared_load[device, variant]
        held = size[None, :] - size[:, None] + chain.shared_bytes[variant]
        if chain.transient_bytes[variant].any():
            for start in range(L):
                held[start, start + 1 :] += np.maximum.accumulate(chain.transient_bytes[variant, start:])
        ends = np.arange(L + 1)
        allowed = (held <= chain.allowance(float(chain.memory_bytes[device]))) & (bars[None, :] == bars[:, None])
        allowed &= ends[None, :] - ends[:, None] >= chain.min_segment
        allowed[1:] &= chain.cut_legal[1:, None]
        return np.where(allowed, windows, np.inf)


def _handover(chain: Chain, before: _State, after: _State) -> Array:
    """Seconds (and loss) of handing over at each cut, (L + 1,)."""
    (i, v), (j, w) = before, after
    weights = chain.weights
    watts = 0.0
    if chain.send_power_w is not None and chain.receive_power_w is not None:
        watts = float(chain.send_power_w[i] + chain.receive_power_w[j])
    second = weights.get("latency", 0.0) + weights.get("throughput", 0.0) + weights.get("energy", 0.0) * watts
    loss = weights.get("quality", 0.0)
    cost = np.zeros(chain.num_elements + 1)
    if i != j:
        rate = chain.rate_bytes_per_s[i, j]
        with np.errstate(divide="ignore", invalid="ignore"):
            seconds = chain.cut_messages * chain.latency_s[i, j] + chain.cut_bytes / rate
        moves = (chain.cut_bytes > 0) | (chain.cut_messages > 0)
        cost = np.where(moves, np.inf if rate == 0 else seconds * second, 0.0)
    losses = chain.handoff_loss[v, w]
    return np.where(np.isinf(losses), np.inf, cost + loss * np.where(np.isinf(losses), 0.0, losses))
