r"""Where only deadlines count: what users need at least of all there is, and the prices at which that is dearest.

An option p with ``slack`` seconds for transfer and remote work takes shares worth at least :math:`h^2 / slack` at
prices :math:`\mu^2` (:math:`h = a\mu_{cell} + b\mu_{server}`), whatever the shares are, and memory worth
:math:`\nu m`. All there is, is worth :math:`T = \sum_r \mu_r^2 + \sum_e \nu_e`. So at any prices

.. math::

    N(\tau) = \sum_u \min_p \left(\frac{h_{up}^2}{\tau_u - lin_{up}} + \nu m_{up}\right) > T

proves that not everybody can stay within the level :math:`\tau` (solo options need nothing), and the refusal costs are
at least :math:`\sum_u \min(\rho_u, \min_p \ldots) - T`. In the prices of shares both are concave, and Newton steps on
the soft minimum find the best ones (``prices.py``, aims "level" and "need"). Between them, Newton steps on the level:
N falls and is mostly convex in it, so from below they arrive from below, each step a proven level.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from edgeopt_solvers.fleet.instance import MEMORY_SLIP, REFUSED, Array, Ints
from edgeopt_solvers.fleet.model import Aim, Columns, Model, columns, price, subset, worth
from edgeopt_solvers.fleet.prices import charges, maximise
from edgeopt_solvers.fleet.starts import positive, sample

__all__ = ["Floor", "admitting", "alone", "cheapest", "use_at", "within"]

#: Steps that scale every price by the use of its resource, before Newton's.
_SCALINGS = 24
#: Newton steps on the level.
_LEVELS = 8
#: Options of a fleet whose first prices are those of a sample.
_MANY = 2_000_000
#: Part of the level of a sample that is tried on all users.
_SAFE = 0.95
#: Options rated at once: small enough to stay in cache.
_BLOCK = 150_000


def within(model: Model, level: float) -> Model:
    """Return the model of the question whether everybody can stay within ``level``; solo options need nothing."""
    limit = np.full(model.num_users, level) if model.limit is None else np.minimum(model.limit, level)
    return _questioned(model, limit, np.where(model.solo_lin <= level, 0.0, math.inf), "level")


def admitting(model: Model) -> Model:
    """Return the model in which being refused costs what it does, and everything else only what it needs."""
    assert model.limit is not None
    alone = np.where(np.isfinite(model.solo_lin), 0.0, math.inf)
    return _questioned(model, model.limit, np.where(model.solo_cut == REFUSED, model.solo_lin, alone), "need")


def _questioned(model: Model, limit: Array, solo: Array, aim: Aim) -> Model:
    """Replace limits and solo costs, and drop the options that are too late or not needed."""
    nearest = model.delay.min(axis=1, initial=math.inf)
    user = model.pair_user
    pairs = np.flatnonzero((solo[user] > 0) & (model.pair_lin + nearest[user] < limit[user]))
    return replace(
        model, limit=limit, solo_lin=solo, aim=aim, first_pair=np.searchsorted(user[pairs], np.arange(len(solo) + 1)),
        pair_user=user[pairs], pair_cut=model.pair_cut[pairs], pair_lin=model.pair_lin[pairs],
        pair_a=model.pair_a[pairs], pair_b=model.pair_b[pairs],
        pair_bytes=None if model.pair_bytes is None else model.pair_bytes[pairs],
    )  # fmt: skip


def alone(model: Model, out_of_time: Callable[[], bool]) -> Array:
    """Return what each user pays at least, with all spectrum and compute to itself; zeros if the clock ends first."""
    least = model.solo_lin.copy()
    step = max(1, _BLOCK // max(1, model.num_servers))
    for low in range(0, len(model.pair_user) if model.num_servers else 0, step):
        if out_of_time():
            return np.zeros(model.num_users)
        part = slice(low, low + step)
        user = model.pair_user[part]
        paid = (model.pair_b[part, None] * model.inverse_root_speed) ** 2 + model.delay[user]
        paid += (model.pair_a[part] ** 2 + model.pair_lin[part])[:, None]
        if model.limit is not None:
            paid[paid > model.limit[user][:, None] * (1 + 1e-9)] = math.inf
        if model.inverse_memory is not None:
            paid[model.memory_share(part) > 1 + MEMORY_SLIP] = math.inf
        np.minimum.at(least, user, paid.min(axis=1))
    return least


def cheapest(cols: Columns, prices: Array) -> Ints:
    """Return the column of each user that charges least at ``prices``."""
    paid = charges(cols, prices)
    at = np.flatnonzero(paid <= np.minimum.reduceat(paid, cols.first)[cols.user])
    choice = cols.first.copy()
    choice[cols.user[at]] = at
    return choice


def use_at(cols: Columns, prices: Array) -> tuple[Array, Array]:
    """Return what columns use of their cell and server, in roots of prices, if each buys as little as it can."""
    assert cols.slack is not None
    extended = np.append(prices[: cols.num_resources], 0.0)
    use = cols.a * extended[cols.cell] + cols.b * extended[cols.resource]
    stretch = np.where((use > 0) & (cols.slack > 0), use / np.where(cols.slack > 0, cols.slack, 1.0), 0.0)
    return stretch * cols.a, stretch * cols.b


@dataclass(slots=True)
class _Needs:
    """All users' needs at some prices: their sum over all there is, its slope in the level, and the use by price."""

    sum: float
    slope: float
    used: Array


