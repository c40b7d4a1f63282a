"""Shares of the medium for fixed loads: the least τ with Σ_d a_d / (τ − o_d) <= 1.

Device d is done at o_d + a_d / b_d, where a_d are its seconds with the whole medium. At level τ it needs the share
a_d / (τ − o_d). The sum φ falls in τ; 1/φ is concave and rising, so Newton's steps on 1/φ = 1, begun where φ >= 1,
come from below and never overshoot. Counted from the largest o_d, so that short exchanges keep their digits.
"""

from __future__ import annotations

from edgeopt_solvers.bandwidth.validate import Array

__all__ = ["level_shares"]

MOST_STEPS = 100


def level_shares(offset: Array, seconds: Array) -> Array:
    """Return shares summing to 1 that minimise ``max(offset + seconds / share)``; all arrays (n,), seconds > 0."""
    gap = offset.max() - offset
    z = float((seconds - gap).max())
    for _ in range(MOST_STEPS):
        part = seconds / (z + gap)
        total = float(part.sum())
        if total <= 1:
            break
        step = total * (total - 1) / float((part / (z + gap)).sum())
        if z + step <= z:
            break
        z += step
    part = seconds / (z + gap)
    shares: Array = part / part.sum()
    return shares
