"""Rows (12) of ``milp.py``: what reserved media cost, from below, at one λ after another."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pulp

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.chain.segments import unit_of

if TYPE_CHECKING:
    from edgeopt_solvers.chain.milp import Model

__all__ = ["add_price", "first_prices", "reserve"]

#: Factor from each of the first λ to the next: between two of them a plan's cost is missed by at most a ninth.
FIRST_STEP = 4.0

#: Most first rows per medium: amounts that span more magnitudes than this covers get their rows from plans.
MOST_FIRST = 24


def reserve(model: Model) -> None:
    """Add Z_g, in the unit of a typical transfer."""
    reserved = model.segments.reserved
    if not reserved.serves_sum:
        return
    roots = [reserved.root(g) for g in range(len(reserved.media))]
    sizes = np.concatenate([np.square(np.concatenate((root.cut.ravel(), root.loop.ravel()))) for root in roots])
    model.shared_unit = unit_of(sizes.tolist())
    model.z = [model.positive(f"Z_{medium}") for medium in reserved.media]


def first_prices(model: Model) -> None:
    """Add rows at λ from what the cheapest transfer costs alone to what as many as there can be cost together."""
    reserved, chain = model.segments.reserved, model.chain
    for g in range(len(model.z)):
        root = reserved.root(g)
        sizes = np.square(np.concatenate((root.cut.ravel(), root.loop.ravel())))
        sizes = sizes[sizes > 0]
        if not sizes.size:
            continue
        stages = min(chain.num_devices, chain.num_elements) if chain.reuse == "once" else chain.num_elements
        low, high = float(sizes.min()), float(sizes.max()) * (stages + 2) ** 2
        number = min(MOST_FIRST, 2 + math.ceil(math.log(high / low, FIRST_STEP)))
        prices = np.zeros(len(model.z))
        for price in np.geomspace(high, high / FIRST_STEP ** (number - 1), number):
            prices[g] = price
            add_price(model, prices, [g])


def add_price(model: Model, prices: Array, media: list[int]) -> None:
    """(12) Z_g - Σ φ(λ) x >= -λ, for the media named."""
    segments, chain, unit = model.segments, model.chain, model.shared_unit
    cost, _ = segments.reserved.priced(prices)
    rows: dict[int, dict[Any, float]] = {g: defaultdict(float) for g in media}

    def charge(variable: Any, sender: int, receiver: int, amount: float) -> None:
        g = int(segments.reserved.index[sender, receiver])
        if segments.reserved.links[sender, receiver] and g in rows and amount:
            rows[g][variable] -= amount / unit

    for k, variable in model.y.items():
        if chain.source is not None and k.start == 0:
            charge(variable, chain.source, k.device, cost.cut[0, chain.source, k.device])
        if chain.source is not None and k.stop == chain.num_elements:
            charge(variable, k.device, chain.source, cost.cut[-1, k.device, chain.source])
    for h, variable in model.f.items():
        charge(variable, h.before[0], h.after[0], cost.cut[h.cut, h.before[0], h.after[0]])
    for (last, first), variable in model.p.items():
        charge(variable, last, first, cost.loop[last, first])
    for g, terms in rows.items():
        if terms:
            row = pulp.LpAffineExpression({**terms, model.z[g]: 1.0})
            name = f"price_{segments.reserved.media[g]}_{model.problem.numConstraints()}"
            model.problem += row >= -float(prices[g]) / unit, name
