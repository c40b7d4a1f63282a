"""Which periods are possible when hand-overs are left out: covering the chain by maximal segments.

For a period tau let the maximal segments of a device be those that no other segment within tau contains. A plan
within tau exists (hand-overs aside) exactly when the segments can cover all elements:

    sum over (d, segment containing k) y[d, segment] >= 1   for every element k
    sum over segments y[d, segment] <= copies[d]            for every device d

because overlap is free: a part of a segment never takes longer. The linear relaxation with slack yields prices u of
the elements, and
``sum(u) > sum_d copies[d] * max_segment u(segment)`` disproves tau, and every other period where it holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeopt_solvers.chain.large.view import Array, Ints, View

__all__ = ["Segments", "cover", "disproves", "element_prices", "maximal_segments"]

#: Slack on times and prices that is put down to rounding.
ROUNDING = 1e-11


@dataclass(frozen=True, slots=True)
class Segments:
    """Maximal segments within a period: device, start, end of each."""

    device: Ints
    start: Ints
    end: Ints


def maximal_segments(view: View, period: float) -> Segments:
    """List the maximal segments of every device within ``period``, ends that talk to the source included."""
    limit = period * (1 + ROUNDING)
    num_devices, last = view.num_devices, view.num_elements
    reach = np.empty((num_devices, last), np.int64)
    for d in range(num_devices):
        reach[d] = np.searchsorted(view.prefix[d], view.prefix[d, :-1] + limit, side="right") - 1
    reach = np.minimum(reach, view.last_end[:, :-1])
    reach[view.enter > limit, 0] = 0
    reach[view.leave > limit] = np.minimum(reach[view.leave > limit], last - 1)
    starts = np.arange(last)
    longer = np.maximum.accumulate(np.hstack([np.zeros((num_devices, 1), np.int64), reach[:, :-1]]), axis=1)
    device, start = np.nonzero((reach > longer) & (reach >= starts + view.min_segment))
    return Segments(device, start, reach[device, start])


def disproves(prices: Array, segments: Segments, copies: Ints) -> bool:
    """Whether prices of elements prove that the segments cannot cover the chain."""
    total = np.concatenate([[0.0], np.cumsum(prices)])
    best = np.zeros(len(copies))
    np.maximum.at(best, segments.device, total[segments.end] - total[segments.start])
    return bool(total[-1] > float(best @ copies) * (1 + ROUNDING) + ROUNDING * total[-1])


def element_prices(segments: Segments, num_elements: int, copies: Ints, time_limit_s: float) -> Array | None:
    """Prices from the linear relaxation: they disprove the period, or are ``None`` when the relaxation covers."""
    from scipy.optimize import linprog

    rows, bounds = _rows(segments, num_elements, copies)
    num = len(segments.device)
    import scipy.sparse as sparse

    slack = sparse.vstack([-sparse.identity(num_elements), sparse.csr_array((len(copies), num_elements))])
    matrix = sparse.hstack([rows, slack], format="csc")
    cost = np.concatenate([np.zeros(num), np.ones(num_elements)])
    options = {} if np.isinf(time_limit_s) else {"time_limit": max(time_limit_s, 0.01)}
    answer = linprog(cost, A_ub=matrix, b_ub=bounds, bounds=(0, None), method="highs", options=options)
    if answer.status != 0:
        raise TimeoutError
    if answer.fun <= 1e-7:
        return None
    prices: Array = np.maximum(0.0, -np.asarray(answer.ineqlin.marginals[:num_elements], float))
    return prices


def cover(segments: Segments, num_elements: int, copies: Ints, weights: Array, time_limit_s: float) -> list[int] | None:
    """An integer cover as a list of segments by start, without superfluous ones; ``None``: there is none.

    Any cover will do: ``weights`` of the segments only steer which one is found.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    rows, bounds = _rows(segments, num_elements, copies)
    num = len(segments.device)
    options = {"mip_rel_gap": 1e9, "presolve": True}
    if not np.isinf(time_limit_s):
        options["time_limit"] = max(time_limit_s, 0.01)
    answer = milp(
        weights, integrality=np.ones(num), bounds=Bounds(0, copies[segments.device]),
        constraints=LinearConstraint(rows, ub=bounds), options=options,
    )  # fmt: skip
    if answer.x is None:
        if answer.status == 2:
            return None
        raise TimeoutError
    chosen = np.flatnonzero(answer.x > 0.5)
    picked: list[int] = []
    position = 0
    while position < num_elements:
        able = chosen[segments.start[chosen] <= position]
        farthest = int(able[np.argmax(segments.end[able])])
        picked.append(farthest)
        position = int(segments.end[farthest])
    return picked


def _rows(segments: Segments, num_elements: int, copies: Ints):  # type: ignore[no-untyped-def]
    """Covering rows (negated, one per element) over device rows, as ``A y <= b``."""
    import scipy.sparse as sparse

    num = len(segments.device)
    length = segments.end - segments.start
    columns = np.repeat(np.arange(num), length)
    offsets = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    elements = np.repeat(segments.start, length) + offsets
    covering = sparse.coo_array((-np.ones(len(columns)), (elements, columns)), shape=(num_elements, num))
    once = sparse.coo_array((np.ones(num), (segments.device, np.arange(num))), shape=(len(copies), num))
    return sparse.vstack([covering, once]), np.concatenate([-np.ones(num_elements), copies.astype(float)])
