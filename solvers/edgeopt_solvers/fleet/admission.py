r"""Who is served when not all fit: the least refusal cost, as a sum of costs in which latency hardly counts.

With weights scaled so that :math:`\sum_u \omega'_u D_u = \epsilon`, every plan costs its refusals and at most
:math:`\epsilon` for all latencies. So :math:`bound - \epsilon` is a bound on the refusal cost alone; where all refusal
costs are multiples of one unit, :math:`\epsilon` is half of it and the bound is rounded up to the next multiple.
Among plans of equal refusal cost this prefers low latencies, without a promise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from edgeopt_solvers.fleet.instance import REFUSED, Fleet, Solution
from edgeopt_solvers.fleet.run import Measure, Run
from edgeopt_solvers.result import Result, relative_gap
from edgeopt_solvers.solve import Options

__all__ = ["Counting", "as_sum", "refusals", "solve"]

#: Without a unit: what all latencies together may count, in parts of the least refusal cost.
_HARDLY = 1e-7


@dataclass(frozen=True, slots=True)
class Counting(Measure):
    """Gap of the refusal cost: ``unit`` divides every refusal cost (0: none does), ``latency`` is for all latencies."""

    unit: float
    latency: float

    def refusals(self, value: float) -> float:
        """Return the refusal cost in a sum of costs ``value`` (without a unit: with the latencies, if any)."""
        if value <= self.latency * (1 + 1e-6):
            return 0.0
        return math.floor(value / self.unit + 1e-9) * self.unit if self.unit and math.isfinite(value) else value

    def bound(self, bound: float) -> float:
        """Return what a bound on the sum of costs says about the refusal cost."""
        low = bound - self.latency * (1 + 1e-6)
        if self.unit and math.isfinite(low):
            low = math.ceil(low / self.unit - 1e-9) * self.unit
        return max(0.0, low)

    def gap(self, value: float, bound: float) -> float:
        """Return the relative gap of the refusal cost."""
        return relative_gap(self.refusals(value), self.bound(bound))

    def tree_gap(self, value: float, gap: float) -> float:
        """Return the gap of the sum at which rounding up proves ``gap``."""
        if not self.unit or not math.isfinite(value):
            return gap
        steps = math.ceil(self.refusals(value) / self.unit * (1 - gap) - 1e-9)
        enough = (steps - 1 + 1e-6) * self.unit + self.latency * (1 + 1e-6)
        return max(gap, 1 - enough / value)


def as_sum(fleet: Fleet) -> tuple[Fleet, Counting]:
    """Return the fleet whose sum of costs counts refusals first, and how to read its gap."""
    costs = np.asarray(fleet.refusal_cost)
    deadline = np.asarray(fleet.deadline_s)
    weight = np.asarray(fleet.weight) / float(np.max(np.asarray(fleet.weight)))
    positive = costs[(costs > 0) & np.isfinite(costs)]
    least = float(positive.min(initial=math.inf))
    least = least if math.isfinite(least) else 1.0
    whole = positive / least
    divides = bool((np.abs(whole - np.round(whole)) <= 1e-9 * whole).all() and whole.max(initial=0.0) <= 1e6)
    latency = 0.5 * least if divides else _HARDLY * least
    longest = weight * deadline
    # Weights may differ by many orders: nobody counts for less than a billionth of the others.
    longest = np.maximum(longest, 1e-9 * float(longest.max()))
    scaled = longest / deadline * (latency / float(longest.sum()))
    return replace(fleet, objective="sum", weight=scaled), Counting(least if divides else 0.0, latency)


def refusals(fleet: Fleet, plan: Solution) -> float:
    """Return the refusal cost of a plan."""
    return math.fsum(np.asarray(fleet.refusal_cost)[np.array(plan.cuts) == REFUSED].tolist())


def solve(fleet: Fleet, options: Options) -> Result:
    """Minimise the refusal cost; see the module docstring."""
    other, counting = as_sum(fleet)
    run = Run(other, options, counting).go()
    value = math.inf if run.plan is None else refusals(fleet, run.plan)
    return run.result(value, min(value, counting.bound(run.bound)))
