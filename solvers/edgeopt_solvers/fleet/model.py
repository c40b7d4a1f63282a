r"""The fleet in weighted form: every option as three numbers, and the pricing of all options at once.

With weights :math:`\omega_u`, an option of user u costs ``lin`` weighted seconds that nobody can shorten, and uses

.. math::

    a = \sqrt{\omega_u\, bytes / rate_u} \text{ of its cell}, \qquad
    b = \sqrt{\omega_u\, work / speed_e} \text{ of its server}.

A *pair* is a user with one of its cuts; (pair, server) is an option, numbered ``pair * E + server``. Running alone and
being refused use no shared resource, so only the cheaper of the two can matter: the user's *solo* option.

Prices are one vector: square roots :math:`\mu` of the prices of whole cells and servers, then, where memory is limited,
the prices :math:`\nu` of all memory of each server; an option that holds a fraction m of it pays :math:`\nu m` more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgeopt_solvers.fleet.instance import MEMORY_SLIP, REFUSED, Array, Fleet, Ints

__all__ = ["Aim", "Columns", "Model", "build", "charge", "columns", "price", "slack_left", "subset", "worth"]

#: What options are charged for: time and shares ("cost"), or only the shares that meet the deadlines, paid from all
#: there is ("need") or from half its square, so that the best prices are those of the largest shortage ("level").
Aim = Literal["cost", "need", "level"]

#: Options priced at once: small enough to stay in cache.
_BLOCK = 150_000


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """Weighted arrays of a fleet; ``pair_bytes`` and ``inverse_memory`` are ``None`` where memory is not limited."""

    cell: Ints
    num_cells: int
    first_pair: Ints
    pair_user: Ints
    pair_cut: Ints
    pair_lin: Array
    pair_a: Array
    pair_b: Array
    inverse_root_speed: Array
    delay: Array
    limit: Array | None
    solo_lin: Array
    solo_cut: Ints
    pair_bytes: Array | None = None
    inverse_memory: Array | None = None
    aim: Aim = "cost"

    @property
    def num_users(self) -> int:
        """Number of users."""
        return len(self.cell)

    @property
    def num_servers(self) -> int:
        """Number of servers."""
        return len(self.inverse_root_speed)

    @property
    def num_resources(self) -> int:
        """Cells first, then servers."""
        return self.num_cells + self.num_servers

    @property
    def num_prices(self) -> int:
        """One per resource, and one per server's memory where it is limited."""
        return self.num_resources + (0 if self.inverse_memory is None else self.num_servers)

    def memory_share(self, pair: Ints | slice, server: Ints | slice = slice(None)) -> Array:
        """Fraction of the memory of servers that pairs hold; the shapes broadcast, for slices (pairs, servers)."""
        assert self.pair_bytes is not None
        assert self.inverse_memory is not None
        held = self.pair_bytes[pair, None] if isinstance(pair, slice) else self.pair_bytes[pair]
        return np.asarray(held * self.inverse_memory[server])


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """A list of options, sorted by user; every user has at least one.

    ``resource`` is the server's index among all resources, or ``R`` (a dummy that is always empty) for solo options;
    ``slack`` the weighted seconds left for transfer and remote work before the deadline; ``key`` is -1 for solo;
    ``held`` the fraction of the server's memory, ``None`` where memory is not limited.
    """

    user: Ints
    cell: Ints
    resource: Ints
    lin: Array
    a: Array
    b: Array
    slack: Array | None
    key: Ints
    first: Ints
    num_resources: int
    held: Array | None = None
    aim: Aim = "cost"

    def memory(self, choice: Ints | slice = slice(None)) -> Array:
        """Fraction of memory in use by resource (0 for cells) if the columns ``choice`` are taken; dummy at the end."""
        assert self.held is not None
        return np.asarray(np.bincount(self.resource[choice], self.held[choice], self.num_resources + 1), np.float64)

    def take(self, index: Ints) -> Columns:
        """Return the columns at ``index`` (increasing, at least one per user)."""
        user = self.user[index]
        slack = None if self.slack is None else self.slack[index]
        first = np.searchsorted(user, np.arange(len(self.first) + 1))[:-1]
        return Columns(
            user, self.cell[index], self.resource[index], self.lin[index], self.a[index], self.b[index],
            slack, self.key[index], first, self.num_resources, None if self.held is None else self.held[index],
            self.aim,
        )  # fmt: skip


