r"""Shares for fixed choices that make the largest cost as small as it can be.

All stay within a level :math:`\tau` if shares meet the slacks :math:`\min(\tau, \omega D)_u - lin_u`. At prices
:math:`\mu^2` that takes each user at least :math:`h_u^2 / slack_u`, :math:`h = a\mu_{cell} + b\mu_{server}`: a
quadratic form :math:`\mu^T M(\tau) \mu`, so that shares exist if and only if the largest eigenvalue of M is at most 1,
and the least level is where it is 1. Its eigenvector holds the prices, and users get shares in proportion to
:math:`a h / slack`. Resources that no user links are levelled on their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from edgeopt_solvers.fleet.instance import REFUSED, Array, Fleet, Ints, Solution

__all__ = ["evened", "largest_cost", "leading"]

#: Matrices of up to this size are decomposed by the library.
_DENSE = 32
#: Lanczos steps before a restart, and restarts.
_STEPS, _RESTARTS = 16, 40


def leading(matrix: Array, start: Array | None = None) -> tuple[float, Array]:
    """Return the largest eigenvalue of a symmetric matrix and its vector, by restarted Lanczos steps if it is large.

    The library's decomposition starts threads, and on busy cores they cost many times what the steps do.
    """
    size = len(matrix)
    if size <= _DENSE:
        values, vectors = np.linalg.eigh(matrix)
        return float(values[-1]), vectors[:, -1]
    vector = np.ones(size) if start is None else start
    value = 0.0
    for _ in range(_RESTARTS):
        basis = np.zeros((_STEPS, size))
        images = np.zeros((_STEPS, size))
        length = float(np.sqrt((vector * vector).sum()))
        count = 0
        for step in range(_STEPS):
            basis[step] = vector / length
            images[step] = np.einsum("ij,j->i", matrix, basis[step])
            count = step + 1
            vector = images[step]
            for _ in range(2):
                vector = vector - np.einsum("kj,k->j", basis[:count], np.einsum("kj,j->k", basis[:count], vector))
            length = float(np.sqrt((vector * vector).sum()))
            if length <= 1e-14 * float(np.abs(images[0]).max()):
                break
        values, vectors = np.linalg.eigh(np.einsum("ij,kj->ik", basis[:count], images[:count]))
        value, weights = float(values[-1]), vectors[:, -1]
        vector = np.einsum("kj,k->j", basis[:count], weights)
        residual = np.einsum("kj,k->j", images[:count], weights) - value * vector
        if float(np.abs(residual).max()) <= 1e-13 * abs(value):
            break
    return value, vector


@dataclass(slots=True, eq=False)
class _Group:
    """Users whose resources are linked: constant cost, uses, weighted deadline, and their resources by local index.

    ``start`` is the last leading vector, from which the next one is sought.
    """

    lin: Array
    a: Array
    b: Array
    limit: Array
    cell: Ints
    server: Ints
    size: int
    start: Array | None = None

    def form(self, level: float) -> Array:
        """Return the matrix M at ``level``."""
        slack = np.minimum(level, self.limit) - self.lin
        a, b = self.a / np.sqrt(slack), self.b / np.sqrt(slack)
        matrix: Array = np.bincount(self.cell * self.size + self.server, a * b, self.size**2)  # type: ignore[assignment]
        matrix = matrix.reshape(self.size, self.size)
        matrix = matrix + matrix.T
        diagonal = np.arange(self.size)
        matrix[diagonal, diagonal] += np.bincount(self.cell, a * a, self.size)
        matrix[diagonal, diagonal] += np.bincount(self.server, b * b, self.size)
        return matrix

    def largest(self, level: float) -> tuple[float, Array]:
        """Return the largest eigenvalue at ``level`` and its (non-negative) vector."""
        matrix = self.form(level)
        if not np.isfinite(matrix).all():
            return math.inf, np.ones(self.size)
        value, vector = leading(matrix, self.start)
        vector = np.maximum(np.abs(vector), 1e-12)
        # Small entries come out of the decomposition with few digits; powers of M restore them.
        for _ in range(20):
            image = np.einsum("ij,j->i", matrix, vector)
            vector = image / max(float(image.max()), 1e-300)
        self.start = vector
        return value, vector

    def shares(self, level: float, prices: Array) -> tuple[Array, Array]:
        """Return spectrum and compute of every user, all that there is handed out."""
        use = self.a * prices[self.cell] + self.b * prices[self.server]
        stretch = use / (np.minimum(level, self.limit) - self.lin)
        spectrum, compute = stretch * self.a, stretch * self.b
        total = np.bincount(self.cell, spectrum, self.size) + np.bincount(self.server, compute, self.size)
        with np.errstate(divide="ignore", invalid="ignore"):
            spectrum = np.where(spectrum > 0, spectrum / total[self.cell], 0.0)
            compute = np.where(compute > 0, compute / total[self.server], 0.0)
        return spectrum, compute

    def cost(self, spectrum: Array, compute: Array) -> float:
        """Return the largest cost, ``inf`` if a deadline is missed."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            seconds = np.where(self.a > 0, self.a / spectrum * self.a, 0.0)
            seconds = seconds + np.where(self.b > 0, self.b / compute * self.b, 0.0)
        cost = self.lin + seconds
        if not (cost <= self.limit * (1 + 3e-8)).all():
            return math.inf
        return float(cost.max())

    def level(self) -> float:
        """Return the least level that all can stay within, ``inf`` if deadlines forbid any."""
        low = float((self.lin + self.a**2 + self.b**2).max())
        high = float(self.lin.max() + (self.a**2 + self.b**2).sum())
        for _ in range(60):
            if self.largest(high)[0] <= 1:
                break
            low, high = high, 4 * high
        else:
            return math.inf
        # The inverse of the eigenvalue is nearly linear in the level (for one user it is): false position, kept honest.
        at_low, at_high = self._inverse(low), self._inverse(high)
        for turn in range(80):
            if high - low <= 1e-13 * high or at_high - at_low <= 0:
                break
            guess = low + (high - low) * (1 - at_low) / (at_high - at_low)
            guess = guess if turn % 3 < 2 and low < guess < high else 0.5 * (low + high)
            if not low < guess < high:
                break
            at = self._inverse(guess)
            if at >= 1:
                high, at_high = guess, at
                if at - 1 < 1e-14:
                    break
            else:
                low, at_low = guess, at
        return high

    def _inverse(self, level: float) -> float:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            slack = np.minimum(level, self.limit) - self.lin
            if not (slack > 0).all():
                return 0.0
            largest = self.largest(level)[0]
        return 1 / largest if largest > 0 else math.inf


