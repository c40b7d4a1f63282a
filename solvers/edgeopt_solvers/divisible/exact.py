"""Exact division of a load: a search over the makespan τ, each step of which is an exact choice of loads.

1. For a fixed τ every load has a price: the share of the medium it needs to end by τ, or its energy. ``choice.py``
   finds the cheapest loads, or proves that none keeps the limits; without medium and energy only sizes count
   (``feasible.py``).
2. *Makespan*: loads found at τ end at their own, smaller level (``shares.py``); the next τ lies just below it. Where
   that gains little, τ halves the interval between the largest level proven impossible and the smallest found. The
   search stops when the level just below the best is proven impossible.
3. *Energy*: one choice at the largest makespan allowed.
4. *Weighted*: a branch and bound over intervals of τ (``weighted.py``).
5. *A first part for which all wait*: pairs of levels, one for it and one for the rest (``lead.py``).
6. *Steps that wait for the others*: the two devices that take longest (``pairs.py``).
"""

from __future__ import annotations

import math
import time

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.divisible.choice import OutOfTimeError, Task, cheapest, lower_bound
from edgeopt_solvers.divisible.feasible import few_devices
from edgeopt_solvers.divisible.instance import LIMIT_TOLERANCE, Divisible, Solution
from edgeopt_solvers.divisible.lead import pairs_of_levels
from edgeopt_solvers.divisible.pairs import largest_and_next
from edgeopt_solvers.divisible.table import Table
from edgeopt_solvers.divisible.weighted import weigh
from edgeopt_solvers.result import Reason, Result, Status, relative_gap
from edgeopt_solvers.solve import Options

__all__ = ["Search", "solve"]

#: Relative gap up to which a result is called optimal; weighted objectives stop at the second.
PROVEN, PROVEN_WEIGHTED = 1e-9, 1e-6

#: How far below the best level the next one is asked for.
BELOW = 5e-10

#: Levels closer to each other than this are found by prices alone, before any loads.
ROUGH = 1e-3

Loads = NDArray[np.int64]


def solve(instance: Divisible, options: Options) -> Result:
    """Divide the load; with a time limit the best loads found are returned with their bound."""
    search = Search(instance, options)
    try:
        search.run()
        finished = True
    except OutOfTimeError:
        finished = False
    statistics = {"num_choices": float(search.num_choices), "num_bounds": float(search.num_bounds)}
    if search.best is None:
        status = Status("infeasible" if finished else "time_limit", False)
        bound = math.inf if finished else search.bound
        return Result(status, math.inf, bound, None, "exact", 0.0, statistics=statistics)
    objective, bound = search.objective, min(search.bound, search.objective)
    gap = relative_gap(objective, bound)
    reason: Reason = "optimal" if gap <= search.proven else "gap_reached" if finished else "time_limit"
    solution = search.table.solution(search.best)
    return Result(Status(reason, True), objective, bound, solution, "exact", 0.0, statistics=statistics)


