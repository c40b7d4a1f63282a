"""Whether some of the remaining segments make a plan: an integer program on those alone.

With y[s] for a segment s = (device, start, end) and t[c] for "a stage ends at cut c":

    sum_{s ends at c} y[s] = t[c] = sum_{s starts at c} y[s]       for every cut c (1 at both ends of the chain)
    sum_{s on d} y[s] <= copies[d]                                 for every device d
    sum_{s of i ends at c} y[s] <= sum_{s starts at c, i may hand over to its device} y[s]    for every (i, c)
    sum_{s of j starts at c} y[s] <= sum_{s ends at c, its device may hand over to j} y[s]    for every (j, c)

A plan passes a cut at most once, so the last two rows are exact for integers; where fewer segments are excluded
than allowed, the row is written as ``excluded + own <= t[c]``.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.large.relaxation import ROUNDING, Remaining
from edgeopt_solvers.chain.large.view import Array, Ints, Path, View

__all__ = ["partition"]

#: Answer of HiGHS when it has proven that nothing is feasible (scipy's numbering).
INFEASIBLE = 2


class _Rows:
    """Sparse rows with bounds, one call each."""

    def __init__(self) -> None:
        self.columns: list[Ints] = []
        self.values: list[Array] = []
        self.lower: list[float] = []
        self.upper: list[float] = []

    def add(self, terms: list[tuple[Ints, float]], lower: float, upper: float) -> None:
        self.columns.append(np.concatenate([columns for columns, _ in terms]))
        self.values.append(np.concatenate([np.full(len(columns), value) for columns, value in terms]))
        self.lower.append(lower)
        self.upper.append(upper)


def partition(view: View, remaining: Remaining, *, time_limit_s: float, nodes: int) -> Path | None:
    """Put remaining segments together to a plan; ``None``: there is none.

    Raises
    ------
    TimeoutError
        When neither is shown within ``nodes`` of the branch and bound, or in time.
    """
    if time_limit_s <= 0:
        raise TimeoutError
    import scipy.sparse as sparse
    from scipy.optimize import Bounds, LinearConstraint, milp

    rows, num = _rows(view, remaining), len(remaining.rows)
    if rows is None:
        return None
    starts = np.concatenate([[0], np.cumsum([len(columns) for columns in rows.columns])])
    matrix = sparse.csr_array(
        (np.concatenate(rows.values), np.concatenate(rows.columns), starts),
        shape=(len(rows.columns), num + view.num_elements + 1),
    )
    options: dict[str, object] = {"mip_rel_gap": 1e9, "presolve": True, "node_limit": nodes}
    if not math.isinf(time_limit_s):
        options["time_limit"] = time_limit_s
    # any plan will do; paying for what a segment's cheapest path exceeds the best one by steers towards plans
    cost = np.concatenate([remaining.through - remaining.through[0], np.zeros(view.num_elements + 1)])
    answer = milp(
        cost / max(float(cost.max()), 1e-300),
        integrality=np.concatenate([np.ones(num), np.zeros(view.num_elements + 1)]), bounds=Bounds(0, 1),
        constraints=LinearConstraint(matrix, rows.lower, rows.upper), options=options,
    )  # fmt: skip
    if answer.x is None:
        if answer.status == INFEASIBLE:
            return None
        raise TimeoutError
    chosen = remaining.rows[answer.x[:num] > 0.5]
    return [(int(device), int(end)) for device, _, end in chosen[np.argsort(chosen[:, 1])]]


def _rows(view: View, remaining: Remaining) -> _Rows | None:
    """All rows; ``None`` when an end of the chain has no segment."""
    device, start, end = remaining.rows.T
    num, last, limit = len(device), view.num_elements, remaining.limit * (1 + ROUNDING)
    by_start, by_end = _groups(start, last + 1), _groups(end, last + 1)
    if not len(by_start[0]) or not len(by_end[last]):
        return None
    rows = _Rows()
    rows.add([(by_start[0], 1.0)], 1.0, 1.0)
    rows.add([(by_end[last], 1.0)], 1.0, 1.0)
    for cut in range(1, last):
        enders, starters, through = by_end[cut], by_start[cut], np.array([num + cut])
        if not len(enders) and not len(starters):
            continue
        rows.add([(enders, 1.0), (through, -1.0)], 0.0, 0.0)
        rows.add([(starters, 1.0), (through, -1.0)], 0.0, 0.0)
        possible = view.link[view.page[cut]] <= limit
        _hand_overs(rows, enders, starters, through, device, possible)
        _hand_overs(rows, starters, enders, through, device, possible.T)
    for segments, copies in zip(_groups(device, view.num_devices), view.copies.tolist(), strict=True):
        if len(segments) > copies:
            rows.add([(segments, 1.0)], -np.inf, float(copies))
    return rows


def _groups(key: Ints, num_keys: int) -> list[Ints]:
    """Indices by key."""
    order = np.argsort(key, kind="stable")
    bounds = np.searchsorted(key[order], np.arange(num_keys + 1))
    return [order[bounds[k] : bounds[k + 1]] for k in range(num_keys)]


def _hand_overs(rows: _Rows, own: Ints, others: Ints, through: Ints, device: Ints, possible: NDArray[np.bool_]) -> None:
    """For each device among ``own``: its segments need one among ``others`` that it may exchange with."""
    for d in np.unique(device[own]).tolist():
        mine, fits = own[device[own] == d], possible[d, device[others]]
        excluded, allowed = others[~fits], others[fits]
        if not len(excluded):
            continue
        if len(excluded) < len(allowed):
            rows.add([(mine, 1.0), (excluded, 1.0), (through, -1.0)], -np.inf, 0.0)
        else:
            rows.add([(mine, 1.0), (allowed, -1.0)], -np.inf, 0.0)
