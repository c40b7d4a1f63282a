"""Weighted maximum: one level per medium.

    min τ   s.t.  w_k (c_k + T_k(b_k)) <= τ,  Σ_k b_k <= B,  low_k <= b_k <= high_k          (each medium by itself)

At level τ flow k needs the share b_k(τ) with T_k(b) = τ/w_k − c_k (at least low_k), for fixed rates a_k/(τ/w_k − c_k).
What all need falls with τ and is convex, so the least level at which it fits is found by Newton steps: those on
1/Σ b_k(τ) jump far and may land beyond the root, from where the tangent of Σ b_k(τ) leads back below it.

Certificate. At a level below the root the flows need more than the budget, so no allocation reaches it: every left end
of the bracket is a lower bound.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.bandwidth.flows import Flows
from edgeopt_solvers.bandwidth.validate import Array

__all__ = ["divide_by_level"]

MOST_STEPS = 200
NEWTON_STEPS = 40  # from here on every other step halves the bracket where there is one


def divide_by_level(flows: Flows, stop_at: float) -> tuple[Array, Array, int]:
    """Lower the largest weighted end on each medium as far as its budget allows.

    Parameters
    ----------
    flows
        Flows with ``unit_s > 0`` and ``weight > 0``; on each medium Σ low <= budget.
    stop_at
        ``time.perf_counter()`` at which to return what there is.

    Returns
    -------
    shares : (n,)
        Within their limits; their sums exceed no budget by more than rounding.
    bound : (m,)
        Proven lower bound on the level of each medium.
    num_steps
    """
    group, weight = flows.group, flows.weight
    start_of = weight * flows.fixed_s
    # levels are counted from the largest fixed part, so that a short transfer after it keeps its digits
    reference = flows.largest(start_of)
    ahead = reference[group] - start_of
    level = flows.largest(weight * flows.transfer_s(flows.high) - ahead)  # nobody can do better with upper limits
    low, high = level, np.full_like(level, np.inf)
    free = np.zeros(len(group), dtype=bool)
    done = np.zeros(len(level), dtype=bool)
    step = 0
    while True:
        step += 1
        seconds = (level[group] + ahead) / weight
        raw, slope = flows.shares_at_seconds(seconds)
        raw = np.minimum(raw, flows.high)
        free = raw > flows.low
        shares = np.where(free, raw, flows.low)
        free_sum = flows.sums(np.where(free, shares, 0.0))
        rest = flows.rests(np.where(free, 0.0, shares))
        over = free_sum - rest
        low, high = np.where(over >= 0, np.maximum(low, level), low), np.where(over < 0, np.minimum(high, level), high)
        done |= (over <= 0) & (level <= low)  # it fits at a proven bound
        if done.all() or step == MOST_STEPS or time.perf_counter() > stop_at:
            break
        with np.errstate(divide="ignore", invalid="ignore"):
            fall = flows.sums(np.where(free, shares * slope / (seconds * weight), 0.0))
            tangent = level + over / fall
            jump = level + (free_sum / rest - 1) * free_sum / fall
        tangent = np.where(np.isfinite(tangent), np.maximum(tangent, low), low)
        low = np.where(over < 0, tangent, low)  # by convexity the root is not below it
        target = np.where(over < 0, tangent, np.where(np.isfinite(jump), jump, tangent))
        middle = 0.5 * (low + high)
        beyond = (target >= high) | ((step > NEWTON_STEPS) & (step % 2 == 1))
        target = np.where(beyond & np.isfinite(middle), middle, target)
        done |= np.abs(target - level) <= 1e-15 * np.abs(level)
        done |= high - low <= 1e-15 * np.abs(low)
        level = np.where(done, level, target)
    return _within_budget(flows, shares, free, over, shares * slope / (seconds * weight)), reference + low, step


def _within_budget(flows: Flows, shares: Array, free: NDArray[np.bool_], over: Array, fall: Array) -> Array:
    """Take back what the shares exceed the budgets by (``over``, (m,)).

    Each free flow gives in proportion to ``fall``, what its share falls by per unit of level, which raises all levels
    alike: a flow whose rate hardly depends on its share gives nearly everything.
    """
    fall = np.where(free, fall, 0.0)
    give = fall * np.where(over > 0, over / np.maximum(flows.sums(fall), 1e-300), 0.0)[flows.group]
    far = (
        flows.largest(np.where(free, give / np.where(free, shares, 1.0), 0.0)) > 0.1
    )  # stopped early: no tangent holds
    free_sum = flows.sums(np.where(free, shares, 0.0))
    scale = np.where(far, np.maximum(1 - over / np.where(free_sum > 0, free_sum, 1.0), 0.0), 1.0)[flows.group]
    given = np.where(far[flows.group], shares * scale, shares - give)
    return np.where(free, np.maximum(given, flows.low), shares)