class Search:
    """Best loads, their objective and the proven bound, kept up to date so that a time limit may strike anywhere."""

    def __init__(self, instance: Divisible, options: Options) -> None:
        self.instance = instance
        limit = options.time_limit_s
        self.stop_at = math.inf if limit is None else time.perf_counter() + limit
        self.gap, self.start = options.gap, options.warm_start
        self.table = Table(instance)
        self.weight = instance.weights.get("makespan", 0.0)
        self.energy_weight = instance.weights.get("energy", 0.0)
        self.proven = PROVEN if not (self.weight and self.energy_weight) else PROVEN_WEIGHTED
        D = len(self.table.devices)
        self.most_devices = D if instance.max_devices is None else min(D, instance.max_devices)
        keep = 1 + 0.5 * LIMIT_TOLERANCE
        self.max_s = math.inf if instance.max_makespan_s is None else instance.max_makespan_s * keep
        self.max_j = math.inf if instance.max_energy_j is None else instance.max_energy_j * keep
        self.best: Loads | None = None
        self.objective, self.bound = math.inf, 0.0
        self.num_choices = self.num_bounds = 0

    def run(self) -> None:
        """Dispatch on the objective."""
        self._take_warm_start()
        if self.table.has_lead or self.table.is_pairwise:
            self._wait_for_each_other()
            return
        if not self.weight:
            loads = self.least_energy(self.max_s, self.max_j)
            if loads is not None:
                self.offer(loads)
                self.bound = self.objective
            return
        fastest = self._fastest()
        if fastest is None:
            return
        if self.energy_weight:
            weigh(self, fastest[0])

    def _wait_for_each_other(self) -> None:
        """Minimise the makespan where all wait for each other once, or in every step."""
        least, candidates = math.inf, largest_and_next if self.table.is_pairwise else pairs_of_levels
        for loads in candidates(self.table, self.most_devices, self.stop_at):
            level = self.table.level_s(loads)
            least = min(least, level)
            if level <= self.max_s:
                self.offer(loads)
        if self.best is not None:
            self._raise_bound(least)

    # ── what a level allows ──────────────────────────────────────────────────────────────────────────────────

    def within(self, level_s: float) -> Loads | None:
        """Return loads that end by ``level_s`` and keep every limit but the deadline; ``None``: proven there are none.

        Of all such loads those that need least of the medium, so that they end as far below as possible.
        """
        table = self.table
        if not table.has_medium and math.isfinite(self.max_j):
            return self.least_energy(level_s, self.max_j)
        self.num_choices += 1
        if not table.has_medium:
            most = table.most_of(table.end <= level_s)
            return few_devices(table.least, most, self.instance.num_units, self.most_devices)
        share = table.shares_at(level_s)
        capped = math.isfinite(self.max_j)
        second = np.where(np.isfinite(share), table.joules, 0.0) if capped else None
        task = Task(share, self.instance.num_units, self.most_devices, second, self.max_j)
        choice = cheapest(task, 1.0, self.stop_at)
        return None if choice is None else choice.loads

    def least_energy(self, level_s: float, ceiling: float) -> Loads | None:
        """Return the loads of least energy that end by ``level_s``; ``None`` if none needs at most ``ceiling``."""
        self.num_choices += 1
        choice = cheapest(self.energy_task(level_s), ceiling, self.stop_at)
        return None if choice is None else choice.loads

    def energy_task(self, level_s: float) -> Task:
        """Return the choice of least energy within ``level_s``."""
        share = self.table.shares_at(level_s)
        possible = np.isfinite(share)
        cost = np.where(possible, self.table.joules, math.inf)
        second = np.where(possible, share, 0.0) if self.table.has_medium and math.isfinite(level_s) else None
        return Task(cost, self.instance.num_units, self.most_devices, second, 1.0)

    def hopeless(self, level_s: float) -> bool:
        """Whether prices alone prove that no loads end by ``level_s``."""
        if time.perf_counter() > self.stop_at:
            raise OutOfTimeError
        self.num_bounds += 1
        return lower_bound(Task(self.table.shares_at(level_s), self.instance.num_units, self.most_devices)) > 1

    # ── makespan ─────────────────────────────────────────────────────────────────────────────────────────────

    def _fastest(self) -> tuple[float, Loads] | None:
        """Minimise the makespan within the energy budget; return it with its loads, ``None`` if beyond the deadline."""
        makespan_alone = not self.energy_weight

        def found(loads: Loads) -> float:
            level = self.table.level_s(loads)
            if level <= self.max_s:
                self.offer(loads)
            return level

        if math.isfinite(self.max_s):
            loads = self.within(self.max_s)
        elif math.isfinite(self.max_j):
            loads = self.least_energy(math.inf, self.max_j)
        else:
            table = self.table
            most = table.most_of(table.possible)
            loads = few_devices(table.least, most, self.instance.num_units, self.most_devices)
        if loads is None:
            return None
        low, high, best = -math.inf, found(loads), loads
        if makespan_alone and self.best is not None and self.table.level_s(self.best) < high:
            best, high = self.best, self.table.level_s(self.best)
        if self.within(0.0) is not None:
            low = 0.0
        rough = high
        while high > 0 and rough > (1 + ROUGH) * max(low, 0.0) and rough > 1e-290:
            middle = rough / 8 if low <= 0 else math.sqrt(low) * math.sqrt(rough)
            if self.hopeless(middle):
                low = middle
            else:
                rough = middle
        self._raise_bound(low)
        trial, just_below = min(rough * (1 + ROUGH), high), False
        stop = max(PROVEN, self.gap) if makespan_alone else PROVEN
        while high > 0 and high - low > stop * high:
            loads = self.within(trial)
            before = high - max(low, 0.0)
            if loads is None:
                low = max(low, trial)
                self._raise_bound(low)
            else:
                level = min(found(loads), trial)
                if level < high:
                    high, best = level, loads
            gained = before - (high - max(low, 0.0))
            just_below = not just_below or (loads is not None and gained > 0.5 * before)
            trial = (1 - BELOW) * high if just_below else 0.5 * (max(low, 0.0) + high)
        self._raise_bound(min(low, high))
        return high, best

    def _raise_bound(self, level_s: float) -> None:
        self.bound = max(self.bound, self.weight * level_s)

    # ── incumbents ───────────────────────────────────────────────────────────────────────────────────────────

    def offer(self, loads: Loads) -> None:
        value = self.weight * self.table.level_s(loads) if self.weight else 0.0
        if self.energy_weight:
            value += self.energy_weight * self.table.energy_j(loads)
        if value < self.objective:
            self.best, self.objective = loads, value

    def _take_warm_start(self) -> None:
        start = self.start
        if not isinstance(start, Solution) or len(start.loads) != self.instance.num_devices:
            return
        given = np.array(start.loads)
        if given.sum() != self.instance.num_units or (given < 0).any():
            return
        loads = given[self.table.devices]
        if loads.sum() != self.instance.num_units or (loads > 0).sum() > self.most_devices:
            return
        used = loads > 0
        if not self.table.possible[self.table.rows[used], loads[used]].all():
            return
        if self.table.level_s(loads) <= self.max_s and self.table.energy_j(loads) <= self.max_j:
            self.offer(loads)
