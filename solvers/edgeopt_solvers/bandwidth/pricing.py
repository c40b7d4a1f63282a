"""Weighted sum: one price per medium.

    min Σ_k w_k T_k(b_k)   s.t.  Σ_k b_k = B,  low_k <= b_k <= high_k          (each medium by itself)

A price λ per unit of share takes the budget apart: b_k(λ) is where the saving −w_k T_k'(b) falls to λ, clipped to
[low_k, high_k]. Without limits and with fixed rates that is √(w_k a_k / λ), hence b_k ∝ √(w_k a_k) in closed form, and
the first price tried is that one. Otherwise ln λ is found by safeguarded Newton steps on ln Σ b_k(λ) over the flows off
their limits (a straight line of slope −1/2 for fixed rates), all media at once.

Certificate. For any λ >= 0 the minimum of the Lagrangian, Σ_k [w_k T_k(b_k(λ)) + λ b_k(λ)] − λB, is a lower bound on
the optimum; an error ε in ln Σ b_k(λ) or in ln b_k costs only ε² of it.
"""

from __future__ import annotations

import time

import numpy as np

from edgeopt_solvers.bandwidth import radio
from edgeopt_solvers.bandwidth.flows import Flows
from edgeopt_solvers.bandwidth.validate import Array

__all__ = ["divide_by_price"]

#: Relative error of Σ b at which the search stops: squared, it is below the rounding of the objective.
TOLERANCE = 1e-9

MOST_STEPS = 200
NEWTON_STEPS = 20  # from here on every other step halves the bracket


def divide_by_price(flows: Flows, start: Array | None, stop_at: float) -> tuple[Array, Array, int]:
    """Divide media that are too small for everybody's upper limit.

    Parameters
    ----------
    flows
        Flows with ``unit_s > 0``, ``weight > 0`` and ``low < high``; on each medium Σ low < budget < Σ high.
    start : (n,), optional
        Shares to start from, for example of a similar instance.
    stop_at
        ``time.perf_counter()`` at which to return what there is.

    Returns
    -------
    shares : (n,)
        Within their limits; their sums agree with the budgets up to rounding (up to the time limit).
    bound : (m,)
        Proven lower bound on the weighted transfer seconds of each medium.
    num_steps
    """
    n, group = flows.num_fixed, flows.group
    inside = _interior(flows, start)
    prices = flows.log_price(inside)
    # above the largest price at a full allocation everybody wants less, below the smallest everybody wants more
    low, high = flows.smallest(prices), flows.largest(prices)
    base = np.log(flows.weight * flows.unit_s)
    base[n:] -= 2 * np.log(flows.snr[n:])
    # as if T fell like 1/b from here: exact for fixed rates without limits
    top = flows.largest(prices)
    v = top + 2 * np.log(flows.sums(inside * np.exp(0.5 * (prices - top[group]))) / flows.sums(inside))
    v = np.clip(v, low, high)
    log_u: Array | None = None
    slope = np.full_like(prices, 0.5)
    raw = np.empty_like(prices)
    step = 0
    while True:
        step += 1
        raw[:n] = np.exp(0.5 * (base[:n] - v[group[:n]]))
        if n < len(raw):
            log_u, radio_slope = radio.inverse_price(v[group[n:]] - base[n:], log_u)
            raw[n:] = flows.snr[n:] * np.exp(-log_u)
            slope[n:] = 1 / radio_slope
        shares = np.clip(raw, flows.low, flows.high)
        free = (raw > flows.low) & (raw < flows.high)
        free_sum = flows.sums(np.where(free, shares, 0.0))
        rest = flows.rests(np.where(free, 0.0, shares))
        over = free_sum - rest
        low, high = np.where(over > 0, v, low), np.where(over > 0, high, v)
        done = np.abs(over) <= TOLERANCE * rest
        done |= high - low <= 4e-16 * np.maximum(1.0, np.abs(v))
        if done.all() or step == MOST_STEPS or time.perf_counter() > stop_at:
            break
        with np.errstate(divide="ignore", invalid="ignore"):
            change = (np.log(free_sum) - np.log(rest)) * free_sum / flows.sums(np.where(free, shares * slope, 0.0))
            newton = v + change
        trusted = np.isfinite(newton) & (newton > low) & (newton < high)
        if step > NEWTON_STEPS and step % 2:
            trusted[:] = False
        moved = np.where(trusted, newton, 0.5 * (low + high))
        v = np.where(done, v, moved)
    bound = flows.sums(flows.weight * flows.transfer_s(shares)) + np.exp(v) * over
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where((free_sum > 0) & (rest > 0), rest / free_sum, 1.0)
    shares = np.where(free, np.clip(shares * scale[group], flows.low, flows.high), shares)
    return shares, bound, step


def _interior(flows: Flows, start: Array | None) -> Array:
    """Return shares within their limits that use up every budget (to bracket the prices, rounding does not matter)."""
    room = flows.high - flows.low
    if start is not None:
        wish = np.clip(start, flows.low + 1e-6 * room, flows.high) - flows.low
        if (flows.sums(wish) > 0).all():
            over = flows.sums(wish) - (flows.budget - flows.sums(flows.low))
            shrink = np.where(over > 0, 1 - over / flows.sums(wish), 1.0)[flows.group] * wish
            missing = np.maximum(-over, 0.0)
            spare = room - shrink
            return flows.low + shrink + spare * np.minimum(1.0, missing / flows.sums(spare))[flows.group]
    part = flows.rests(flows.low) / flows.sums(room)
    return flows.low + room * part[flows.group]
