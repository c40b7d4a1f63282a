"""Flows in the order the solver works in: medium after medium, media with fixed rates before radio media.

Then one slice holds all flows of a kind, and sums per medium are one call. A transfer lasts ``unit_s / b`` seconds with
share b at a fixed rate (``unit_s`` = size / rate), ``(unit_s / snr) · u / ln(1 + u)`` with u = snr/b on a radio medium
(``unit_s`` = 8 ln 2 · size / band; see ``radio.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.bandwidth import radio
from edgeopt_solvers.bandwidth.instance import Bandwidth
from edgeopt_solvers.bandwidth.validate import Array

__all__ = ["Flows", "arrange"]

Mask = NDArray[np.bool_]
Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Flows:
    """Some flows of an instance, sorted; n flows on m media that have at least one of them.

    Attributes
    ----------
    index : (n,)
        Position of each flow in the instance.
    group : (n,)
        Position 0..m-1 of each flow's medium, ascending.
    first : (m,)
        First flow of each medium.
    num_fixed
        Flows on media with fixed rates; they come first.
    unit_s, snr, weight, fixed_s, deadline_s, low, high : (n,)
        As in the module's docstring and the instance; ``low`` and ``high`` limit the shares.
    budget : (m,)
    """

    index: Index
    group: Index
    first: Index
    num_fixed: int
    unit_s: Array
    snr: Array
    weight: Array
    fixed_s: Array
    deadline_s: Array
    low: Array
    high: Array
    budget: Array

    def take(self, mask: Mask, budget: Array) -> tuple[Flows, Index]:
        """Return the flows where ``mask``, with ``budget`` (m,) in place of theirs, and where their media were."""
        group = self.group[mask]
        kept, first, renumbered = _groups(group)
        return replace(
            self,
            index=self.index[mask], group=renumbered, first=first, num_fixed=int(mask[: self.num_fixed].sum()),
            unit_s=self.unit_s[mask], snr=self.snr[mask], weight=self.weight[mask], fixed_s=self.fixed_s[mask],
            deadline_s=self.deadline_s[mask], low=self.low[mask], high=self.high[mask], budget=budget[kept],
        ), kept  # fmt: skip

    # ── per medium ───────────────────────────────────────────────────────────────────────────────────────────

    def sums(self, values: Array) -> Array:
        """Sum of ``values`` (n,) per medium, (m,)."""
        return np.add.reduceat(values, self.first)

    def largest(self, values: Array) -> Array:
        """Largest of ``values`` (n,) per medium, (m,)."""
        return np.maximum.reduceat(values, self.first)

    def smallest(self, values: Array) -> Array:
        """Smallest of ``values`` (n,) per medium, (m,)."""
        return np.minimum.reduceat(values, self.first)

    def span(self, g: int) -> slice:
        """Flows of medium ``g``."""
        stop = self.first[g + 1] if g + 1 < len(self.first) else len(self.group)
        return slice(int(self.first[g]), int(stop))

    def exact_rest(self, values: Array, g: int) -> float:
        """Budget of medium ``g`` minus its ``values``, rounded once: what is left may be far smaller than either."""
        return math.fsum([float(self.budget[g]), *(-values[self.span(g)]).tolist()])

    def rests(self, values: Array) -> Array:
        """Budget minus the sum of ``values`` (n,) per medium, (m,), computed exactly where the two nearly cancel."""
        rest: Array = self.budget - self.sums(values)
        for g in np.flatnonzero(np.abs(rest) < 1e-3 * self.budget).tolist():
            rest[g] = self.exact_rest(values, g)
        return rest

    # ── per flow ─────────────────────────────────────────────────────────────────────────────────────────────

    def transfer_s(self, shares: Array) -> Array:
        """Seconds each flow transfers at its share (``inf`` at 0, unless there is nothing to send)."""
        n = self.num_fixed
        seconds = np.empty_like(shares)
        with np.errstate(divide="ignore", invalid="ignore"):
            seconds[:n] = self.unit_s[:n] / shares[:n]
            seconds[n:] = self.unit_s[n:] / self.snr[n:] * radio.stretch(self.snr[n:] / shares[n:])
        seconds[shares == 0] = math.inf
        seconds[self.unit_s == 0] = 0.0
        return seconds

    def log_price(self, shares: Array) -> Array:
        """Natural logarithm of what the weighted seconds fall by, per unit of share."""
        n = self.num_fixed
        price: Array = np.log(self.weight * self.unit_s) - 2 * np.log(shares)
        u = self.snr[n:] / shares[n:]
        price[n:] += np.log(radio.price(u) / u / u)
        return price

    def shares_at_seconds(self, seconds: Array) -> tuple[Array, Array]:
        """Shares with which transfers last ``seconds`` (``inf`` where none does), and −d ln share / d ln seconds."""
        n = self.num_fixed
        shares, slope = np.empty_like(seconds), np.ones_like(seconds)
        late = ~(seconds > 0)
        seconds = np.where(late, 1.0, seconds)
        shares[:n] = self.unit_s[:n] / seconds[:n]
        if n < len(seconds):
            u = radio.inverse_rate(self.unit_s[n:] / self.snr[n:] / seconds[n:])
            with np.errstate(divide="ignore"):
                shares[n:] = self.snr[n:] / u
            slope[n:] = 1 / radio.rate_slope(np.where((u > 0) & (u < math.inf), u, 1.0))
        shares[late] = math.inf
        return shares, slope


def arrange(instance: Bandwidth) -> Flows:
    """Sort the flows of an instance; ``low`` and ``high`` hold only the limits that it states."""
    on_radio = instance.is_radio
    order = np.argsort(instance.medium + instance.num_media * on_radio.astype(np.int64), kind="stable")
    medium = instance.medium[order]
    kept, first, group = _groups(medium)
    num_fixed = int((~on_radio).sum())
    size, snr, band = instance.size_bytes[order], instance.snr[order], instance.band_hz[medium]
    unit_s = np.empty_like(size)
    with np.errstate(divide="ignore", invalid="ignore"):
        unit_s[:num_fixed] = size[:num_fixed] / instance.rate_bytes_per_s[order][:num_fixed]
        unit_s[num_fixed:] = 8 * math.log(2.0) * size[num_fixed:] / band[num_fixed:]
    unit_s[num_fixed:][snr[num_fixed:] == 0] = math.inf
    unit_s[size == 0] = 0.0
    return Flows(
        index=order, group=group, first=first, num_fixed=num_fixed,
        unit_s=unit_s, snr=np.where(snr > 0, snr, 1.0), weight=instance.weight[order],
        fixed_s=instance.fixed_s[order], deadline_s=instance.deadline_s[order],
        low=instance.min_share[order], high=np.minimum(instance.max_share, instance.budget[instance.medium])[order],
        budget=instance.budget[kept],
    )  # fmt: skip


def _groups(labels: Index) -> tuple[Index, Index, Index]:
    """Return the labels of runs of equal ones, where each run begins, and the run of each entry."""
    begins = np.empty(len(labels), dtype=bool)
    begins[:1] = True
    np.not_equal(labels[1:], labels[:-1], out=begins[1:])
    first = np.flatnonzero(begins)
    return labels[first], first, np.cumsum(begins) - 1
