"""What plans that run an element on a device must cost at least, for every element at once.

The completion bounds of ``bounds.py`` say what follows an element; walked forward, the same column says what went
before it. Their sum at (element, state) is the least value of any relaxed path through it.
"""

from __future__ import annotations

import math
import time

import numpy as np

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.chain.bounds import Completion, Incumbent, priced_columns
from edgeopt_solvers.chain.deadline import OutOfTimeError
from edgeopt_solvers.chain.general import MOST_STEPS, ROOT_ITERATIONS
from edgeopt_solvers.chain.instance import Chain, Solution
from edgeopt_solvers.chain.tables import Tables

__all__ = ["least_through"]


def least_through(chain: Chain, device: int, known: Solution | None = None, time_limit_s: float | None = None) -> Array:
    """Bound the plans that run an element on a device, one element at a time.

    Parameters
    ----------
    chain
        The instance.
    device
        Index.
    known
        A good plan of the instance: prices are raised towards its value.
    time_limit_s
        Wall seconds; without enough of them, and for an instance too large for tables, bounds are ``-inf``.

    Returns
    -------
    ndarray of shape (num_elements,)
        Proven; ``inf`` where no plan does so.
    """
    nothing: Array = np.full(chain.num_elements, -math.inf)
    if (chain.num_devices * chain.num_variants) ** 2 * chain.num_elements > MOST_STEPS:
        return nothing
    deadline = math.inf if time_limit_s is None else time.perf_counter() + time_limit_s
    incumbent = Incumbent()
    if known is not None:
        incumbent.offer(chain, known)
    try:
        tables = Tables(chain, frozenset(), math.inf, deadline)
        if not tables.allowed.any(axis=0).all():
            return np.full(chain.num_elements, math.inf)
        priced = priced_columns(tables, incumbent, 0.0, deadline, ROOT_ITERATIONS)
    except OutOfTimeError:
        return nothing
    own = tables.device == device
    best: Array = np.max(
        [_through(tables, column)[:, own].min(axis=1, initial=math.inf) for column in priced.columns], 0
    )
    return best


def _through(tables: Tables, bound: Completion) -> Array:
    """Least value of any relaxed path that runs element e in state s, (L, S)."""
    steps, rest = bound.steps, bound.rest
    L, F, S = tables.chain.num_elements, tables.num_first, tables.num_states
    before = np.full((F, S), math.inf)
    before[tables.first, np.arange(S)] = steps.start
    value = np.empty((L, S))
    value[0] = (before + rest[1]).min(axis=0)
    for cut in range(1, L):
        before = (before[:, :, None] + steps.step[cut]).min(axis=1)
        value[cut] = (before + rest[cut + 1]).min(axis=0)
    return value
