r"""The best shares for fixed choices.

Without deadlines they are in closed form: with :math:`s` the use of a resource (``a`` or ``b`` of
:mod:`edgeopt_solvers.fleet.model`) and :math:`S = \sum s`, every user gets :math:`s / S` and together they pay
:math:`S^2`. A deadline that binds acts as a larger weight: the user's use is stretched by :math:`\psi \ge 1`, and the
prices solve :math:`\mu_r = \sum_u \psi_u s_{ur}`, :math:`\psi_u = \max(1, (a_u\mu_c + b_u\mu_e) / slack_u)`: the
concave dual with one option per user.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from edgeopt_solvers.fleet.instance import Array, Fleet, Ints, Solution
from edgeopt_solvers.fleet.model import Columns, Model
from edgeopt_solvers.fleet.prices import add_products, ascend, conjugate_gradients

__all__ = ["Allocation", "Strain", "allocate", "solution", "strain"]

#: A deadline may be missed by this fraction before the choices count as infeasible; the checker allows ten times that.
_SLIP = 1e-8


@dataclass(frozen=True, slots=True, eq=False)
class Allocation:
    """Value and prices of fixed choices, and each user's stretch.

    If no shares meet the deadlines, the value is ``inf`` and the prices are those at which the least that the users
    need exceeds what there is by the largest factor.
    """

    value: float
    prices: Array
    stretch: Array
    spectrum: Array
    compute: Array


def allocate(model: Model, chosen: Columns, start: Array | None = None) -> Allocation:
    """Return the best shares when user u takes the u-th of the columns ``chosen``."""
    num_resources = model.num_resources
    stretch = np.ones(len(chosen.user))
    prices = _use(chosen, stretch, num_resources)
    if chosen.slack is not None:
        need = chosen.a * prices[chosen.cell] + chosen.b * prices[chosen.resource]
        if (chosen.slack <= 0).any():
            return Allocation(np.inf, prices[:-1], stretch, stretch, stretch)
        if (need > chosen.slack).any():
            begin = prices[:-1] if start is None else np.maximum(start, 0.5 * prices[:-1])
            # What users pay anyway would only take digits from the value that the steps compare.
            plain = replace(chosen, held=None, lin=np.zeros(len(chosen.lin)))
            found, _ = ascend(plain, begin, 1e-14 * max(float((prices**2).sum()), 1e-300), steps=60)
            prices = np.append(_settled(chosen, found), 0.0)
            need = chosen.a * prices[chosen.cell] + chosen.b * prices[chosen.resource]
            stretch = np.maximum(1.0, need / chosen.slack)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        spectrum, compute = stretch * chosen.a, stretch * chosen.b
        total = _use(chosen, stretch, num_resources)
        spectrum = np.where(spectrum > 0, spectrum / total[chosen.cell], 0.0)
        compute = np.where(compute > 0, compute / total[chosen.resource], 0.0)
        seconds = np.where(spectrum > 0, chosen.a / spectrum * chosen.a, 0.0)
        seconds += np.where(compute > 0, chosen.b / compute * chosen.b, 0.0)
    value = float((chosen.lin + seconds).sum())
    if chosen.slack is not None:
        limit = chosen.lin + chosen.slack
        if (chosen.lin + seconds > limit * (1 + _SLIP)).any():
            return Allocation(np.inf, strain(chosen, decide=False).prices, stretch, spectrum, compute)
    return Allocation(value, prices[:-1], stretch, spectrum, compute)


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def _settled(chosen: Columns, prices: Array) -> Array:
    """Solve for the prices themselves: where the value is flat, it leaves them half of their digits."""
    assert chosen.slack is not None
    size = len(prices)
    best = math.inf
    after = prices
    for _ in range(8):
        extended = np.append(after, 0.0)
        need = chosen.a * extended[chosen.cell] + chosen.b * extended[chosen.resource]
        stretch = np.maximum(1.0, need / chosen.slack)
        residual = _use(chosen, stretch, size)[:-1] - after
        error = float(np.abs(residual / np.maximum(after, 1e-300)).max())
        if not error < best:
            break
        best, prices = error, after
        if error < 1e-14:
            break
        form = np.zeros((size + 1, size + 1))
        add_products(form, chosen, chosen.a, chosen.b, np.where(need > chosen.slack, 1 / chosen.slack, 0.0))
        after = after + conjugate_gradients(np.eye(size) - form[:-1, :-1], residual)
        if not (after > 0).all():
            break
    return prices


@dataclass(frozen=True, slots=True, eq=False)
class Strain:
    """Bounds on the largest eigenvalue of the least needs, and its vector (root of prices, all there is worth 1).

    ``most`` at most 1: shares that meet all deadlines exist. ``least`` above 1: there are none.
    """

    least: float
    most: float
    prices: Array


def strain(chosen: Columns, start: Array | None = None, *, decide: bool = True, turns: int = 300) -> Strain:
    """Return how far the users' least needs exceed all there is, at the prices where they do so most.

    With ``decide`` it ends as soon as the bounds tell whether shares exist; the prices are then the nearer the further
    that took.

    Meeting the deadlines takes a quadratic form of the roots of prices; it has no negative entries, so that its powers
    lead to the leading vector and bound the eigenvalue from both sides on the way.
    """
    assert chosen.slack is not None
    size = chosen.num_resources
    if (chosen.slack <= 0).any():
        return Strain(math.inf, math.inf, np.full(size, math.sqrt(1 / size)))
    form = np.zeros((size + 1, size + 1))
    add_products(form, chosen, chosen.a, chosen.b, 1 / chosen.slack)
    form = form[:-1, :-1]
    scale = max(float(form.max()), 1e-300)
    if not scale < math.inf:
        return Strain(math.inf, math.inf, np.full(size, math.sqrt(1 / size)))
    form = form / scale
    used = form.diagonal() > 0
    vector = np.ones(size) if start is None else np.maximum(start, 1e-12 * float(start.max()))
    least = most = math.inf
    for _ in range(turns):
        image = np.einsum("ij,j->i", form, vector)
        square = float((vector * vector).sum())
        least = scale * float((vector * image).sum()) / square
        most = scale * float((image[used] / np.maximum(vector[used], 1e-300)).max(initial=0.0))
        if most - least <= (1e-10 if decide else 1e-14) * most or (decide and (most <= 1 or least > 1 + 1e-6)):
            break
        vector = np.maximum(image / max(float(image.max()), 1e-300), 1e-200)
    return Strain(least, most, vector / math.sqrt(float((vector * vector).sum())))


def _use(chosen: Columns, stretch: Array, num_resources: int) -> Array:
    """Stretched use of every resource, with the dummy resource at the end."""
    total = np.bincount(chosen.cell, stretch * chosen.a, num_resources + 1)
    return np.asarray(total + np.bincount(chosen.resource, stretch * chosen.b, num_resources + 1))


def solution(fleet: Fleet, model: Model, chosen: Columns, allocation: Allocation) -> Solution:
    """Return the plan in the caller's terms."""
    remote = chosen.key >= 0
    key = np.where(remote, chosen.key, 0)
    pair_cut = model.pair_cut if len(model.pair_cut) else np.zeros(1, dtype=np.int64)
    servers = max(1, model.num_servers)
    cuts: Ints = np.where(remote, pair_cut[key // servers], model.solo_cut[chosen.user])
    names = () if fleet.user_ids is None else tuple(np.asarray(fleet.user_ids).tolist())
    return Solution(
        tuple(cuts.tolist()),
        tuple(np.where(remote, key % servers, -1).tolist()),
        tuple(allocation.spectrum.tolist()),
        tuple(allocation.compute.tolist()),
        names,
    )
