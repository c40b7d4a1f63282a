"""Least shares: what deadlines and minimum shares take of each medium, or that they take too much.

T_k falls with the share, so the deadline ``fixed_k + T_k(b) <= deadline_k`` is a lower limit on b. An allocation exists
exactly if every lower limit is below its upper one, the lower limits of a medium fit its budget, and something is left
for flows that count and have no lower limit.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgeopt_solvers.bandwidth.flows import Flows
from edgeopt_solvers.bandwidth.validate import Array

__all__ = ["with_least_shares"]

#: Relative error of limits that is put down to rounding of the input ("shares sum to exactly 1"); where limits fail
#: by no more than this, they are kept up to this.
ROUNDING = 1e-12


def with_least_shares(flows: Flows) -> Flows | None:
    """Return the flows with deadlines folded into ``low``; ``None`` if no allocation exists."""
    dead = np.isinf(flows.unit_s)  # no link: never arrives
    if (dead & ((flows.weight > 0) | np.isfinite(flows.deadline_s))).any():
        return None
    flows = replace(flows, unit_s=np.where(dead, 0.0, flows.unit_s))

    strict = _least(flows, flows.deadline_s)
    over = np.isinf(strict) | (strict > flows.high)
    if over.any() or (_rest(flows, strict) < 0).any():
        relaxed = _least(flows, flows.deadline_s * (1 + ROUNDING))
        if not (relaxed <= flows.high * (1 + ROUNDING)).all():
            return None
        relaxed = np.minimum(relaxed, flows.high)
        if (_rest(flows, relaxed) < -ROUNDING * flows.budget).any():
            return None
        failed = (_rest(flows, np.where(over, 0.0, strict)) < 0) | (flows.sums(over.astype(np.float64)) > 0)
        low = np.where(failed[flows.group], relaxed, strict)
    else:
        low = strict

    full = _rest(flows, low) <= 0
    if (full[flows.group] & (low == 0) & (flows.unit_s > 0) & (flows.weight > 0)).any():
        return None  # it counts, and nothing is left for it
    high = np.where(full[flows.group], low, np.maximum(flows.high, low))
    return replace(flows, low=low, high=high)


def _least(flows: Flows, deadline_s: Array) -> Array:
    """Return the least share of each flow; ``inf`` where no share is large enough."""
    low = flows.low
    limited = np.isfinite(deadline_s)
    if not limited.any():
        return low
    sends = limited & (flows.unit_s > 0)
    seconds = np.where(sends, deadline_s - flows.fixed_s, 1.0)
    need, _ = flows.shares_at_seconds(seconds)
    low = np.where(sends, np.maximum(low, need), low)
    return np.where(limited & ~sends & (flows.fixed_s > deadline_s), np.inf, low)


def _rest(flows: Flows, low: Array) -> Array:
    """Return what the least shares leave of each budget; ``-inf`` where one is infinite."""
    finite = np.isfinite(low)
    if finite.all():
        return flows.rests(low) if low.any() else flows.budget
    rest = flows.rests(np.where(finite, low, 0.0))
    return np.where(flows.sums((~finite).astype(np.float64)) > 0, -np.inf, rest)
