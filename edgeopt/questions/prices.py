"""What limits cost: each limit of a problem is loosened on its own and the problem solved again.

The price is the difference of two optima, not a dual value: stages are whole elements, so an optimum moves in jumps,
and a duality price would be wrong at nearly every one of them. A limit that may be lifted altogether without any
gain does not bind, and is not asked about again; for one that binds the amount is doubled until there is a gain.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from edgeopt import planner
from edgeopt.errors import NoPlanError, TimeLimitError
from edgeopt.plan import Plan
from edgeopt.profiles.network import LinkQuality
from edgeopt.profiles.problem import Problem
from edgeopt.questions.figures import short
from edgeopt.strategies.chain import able_devices

__all__ = ["Change", "Price", "changes", "prices"]

#: Loosening a limit is a gain from this fraction of the objective.
LEAST_GAIN = 1e-9

#: Memory that no plan fills, and a budget that none reaches.
_PLENTY = 1e18


@dataclass(frozen=True, slots=True)
class Change:
    """A limit, loosened.

    Attributes
    ----------
    limit
        Path of its field in the problem.
    what
        In words: ``4 GB more on phone``.
    amount
        By how much, in SI units; ``None`` where there is no amount (a pin given up).
    problem
        With the limit loosened.
    lifted
        Without the limit, where it can be lifted altogether.
    larger
        Makes the same change with twice the amount, where that is another.
    """

    limit: str
    what: str
    amount: float | None
    problem: Problem
    lifted: Problem | None = None
    larger: Callable[[], Change] | None = None


@dataclass(frozen=True, slots=True)
class Price:
    """What loosening a limit gains: the objective falls from ``before`` to ``after`` (``lifted`` without the limit).

    ``proven``: both ends are optima, or the difference is only what was found in the time.
    """

    change: Change
    before: float
    after: float
    lifted: float | None
    proven: bool

    @property
    def gain(self) -> float:
        """How much smaller the objective gets."""
        return self.before - self.after


def prices(plan: Plan, time_limit_s: float | None = None) -> tuple[list[Price], list[str]]:
    """Find the limits of a plan's problem that bind, and what loosening each is worth.

    Parameters
    ----------
    plan
        A plan; its own strategy solves again, from this plan.
    time_limit_s
        Wall seconds for all of it.

    Returns
    -------
    list of Price
        Of the limits that bind, largest gain first.
    list of str
        Limits that were not looked at in time.
    """
    technique = planner.choose_strategy(plan.problem, plan.strategy)
    deadline = math.inf if time_limit_s is None else time.perf_counter() + time_limit_s
    found, missed = [], []

    def solve(problem: Problem) -> Plan:
        left_s = None if time_limit_s is None else max(deadline - time.perf_counter(), 1e-3)
        return planner.solve_with(technique, problem, time_limit_s=left_s, warm_start=plan)

    todo = list(changes(plan.problem))
    for asked in todo:
        change = asked
        if time.perf_counter() > deadline:
            missed.append(change.limit)
            continue
        try:
            lifted = None if change.lifted is None else solve(change.lifted)
            if lifted is not None and not _gains(plan, lifted):
                continue
            loosened = solve(change.problem)
            while (
                lifted is not None and change.larger and not _gains(plan, loosened) and time.perf_counter() < deadline
            ):
                change = change.larger()
                loosened = solve(change.problem)
        except (NoPlanError, TimeLimitError):  # nothing found in the little time left, or a plan that was no optimum
            missed.append(change.limit)
            continue
        if lifted is not None or _gains(plan, loosened):
            proven = plan.status == "optimal" == loosened.status
            top = None if lifted is None else lifted.objective
            found.append(Price(change, plan.objective, min(loosened.objective, plan.objective), top, proven))
    return sorted(found, key=lambda price: (-price.gain, price.lifted or 0.0)), missed


def _gains(plan: Plan, other: Plan) -> bool:
    return other.objective < plan.objective - LEAST_GAIN * abs(plan.objective)


def changes(problem: Problem) -> Iterator[Change]:
    """Yield every limit of a problem, loosened by a round amount."""
    yield from _memory(problem)
    yield from _links(problem)
    yield from _budgets(problem)
    yield from _choices(problem)


def _memory(problem: Problem) -> Iterator[Change]:
    for i, (device, able) in enumerate(zip(problem.devices, able_devices(problem), strict=True)):
        if able:
            yield _more_memory(problem, i, _round_bytes(device.memory / 2))


def _more_memory(problem: Problem, i: int, extra: float) -> Change:
    device = problem.devices[i]
    changed = (
        _with(problem, devices=_replaced(problem.devices, i, _with(device, memory=device.memory + more)))
        for more in (extra, _PLENTY)
    )
    what = f"{_gigabytes(extra)} more on {device.name}"
    return Change(f"devices[{i}].memory", what, extra, *changed, partial(_more_memory, problem, i, 2 * extra))


def _links(problem: Problem) -> Iterator[Change]:
    network = problem.network
    for i, link in enumerate([network.default, *network.links]):
        if link is None:
            continue
        where = "network.default" if i == 0 else f"network.links[{i - 1}]"

        def grown(old: LinkQuality = link, place: int = i, **fields: Any) -> Problem:
            new = _with(old, **fields)
            if place == 0:
                return _with(problem, network=_with(network, default=new))
            return _with(problem, network=_with(network, links=_replaced(network.links, place - 1, new)))

        if link.rate is not None:
            text = f"{_megabits(2 * link.rate)} instead of {_megabits(link.rate)} Mbit/s {_ends(link)}"
            yield Change(f"{where}.rate", text, link.rate, grown(rate=2 * link.rate))
        if link.latency > 0:
            text = f"{short(500 * link.latency)} instead of {short(1000 * link.latency)} ms {_ends(link)}"
            yield Change(f"{where}.latency", text, link.latency / 2, grown(latency=link.latency / 2))
    for name, medium in network.media.items():
        if medium.radio is not None:
            band = medium.radio.bandwidth
            wider = _with(medium, radio=_with(medium.radio, bandwidth=2 * band))
            text = f"{short(2e-6 * band)} instead of {short(1e-6 * band)} MHz for {name}"
            changed = _with(problem, network=_with(network, media={**network.media, name: wider}))
            yield Change(f"network.media.{name}.radio.bandwidth", text, band, changed)


def _budgets(problem: Problem) -> Iterator[Change]:
    for name, unit in (("deadline", " s"), ("period", " s"), ("energy", " J"), ("quality", "")):
        limit = getattr(problem.constraints, name)
        if limit is not None:
            yield _budget(problem, name, unit, limit, 0.1 * abs(limit) or 1.0)
    if problem.constraints.max_stages is not None:
        yield _budget(problem, "max_stages", "", problem.constraints.max_stages, 1)


def _budget(problem: Problem, name: str, unit: str, limit: float, extra: float) -> Change:
    text = f"{name} {short(limit + extra)}{unit} instead of {short(limit)}{unit}"
    changed = (_limited(problem, **{name: value}) for value in (limit + extra, None))
    larger = partial(_budget, problem, name, unit, limit, 2 * extra)
    return Change(f"constraints.{name}", text, extra, *changed, larger)


def _choices(problem: Problem) -> Iterator[Change]:
    limits = problem.constraints
    if limits.min_segment > 1:
        changed = (_limited(problem, min_segment=value) for value in (limits.min_segment - 1, 1))
        yield Change("constraints.min_segment", f"stages of {limits.min_segment - 1} elements", 1.0, *changed)
    for i, name in enumerate(limits.forbid):
        rest = [other for other in limits.forbid if other != name]
        yield Change(f"constraints.forbid[{i}]", f"{name} allowed", None, _limited(problem, forbid=rest))
    for pattern, name in limits.pin.items():
        others = {key: value for key, value in limits.pin.items() if key != pattern}
        text = f"{pattern} free to leave {name}"
        yield Change(f"constraints.pin.{pattern}", text, None, _limited(problem, pin=others))
    for end in ("first", "last"):
        if name := getattr(limits, end):
            text = f"the {end} element free to leave {name}"
            yield Change(f"constraints.{end}", text, None, _limited(problem, **{end: None}))


def _with(record: Any, **fields: Any) -> Any:
    return record.model_copy(update=fields)


def _limited(problem: Problem, **limits: Any) -> Problem:
    changed: Problem = _with(problem, constraints=_with(problem.constraints, **limits))
    return changed


def _replaced(items: Sequence[Any], place: int, item: Any) -> list[Any]:
    return [item if i == place else old for i, old in enumerate(items)]


def _round_bytes(most: float) -> float:
    """Return the largest power of two times 10^0, 10^3, 10^6 … bytes that is at most ``most``."""
    unit = 1000.0 ** math.floor(math.log(max(most, 1.0), 1000))
    return unit * 2.0 ** math.floor(math.log2(max(most, 1.0) / unit))


def _gigabytes(num_bytes: float) -> str:
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= factor:
            return f"{num_bytes / factor:g} {unit}"
    return f"{num_bytes:g} B"


def _megabits(rate: float) -> str:
    return short(8e-6 * rate)


def _ends(link: Any) -> str:
    if getattr(link, "between", None):
        return f"between {link.between[0]} and {link.between[1]}"
    if getattr(link, "from_", None):
        return f"from {link.from_} to {link.to}"
    return "on links that are not listed"
