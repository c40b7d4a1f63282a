r"""The least largest cost: a level that nobody may exceed, raised by prices, lowered by plans, then bisected.

What the users need at least to stay within a level, at the best prices, proves levels too low (``needs.py``); plans are
packed near these prices (``packing.py``), with the shares of ``even.py``. In a large fleet that is all.

In a small one bisection goes on. Whether everybody can stay within a level :math:`\tau` is a question of deadlines
:math:`\min(D_u, \tau / \omega_u)` and of who must be served, answered by a run over the sum of costs (is it possible to
refuse nobody?). Its plan has a largest cost of at most the level; its proof that someone is left out says that the
optimum lies above, and its prices often prove more than the level they were found for (:func:`refuted`).
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np

from edgeopt_solvers.fleet import needs
from edgeopt_solvers.fleet.admission import Counting, as_sum
from edgeopt_solvers.fleet.check import evaluate
from edgeopt_solvers.fleet.even import evened, largest_cost
from edgeopt_solvers.fleet.instance import REFUSED, Array, Fleet, Solution
from edgeopt_solvers.fleet.model import Model, build, price, worth
from edgeopt_solvers.fleet.needs import Floor, within
from edgeopt_solvers.fleet.packing import Packer, nobody_remote
from edgeopt_solvers.fleet.run import OPTIMAL, Run
from edgeopt_solvers.result import Reason, Result, Status, relative_gap
from edgeopt_solvers.solve import Options

__all__ = ["MOST_PROBES", "at_level", "refuted", "solve"]

#: Levels that are tried; a level that is neither reached nor refuted counts too.
MOST_PROBES = 60
#: Fleets of up to this many users go on to the tree; larger ones to more packings.
_FEW = 400
#: Packings after the first, with and without the clock to end them.
_PACKINGS, _MOST_PACKINGS = 6, 100_000
#: Options considered when packing: largest reduced cost, in parts of a user's mean need.
_REACH = 0.3
#: Levels left undecided before giving up, when there is no time limit.
_UNDECIDED = 3


def at_level(fleet: Fleet, level: float) -> Fleet:
    """Return the fleet that asks how many cannot be kept within ``level``."""
    weight = np.asarray(fleet.weight)
    deadline = level / weight
    if fleet.deadline_s is not None:
        deadline = np.minimum(deadline, np.asarray(fleet.deadline_s))
    refusal = np.full(fleet.num_users, math.inf) if fleet.refusal_cost is None else np.asarray(fleet.refusal_cost)
    return replace(
        fleet, objective="admitted", deadline_s=deadline, weight=None, refusal_cost=np.where(refusal <= level, 0.0, 1.0)
    )


def solve(fleet: Fleet, options: Options) -> Result:
    """Minimise the largest cost; see the module docstring."""
    return _Levels(fleet, options).result()


class _Levels:
    """The best plan, the best bound, and the clock."""

    def __init__(self, fleet: Fleet, options: Options) -> None:
        self.fleet, self.options = fleet, options
        limit = options.time_limit_s
        reserve = 0.0 if limit is None else min(0.1 * limit, 0.02 + 1e-5 * fleet.num_users)
        self.stop_at = math.inf if limit is None else time.perf_counter() + limit - reserve
        self.high, self.low = math.inf, 0.0
        self.plan: Solution | None = None
        self.infeasible = self.exhausted = False
        self.counts = {"probes": 0.0, "undecided": 0.0, "nodes": 0.0, "newton_and_pricing": 0.0}

    def left_s(self) -> float:
        return self.stop_at - time.perf_counter()

    def out_of_time(self) -> bool:
        return self.left_s() <= 0

    def result(self) -> Result:
        self._first()
        if not self.infeasible and self.plan is not None and self.fleet.num_users <= _FEW:
            self._bisect()
        if self.infeasible:
            return Result(Status("infeasible", False), math.inf, math.inf, None, "exact", 0.0, statistics=self.counts)
        self.low = min(self.low, self.high)
        gap = relative_gap(self.high, self.low)
        reason: Reason = "time_limit"
        if self.plan is not None and gap <= OPTIMAL:
            reason = "optimal"
        elif self.plan is not None and gap <= self.options.gap:
            reason = "gap_reached"
        exhausted = float(self.options.time_limit_s is None and gap > max(self.options.gap, OPTIMAL))
        return Result(
            Status(reason, self.plan is not None), self.high, self.low, self.plan, "exact", 0.0,
            statistics={**self.counts, "effort_exhausted": exhausted},
        )  # fmt: skip

    def _options(self, part: float) -> Options | None:
        """Options of a run that may take this part of the time left; ``None`` when there is none."""
        limit = None
        if self.options.time_limit_s is not None:
            limit = part * self.left_s()
            if limit <= 1e-3:
                return None
        return Options(limit, 0.0, None, self.options.seed)

    def _first(self) -> None:
        """Prices of what is needed first; then, unless that was enough, some plan or a proof that there is none."""
        model = build(replace(self.fleet, objective="sum"))
        alone = float(needs.alone(model, self.out_of_time).max())
        if math.isfinite(alone):
            self.low = alone * (1 - 1e-12)
            self._by_needs(model)
            if self.plan is None and self.out_of_time():
                self._offer(nobody_remote(model))
        if self.plan is not None and (self._settled() or self.fleet.num_users > _FEW):
            return
        options = self._options(0.5)
        if options is None:
            return
        warm = self.options.warm_start if self.plan is None else self.plan
        run = Run(replace(self.fleet, objective="sum"), replace(options, gap=0.05, warm_start=warm)).go()
        self._count(run)
        self.infeasible = run.infeasible
        if run.plan is not None:
            self._offer(run.plan)
        # The largest cost is at least the mean one.
        if math.isfinite(run.bound):
            self.low = max(self.low, run.bound / self.fleet.num_users)

    def _settled(self) -> bool:
        return relative_gap(self.high, self.low) <= max(self.options.gap, 0.5 * OPTIMAL)

    def _by_needs(self, model: Model) -> None:
        """Raise the proven level by prices, and pack plans near it."""
        floor = Floor(model, self.low)
        rng = np.random.default_rng(self.options.seed)
        warm = self.options.warm_start
        if (
            isinstance(warm, Solution)
            and len(warm.cuts) == model.num_users
            and not evaluate(self.fleet, warm).violations
        ):
            self._offer(warm)
        floor.begin(math.inf, self.out_of_time)
        self._pack(model, floor, rng, 0)
        for gap in (0.1, 0.02, max(self.options.gap, 1e-4)):
            floor.raise_to(math.inf, gap, self.out_of_time)
            self.low = max(self.low, floor.level)
            self.counts["newton_and_pricing"] = float(floor.work)
            if floor.hopeless:
                # The run over the sum proves it again, with the tree's tolerances.
                return
            self._pack(model, floor, rng, 0)
            if self._settled() or self.out_of_time():
                return
        for attempt in range(1, _PACKINGS if self.fleet.num_users <= _FEW else _MOST_PACKINGS):
            if self.options.time_limit_s is None and attempt >= _PACKINGS:
                return
            self._pack(model, floor, rng, attempt)
            if self._settled() or self.out_of_time() or not math.isfinite(self.high):
                return

    def _pack(self, model: Model, floor: Floor, rng: np.random.Generator, attempt: int) -> None:
        """Offer a plan for a level between the proven one and that of the best plan."""
        level = max(floor.near, floor.level)
        if attempt and math.isfinite(self.high):
            level += (self.high - level) * float(rng.random())
        reach = _REACH * (1 + 0.5 * (attempt % 7)) / model.num_users
        packer = Packer.near(within(model, level * (1 + 1e-6)), floor.prices, reach, self.out_of_time)
        if packer is None:
            return
        packer.polish(self.out_of_time)
        if attempt:
            packer.shake(rng, 20, self.out_of_time)
        self._offer(packer.sketch(self.fleet))

    def _offer(self, plan: Solution | None) -> None:
        """Keep the plan with even shares if that is better; where no shares meet the deadlines, it is not."""
        if plan is None:
            return
        better = evened(self.fleet, plan)
        value = largest_cost(self.fleet, better)
        if value < self.high and not evaluate(self.fleet, better).violations:
            self.high, self.plan = value, better

    def _count(self, run: Run) -> None:
        self.counts["nodes"] += run.counts["nodes"]
        self.counts["newton_and_pricing"] += run.counts["newton_and_pricing"]

    def _bisect(self) -> None:
        goal = max(self.options.gap, 0.5 * OPTIMAL)
        floor = self.low  # highest level that was tried and not reached
        for _ in range(MOST_PROBES):
            if relative_gap(self.high, self.low) <= goal or self.left_s() <= 0:
                return
            floor = max(floor, self.low)
            below = self.high * (1 - 0.9 * goal)
            if floor >= below:
                return
            level = math.sqrt(floor * self.high) if floor > 0.1 * self.high else 0.5 * (floor + self.high)
            if self.high - floor < 0.02 * self.high or level >= below:
                level = below
            if not self._probe(level):
                floor = level
                if self.counts["undecided"] > _UNDECIDED and self.options.time_limit_s is None:
                    return

    def _probe(self, level: float) -> bool:
        """Try a level: a plan, a proof, or neither; return whether a plan was found."""
        options = self._options(0.25)
        if options is None:
            return False
        self.counts["probes"] += 1
        fleet, counting = as_sum(at_level(self.fleet, level))
        run = Run(fleet, replace(options, warm_start=self.plan), _AllOrNothing(counting)).go()
        self._count(run)
        if run.plan is not None and self._allowed(run.plan, level):
            self._offer(run.plan)
            # Rounding may leave the plan a hair above the level it was found for; the level is not refuted by that.
            return True
        if counting.bound(run.bound) > 0:
            self.low = max(self.low, level)
        else:
            self.counts["undecided"] += 1
        self.low = max(self.low, self._proven(run.prices, level))
        return False

    def _allowed(self, plan: Solution, level: float) -> bool:
        """Whether everyone who is refused may be, at this level."""
        refused = np.array(plan.cuts) == REFUSED
        if not refused.any():
            return True
        if self.fleet.refusal_cost is None:
            return False
        return bool((np.asarray(self.fleet.refusal_cost)[refused] <= level).all())

    def _proven(self, prices: Array, level: float) -> float:
        """Return the highest level that ``prices`` refute, to a few digits; 0 if not even a low one."""
        low, high = self.low, self.high
        if not len(prices) or not math.isfinite(high):
            return 0.0
        for _ in range(12):
            middle = 0.5 * (low + high)
            if self.left_s() <= 0 or high - low < 1e-4 * self.options.gap * high:
                break
            if refuted(self.fleet, prices, middle):
                low = middle
            else:
                high = middle
        return low


def refuted(fleet: Fleet, prices: Array, level: float) -> bool:
    """Whether ``prices`` prove that not everybody can stay within ``level``; only their direction matters."""
    if not level > 0:
        return False
    sums, counting = as_sum(at_level(fleet, level))
    model = build(replace(sums, refusal_cost=np.where(np.asarray(sums.refusal_cost) > 0, math.inf, 0.0)))
    size = model.num_resources
    total = worth(prices, size)
    if len(prices) != model.num_prices or not 0 < total < math.inf:
        return False
    # A charge exceeds the payment for shares that just meet the deadline by at most two latencies; the prices are
    # raised until that is nothing beside the payments.
    raised = prices * (1e9 * counting.latency / total)
    raised[:size] = prices[:size] * math.sqrt(1e9 * counting.latency / total)
    return bool(price(model, raised)[0] > 4 * counting.latency)


class _AllOrNothing(Counting):
    """Zero refused, or a proof that it is more: nothing in between matters."""

    def __init__(self, counting: Counting) -> None:
        super().__init__(counting.unit, counting.latency)

    def gap(self, value: float, bound: float) -> float:
        """Return 0 when decided, else the gap."""
        return 0.0 if self.bound(bound) > 0 else super().gap(value, bound)

    def tree_gap(self, value: float, gap: float) -> float:
        """Return the gap at which the tree has proven that someone is left out."""
        if not math.isfinite(value):
            return gap
        return max(0.0, 1 - (self.latency * (1 + 1e-6) + 1e-5 * self.unit) / value)