def _needs(model: Model, prices: Array, level: float, copies: Array | None, out_of_time: Callable[[], bool]) -> _Needs:
    _, keys, least, _ = price(model, prices, 0.0, out_of_time=out_of_time)
    if not np.isfinite(least).all() or out_of_time():
        return _Needs(math.inf, 0.0, np.zeros(len(prices)))
    cols = columns(model, keys)
    chosen = cols.take(cheapest(cols, prices))
    assert chosen.slack is not None
    assert model.limit is not None
    ones = np.ones(model.num_users) if copies is None else copies
    a, b = use_at(chosen, prices)
    size = model.num_resources
    used = np.bincount(chosen.cell, ones * a, size + 1) + np.bincount(chosen.resource, ones * b, size + 1)
    used_of_price: Array = np.asarray(used[:size] / np.maximum(prices[:size], 1e-300), np.float64)
    if chosen.held is not None:
        held = np.bincount(chosen.resource, ones * chosen.held, size + 1)
        used_of_price = np.append(used_of_price, held[model.num_cells : size])
    # Users whose own deadline is sooner do not gain from a higher level.
    moving = np.where((chosen.key >= 0) & (model.limit >= level), 1.0, 0.0)
    with np.errstate(over="ignore"):
        extended = np.append(prices[:size], 0.0)
        stretch = (chosen.a * extended[chosen.cell] + chosen.b * extended[chosen.resource]) / chosen.slack
    total = worth(prices, size)
    return _Needs(
        float((least * ones).sum()) / total, -float((ones * moving * stretch * stretch).sum()) / total, used_of_price
    )


