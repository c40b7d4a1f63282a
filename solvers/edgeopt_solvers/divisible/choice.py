"""The problem at a fixed level: one load per device, at the least total cost.

    min Σ_d f_d(h_d)   subject to   Σ_d h_d = H,   Σ_d [h_d > 0] <= K,   Σ_d g_d(h_d) <= R

f_d(0) = g_d(0) = 0, and both are convex where the device is used. With prices λ on units, μ >= 0 on devices and
ν >= 0 on g,

    L = λH − μK − νR + Σ_d m_d,    m_d = min(0, min_{h > 0} f_d(h) + μ + ν g_d(h) − λh)

is a lower bound. The best λ for given μ and ν is the H-th smallest slope of the lower convex hulls of all devices. The
reduced cost of a load, f + μ + νg − λh − m, is at least 0, and those of a solution add up to at most its cost less L:
loads whose reduced cost exceeds a slack occur in no solution within that slack of L. What is left is enumerated device
by device with one label per (units, devices) so far (several where g counts), and the slack grows until the best
solution found lies within it: then it is optimal. Nothing but the sums of floats is rounded.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.bandwidth.validate import Array

__all__ = ["Choice", "OutOfTimeError", "Task", "cheapest", "lower_bound", "priced", "quick"]

#: The first slack, relative, and its growth.
FIRST_SLACK, GROWTH = 3e-4, 3.0

#: A price is good enough when no other can raise the bound by more than this, relative.
CLIMBED = 1e-6

#: Slacks that a quick choice tries.
QUICK_ROUNDS = 3

#: New labels made at once.
BLOCK = 500_000


class OutOfTimeError(Exception):
    """The time limit passed inside the enumeration."""


@dataclass(frozen=True, slots=True)
class Task:
    """The arrays of the problem: ``cost`` and ``second`` (D, H + 1), ``inf`` in ``cost`` where a load is impossible."""

    cost: Array
    num_units: int
    most_devices: int
    second: Array | None = None
    limit: float = math.inf


@dataclass(frozen=True, slots=True)
class Choice:
    """Loads (D,) and their cost."""

    cost: float
    loads: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Dual:
    """A bound and the reduced costs behind it, with what its relaxed choice uses beyond the limits."""

    bound: float
    reduced: Array
    nu: float
    extra_devices: float
    extra_second: float


def lower_bound(task: Task) -> float:
    """Return a bound on the cost with μ = ν = 0; ``inf`` if the devices cannot take all units."""
    dual = _dual(task, 0.0, 0.0)
    return math.inf if dual is None else dual.bound


def priced(task: Task, stop_at: float) -> tuple[float, float]:
    """Return a bound on the cost with the best prices, and ν; ``inf`` if the devices cannot take all units."""
    dual = _best_dual(task, stop_at)
    return (math.inf, 0.0) if dual is None else (dual.bound, dual.nu)


def quick(task: Task, ceiling: float, stop_at: float) -> tuple[float, Choice | None]:
    """Return a bound with the best prices, and a good choice where one is found in little time."""
    dual = _best_dual(task, stop_at)
    if dual is None:
        return math.inf, None
    if dual.bound > ceiling:
        return dual.bound, None
    slack = FIRST_SLACK * abs(dual.bound)
    for _ in range(QUICK_ROUNDS):
        found = _enumerate(task, dual, slack, stop_at)
        if found is not None:
            return dual.bound, found
        slack *= GROWTH
    return dual.bound, None


def cheapest(task: Task, ceiling: float, stop_at: float) -> Choice | None:
    """Return a choice of least cost; ``None`` if none costs at most ``ceiling``.

    Raises
    ------
    OutOfTimeError
        ``time.perf_counter()`` passed ``stop_at``.
    """
    dual = _best_dual(task, stop_at)
    if dual is None or dual.bound > ceiling:
        return None
    finite = np.where(np.isfinite(dual.reduced), dual.reduced, 0.0)
    everything = float(finite.max(axis=1).sum()) * (1 + 1e-9)
    most = min(everything, (ceiling - dual.bound) * (1 + 1e-9) + 1e-12 * abs(ceiling))
    scale = max(abs(dual.bound), 1e-3 * everything)
    slack = min(FIRST_SLACK * scale, most)
    while True:
        found = _enumerate(task, dual, slack, stop_at)
        if found is not None and found.cost <= dual.bound + slack:
            return found if found.cost <= ceiling else None
        if slack >= most:
            return found if found is not None and found.cost <= ceiling else None
        if found is not None:  # nothing costs more than this, and often much less does
            most = min(most, (found.cost - dual.bound) * (1 + 1e-9))
        slack = min(most, GROWTH * slack)


# ── prices ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _dual(task: Task, mu: float, nu: float) -> _Dual | None:
    """Bound at prices μ, ν and the best λ for them; ``None`` if the devices cannot take all units."""
    cost = task.cost
    D, width = cost.shape
    H = task.num_units
    if D == 0:
        return None
    f = cost.copy()
    if nu and task.second is not None:
        f += nu * task.second
    f[:, 1:] += mu
    units = np.arange(1.0, width)
    mean = f[:, 1:] / units
    tangent = np.argmin(mean, axis=1)
    with np.errstate(invalid="ignore"):
        slope = np.diff(f, axis=1)
    rows = np.arange(D)
    slope = np.where(np.arange(width - 1) <= tangent[:, None], mean[rows, tangent][:, None], slope)
    slope = np.where(np.isfinite(f[:, 1:]) | (np.arange(width - 1) <= tangent[:, None]), slope, math.inf)
    flat = slope.ravel()
    if flat.size < H:
        return None
    price = float(np.partition(flat, H - 1)[H - 1])
    if not math.isfinite(price):
        return None
    f[:, 1:] -= price * units
    best = np.argmin(f, axis=1)
    least = f[rows, best]
    used = best > 0
    second = float(task.second[rows, best].sum()) if task.second is not None else 0.0
    limit = task.limit if task.second is not None else 0.0
    most = min(task.most_devices, D)
    bound = price * H - mu * most - (nu * limit if nu else 0.0) + math.fsum(least.tolist())
    return _Dual(bound, f - least[:, None], nu, float(used.sum()) - most, second - limit)


def _best_dual(task: Task, stop_at: float) -> _Dual | None:
    """Search the prices: λ exactly, μ and ν one after the other where their limits bind."""
    best = _dual(task, 0.0, 0.0)
    if best is None:
        return None
    mu = nu = 0.0
    rounds = 2 if task.second is not None and task.most_devices < task.cost.shape[0] else 1
    for _ in range(rounds):
        if task.most_devices < task.cost.shape[0]:
            best, mu = _climb(task, best, mu, nu, True, stop_at)
        if task.second is not None:
            best, nu = _climb(task, best, mu, nu, False, stop_at)
    return best


def _climb(task: Task, best: _Dual, mu: float, nu: float, devices: bool, stop_at: float) -> tuple[_Dual, float]:
    """Maximise the bound over μ (``devices``) or ν, the other fixed: concave, so the excess tells the side."""
    start = mu if devices else nu

    def at(price: float) -> _Dual | None:
        if time.perf_counter() > stop_at:
            raise OutOfTimeError
        return _dual(task, price, nu) if devices else _dual(task, mu, price)

    def excess(dual: _Dual) -> float:
        return dual.extra_devices if devices else dual.extra_second

    zero = at(0.0)
    if zero is None or excess(zero) <= 0:
        return (zero, 0.0) if zero is not None and zero.bound >= best.bound else (best, start)
    kept, price = (zero, 0.0) if zero.bound > best.bound else (best, start)
    step = abs(best.bound) / max(task.most_devices, 1) if devices else abs(best.bound) / max(task.limit, 1e-300)
    trial = start or (1e-2 * step if 0 < step < math.inf else 1.0)
    low, below = 0.0, zero
    high, above = math.inf, zero
    for evaluation in range(60):
        dual = at(trial)
        if dual is None or not math.isfinite(dual.bound):
            break
        if dual.bound > kept.bound:
            kept, price = dual, trial
        if excess(dual) > 0:
            low, below = trial, dual
        else:
            high, above = trial, dual
        if math.isinf(high):
            trial = 4 * trial
            continue
        # both tangents lie above the bound: where they cross is the most that it can reach
        cross = (above.bound - below.bound + excess(below) * low - excess(above) * high) / (
            excess(below) - excess(above)
        )
        reach = below.bound + excess(below) * (cross - low)
        if high - low <= 1e-4 * high or reach - kept.bound <= CLIMBED * abs(kept.bound):
            break
        trial = cross if evaluation % 3 and low < cross < high else 0.5 * (low + high)
    return kept, price


# ── enumeration of what the prices leave ─────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Labels:
    """Partial choices: units and devices so far, cost, second, reduced cost, and where they come from."""

    units: NDArray[np.int64]
    devices: NDArray[np.int64]
    cost: Array
    second: Array
    reduced: Array
    parent: NDArray[np.int64]
    load: NDArray[np.int64]

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> _Labels:
        """Return some of the labels."""
        return _Labels(
            self.units[index], self.devices[index], self.cost[index], self.second[index], self.reduced[index],
            self.parent[index], self.load[index],
        )  # fmt: skip


def _enumerate(task: Task, dual: _Dual, slack: float, stop_at: float) -> Choice | None:
    """Return the cheapest choice among those whose reduced costs add up to at most ``slack``."""
    D, H = task.cost.shape[0], task.num_units
    reduced, room = dual.reduced, slack * (1 + 1e-12)
    options = [np.flatnonzero(row <= room) for row in reduced]
    order = sorted(range(D), key=lambda d: (len(options[d]), d))
    counts = task.most_devices < D
    # what the devices still to come can add at least and at most
    tail_low = np.append(np.cumsum([options[d].min() for d in reversed(order)])[::-1], 0)
    tail_high = np.append(np.cumsum([options[d].max() for d in reversed(order)])[::-1], 0)
    guides = _guides(task, dual, slack, options, order)
    zero, none = np.zeros(1, dtype=np.int64), np.zeros(1)
    labels = _Labels(zero, zero, none, none, none, zero, zero)
    history: list[_Labels] = []
    for position, device in enumerate(order):
        if time.perf_counter() > stop_at:
            raise OutOfTimeError
        low, high = H - tail_high[position + 1], H - tail_low[position + 1]
        chosen = options[device]
        block = max(1, BLOCK // max(len(labels.units), 1))
        grown: _Labels | None = None
        for first in range(0, len(chosen), block):
            new = _extend(
                task, labels, device, chosen[first : first + block], reduced[device], room, int(low), int(high)
            )
            for guide in guides:
                new = new.take(guide.keeps(new, position, H))
            grown = new if grown is None else _join(grown, new)
            grown = _dominant(grown, counts, task.second is not None)
            if time.perf_counter() > stop_at:
                raise OutOfTimeError
        assert grown is not None, "every device has the option of its least reduced cost"
        if not len(grown.units):
            return None
        labels = grown
        history.append(labels)
    best = int(np.argmin(labels.cost))
    value, picked = float(labels.cost[best]), np.zeros(D, dtype=np.int64)
    for device, kept in zip(reversed(order), reversed(history), strict=True):
        picked[device] = kept.load[best]
        best = int(kept.parent[best])
    return Choice(value, picked)


@dataclass(frozen=True, slots=True)
class _Guide:
    """Least weighted sum a·f + b·g of the devices still to come, by their units, and what it may be in all.

    Stronger than reduced costs where g counts: the units add up exactly.
    """

    weight: float
    weight_second: float
    tables: list[Array]
    most: float

    def keeps(self, labels: _Labels, position: int, num_units: int) -> NDArray[np.bool_]:
        """Return which labels can still end within the limit."""
        rest = self.tables[position + 1][num_units - labels.units]
        keeps: NDArray[np.bool_] = self.weight * labels.cost + self.weight_second * labels.second + rest <= self.most
        return keeps


def _guides(task: Task, dual: _Dual, slack: float, options: list[NDArray[np.int64]], order: list[int]) -> list[_Guide]:
    """Tables for f + νg, which is at most T + νR, and for g alone, at most R."""
    if task.second is None:
        return []
    target = dual.bound + slack
    target += 1e-9 * max(abs(target), abs(dual.bound))
    guides = []
    for a, b, most in ((1.0, dual.nu, target + dual.nu * task.limit), (0.0, 1.0, task.limit)):
        table = np.full(task.num_units + 1, math.inf)
        table[0] = 0.0
        tables = [table]
        for device in reversed(order):
            loads = options[device]
            values = a * task.cost[device, loads] + b * task.second[device, loads]
            grown = np.full_like(table, math.inf)
            for load, value in zip(loads.tolist(), values.tolist(), strict=True):
                np.minimum(grown[load:], table[: len(table) - load] + value, out=grown[load:])
            table = grown
            tables.append(table)
        guides.append(_Guide(a, b, tables[::-1], most * (1 + 1e-12)))
    return guides


def _extend(
    task: Task, labels: _Labels, device: int, loads: NDArray[np.int64], reduced: Array, room: float, low: int, high: int
) -> _Labels:
    """Give ``device`` each of ``loads`` on top of each label, and keep what can still become a choice."""
    n, m = len(labels.units), len(loads)
    units = (labels.units[:, None] + loads).ravel()
    total = (labels.reduced[:, None] + reduced[loads]).ravel()
    keep = (units >= low) & (units <= high) & (total <= room)
    devices = (labels.devices[:, None] + (loads > 0)).ravel()
    keep &= devices <= task.most_devices
    if task.second is not None:
        second = (labels.second[:, None] + task.second[device, loads]).ravel()
        keep &= second <= task.limit
    else:
        second = np.zeros(n * m)
    index = np.flatnonzero(keep)
    cost = (labels.cost[:, None] + task.cost[device, loads]).ravel()
    parent, load = index // m, loads[index % m]
    return _Labels(units[index], devices[index], cost[index], second[index], total[index], parent, load)


def _join(a: _Labels, b: _Labels) -> _Labels:
    return _Labels(
        np.append(a.units, b.units), np.append(a.devices, b.devices), np.append(a.cost, b.cost),
        np.append(a.second, b.second), np.append(a.reduced, b.reduced), np.append(a.parent, b.parent),
        np.append(a.load, b.load),
    )  # fmt: skip


def _dominant(labels: _Labels, counts: bool, two: bool) -> _Labels:
    """Drop labels that another with equal units (and devices) beats in cost (and second)."""
    key = labels.units
    if counts and len(key):
        key = key * (int(labels.devices.max()) + 1) + labels.devices
    if not two:
        order = np.lexsort((labels.cost, key))
        first = np.append(True, np.diff(key[order]) != 0)[: len(order)]
        return labels.take(order[first])
    order = np.lexsort((labels.second, labels.cost, key))
    while len(order) > 1:  # rising cost within a key: a label must lower ``second``
        beaten = np.append(False, (np.diff(key[order]) == 0) & (labels.second[order[1:]] >= labels.second[order[:-1]]))
        if not beaten.any():
            break
        order = order[~beaten]
    return labels.take(order)
