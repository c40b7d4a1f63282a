r"""The best shares for fixed choices.

Without deadlines they are in closed form: with :math:`s` the use of a resource (``a`` or ``b`` of
:mod:`edgeopt_solvers.fleet.model`) and :math:`S = \sum s`, every user gets :math:`s / S` and together they pay
:math:`S^2`. A deadline that binds acts as a larger weight: the user's use is stretched by :math:`\psi \ge 1`, and the
prices solve :math:`\mu_r = \sum_u \psi_u s_{ur}`, :math:`\psi_u = \max(1, (a_u\mu_c + b_u\mu_e) / slack_u)`: the
concave dual with one option per user.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeopt_solvers.fleet.instance import Array, Fleet, Ints, Solution
from edgeopt_solvers.fleet.model import Columns, Model
from edgeopt_solvers.fleet.prices import ascend

__all__ = ["Allocation", "allocate", "solution"]

#: A deadline may be missed by this fraction before the choices count as infeasible; the checker allows ten times that.
_SLIP = 1e-8


@dataclass(frozen=True, slots=True, eq=False)
class Allocation:
    """Value and prices of fixed choices (``inf`` if no shares meet the deadlines), and each user's stretch."""

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
            scale = float(np.abs(chosen.lin).sum() + (prices**2).sum())
            found, _ = ascend(chosen, begin, 1e-14 * max(scale, 1e-300), model.num_cells, steps=60)
            prices = np.append(found, 0.0)
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
            value = np.inf
    return Allocation(value, prices[:-1], stretch, spectrum, compute)


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