def evened(fleet: Fleet, plan: Solution) -> Solution:
    """Return the same choices with the shares of the least largest cost; the plan itself where that fails."""
    weight, speed = np.asarray(fleet.weight), np.asarray(fleet.speed)
    cut, server = np.array(plan.cuts), np.array(plan.servers)
    user = np.flatnonzero((cut != REFUSED) & (server >= 0))
    if not len(user):
        return plan
    at, host, cell = cut[user], server[user], np.asarray(fleet.cell)[user]
    sent, work = np.asarray(fleet.upload_bytes)[user, at], np.asarray(fleet.work)[user, at]
    omega = weight[user]
    lin = omega * (np.asarray(fleet.local_s)[user, at] + np.asarray(fleet.latency_s)[user, host])
    with np.errstate(divide="ignore", invalid="ignore"):
        a = np.where(sent > 0, np.sqrt(omega * sent / np.asarray(fleet.rate_bytes_per_s)[user]), 0.0)
    b = np.sqrt(omega * work / speed[host])
    limit = np.full(len(user), math.inf)
    if fleet.deadline_s is not None:
        limit = omega * np.asarray(fleet.deadline_s)[user]
    spectrum, compute = np.array(plan.spectrum), np.array(plan.compute)
    size = fleet.num_cells + fleet.num_servers
    linked = (a > 0) & (b > 0)
    links = coo_array((np.ones(linked.sum()), (cell[linked], fleet.num_cells + host[linked])), shape=(size, size))
    label = connected_components(links, directed=False)[1]
    part = np.where(a > 0, label[cell], label[fleet.num_cells + host])
    for group_label in np.unique(part):
        mine = np.flatnonzero(part == group_label)
        members = np.flatnonzero(label == group_label)
        local = np.zeros(size, dtype=np.int64)
        local[members] = np.arange(len(members))
        group = _Group(
            lin[mine], a[mine], b[mine], limit[mine], local[cell[mine]], local[fleet.num_cells + host[mine]],
            len(members),
        )  # fmt: skip
        level = group.level()
        if math.isinf(level):
            continue
        x, y = group.shares(level, group.largest(level)[1])
        if group.cost(x, y) < group.cost(spectrum[user[mine]], compute[user[mine]]):
            spectrum[user[mine]], compute[user[mine]] = x, y
    return replace(plan, spectrum=tuple(spectrum.tolist()), compute=tuple(compute.tolist()))


def largest_cost(fleet: Fleet, plan: Solution) -> float:
    """Return the largest of the users' costs."""
    worst = 0.0
    for user, (cut, server) in enumerate(zip(plan.cuts, plan.servers, strict=True)):
        if cut == REFUSED:
            worst = max(worst, float(np.asarray(fleet.refusal_cost)[user]))
            continue
        seconds = float(np.asarray(fleet.local_s)[user, cut])
        if server >= 0:
            sent, work = np.asarray(fleet.upload_bytes)[user, cut], np.asarray(fleet.work)[user, cut]
            seconds += float(np.asarray(fleet.latency_s)[user, server])
            if sent:
                seconds += float(sent / (plan.spectrum[user] * np.asarray(fleet.rate_bytes_per_s)[user]))
            if work:
                seconds += float(work / (plan.compute[user] * np.asarray(fleet.speed)[server]))
        worst = max(worst, seconds * float(np.asarray(fleet.weight)[user]))
    return worst
