"""The radio rate in one variable.

A flow with share b and whole-band signal-to-noise ratio γ is written in u = γ/b, the ratio in its own slice of the
band. With a the seconds that "b·ln(1 + γ/b) = 1" would take, its transfer lasts

    T(b) = a / (b ln(1 + γ/b)) = (a/γ) · u / ln(1 + u),

and the saving per unit of share is

    −T'(b) = (a/γ²) · F(u),   F(u) = u² L(u) / ln²(1 + u),   L(u) = ln(1 + u) − u/(1 + u).

F grows from u²/2 (power-limited, u → 0) to about u²/ln u (band-limited), with a slope in logarithms between 1 and 2, so
one scalar inverse serves every flow of every medium. All functions take and return arrays and are accurate to a few
units of the last place for every u > 0.
"""

from __future__ import annotations

import numpy as np

from edgeopt_solvers.bandwidth.validate import Array

__all__ = ["inverse_price", "inverse_rate", "price", "rate_slope", "stretch"]

#: Below this u the differences of nearly equal terms are summed as series instead.
SMALL = 0.02
LOSS = tuple(1 / (k + 1) for k in range(1, 9))  # 1 − ln(1 + u)/u = u/2 − u²/3 + u³/4 − …

#: Relative accuracy of the price inverse: its error enters values squared.
TOLERANCE = 1e-11

MOST_STEPS = 60


def stretch(u: Array) -> Array:
    """Return u / ln(1 + u): how much longer a transfer lasts than with unlimited band."""
    return u / np.log1p(u)


def _alternating(v: Array, coefficients: tuple[float, ...]) -> Array:
    """Return c0 − v (c1 − v (c2 − …))."""
    total = np.zeros_like(v)
    for coefficient in reversed(coefficients):
        total = coefficient - v * total
    return total


def _bend(u: Array) -> Array:
    """Return L(u) = ln(1 + u) − u/(1 + u)."""
    large = np.log1p(u) - u / (1 + u)
    if u.size and u.min() < SMALL:
        v = np.minimum(u, SMALL)
        series = (
            v
            * v
            * (1 / 2 - v * (2 / 3 - v * (3 / 4 - v * (4 / 5 - v * (5 / 6 - v * (6 / 7 - v * (7 / 8 - v * 8 / 9)))))))
        )
        large = np.where(u < SMALL, series, large)
    return large


def _loss(u: Array) -> Array:
    """Return 1 − ln(1 + u)/u, the part of the unlimited-band rate that is lost."""
    large = 1 - np.log1p(u) / u
    if u.size and u.min() < SMALL:
        v = np.minimum(u, SMALL)
        series = v * _alternating(v, LOSS)
        large = np.where(u < SMALL, series, large)
    return large


def price(u: Array) -> Array:
    """Return F(u)."""
    log = np.log1p(u)
    return (u / log) ** 2 * _bend(u)


def inverse_price(log_y: Array, log_u: Array | None = None) -> tuple[Array, Array]:
    """Solve F(u) = y by Newton steps in logarithms.

    Parameters
    ----------
    log_y
        Natural logarithm of y > 0.
    log_u
        A guess of ln u.

    Returns
    -------
    log_u, slope
        ln u, and d ln F / d ln u there.
    """
    if log_u is None:
        root = 0.5 * (log_y + np.log(2.0))  # exact for small u
        log_u = root + 0.5 * np.log1p(0.5 * np.log1p(np.exp(np.minimum(root, 600.0))))
    slope = np.full_like(log_y, 2.0)
    for _ in range(MOST_STEPS):
        u = np.exp(np.clip(log_u, -600.0, 600.0))
        log, bend = np.log1p(u), _bend(u)
        share = u / (1 + u)
        slope = 2 + share * share / bend - 2 * share / log
        step = (2 * (log_u - np.log(log)) + np.log(bend) - log_y) / slope
        log_u = log_u - step
        if np.abs(step).max(initial=0.0) < np.sqrt(TOLERANCE):  # the step just taken squared that error
            break
    return log_u, slope


def inverse_rate(s: Array) -> Array:
    """Solve ln(1 + u)/u = s for u >= 0; u = 0 (no share is large enough) where s >= 1, ``inf`` where s = 0.

    The start is Chatzigeorgiou's bound on the branch −1 of Lambert's function (doi:10.1109/LCOMM.2013.070113.130972),
    from which Newton's method on the concave ln(1 + u) − s·u falls monotonically.
    """
    known = np.where(s < 1, np.inf, 0.0)
    possible = (s > 0) & (s < 1)
    s = np.where(possible, s, 0.5)
    e = 1 - s
    x = np.where(e < SMALL, e * e * (1 / 2 + e * (1 / 3 + e * (1 / 4 + e / 5))), -e - np.log(s))
    u = (np.sqrt(2 * x) + x + e) / s
    far = s < 0.5
    for _ in range(MOST_STEPS):
        # d/du of ln(1 + u) − s·u (negative from the start on) and its value over u, each without cancelling
        slope = np.where(far, 1 / (1 + u) - s, e - u / (1 + u))
        value = np.where(far, np.log1p(u) / u - s, e - _loss(u))
        step = u * value / np.where(slope < 0, slope, -np.inf)
        u = u - np.where(step > 0, step, 0.0)
        if not (step > 4e-16 * u).any():
            break
    return np.where(possible, u, known)


def rate_slope(u: Array) -> Array:
    """Return d ln R / d ln b = L(u)/ln(1 + u), in (0, 1): what one per cent of share brings in per cent of rate."""
    return _bend(u) / np.log1p(u)
