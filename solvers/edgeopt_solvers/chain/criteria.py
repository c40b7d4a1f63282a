"""When one partial plan makes another pointless although reserved media are still to be divided.

What a medium costs depends on everything that shares it. In price form it is max over λ of Σ φ(λ) − λ, so label 1 is
no worse than label 2 with every completion if its additive sums are no worse and Φ_1(λ) <= Φ_2(λ), Φ = Σ φ over its
transfers, at every λ that can be the best one of a plan worth having. λ never exceeds what the medium costs.

* Fixed rates: Φ(λ) = 2 √λ S, so S_1 <= S_2. With a single medium the two conditions are joined: with R still to come,
  C + f (S + R)² differs between the two labels by C_1 − C_2 + f (S_1 − S_2)(S_1 + S_2 + 2R), f being what the objective
  grows by with the medium's cost. The last bracket is within 2 S_least .. 3 S_most for plans worth having, and linear:
  C + 2 f μ S is compared at μ = S_least and μ = 3/2 S_most.
* Radio: Φ at points λ_0 = 0 < … < λ_m. Between two of them φ is above its chord by at most a gap, from the tangents at
  both ends; label 1 must be better by the sum of its gaps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.chain.bounds import Completion, completion
from edgeopt_solvers.chain.media import Charge
from edgeopt_solvers.chain.tables import Tables

__all__ = ["Criteria"]

#: Points λ > 0 at which radio is compared, each twice the one before.
POINTS = 12


@dataclass(slots=True)
class Criteria:
    """Sums beside objective and budgets that labels carry for reserved media.

    Attributes
    ----------
    columns
        Completions, in the order of the labels' sums.
    roots
        Positions in ``columns`` of S of the media with fixed rates.
    curves
        Per radio medium: positions of Φ(λ_0..λ_m), then of the gaps of its m intervals.
    """

    columns: list[Completion]
    roots: list[int]
    curves: list[tuple[list[int], list[int]]]
    most: float

    @classmethod
    def of(cls, tables: Tables, most: float) -> Criteria:
        """Choose them; no plan worth having lets a medium cost more than ``most``."""
        found = cls([], [], [], most)
        if not tables.reserved.serves_sum:
            return found
        reserved = tables.reserved
        for g in range(len(reserved.media)):
            if not reserved.is_radio(g):
                found.roots.append(found._add(tables, reserved.root(g)))
                continue
            if not 0 < most < math.inf:
                found.curves.append(([], []))
                continue
            prices = [0.0, *(most * 2.0 ** (k + 1 - POINTS) for k in range(POINTS))]
            priced = [reserved.priced(np.full(len(reserved.media), price)) for price in prices]
            costs = [reserved.on(g, cost) for cost, _ in priced]
            shares = [reserved.on(g, share) for _, share in priced]
            gaps = [_gap(costs[k : k + 2], shares[k : k + 2], prices[k + 1] - prices[k]) for k in range(POINTS)]
            found.curves.append(([found._add(tables, c) for c in costs], [found._add(tables, gap) for gap in gaps]))
        return found

    def _add(self, tables: Tables, charge: Charge) -> int:
        self.columns.append(completion(tables, replace(tables.column(), extra=charge)))
        return len(self.columns) - 1

    def compared(self, real: Array, sums: Array, factors: Array) -> tuple[Array, Array]:
        """Return what a label offers and what another must beat, column by column.

        Parameters
        ----------
        real : (n, 1 + budgets)
            Objective and budgets.
        sums : (n, len(columns))
        factors : (1 + budgets,)
            By how much each of ``real`` grows with what the media cost.
        """
        if not self.columns and not self.curves:
            return real, real
        offers, wants = [real], [real]
        roots = sums[:, self.roots]
        if len(self.roots) == 1 and not self.curves and math.isfinite(self.most):
            grows = factors > 0
            least = self.columns[self.roots[0]].root
            ends = [2 * factors * mu * roots for mu in (least, 1.5 * max(least, math.sqrt(self.most)))]
            both = np.concatenate((real + ends[0], (real + ends[1])[:, grows]), axis=1)
            return both, both
        offers.append(roots)
        wants.append(roots)
        for values, gaps in self.curves:
            if not values:  # no limit on λ yet: nothing compares
                offers.append(np.zeros((len(real), 1)))
                wants.append(np.full((len(real), 1), -math.inf))
                continue
            gap = np.zeros((len(real), len(values) + 1))
            gap[:, 1:-1] = sums[:, gaps]
            wants.append(sums[:, values])
            offers.append(sums[:, values] + np.maximum(gap[:, :-1], gap[:, 1:]))
        return np.concatenate(offers, axis=1), np.concatenate(wants, axis=1)

    def least_cost(self, sums: Array, rests: list[Array]) -> Array | float:
        """Least that the media with fixed rates cost in the end."""
        cost: Array | float = 0.0
        for k in self.roots:
            cost = cost + np.square(sums[..., k] + rests[k])
        return cost


def _gap(costs: list[Charge], shares: list[Charge], width: float) -> Charge:
    return Charge(
        _above_chord(costs[0].cut, costs[1].cut, shares[0].cut, shares[1].cut, width),
        _above_chord(costs[0].loop, costs[1].loop, shares[0].loop, shares[1].loop, width),
    )


def _above_chord(left: Array, right: Array, left_slope: Array, right_slope: Array, width: float) -> Array:
    """Height of the meeting point of both tangents above the chord; the slopes fall, the chord's lies between."""
    chord = (right - left) / width
    bend = left_slope - right_slope
    with np.errstate(divide="ignore", invalid="ignore"):
        height = np.maximum(left_slope - chord, 0.0) * np.maximum(chord - right_slope, 0.0) / bend * width
    return np.where(bend > 0, height, 0.0) + 1e-12 * np.abs(right)
