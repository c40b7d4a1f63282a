r"""Plans where only deadlines count: choices whose least needs fit into all there is.

Fixed choices meet their deadlines if and only if the largest eigenvalue of their needs is at most 1
(:func:`~edgeopt_solvers.fleet.shares.strain`).
Near the best prices :math:`\mu` of ``needs.py`` that eigenvalue is, to second order, the needs at :math:`\mu` plus a
square for every resource that is used more or less than its price says. With :math:`A = a h / slack` and
:math:`B = b h / slack`, the use of an option in roots of prices, the users' choices then minimise

.. math::

    \sum_u (cost - need)_{u,p_u} + \sum_r S_r^2, \qquad need = h^2 / slack, \qquad S_r = \sum_u (A \text{ or } B),

which at :math:`S = \mu` charges exactly the need. That is the form of the sum of costs without deadlines, so its local
search (:class:`~edgeopt_solvers.fleet.search.Search`) finds the choices; memory stays a hard limit of every move.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.fleet.instance import Array, Fleet, Ints, Solution
from edgeopt_solvers.fleet.model import Columns, Model, columns, price
from edgeopt_solvers.fleet.needs import cheapest, use_at
from edgeopt_solvers.fleet.search import Search
from edgeopt_solvers.fleet.shares import Allocation, Strain, solution, strain

__all__ = ["Packer", "nobody_remote"]

#: Refused users that are tried again, one by one, when a plan has room left.
_TRIED = 60


def nobody_remote(model: Model) -> Solution | None:
    """Return the plan in which nobody needs a server, ``None`` if somebody has to; what is left when time is up."""
    if not np.isfinite(model.solo_lin).all():
        return None
    nothing = np.zeros(model.num_users)
    return Solution(tuple(model.solo_cut), tuple(nothing - 1), tuple(nothing), tuple(nothing))


class Packer:
    """Choices for a model that counts needs only (:func:`~edgeopt_solvers.fleet.needs.within` or ``admitting``).

    Parameters
    ----------
    model, prices
        The options, and prices near which a plan is sought.
    cols
        Options considered, with time for all of them; every user has one (:meth:`near`).
    """

    @classmethod
    def near(cls, model: Model, prices: Array, reach: float, out_of_time: Callable[[], bool]) -> Packer | None:
        """Return a packer over the options of reduced cost up to ``reach``; ``None``: no time, or a user without."""
        most = 30 * model.num_users + 20_000
        _, keys, least, _ = price(model, prices, reach, most, out_of_time)
        if out_of_time() or not np.isfinite(least).all():
            return None
        return cls(model, prices, columns(model, keys))

    def __init__(self, model: Model, prices: Array, cols: Columns) -> None:
        self.model, self.cols, self.prices = model, cols, prices
        a, b = use_at(cols, prices)
        extended = np.append(prices[: cols.num_resources], 0.0)
        need = a * extended[cols.cell] + b * extended[cols.resource]
        # A constant per user keeps the sum away from zero, where relative gains mean nothing.
        constant = 2 * float((prices[: cols.num_resources] ** 2).sum()) / len(cols.first)
        surrogate = replace(cols, slack=None, lin=cols.lin - need + constant, a=a, b=b, aim="cost")
        self.search = Search(model, surrogate, cheapest(cols, prices))

    def polish(self, out_of_time: Callable[[], bool]) -> None:
        """Empty overfull servers, then move and exchange users while that helps."""
        self.search.unload(out_of_time)
        if math.isfinite(self.search.value):
            self.search.descend(out_of_time)
            self.search.exchange(out_of_time)
            self.search.settle()

    def shake(self, rng: np.random.Generator, tries: int, out_of_time: Callable[[], bool]) -> bool:
        """Try small shake-ups; return whether one of them helped."""
        helped = False
        if len(self.search.cols.user) == len(self.search.choice) or not math.isfinite(self.search.value):
            return False
        for _ in range(tries):
            if out_of_time():
                break
            helped |= self.search.shake(rng, out_of_time)
        self.search.settle()
        return helped

    def admitted(self, fleet: Fleet, out_of_time: Callable[[], bool]) -> Solution | None:
        """Return a plan that meets all deadlines: refuse until the rest fits, then readmit while there is room.

        ``None`` if the clock ends first, or users who may not be refused do not fit.
        """
        if self.search.overfull():
            return None
        choice = self.search.choice.copy()
        cols = self.cols
        solo = np.full(len(choice), -1)
        alone = np.flatnonzero(cols.key < 0)
        solo[cols.user[alone]] = alone
        state = self._strain(choice, self.prices[: cols.num_resources])
        while state.most > 1:
            if out_of_time():
                return None
            need = self._need(choice, state.prices)
            price_of = np.where(solo >= 0, cols.lin[solo], math.inf)
            price_of[(choice == solo) | (need <= 0)] = math.inf
            order = np.argsort(price_of / np.maximum(need, 1e-300), kind="stable")
            order = order[np.isfinite(price_of[order])]
            if not len(order):
                return None
            # Refusing moves the vector as well, so only part of the excess at a time; at least one user.
            number = int(np.searchsorted(np.cumsum(need[order]), 0.5 * (state.least - 1))) + 1
            choice[order[:number]] = solo[order[:number]]
            state = self._strain(choice, state.prices)
        choice, state = self._readmit(choice, solo, state, out_of_time)
        return self._plan(fleet, choice, state.prices)

    def _readmit(self, choice: Ints, solo: Ints, state: Strain, out_of_time: Callable[[], bool]) -> tuple[Ints, Strain]:
        """Serve refused users, the dearest for what they need first, each with its option of least need."""
        cols = self.cols
        paid = self._needs(cols, state.prices)
        refused = choice == solo
        paid[~refused[cols.user] | (cols.lin >= cols.lin[solo[cols.user]])] = math.inf
        gain = np.where(refused, cols.lin[solo], 0.0)
        target = np.full(len(choice), -1)
        least = np.minimum.reduceat(paid, cols.first)
        at = np.flatnonzero((paid <= least[cols.user]) & np.isfinite(paid))
        target[cols.user[at]] = at
        full = None if cols.held is None else cols.memory(choice)
        failures = 0
        for user in np.argsort(least / np.maximum(gain, 1e-300), kind="stable").tolist():
            if target[user] < 0 or not least[user] < 1 or failures >= _TRIED or out_of_time():
                break
            new = int(target[user])
            if full is not None and cols.held is not None and full[cols.resource[new]] + cols.held[new] > 1:
                continue
            trial = choice.copy()
            trial[user] = new
            after = self._strain(trial, state.prices)
            if after.most <= 1:
                choice, state = trial, after
                if full is not None and cols.held is not None:
                    full[cols.resource[new]] += cols.held[new]
            else:
                failures += 1
        return choice, state

    def sketch(self, fleet: Fleet) -> Solution | None:
        """Return the choices with shares in proportion to the needs, ``None`` if memory does not hold them."""
        if self.search.overfull():
            return None
        return self._plan(fleet, self.search.choice, self.prices)

    def _plan(self, fleet: Fleet, choice: Ints, prices: Array) -> Solution:
        """Return the plan of shares in proportion to the needs at ``prices``.

        With S the sum of a h / slack over a resource, a user takes at most its slack times the largest S / price:
        where the strain's ``most`` is at most 1, that is in time.
        """
        chosen = self.cols.take(choice)
        a, b = use_at(chosen, prices)
        size = chosen.num_resources
        total = np.bincount(chosen.cell, a, size + 1) + np.bincount(chosen.resource, b, size + 1)
        spectrum = np.where(a > 0, a / np.maximum(total[chosen.cell], 1e-300), 0.0)
        compute = np.where(b > 0, b / np.maximum(total[chosen.resource], 1e-300), 0.0)
        return solution(fleet, self.model, chosen, Allocation(math.inf, prices, a, spectrum, compute))

    def _strain(self, choice: Ints, start: Array | None) -> Strain:
        """Return the strain of the users who are not refused."""
        part = self.cols.take(choice)
        served: NDArray[np.bool_] = part.key >= 0
        if not served.any():
            return Strain(0.0, 0.0, np.full(part.num_resources, 1.0))
        assert part.slack is not None
        remote = replace(
            part, user=part.user[served], cell=part.cell[served], resource=part.resource[served],
            lin=part.lin[served], a=part.a[served], b=part.b[served], slack=part.slack[served], key=part.key[served],
            held=None,
        )  # fmt: skip
        return strain(remote, start)

    def _need(self, choice: Ints, prices: Array) -> Array:
        return self._needs(self.cols.take(choice), prices)

    @staticmethod
    def _needs(cols: Columns, prices: Array) -> Array:
        """Return what columns need at ``prices`` of shares."""
        extended = np.append(prices[: cols.num_resources], 0.0)
        a, b = use_at(cols, prices)
        return np.asarray(a * extended[cols.cell] + b * extended[cols.resource])
