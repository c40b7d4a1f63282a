"""Exact division of media: limits, then one price (sum) or one level (max) per medium, then a repair of rounding.

1. Deadlines become least shares; what does not fit is infeasible (``limits.py``).
2. Flows that gain nothing from more share keep the least; media with room for everybody's upper limit give it.
3. The rest is divided by price (``pricing.py``) or by level (``levelling.py``), all media at once in arrays.
4. Sums of shares that rounding left above a budget are lowered until they keep it exactly.
"""

from __future__ import annotations

import math
import time

import numpy as np

from edgeopt_solvers.bandwidth.fit import fit
from edgeopt_solvers.bandwidth.flows import Flows, arrange
from edgeopt_solvers.bandwidth.instance import Bandwidth, Solution
from edgeopt_solvers.bandwidth.levelling import divide_by_level
from edgeopt_solvers.bandwidth.limits import with_least_shares
from edgeopt_solvers.bandwidth.pricing import divide_by_price
from edgeopt_solvers.bandwidth.validate import Array
from edgeopt_solvers.result import Reason, Result, Status, relative_gap
from edgeopt_solvers.solve import Options

__all__ = ["solve"]

#: Relative gap up to which a result is called optimal.
PROVEN = 1e-9


def solve(instance: Bandwidth, options: Options) -> Result:
    """Divide every medium; the time limit is looked at between steps, and a warm start gives the first prices."""
    stop_at = math.inf if options.time_limit_s is None else time.perf_counter() + options.time_limit_s
    flows = with_least_shares(arrange(instance))
    if flows is None:
        return Result(Status("infeasible", False), math.inf, math.inf, None, "exact", 0.0)
    start = options.warm_start.shares if isinstance(options.warm_start, Solution) else None
    start = start[flows.index] if start is not None and start.shape == (instance.num_flows,) else None
    divide = _minimise_sum if instance.objective == "sum" else _minimise_max
    sorted_shares, objective, bound, num_steps = divide(flows, start, stop_at)
    shares = np.empty(instance.num_flows)
    shares[flows.index] = sorted_shares
    bound = min(bound, objective)
    gap = relative_gap(objective, bound)
    reason: Reason = "optimal"
    message = ""
    if gap > max(PROVEN, options.gap):
        reason = "time_limit" if time.perf_counter() > stop_at else "gap_reached"
        message = "" if reason == "time_limit" else f"rounding kept the gap at {gap:.1e}"
    elif gap > PROVEN:
        reason = "gap_reached"
    statistics = {"num_steps": float(num_steps)}
    return Result(Status(reason, True), objective, bound, Solution(shares), "exact", 0.0, {}, message, statistics)


def _minimise_sum(flows: Flows, start: Array | None, stop_at: float) -> tuple[Array, float, float, int]:
    """Return shares, objective, bound and number of steps for the weighted sum."""
    gains = (flows.unit_s > 0) & (flows.weight > 0) & (flows.low < flows.high)
    shares = np.where(gains, flows.high, flows.low)
    tight = (flows.rests(shares) < 0)[flows.group] & gains
    proven = flows.weight * flows.fixed_s
    counts = (flows.unit_s > 0) & (flows.weight > 0)
    num_steps, bounds = 0, np.zeros(0)
    if tight.any():
        moving, _ = flows.take(tight, flows.rests(np.where(tight, 0.0, shares)))
        divided, bounds, num_steps = divide_by_price(moving, None if start is None else start[tight], stop_at)
        shares[tight] = divided
        shares = fit(flows, shares)
    weighted = np.zeros_like(shares)
    weighted[counts] = flows.weight[counts] * flows.transfer_s(shares)[counts]
    fixed = math.fsum(proven.tolist())
    loose = math.fsum(weighted[~tight].tolist())
    objective = math.fsum([fixed, *weighted.tolist()])
    return shares, objective, math.fsum([fixed, loose, *bounds.tolist()]), num_steps


def _minimise_max(flows: Flows, start: Array | None, stop_at: float) -> tuple[Array, float, float, int]:
    """Return shares, objective, bound and number of steps for the weighted maximum (``start`` is of no use)."""
    counts = flows.weight > 0
    sends = counts & (flows.unit_s > 0)
    shares = flows.low.copy()
    bound, num_steps = 0.0, 0
    if counts.any():
        bound = float((flows.weight * flows.fixed_s)[counts].max())
    if sends.any():
        moving, _ = flows.take(sends, flows.rests(np.where(sends, 0.0, shares)))
        shares[sends], levels, num_steps = divide_by_level(moving, stop_at)
        bound = max(bound, float(levels.max()))
        shares = fit(flows, shares)
    ends = flows.weight[counts] * (flows.fixed_s + flows.transfer_s(shares))[counts]
    return shares, float(ends.max(initial=0.0)), bound, num_steps