def build(fleet: Fleet) -> Model:
    """Return the weighted form; drops options that can never be used (illegal, too late, worse than the solo one)."""
    weight = np.asarray(fleet.weight)
    local_s, sent, work = np.asarray(fleet.local_s), np.asarray(fleet.upload_bytes), np.asarray(fleet.work)
    rate, speed = np.asarray(fleet.rate_bytes_per_s), np.asarray(fleet.speed)
    limit = None
    if "deadlines" in fleet.features():
        limit = weight * np.asarray(fleet.deadline_s)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        lin = weight[:, None] * local_s
        a = np.where(sent > 0, np.sqrt(weight[:, None] * sent / rate[:, None]), 0.0)
        b = np.sqrt(weight[:, None] * work)
        inverse_root_speed = np.where(speed > 0, 1 / np.sqrt(speed), 0.0)
        delay = np.where(speed > 0, weight[:, None] * np.asarray(fleet.latency_s), math.inf)
    alone = (sent == 0) & (work == 0)
    solo = np.where(alone, lin, math.inf)
    if limit is not None:
        solo[solo > limit[:, None]] = math.inf
    solo_cut = solo.argmin(axis=1)
    solo_lin = solo[np.arange(len(solo)), solo_cut]
    if fleet.refusal_cost is not None:
        refusal = np.asarray(fleet.refusal_cost)
        refused = refusal < solo_lin
        solo_lin = np.where(refused, refusal, solo_lin)
        solo_cut = np.where(refused, REFUSED, solo_cut)
    ceiling = solo_lin if limit is None else np.minimum(solo_lin, limit)
    nearest = delay.min(axis=1, initial=math.inf)
    useful = ~alone & np.isfinite(a) & np.isfinite(b) & ((lin + nearest[:, None]) < ceiling[:, None])
    user, cut = np.nonzero(useful)
    first_pair = np.searchsorted(user, np.arange(len(weight) + 1))
    pair_bytes = inverse_memory = None
    if "memory" in fleet.features():
        memory = np.asarray(fleet.memory_bytes)
        pair_bytes = np.asarray(fleet.resident_bytes)[user, cut]
        # No memory at all: any byte is too much, none is not.
        inverse_memory = np.where(memory > 0, 1 / np.where(memory > 0, memory, 1.0), 1e290)
    return Model(
        np.asarray(fleet.cell), fleet.num_cells, first_pair, user, cut, lin[user, cut], a[user, cut], b[user, cut],
        inverse_root_speed, delay, limit, solo_lin, solo_cut, pair_bytes, inverse_memory,
    )  # fmt: skip


def subset(model: Model, users: Ints) -> Model:
    """Return the model of some users only (increasing indices)."""
    chosen = np.zeros(model.num_users, dtype=bool)
    chosen[users] = True
    pairs = np.flatnonzero(chosen[model.pair_user])
    renumber = np.cumsum(chosen) - 1
    user = renumber[model.pair_user[pairs]]
    return Model(
        model.cell[users], model.num_cells, np.searchsorted(user, np.arange(len(users) + 1)), user,
        model.pair_cut[pairs], model.pair_lin[pairs], model.pair_a[pairs], model.pair_b[pairs],
        model.inverse_root_speed, model.delay[users], None if model.limit is None else model.limit[users],
        model.solo_lin[users], model.solo_cut[users], None if model.pair_bytes is None else model.pair_bytes[pairs],
        model.inverse_memory, model.aim,
    )  # fmt: skip


def charge(lin: Array, use: Array, slack: Array | None, aim: Aim = "cost") -> Array:
    r"""Return what an option pays at given prices: the minimum over its shares.

    ``use`` is :math:`h = a\mu_{cell} + b\mu_{server}`, the geometric mean of demand and price. Without a deadline the
    user buys the shares that minimise time plus payment, :math:`lin + 2h`. When that would be too late, it must buy
    as much as ends in time: :math:`lin + slack + h^2/slack`. Both agree, with their slopes, at :math:`h = slack`.
    Where only deadlines count, :math:`h^2/slack` is all.
    """
    if slack is None:
        return lin + 2 * use
    if aim != "cost":
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            need = lin + np.where(use > 0, use * (use / slack), 0.0)
        need[slack <= 0] = math.inf
        return np.asarray(need)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        late = slack + use * (use / slack)
        cost = lin + np.where(use <= slack, 2 * use, late)
    cost[slack <= 0] = math.inf
    return np.asarray(cost)


def slack_left(limit: Array, lin: Array, least_time: Array) -> Array:
    """Weighted seconds left for transfer and remote work; -1 where even whole resources are too slow."""
    with np.errstate(invalid="ignore"):
        slack = limit - lin
    return np.where(least_time <= slack * (1 + 1e-9), slack, -1.0)


def worth(prices: Array, num_resources: int, aim: Aim = "cost") -> float:
    """Return what all spectrum, compute and memory cost at ``prices``; half the square of it for the aim "level"."""
    total = float((prices[:num_resources] ** 2).sum() + prices[num_resources:].sum())
    return 0.5 * total * total if aim == "level" else total


