r"""Who is served when not all fit: the least refusal cost, as a sum of costs in which latency hardly counts.

With weights scaled so that :math:`\sum_u \omega'_u D_u = \epsilon`, every plan costs its refusals and at most
:math:`\epsilon` for all latencies. So :math:`bound - \epsilon` is a bound on the refusal cost alone; where all refusal
costs are multiples of one unit, :math:`\epsilon` is half of it and the bound is rounded up to the next multiple.
Among plans of equal refusal cost this prefers low latencies, without a promise.

Before that run, prices of what is needed (``needs.py``) bound the refusal cost without any latencies, and plans are
packed near them (``packing.py``): in a large fleet that is most of what can be had, and the run continues from there.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np

from edgeopt_solvers.fleet.check import evaluate
from edgeopt_solvers.fleet.instance import REFUSED, Fleet, Solution
from edgeopt_solvers.fleet.model import Model, build, subset
from edgeopt_solvers.fleet.needs import admitting, alone
from edgeopt_solvers.fleet.packing import Packer, nobody_remote
from edgeopt_solvers.fleet.prices import Dual, maximise
from edgeopt_solvers.fleet.run import Measure, Run
from edgeopt_solvers.fleet.starts import sample
from edgeopt_solvers.result import Result, relative_gap
from edgeopt_solvers.solve import Options

__all__ = ["Counting", "as_sum", "refusals", "solve"]

#: Without a unit: what all latencies together may count, in parts of the least refusal cost.
_HARDLY = 1e-7
#: Plans that are packed, and the options considered for the first of them: reduced cost in parts of a user's mean cost.
_PACKINGS, _REACH = 4, 0.3
#: Packings when only the clock ends them, and the part of the time limit that is kept for packing.
_MOST_PACKINGS, _PACKING = 100_000, 0.3
#: Fleets of up to this many users go on to the tree; larger ones to more packings.
_FEW = 400


@dataclass(frozen=True, slots=True)
class Counting(Measure):
    """Gap of the refusal cost: ``unit`` divides every refusal cost (0: none does), ``latency`` is for all latencies.

    ``proven`` is what is known about the refusal cost from elsewhere.
    """

    unit: float
    latency: float
    proven: float = 0.0

    def refusals(self, value: float) -> float:
        """Return the refusal cost in a sum of costs ``value`` (without a unit: with the latencies, if any)."""
        if value <= self.latency * (1 + 1e-6):
            return 0.0
        return math.floor(value / self.unit + 1e-9) * self.unit if self.unit and math.isfinite(value) else value

    def bound(self, bound: float) -> float:
        """Return what a bound on the sum of costs says about the refusal cost."""
        return max(self.proven, self.rounded(bound - self.latency * (1 + 1e-6)))

    def rounded(self, low: float) -> float:
        """Return a bound on the refusal cost, rounded up to what refusal costs can be."""
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
    return _Admission(fleet, options).result()


class _Admission:
    """The best plan, what is proven about the refusal cost, and the clock."""

    def __init__(self, fleet: Fleet, options: Options) -> None:
        self.fleet, self.options = fleet, options
        self.sums, self.counting = as_sum(fleet)
        limit = options.time_limit_s
        reserve = 0.0 if limit is None else min(0.1 * limit, 0.02 + 1e-5 * fleet.num_users)
        self.stop_at = math.inf if limit is None else time.perf_counter() + limit - reserve
        self.plan: Solution | None = None
        self.value, self.low = math.inf, 0.0
        self.work = 0

    def left_s(self) -> float:
        return self.stop_at - time.perf_counter()

    def out_of_time(self) -> bool:
        return self.left_s() <= 0

    def result(self) -> Result:
        model = build(self.sums)
        if np.isfinite(alone(model, self.out_of_time)).all():
            self._by_needs(model)
        options = self.options
        if options.time_limit_s is not None:
            options = replace(options, time_limit_s=max(self.left_s(), 1e-6))
        if self.plan is not None:
            options = replace(options, warm_start=self.plan)
        counting = replace(self.counting, proven=self.low)
        run = Run(self.sums, options, counting)
        if self.plan is None or (not self._settled() and self.fleet.num_users <= _FEW):
            run.go()
        run.counts["newton_and_pricing"] += self.work
        if run.plan is not None:
            self._offer(run.plan)
        if self.plan is not None:
            run.plan, run.infeasible = self.plan, False
            run.exhausted = self.options.time_limit_s is None
        return run.result(self.value, min(self.value, counting.bound(run.bound)))

    def _settled(self) -> bool:
        return relative_gap(self.value, self.low) <= self.options.gap

    def _by_needs(self, model: Model) -> None:
        """Raise the bound by prices of what is needed, and pack plans near them."""
        asked = admitting(model)
        warm = self.options.warm_start
        if isinstance(warm, Solution) and len(warm.cuts) == model.num_users:
            self._offer(warm)
        dual = self._prices(asked)
        self.low = max(self.low, self.counting.rounded(dual.bound))
        rng = np.random.default_rng(self.options.seed)
        few = self.options.time_limit_s is None or model.num_users <= _FEW
        for attempt in range(_PACKINGS if few else _MOST_PACKINGS):
            if self._settled() or self.out_of_time():
                break
            reach = _REACH * (1 + attempt % 5) * dual.mean
            packer = Packer.near(asked, dual.prices, reach, self.out_of_time)
            if packer is None:
                break
            packer.polish(self.out_of_time)
            if attempt:
                packer.shake(rng, 20, self.out_of_time)
            self._offer(packer.admitted(self.fleet, self.out_of_time))
        if self.plan is None and self.out_of_time():
            self._offer(nobody_remote(model))

    def _prices(self, asked: Model) -> Dual:
        """Return the best prices of what is needed; in a large fleet, from those of a sample of its users."""
        costs = asked.solo_lin[np.isfinite(asked.solo_lin)]
        each = max(float(costs.sum()), 1e-300) / asked.num_prices
        start = np.full(asked.num_prices, each)
        start[: asked.num_resources] = math.sqrt(each)
        limit = self.options.time_limit_s
        stop_at = math.inf if limit is None else self.stop_at - _PACKING * limit
        late = lambda: time.perf_counter() >= stop_at  # noqa: E731
        coarsest = 0.3
        if (part := sample(asked)) is not None:
            dual = maximise(subset(asked, part[0]), late, start, part[1], coarsest, 2e-3)
            self.work += dual.work
            start, coarsest = dual.prices, 0.01
        dual = maximise(asked, late, start, None, coarsest, 1e-4)
        self.work += dual.work
        return dual

    def _offer(self, plan: Solution | None) -> None:
        if plan is None:
            return
        value = refusals(self.fleet, plan)
        if value < self.value and not evaluate(self.fleet, plan).violations:
            self.value, self.plan = value, plan
