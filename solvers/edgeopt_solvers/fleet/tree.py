r"""The exact tail: branch on a user's server, bound by prices, drop options by reduced cost.

A node is a list of columns. Its bound is the dual over these columns; a column whose reduced cost exceeds the gap to
the best plan cannot be in a better one and leaves the node. The user whose soft choice is least decided is split:
one branch keeps its favourite server (or cut), the other forbids it. Nodes are taken in the order of their bounds, so
the smallest open bound is the proven one at any time.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgeopt_solvers.fleet.instance import MEMORY_SLIP, Array, Ints
from edgeopt_solvers.fleet.model import Columns, Model, worth
from edgeopt_solvers.fleet.prices import ascend, charges, soft
from edgeopt_solvers.fleet.search import Search

__all__ = ["Tail", "finish"]

#: Nodes whose bound is within this fraction of the best plan are closed.
CLOSED = 2e-7


@dataclass(slots=True)
class Tail:
    """What the tree found: the choices (columns of the root list), their value, and the proven bound."""

    choice: Ints
    value: float
    bound: float
    num_nodes: int = 0
    #: Least bound of fixed choices that no shares were found for, without a proof that there are none.
    doubtful: float = math.inf


def finish(
    model: Model,
    cols: Columns,
    prices: Array,
    choice: Ints,
    value: float,
    gap: float,
    most_nodes: int,
    out_of_time: Callable[[], bool],
) -> Tail:
    """Search all plans over ``cols`` that beat ``value``; ``choice`` may be empty when no plan is known."""
    tail = Tail(choice, value, -math.inf)
    everything = np.arange(len(cols.user))
    root = _bound(model, cols, everything, prices, value, tail)
    heap: list[tuple[float, int, Ints, Array]] = []
    counter = 0
    closed = math.inf
    if root is not None:
        heap.append((root[0], counter, root[1], root[2]))
    while heap:
        low = heap[0][0]
        if low >= tail.value * (1 - max(CLOSED, gap)) or out_of_time() or tail.num_nodes >= most_nodes:
            closed = low
            break
        _, _, index, at = heapq.heappop(heap)
        children = _branch(model, cols, index, at, tail, dive=tail.num_nodes % 4 == 0, out_of_time=out_of_time)
        for child in children:
            tail.num_nodes += 1
            node = _bound(model, cols, child, at, tail.value, tail)
            if node is not None and node[0] < tail.value * (1 - CLOSED):
                counter += 1
                heapq.heappush(heap, (max(low, node[0]), counter, node[1], node[2]))
    tail.bound = min(closed, tail.value, tail.doubtful)
    return tail


def _bound(
    model: Model, cols: Columns, index: Ints, prices: Array, value: float, tail: Tail
) -> tuple[float, Ints, Array] | None:
    """Bound of a node, the columns that survive, and its prices; ``None`` when it cannot beat ``value``."""
    if cols.held is not None:
        index = _fitting(cols, index)
        if not len(index):
            return None
    part = cols.take(index)
    num_users = len(part.first)
    best = _dual(part, prices)
    if _too_many(part, prices):
        return None
    spread = value - best if math.isfinite(value) else abs(best)
    if math.isfinite(value) and spread <= CLOSED * abs(value):
        return None
    for share in (0.3, 0.02):
        temperature = max(share * spread / max(4, min(num_users, model.num_resources)), 1e-13 * abs(best))
        trial, _ = ascend(part, prices, temperature, steps=10)
        bound = _dual(part, trial)
        if bound > best:
            best, prices = bound, trial
        elif share < 0.1:
            break
        if best >= value * (1 - CLOSED):
            return None
    if _too_many(part, prices):
        return None
    paid = charges(part, prices)
    excess = paid - np.minimum.reduceat(paid, part.first)[part.user]
    keep = excess <= value - best
    if not np.isfinite(paid[keep]).all():
        keep &= np.isfinite(paid)
        if len(np.unique(part.user[keep])) < num_users:
            return None
    return best, index[keep], prices


def _too_many(part: Columns, prices: Array) -> bool:
    """Whether ``prices`` prove that not all fit or meet their deadlines: even the least demands exceed what there is.

    Meeting a deadline within ``slack`` takes shares worth at least ``use**2 / slack``, and the memory held is worth its
    fraction of the memory's price; all there is, is worth the sum of the squared prices and of those of memory.
    """
    if part.slack is None and part.held is None:
        return False
    size = part.num_resources
    needed = np.zeros(len(part.user))
    if part.slack is not None:
        extended = np.append(prices[:size], 0.0)
        use = part.a * extended[part.cell] + part.b * extended[part.resource]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            needed = np.where(use > 0, use * (use / part.slack), 0.0)
        needed[part.slack <= 0] = math.inf
    if part.held is not None:
        memory = np.zeros(size + 1)
        memory[2 * size - len(prices) : size] = prices[size:]
        needed += part.held * memory[part.resource]
    least = float(np.minimum.reduceat(needed, part.first).sum())
    there_is = worth(prices, size) if part.slack is not None else float(prices[size:].sum())
    return least > there_is * (1 + 1e-9)


def _refuted(part: Columns, search: Search, num_prices: int) -> bool:
    """Whether the deadlines of fixed choices are proven too much for the shares."""
    prices = np.zeros(num_prices)
    prices[: part.num_resources] = search.allocation.prices
    return part.slack is not None and (bool((part.slack <= 0).any()) or _too_many(part, prices))


def _fitting(cols: Columns, index: Ints) -> Ints:
    """Drop options that do not fit beside the users who have only one option left; empty if someone is left without."""
    assert cols.held is not None
    while True:
        user = cols.user[index]
        counts = np.bincount(user, minlength=len(cols.first))
        if (counts == 0).any():
            return index[:0]
        fixed = counts[user] == 1
        full = cols.memory(index[fixed])
        if (full > 1 + MEMORY_SLIP).any():
            return index[:0]
        fits = fixed | (full[cols.resource[index]] + cols.held[index] <= 1 + MEMORY_SLIP)
        if fits.all():
            return index
        index = index[fits]


def _dual(part: Columns, prices: Array) -> float:
    return float(np.minimum.reduceat(charges(part, prices), part.first).sum() - worth(prices, part.num_resources))


def _branch(
    model: Model, cols: Columns, index: Ints, prices: Array, tail: Tail, dive: bool, out_of_time: Callable[[], bool]
) -> list[Ints]:
    """Split the least decided user; on the way, round the node into a plan."""
    part = cols.take(index)
    counts = np.diff(np.append(part.first, len(part.user)))
    paid = charges(part, prices)
    spread = tail.value - _dual(part, prices) if math.isfinite(tail.value) else float(np.abs(paid).mean())
    temperature = max(0.02 * spread / max(4, min(len(part.first), model.num_resources)), 1e-300)
    _, probability = soft(part, paid, temperature)
    peak = np.maximum.reduceat(probability, part.first)
    favourite = np.flatnonzero(probability >= peak[part.user])
    pick = np.zeros(len(part.first), dtype=np.int64)
    pick[part.user[favourite]] = favourite
    decided = bool((counts == 1).all())
    if dive or decided:
        search = _offer(model, cols, part, index, pick, tail, out_of_time)
        if decided:
            if math.isinf(search.value) and not search.overfull() and not _refuted(part, search, len(prices)):
                tail.doubtful = min(tail.doubtful, _dual(part, prices))
            return []
    # Undecided between servers counts fully, between cuts of one server half.
    on_favourite = part.resource == part.resource[pick][part.user]
    server_mass = np.add.reduceat(np.where(on_favourite, probability, 0.0), part.first)
    doubt = (1 - server_mass) + 0.5 * (server_mass - peak)
    doubt[counts == 1] = -1.0
    user = int(doubt.argmax())
    mine = part.user == user
    inside = mine & on_favourite
    if (inside == mine).all():
        inside = np.zeros_like(mine)
        inside[pick[user]] = True
    return [index[~mine | inside], index[~mine | ~inside]]


def _offer(
    model: Model, cols: Columns, part: Columns, index: Ints, pick: Ints, tail: Tail, out_of_time: Callable[[], bool]
) -> Search:
    search = Search(model, part, pick)
    search.unload(out_of_time)
    if math.isfinite(search.value):
        search.descend(out_of_time, rounds=20)
        search.settle()
    if search.value < tail.value:
        tail.value, tail.choice = search.value, index[search.choice]
    return search
