"""Which pairs of two metrics a problem allows: the plans of which neither metric can improve without the other.

Budgets on the second metric, each met as well as the first allows (Haimes, Lasdon, Wismer, IEEE Trans. SMC 1(3),
1971, https://doi.org/10.1109/TSMC.1971.4308298). Between two neighbours p and q on the frontier lies a box; a budget
in its middle finds a plan inside, or proves that half empty, and the largest box is asked first. The frontier is
complete when every box is proven empty, up to :data:`RESOLUTION`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from edgeopt import planner
from edgeopt.costs.quality import asked_for
from edgeopt.errors import EdgeoptError, Finding, InputError, NoPlanError, TimeLimitError
from edgeopt.plan import Plan
from edgeopt.profiles.checks import check_objective
from edgeopt.profiles.problem import Problem
from edgeopt.profiles.reader import field_name
from edgeopt_solvers import UnsupportedError

__all__ = ["METRICS", "Frontier", "Point", "frontier", "parse_axes", "value_of"]

#: Metric → (field of the constraints that limits it, unit).
METRICS = {
    "latency": ("deadline", "s"),
    "throughput": ("period", "s per request"),
    "energy": ("energy", "J"),
    "quality": ("quality", ""),
}

#: Part of the second metric's range below which two budgets count as one.
RESOLUTION = 1e-3


@dataclass(frozen=True, slots=True)
class Point:
    """A plan on the frontier, with its two metrics."""

    first: float
    second: float
    plan: Plan


@dataclass(frozen=True, slots=True)
class Frontier:
    """Plans of which neither metric improves without the other getting worse, by rising first metric.

    ``complete``: every solve was proven and no further plan exists but within :data:`RESOLUTION` of one that is here.
    """

    axes: tuple[str, str]
    points: tuple[Point, ...]
    complete: bool


def parse_axes(text: str, problem: Problem) -> tuple[str, str]:
    """Read ``latency,quality``.

    Raises
    ------
    InputError
        Not two different metrics, or one that the problem's profiles do not carry.
    """
    axes = tuple(word.strip() for word in text.split(","))
    if len(axes) != 2 or len(set(axes)) != 2 or not set(axes) <= METRICS.keys():
        message = f"'{text}' is not two different metrics"
        raise InputError(Finding("--pareto", message, f"write two of {', '.join(METRICS)}, as in latency,quality"))
    wanted = dict.fromkeys(axes, 1.0)
    flaws = list(check_objective(wanted, problem.constraints, problem.devices, problem.model))
    if flaws:
        raise InputError([Finding(field_name(flaw.path), flaw.message, flaw.mend) for flaw in flaws])
    return axes[0], axes[1]


def value_of(plan: Plan, metric: str) -> float:
    """Return a metric of a plan, smaller being better; for ``throughput`` the seconds per request."""
    if metric == "throughput":
        return 1.0 / plan.throughput_per_s
    value = {"latency": plan.latency_s, "energy": plan.energy_j, "quality": plan.quality}[metric]
    assert value is not None, "checked by parse_axes"
    return value


def frontier(
    problem: Problem, axes: tuple[str, str], most_points: int = 20, time_limit_s: float | None = None
) -> Frontier:
    """Find the frontier of two metrics over all strategies that fit; limits of the problem on either stay in force.

    Raises
    ------
    InputError
        No strategy can trade these two: shares of a reserved medium serve one goal only.
    NoPlanError, TimeLimitError
        As :func:`edgeopt.planner.solve`, where there is no plan at all.
    """
    names = list(planner.fitting_strategies(problem))
    deadline = None if time_limit_s is None else time.perf_counter() + time_limit_s
    points: list[Point] = []
    complete = True
    errors: list[EdgeoptError] = []
    for place, name in enumerate(names):
        share_s = None if deadline is None else max(deadline - time.perf_counter(), 1e-3) / (len(names) - place)
        search = _Search(problem, axes, name, share_s)
        try:
            points += search.points(most_points)
        except (InputError, NoPlanError, TimeLimitError) as error:
            errors.append(error)
            search.complete = isinstance(error, NoPlanError)
        except UnsupportedError as error:
            search.complete = False
            message = f"{name} cannot trade {axes[0]} for {axes[1]} here: {error}"
            mend = "choose two other metrics, or make reserved media time_shared"
            errors.append(InputError(Finding("--pareto", message, mend)))
        complete &= search.complete
    if not points:
        raise errors[0]
    return Frontier(axes, tuple(_undominated(points)), complete)


def _undominated(points: list[Point]) -> list[Point]:
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.first, point.second)):
        if not best or point.second < best[-1].second - 1e-12 * abs(best[-1].second):
            best.append(point)
    return best


class _Search:
    """The frontier of one strategy."""

    def __init__(self, problem: Problem, axes: tuple[str, str], strategy: str, time_limit_s: float | None) -> None:
        self.problem, self.axes, self.complete = problem, axes, True
        self.technique = planner.choose_strategy(problem, strategy)
        self.deadline = None if time_limit_s is None else time.perf_counter() + time_limit_s

    def points(self, most: int) -> list[Point]:
        """Return at most ``most`` points, ends included."""
        first, second = self.axes
        left = self.tightened(self.solve(first, {}, None), second)
        right = self.tightened(self.solve(second, {}, None), first)
        if left.second <= right.second:
            return [left]
        resolution = RESOLUTION * (left.second - right.second)
        found = [left, right]
        boxes = [(left, right, right.second)]  # neighbours p and q, and up to where below p nothing lies but q
        while boxes:
            boxes.sort(key=lambda box: (box[1].first - box[0].first) * (box[0].second - box[2]))
            p, q, low = boxes.pop()
            if p.second - low <= resolution:
                continue
            if len(found) >= most or (self.deadline is not None and time.perf_counter() > self.deadline):
                self.complete = False
                break
            middle = (p.second + low) / 2
            inside, empty_to = self.within(middle, q), middle
            if inside is None:
                low = middle
                inside, empty_to = self.within(p.second - resolution, q), p.second
            if inside is not None:
                found.append(inside)
                boxes += [(p, inside, empty_to), (inside, q, low)]
        return found

    def within(self, budget: float, known: Point) -> Point | None:
        """Return the best point with the second metric within ``budget``, ``None`` if that is the ``known`` one."""
        first, second = self.axes
        try:
            plan = self.solve(first, {second: budget}, known.plan)
        except TimeLimitError:
            self.complete = False
            return None
        if value_of(plan, first) >= known.first - 1e-9 * abs(known.first):
            return None
        return self.tightened(plan, second)

    def tightened(self, plan: Plan, other: str) -> Point:
        """Return the plan with the ``other`` metric as good as its own metric allows."""
        own = next(axis for axis in self.axes if axis != other)
        try:
            plan = self.solve(other, {own: value_of(plan, own)}, plan)
        except TimeLimitError:
            self.complete = False
        return Point(value_of(plan, self.axes[0]), value_of(plan, self.axes[1]), plan)

    def solve(self, metric: str, budgets: dict[str, float], start: Plan | None) -> Plan:
        limits = self.problem.constraints
        fields: dict[str, float] = {}
        for axis, budget in budgets.items():
            name = METRICS[axis][0]
            # Points lie at predicted qualities; of what is asked for a margin is left.
            least = asked_for(self.problem, budget) if axis == "quality" else budget
            given = getattr(limits, name)
            fields[name] = least if given is None else min(least, given)
        changed = self.problem.model_copy(update={"objective": metric, "constraints": limits.model_copy(update=fields)})
        left_s = None if self.deadline is None else max(self.deadline - time.perf_counter(), 1e-3)
        plan = planner.solve_with(self.technique, changed, time_limit_s=left_s, warm_start=start)
        self.complete &= plan.status == "optimal"
        return plan
