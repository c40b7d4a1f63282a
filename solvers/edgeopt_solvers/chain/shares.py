"""The best shares for decisions that are made: what each transfer holds of its reserved medium.

Shares serve one goal (:meth:`Chain.share_goals`). For a weighted sum of seconds with fixed rates the best shares are

    b_k = √(ω_k w_k) / Σ √(ω w),       Σ ω_k w_k / b_k = (Σ √(ω w))²,      w_k = bytes / rate with the whole medium,

everything else (radio rates, the largest busy time) goes to the bandwidth family.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.chain.check import list_transfers
from edgeopt_solvers.chain.instance import Chain, Solution

__all__ = ["second_weights", "with_shares"]

#: Weight, relative to the largest, of a second that costs nothing: its transfer must still end.
FREE = 1e-20


def second_weights(chain: Chain) -> Array:
    """What a second of transfer over each link adds to the goal that the shares serve, (D, D), all > 0.

    The goal is latency in s, energy in J, or the objective itself where that weighs both.
    """
    (goal,) = chain.share_goals() or {"latency"}
    watts = np.zeros_like(chain.rate_bytes_per_s)
    if chain.send_power_w is not None and chain.receive_power_w is not None:
        watts = chain.send_power_w[:, None] + chain.receive_power_w[None, :]
    if goal == "energy":
        weight = watts
    elif goal == "mix":
        weight = chain.weights["latency"] + chain.weights["energy"] * watts
    else:
        weight = np.ones_like(watts)
    largest = float(weight.max())
    return np.maximum(weight, FREE * largest) if largest > 0 else np.ones_like(weight)


def with_shares(chain: Chain, solution: Solution, *, cones: bool = False) -> Solution:
    """Return ``solution`` with the best shares for its stages; unchanged where it reserves nothing.

    Parameters
    ----------
    cones
        Whether a cone solver divides the media (the reference), and not the closed form or the dual bisection.

    Raises
    ------
    IndexError
        The stages name a device that does not exist.
    """
    if "reserved" not in chain.media or len(solution.devices) != len(solution.cuts) or not solution.cuts:
        return solution
    if max(solution.cuts) > chain.num_elements:
        return solution  # malformed: the checker says why
    transfers = list_transfers(chain, solution)
    sender = np.array([move[1] for move in transfers], dtype=np.intp)
    receiver = np.array([move[2] for move in transfers], dtype=np.intp)
    reserved = chain.links_of("reserved")[sender, receiver] if transfers else np.zeros(0, dtype=bool)
    if not reserved.any():
        return replace(solution, shares=None)
    size = np.array([move[3] for move in transfers])
    sent = reserved & (size > 0) & (chain.rate_bytes_per_s[sender, receiver] > 0)
    shares = np.where(reserved, 0.0, 1.0)
    if sent.any():
        delay = np.array([move[4] for move in transfers]) * chain.latency_s[sender, receiver]
        shares[sent] = _divide(chain, sender[sent], receiver[sent], size[sent], delay[sent], cones)
    return replace(solution, shares=tuple(shares.tolist()))


def _divide(
    chain: Chain, sender: NDArray[np.intp], receiver: NDArray[np.intp], size: Array, delay: Array, cones: bool
) -> Array:
    """Divide every medium among what is sent over it."""
    medium = chain.medium[sender, receiver]
    period = chain.share_goals() == {"period"}
    weight = second_weights(chain)[sender, receiver]
    rate = chain.rate_bytes_per_s[sender, receiver]
    if not cones and not period and not chain.is_radio[sender, receiver].any():
        root = np.sqrt(size) / np.sqrt(rate) * np.sqrt(weight)
        total = np.bincount(medium, root, minlength=len(chain.media))[medium]
        return np.divide(root, total, out=np.zeros_like(root), where=total > 0)
    from edgeopt_solvers.bandwidth import (
        Bandwidth,  # not needed by most instances
        convex,
        exact,
    )
    from edgeopt_solvers.solve import Options

    ones, nothing = np.ones(len(size)), np.zeros(len(size))
    flows = Bandwidth(
        size, rate_bytes_per_s=rate, medium=medium, band_hz=chain.band_hz, snr=chain.snr[sender, receiver],
        objective="max" if period else "sum", weight=ones if period else weight, fixed_s=delay if period else nothing,
        budget=np.ones(len(chain.media)),
    )  # fmt: skip
    result = (convex if cones else exact).solve(flows, Options())
    assert result.solution is not None, "flows without limits always have an allocation"
    return np.asarray(result.solution.shares)
