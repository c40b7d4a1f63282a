"""Tangents of C + S²: at slope μ the cost C + 2 μ S − μ² is additive, and bounds every plan from below.

A plan with sums (C, S) costs C + S² = (C + 2 μ S − μ²) + (S − μ)². So a proven t_k at each of K slopes bounds every
plan by the lowest point of max_k t_k + (S − μ_k)², and a plan cheaper than the incumbent has S within
√(incumbent − t_k) of every μ_k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from edgeopt_solvers.chain.large.clock import Clock
from edgeopt_solvers.chain.large.prices import Completions, Memory, Prices, plain_completions, raise_prices
from edgeopt_solvers.chain.large.view import Array, View

__all__ = ["Tangent", "Tangents"]


@dataclass(slots=True)
class Tangent:
    """One slope: the additive problem there, its prices, and what they prove without the memory and with it."""

    mu: float
    view: View
    into: Array
    prices: Prices
    bound: float = -math.inf
    memory: Memory | None = None

    @classmethod
    def of(cls, mu: float, view: View) -> Tangent:
        """A tangent that proves nothing yet."""
        nowhere = np.zeros((view.num_elements + 1, view.num_devices))
        into = np.ascontiguousarray(view.link.transpose(0, 2, 1))
        price = np.zeros(view.num_devices)
        return cls(mu, view, into, Prices(price, -math.inf, 0.0, nowhere, nowhere, []))

    def raise_prices(self, clock: Clock, *, start: Array | None, target: float, iterations: int) -> None:
        """Price steps from ``start``; the better of the old and the new prices stay."""
        if clock.expired:
            return
        found = raise_prices(self.view, self.into, clock, start=start, target=target, iterations=iterations)
        if found.bound > self.bound:
            self.prices, self.bound = found, found.bound

    @property
    def value(self) -> float:
        """Proven t: no plan costs less than t + (S − μ)²."""
        return self.bound - self.mu * self.mu

    def remember(self) -> Memory:
        """The bound with memory at this slope."""
        if self.memory is None:
            self.memory = Memory(self.view, self.prices)
        return self.memory

    def completions(self, limit: float, clock: Clock) -> Completions | None:
        """Lists for the label search, of completions that stay below ``limit``; ``None`` when the time ran out."""
        if self.memory is None:
            return plain_completions(self.prices)
        asked = limit + self.mu * self.mu
        reached, completions = self.memory.completions(asked, clock)
        return completions if reached == asked else plain_completions(self.prices)


@dataclass(slots=True)
class Tangents:
    """Tangents in order of their slopes."""

    items: list[Tangent] = field(default_factory=list)

    @property
    def mu(self) -> Array:
        """Slopes, increasing."""
        return np.array([tangent.mu for tangent in self.items])

    @property
    def value(self) -> Array:
        """Proven value of each."""
        return np.array([tangent.value for tangent in self.items])

    def add(self, tangent: Tangent) -> None:
        """Put a tangent in its place."""
        self.items = sorted([*self.items, tangent], key=lambda one: one.mu)

    def nearest(self, mu: float) -> Tangent:
        """The tangent whose slope is nearest."""
        return min(self.items, key=lambda one: abs(one.mu - mu))

    def within(self, low: float, high: float) -> list[Tangent]:
        """Tangents that touch between ``low`` and ``high``, and the one that proves most."""
        best = max(self.items, key=lambda one: one.value)
        return [one for one in self.items if one is best or low <= one.mu <= high]

    def range(self, cost: float) -> tuple[float, float]:
        """S of every plan cheaper than ``cost`` lies in here; low > high: there is none."""
        reach = np.sqrt(np.maximum(cost - self.value, 0.0))
        if (self.value > cost).any():
            return math.inf, -math.inf
        return max(0.0, float((self.mu - reach).max())), float((self.mu + reach).min())

    def lowest(self) -> tuple[float, float]:
        """Return the S where the largest parabola is lowest, and its value there: what they prove together."""
        mu, value = self.mu, self.value
        if not np.isfinite(value).any():
            return 0.0, float(value.max())
        mu, value = mu[np.isfinite(value)], value[np.isfinite(value)]
        best = int(np.argmax(value))
        at, bound = float(mu[best]), float(value[best])
        for i in range(len(mu)):
            for j in range(i + 1, len(mu)):
                cross = 0.5 * (mu[i] + mu[j] + (value[j] - value[i]) / (mu[j] - mu[i]))
                where = min(max(float(cross), float(mu[i])), float(mu[j]))
                height = max(float(value[i] + (where - mu[i]) ** 2), float(value[j] + (where - mu[j]) ** 2))
                if height > bound:
                    at, bound = where, height
        return at, bound
