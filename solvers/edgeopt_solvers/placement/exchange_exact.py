"""Experts that exchange tokens between layers: a search, a bound, and branch and bound where there are few decisions.

The relaxation (``exchange.py``) bounds and, with copies and links decided, is exact. It is solved up to a size; beyond,
the bound is that of the experts without exchange (``expert_bounds.py``): valid, and as far below as the exchange costs.
No linear relaxation does much better there: part of every expert on every device exchanges nothing.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.placement.exchange import Split, exchange_of, forward, num_columns, solve_node
from edgeopt_solvers.placement.exchange_search import climb, improve, sweep
from edgeopt_solvers.placement.expert_bounds import relax, root
from edgeopt_solvers.placement.expert_search import Search, first_homes
from edgeopt_solvers.placement.experts import Experts, ExpertsSolution
from edgeopt_solvers.placement.experts_highs import closed_by_highs
from edgeopt_solvers.placement.levels import table_of
from edgeopt_solvers.placement.tree import Bits, branch
from edgeopt_solvers.result import relative_gap

if TYPE_CHECKING:
    from edgeopt_solvers.placement.experts_exact import Incumbent

__all__ = ["offered", "solve_exchange"]

#: With more columns than these the relaxation is not solved at all, or not at every node of a tree.
MOST_COLUMNS, MOST_IN_TREE = 40_000, 4_000

#: Copies and links are decided by branches where the relaxation is solved; a gap up to this counts as closed.
PROVEN = 1e-9


def solve_exchange(
    instance: Experts, best: Incumbent, lo: Array, gap: float, stop_at: float
) -> tuple[float, bool, dict[str, float]]:
    """Improve ``best``; return the bound, whether it is final, and what was counted."""
    exchange, table = exchange_of(instance), table_of(instance)
    node = root(instance, table, lo)
    plain = relax(node, stop_at - time.perf_counter())
    counted = {"num_moves": 0.0, "num_nodes": 0.0}
    bound = plain.bound
    if bound == math.inf:
        return bound, True, counted
    columns = num_columns(instance)
    usable = np.isfinite(exchange.pace_s)
    if columns <= MOST_COLUMNS:
        no_links = np.zeros(usable.shape, dtype=np.bool_)
        whole = solve_node(instance, exchange, node, no_links, usable, 0.4 * (stop_at - time.perf_counter()))
        if whole.bound == math.inf:
            return math.inf, True, counted
        bound = max(bound, whole.bound)
    goal = max(gap, PROVEN)
    wish = np.zeros((*instance.load.shape, instance.num_devices)) if plain.value is None else plain.value
    search = Search(instance, table, plain.level_s, stop_at)
    homes = first_homes(search, wish)
    if homes is not None:
        begun = time.perf_counter()

        def until(part: float) -> float:
            return stop_at if math.isinf(stop_at) else begun + part * (stop_at - begun)

        # as if nothing were exchanged: copies that level the work
        search.stop_at = until(0.25)
        if search.begin(homes):
            search.improve()
            improve(instance, exchange, table, search.held, search.limit, best.offer, until(0.6))
        # one copy each, near those it exchanges most with
        if relative_gap(best.objective, bound) > goal:
            room = search.limit - np.einsum("ge,ged->d", instance.expert_bytes, homes)
            lone, moves = climb(instance, exchange, table, homes.argmax(axis=2), room, until(0.75))
            counted["num_moves"] = float(moves)
            held = np.eye(instance.num_devices, dtype=np.bool_)[lone]
            improve(instance, exchange, table, held, search.limit, best.offer, until(0.95))
    if columns <= MOST_IN_TREE:
        bound = closed_by_highs(instance, best, bound, goal, stop_at)
    if relative_gap(best.objective, bound) <= goal or columns > MOST_IN_TREE:
        return bound, bound == math.inf, counted
    tree_bound, finished, nodes = _search_through(instance, lo, best, gap, stop_at)
    counted["num_nodes"] = float(nodes)
    return max(bound, tree_bound), finished, counted


def _search_through(
    instance: Experts, lo: Array, best: Incumbent, gap: float, stop_at: float
) -> tuple[float, bool, int]:
    """Branch on holding, serving and using links; return the bound, whether it is final, and the number of nodes."""
    exchange, table = exchange_of(instance), table_of(instance)
    shape = (*instance.load.shape, instance.num_devices)
    able = np.isfinite(table.unit_s)
    usable = np.isfinite(exchange.pace_s)
    ends = np.cumsum([int(np.prod(shape)), able.size, usable.size])
    limit = instance.memory_bytes * (1 + 0.5e-9) - instance.reserved_bytes
    open_before = table.fixed_s > lo[:, None]

    def parts(decisions: Bits) -> tuple[Bits, Bits, Bits]:
        held, serves, links = np.split(decisions, ends[:-1])
        return held.reshape(shape), serves.reshape(able.shape), links.reshape(usable.shape)

    def solved(low: Bits, high: Bits, held: Bits, may_hold: Bits) -> Split:
        _, serves, links = parts(low)
        _, may_serve, may_link = parts(high)
        node = root(instance, table, lo, held, may_hold, serves & open_before, ~may_serve)
        return solve_node(instance, exchange, node, links, may_link, stop_at - time.perf_counter())

    def bounded(low: Bits, high: Bits) -> tuple[float, Array | None]:
        held, may_hold = parts(low)[0], parts(high)[0]
        if instance.max_replicas is not None and (held.sum(axis=2) > instance.max_replicas).any():
            return math.inf, None
        answer = solved(low, high, held, may_hold)
        if answer.value is None or answer.links is None:
            return answer.bound, None
        total = np.maximum(instance.load.sum(axis=1), 1e-300)
        served = (instance.load[:, :, None] * answer.value).sum(axis=1) / total[:, None]
        value = np.where(held, 1.0, answer.value)
        return answer.bound, np.concatenate([value.ravel(), served.ravel(), answer.links.ravel()])

    def settle(low: Bits, high: Bits, relaxed: Array | None) -> float:
        held, may_hold = parts(low)[0], parts(high)[0]
        tries = [held]
        if relaxed is not None:
            wish = relaxed[: ends[0]].reshape(shape)
            tries += [held | (may_hold & (wish > 1e-7)), held | (may_hold & (wish >= 0.5))]
            homes = first_homes(Search(instance, table, lo, stop_at), wish)
            if homes is not None:
                tries.append(homes)
        seen: set[bytes] = set()
        for each in tries:
            used = np.einsum("ge,ged->d", instance.expert_bytes, each)
            if each.any(axis=2).all() and (used <= limit).all() and each.tobytes() not in seen:
                seen.add(each.tobytes())
                answer = solved(low, high, each, each)
                if answer.value is not None and answer.bound < best.objective:
                    best.offer(forward(instance, exchange, each, answer.value, answer.moved))
        return best.objective

    low, high = np.zeros(ends[-1], dtype=np.bool_), np.ones(ends[-1], dtype=np.bool_)
    held, serves, links = parts(low)
    if instance.max_replicas is None:  # copies that cost nothing
        free = (instance.expert_bytes[:, :, None] == 0) | (limit >= instance.expert_bytes.sum())
        held |= free & able[:, None, :]
    serves |= ~open_before
    links |= (exchange.latency_s == 0) & usable
    may_hold, _, may_link = parts(high)
    may_hold &= able[:, None, :]
    may_link &= usable
    outcome = branch(low, high, bounded, settle, int(ends[-1]), max(gap, PROVEN / 2), stop_at)
    return outcome.bound, outcome.finished, outcome.num_nodes


def offered(instance: Experts, solution: ExpertsSolution, best: Incumbent) -> bool:
    """Offer a warm start; one without routes gets those of a sweep over its copies."""
    held = np.asarray(solution.replicas)
    if solution.route is not None or held.shape != (*instance.load.shape, instance.num_devices):
        return best.offer(solution)
    if not held.any(axis=2).all():
        return False
    return best.offer(sweep(instance, exchange_of(instance), table_of(instance), held))