def price(
    model: Model,
    prices: Array,
    reach: float | None = None,
    most: int = 400_000,
    out_of_time: Callable[[], bool] = lambda: False,
) -> tuple[float, Ints, Array, float]:
    r"""Price every option; return the dual value, the attractive options, each user's minimum, and the reach kept.

    The dual value :math:`g(\mu, \nu) = \sum_u \min_p (charge_{up}(\mu) + \nu m_{up}) - \sum_r \mu_r^2 - \sum_e \nu_e`
    is a lower bound on every plan, whatever the prices :math:`\mu, \nu \ge 0`. With ``reach``, the keys of options
    within ``reach`` of their user's minimum are returned; at most about ``most`` of them, by shrinking the reach.
    A pass that the clock ends has seen only some users: its dual value is ``-inf``.
    """
    num_users, num_servers, num_cells = model.num_users, model.num_servers, model.num_cells
    per_server = prices[num_cells : model.num_resources] * model.inverse_root_speed
    cell_use = prices[model.cell[model.pair_user]] * model.pair_a
    least = model.solo_lin.copy()
    found: list[Ints] = []
    reduced: list[Array] = []
    num_found = 0
    worthless = False
    step = max(1, int(_BLOCK * num_users / max(1, len(model.pair_user) * num_servers)))
    for low in range(0, num_users if num_servers else 0, step):
        high = min(num_users, low + step)
        i, j = int(model.first_pair[low]), int(model.first_pair[high])
        if i == j:
            continue
        if out_of_time():
            worthless = True
            break
        user = model.pair_user[i:j]
        use = model.pair_b[i:j, None] * per_server
        limit = None if model.limit is None else model.limit[user][:, None]
        if limit is None:
            use += (cell_use[i:j] + 0.5 * model.pair_lin[i:j])[:, None]
            use *= 2
            use += model.delay[user]
            cost = use
        else:
            use += cell_use[i:j, None]
            lin = model.pair_lin[i:j, None] + model.delay[user]
            least_time = model.pair_a[i:j, None] ** 2 + (model.pair_b[i:j, None] * model.inverse_root_speed) ** 2
            slack = slack_left(limit, lin, least_time)
            cost = charge(lin if model.aim == "cost" else np.zeros(1), use, slack, model.aim)
        if model.inverse_memory is not None:
            held = model.memory_share(slice(i, j))
            cost += held * prices[model.num_resources :]
            cost[held > 1 + MEMORY_SLIP] = math.inf
        row = cost.min(axis=1)
        np.minimum.at(least, user, row)
        if reach is None:
            continue
        ceiling = least[user] + reach
        rows = np.flatnonzero(row <= ceiling)
        chosen, server = np.nonzero((cost[rows] <= ceiling[rows, None]) & np.isfinite(cost[rows]))
        found.append((rows[chosen] + i) * num_servers + server)
        reduced.append(cost[rows[chosen], server] - least[user[rows[chosen]]])
        num_found += len(chosen)
        if num_found > 4 * most:
            reach = _shrink(model, found, reduced, most, reach)
            num_found = len(found[0])
    if reach is not None and num_found > most:
        reach = _shrink(model, found, reduced, most, reach)
    keys = np.concatenate(found) if found else np.zeros(0, dtype=np.int64)
    value = -math.inf if worthless else float(least.sum() - worth(prices, model.num_resources, model.aim))
    return value, keys, least, math.inf if reach is None else reach


def _shrink(model: Model, found: list[Ints], reduced: list[Array], most: int, reach: float) -> float:
    """Keep about ``most`` options of least reduced cost, and one of each user's cheapest; return the reach left."""
    keys, excess = np.concatenate(found), np.concatenate(reduced)
    keep = np.zeros(len(keys), dtype=bool)
    order = np.argpartition(excess, most)
    keep[order[:most]] = True
    cheapest = np.flatnonzero(excess <= 0)
    # Options are found in the order of their users.
    keep[cheapest[np.diff(model.pair_user[keys[cheapest] // model.num_servers], prepend=-1) > 0]] = True
    found[:], reduced[:] = [keys[keep]], [excess[keep]]
    return min(reach, float(excess[order[most]]))


def columns(model: Model, keys: Ints) -> Columns:
    """Return the options ``keys`` (in any order, distinct) and all finite solo options, as columns."""
    num_users, num_servers = model.num_users, max(1, model.num_servers)
    pair, server = keys // num_servers, keys % num_servers
    alone = np.flatnonzero(np.isfinite(model.solo_lin))
    user = np.concatenate([alone, model.pair_user[pair]])
    order = np.lexsort((np.concatenate([np.full(len(alone), -1), keys]), user))
    none = np.zeros(len(alone))
    lin = np.concatenate([model.solo_lin[alone], model.pair_lin[pair] + model.delay[user[len(alone) :], server]])[order]
    user = user[order]
    resource = np.concatenate([np.full(len(alone), model.num_resources), model.num_cells + server])[order]
    key = np.concatenate([np.full(len(alone), -1), keys])[order]
    a = np.concatenate([none, model.pair_a[pair]])[order]
    b = np.concatenate([none, model.pair_b[pair] * model.inverse_root_speed[server]])[order]
    slack = None
    if model.limit is not None:
        slack = slack_left(model.limit[user], lin, a * a + b * b)
        slack[key < 0] = math.inf
    if model.aim != "cost":
        lin[key >= 0] = 0.0
    first = np.searchsorted(user, np.arange(num_users))
    held = None
    if model.inverse_memory is not None:
        held = np.concatenate([none, model.memory_share(pair, server)])[order]
    return Columns(user, model.cell[user], resource, lin, a, b, slack, key, first, model.num_resources, held, model.aim)
