"""A lower bound from any prices, wherever they come from.

For multipliers m_k >= 0 on the seconds of flows and prices λ_g >= 0 on shares,

    Σ_k min_{low_k <= b <= high_k} [m_k (c_k + T_k(b)) + λ_g b] − Σ_g λ_g B_g

is below Σ_k m_k (c_k + T_k(b_k)) of every allocation: a bound on the weighted sum for m = w, and on the weighted
maximum for m_k = μ_k w_k with Σ μ_k <= 1, for example with all of μ on one medium.
"""

from __future__ import annotations

import numpy as np

from edgeopt_solvers.bandwidth import radio
from edgeopt_solvers.bandwidth.flows import Flows
from edgeopt_solvers.bandwidth.validate import Array

__all__ = ["lagrangian_bound"]


def lagrangian_bound(flows: Flows, multiplier: Array, price: Array) -> Array:
    """Return the bound of each medium, (m,), for multipliers (n,) and prices (m,).

    ``low`` and ``high`` of the flows must hold every limit on shares.
    """
    price_of = price[flows.group]
    shares = np.where(price_of > 0, flows.low, flows.high)
    inside = (multiplier > 0) & (flows.unit_s > 0) & (price_of > 0) & (flows.low < flows.high)
    if inside.any():
        part, _ = flows.take(inside, flows.budget)
        n = part.num_fixed
        wanted = np.log(price_of[inside]) - np.log(multiplier[inside] * part.unit_s)  # ln of λ / (m a)
        best = np.exp(-0.5 * wanted)
        log_u, _ = radio.inverse_price(wanted[n:] + 2 * np.log(part.snr[n:]))
        best[n:] = part.snr[n:] * np.exp(-log_u)
        shares[inside] = np.clip(best, part.low, part.high)
    active = multiplier > 0
    seconds = np.zeros_like(shares)
    seconds[active] = (multiplier * flows.fixed_s)[active] + multiplier[active] * flows.transfer_s(shares)[active]
    return flows.sums(seconds) - price * flows.rests(shares)