class Floor:
    """The level that prices prove nobody can keep everybody within.

    Attributes
    ----------
    level
        Proven: not everybody can stay within it.
    prices
        Found at ``near``, the last level that was tried; all there is, is worth 1.
    hopeless
        Proven: no level is high enough.
    work
        Newton steps and pricings.
    finest
        Temperature of the prices, in parts of a user's mean need.
    """

    def __init__(self, model: Model, level: float) -> None:
        self.model = model
        self.level = self.near = level
        self.hopeless = False
        self.work = 0
        self.finest = 1.0
        size = model.num_resources
        self.prices = np.full(model.num_prices, 1.0)
        self.prices[size:] = 1 / model.num_prices
        self.prices[:size] = math.sqrt(1 / model.num_prices)

    def raise_to(self, high: float, gap: float, out_of_time: Callable[[], bool]) -> None:
        """Raise the level as far as prices go, to within ``gap`` of it; no plan needs more than ``high``."""
        if not self.work:
            self.begin(high, out_of_time)
        near = self.near
        for _ in range(_LEVELS):
            before, self.finest = near, max(min(1e-4, 0.1 * gap), 0.3 * self.finest)
            near = self._newton(self.model, near, None, 3 * self.finest, high, out_of_time)
            if self.hopeless or out_of_time():
                return
            self.near = near
            if near <= self.level * (1 + 1e-5) and self.finest <= gap:
                return
            if abs(near - before) <= max(0.3 * gap, 1e-9) * near and self.finest <= 0.5 * gap:
                return

    def begin(self, high: float, out_of_time: Callable[[], bool]) -> None:
        """Find rough prices, and the level near which they balance; in a large fleet, of a sample of its users."""
        near = min(max(2 * self.near, 1e-300), high)
        few, copies = self.model, None
        if len(few.pair_user) * few.num_servers > _MANY and (part := sample(few)) is not None:
            few, copies = subset(few, part[0]), part[1]
        near = self._scale(few, near, copies, high, out_of_time)
        # From above, Newton's steps lower prices by large factors; from below, they need many.
        size, count = self.model.num_resources, len(self.prices)
        self.prices[:size] = np.sqrt(0.7 * self.prices[:size] ** 2 + 0.3 / count)
        self.prices[size:] = 0.7 * self.prices[size:] + 0.3 / count
        self.finest, before = 0.05, near
        near = self._newton(few, near, copies, 0.5, high, out_of_time)
        if copies is not None and near > before:
            # What a sample balances is nearly right for all, and a proof before the long steps; those from above are
            # the longest.
            near = _SAFE * before
            needs = _needs(within(self.model, near), self.prices, near, None, out_of_time)
            self._prove(near, needs, out_of_time)
        self.near = near

    def _scale(
        self, model: Model, near: float, copies: Array | None, high: float, out_of_time: Callable[[], bool]
    ) -> float:
        """Multiply the prices of resources that are short, and move the level to where needs and all there is agree."""
        size = model.num_resources
        for turn in range(_SCALINGS):
            needs = _needs(within(model, near), self.prices, near, copies, out_of_time)
            self.work += 1
            if out_of_time():
                break
            if math.isinf(needs.sum):
                near = min(2 * near, high)
                continue
            ratio = np.clip(needs.used / max(needs.sum, 1e-300), 0.25, 16.0)
            self.prices[:size] *= np.sqrt(ratio[:size])
            self.prices[size:] *= ratio[size:]
            self._normalise()
            if turn > 5 and abs(needs.sum - 1) < 0.3:
                break
            if turn > 1:
                near = self._next(near, needs, high, inverse=True)
        return near

    def _newton(
        self,
        model: Model,
        near: float,
        copies: Array | None,
        coarsest: float,
        high: float,
        out_of_time: Callable[[], bool],
    ) -> float:
        """Find the best prices at the level ``near``; return the level that they balance."""
        at = within(model, near)
        dual = maximise(at, out_of_time, self.prices, copies, coarsest, 0.999 * self.finest)
        self.work += dual.work
        self.prices = dual.prices
        self._normalise()
        needs = _needs(at, self.prices, near, copies, out_of_time)
        if out_of_time():
            return near
        if copies is None:
            self._prove(near, needs, out_of_time)
        return near if math.isinf(needs.sum) else self._next(near, needs, high, inverse=False)

    def _prove(self, level: float, needs: _Needs, out_of_time: Callable[[], bool]) -> None:
        """Remember a level at which all users need more than there is, unless the clock ended their pricing."""
        if needs.sum > 1 + 1e-9 and not out_of_time():
            self.level = max(self.level, level)
            self.hopeless = math.isfinite(needs.sum) and needs.slope == 0

    def _next(self, near: float, needs: _Needs, high: float, *, inverse: bool) -> float:
        """Newton's step to where the needs equal all there is; ``inverse``: on one over the needs."""
        if not needs.slope < 0:
            return near if needs.sum > 1 else max(0.5 * near, self.level)
        step = (needs.sum - 1) / -needs.slope
        if inverse:
            step *= max(needs.sum, 0.1)
        # A hair low, so that what is found next is proven.
        after = near + step - 1e-6 * near
        return float(min(max(after, 0.5 * near, self.level), 2 * near, high))

    def _normalise(self) -> None:
        size = self.model.num_resources
        total = worth(self.prices, size)
        if not 0 < total < math.inf:
            self.prices = np.full(len(self.prices), 1.0)
            total = float(len(self.prices))
        self.prices = self.prices.copy()
        self.prices[:size] /= math.sqrt(total)
        self.prices[size:] /= total
        self.prices = positive(self.prices, size)
