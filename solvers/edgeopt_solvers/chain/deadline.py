"""Keeping a time limit while an engine prepares itself: long preparations look at the clock and give up.

An engine that gives up still has a bound from nothing but the instance, and a plan where a quick look finds one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

from edgeopt_solvers.chain.check import evaluate
from edgeopt_solvers.chain.instance import Chain, Solution
from edgeopt_solvers.chain.movement import element_loads
from edgeopt_solvers.chain.shares import with_shares
from edgeopt_solvers.result import Result, Status
from edgeopt_solvers.solve import Options

__all__ = ["OutOfTimeError", "at_sight", "bound_at_sight", "look", "ticking"]

Item = TypeVar("Item")

#: Items between two looks at the clock.
EVERY = 200


class OutOfTimeError(Exception):
    """The deadline has passed; never leaves the family."""


def look(deadline: float) -> None:
    """Raise :class:`OutOfTimeError` after the deadline (of ``time.perf_counter``)."""
    if time.perf_counter() > deadline:
        raise OutOfTimeError


def ticking(items: Iterable[Item], deadline: float) -> Iterator[Item]:
    """Yield the items, looking at the clock now and then."""
    for number, item in enumerate(items):
        if number % EVERY == 0:
            look(deadline)
        yield item


def bound_at_sight(chain: Chain) -> float:
    """Bound on every plan: each element where it is cheapest, every transfer free.

    ``inf`` where an element can run nowhere.
    """
    weights = chain.weights
    second = np.full(chain.num_devices, weights.get("latency", 0.0))
    if chain.power_w is not None:
        second = second + weights.get("energy", 0.0) * chain.power_w
    runs = np.isfinite(chain.compute_s)
    seconds = np.where(runs, chain.compute_s, 0.0)
    cost = second[:, None, None] * seconds + weights.get("quality", 0.0) * chain.quality_loss + element_loads(chain)
    total = float(np.where(runs, cost, np.inf).min(axis=(0, 1)).sum())
    if "throughput" in weights:
        total += weights["throughput"] * float(np.where(runs, seconds, np.inf).min(axis=(0, 1)).max())
    if "quality" in weights and (chain.handoff_loss < 0).any():
        total += weights["quality"] * float(np.minimum(chain.handoff_loss, 0.0).min(axis=(0, 1))[1:-1].sum())
    return total


def at_sight(chain: Chain, options: Options, backend: str) -> Result:
    """What is known without a program: the bound at sight, and the caller's plan where it is feasible."""
    bound = bound_at_sight(chain)
    if math.isinf(bound):
        return Result(Status("infeasible", False), math.inf, math.inf, None, backend, 0.0)
    if isinstance(options.warm_start, Solution):
        solution = with_shares(chain, options.warm_start)
        outcome = evaluate(chain, solution)
        if not outcome.violations:
            bound = min(bound, outcome.objective)
            return Result(Status("time_limit", True), outcome.objective, bound, solution, backend, 0.0)
    return Result(Status("time_limit", False), math.inf, bound, None, backend, 0.0)
