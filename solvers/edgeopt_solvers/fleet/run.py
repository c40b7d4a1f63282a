"""One run over the sum of costs: prices, rounding and search, the tree; the plan and the bound found so far.

The other objectives are runs over a fleet with other numbers (``admission.py``, ``levels.py``) that only differ in
what counts as good enough: a :class:`Measure`.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.fleet.instance import MEMORY_SLIP, Array, Fleet, Ints, Solution
from edgeopt_solvers.fleet.model import Columns, Model, build, columns, price, subset
from edgeopt_solvers.fleet.needs import alone
from edgeopt_solvers.fleet.prices import Dual, charges, maximise
from edgeopt_solvers.fleet.search import Search
from edgeopt_solvers.fleet.shares import allocate, solution
from edgeopt_solvers.fleet.starts import positive, with_memory
from edgeopt_solvers.fleet.tree import finish
from edgeopt_solvers.result import Reason, Result, Status, relative_gap
from edgeopt_solvers.solve import Options

__all__ = ["DEFAULT_NODES", "DEFAULT_SHAKES", "OPTIMAL", "Measure", "Run"]

#: Shake-ups without improvement before giving up, when there is no time limit.
DEFAULT_SHAKES = 60
#: Nodes of the tree, when there is no time limit.
DEFAULT_NODES = 4_000
#: A relative gap of at most this counts as proven optimal.
OPTIMAL = 1e-6
#: The tree is used up to this many users and columns.
_TREE_USERS, _TREE_COLUMNS = 400, 30_000
#: Part of the time limit that is kept for rounding.
_ROUNDING = 0.2
#: Time that a wider list of options takes, in parts of what the last one took.
_WIDER = 4.0


class Measure:
    """How far a run is from its goal; here the relative gap of the sum of costs."""

    def gap(self, value: float, bound: float) -> float:
        """Return the relative gap that ``value`` and ``bound`` prove."""
        return relative_gap(value, bound)

    def tree_gap(self, value: float, gap: float) -> float:
        """Return the relative gap of the sum of costs at which the tree may stop to prove ``gap``."""
        return gap


class Run:
    """One run: the best plan and the best bound so far, and the clock.

    Attributes
    ----------
    value, bound
        Best sum of costs, and what is proven about it.
    plan
        Decisions of ``value``, or ``None``.
    prices
        Where the bound was found.
    infeasible
        Proven that there is no plan.
    """

    def __init__(self, fleet: Fleet, options: Options, measure: Measure | None = None) -> None:
        self.fleet, self.options, self.measure = fleet, options, measure or Measure()
        limit = options.time_limit_s
        # What the checker and the packing of the answer need is kept back.
        reserve = 0.0 if limit is None else min(0.1 * limit, 0.02 + 1e-5 * fleet.num_users)
        self.stop_at = math.inf if limit is None else time.perf_counter() + limit - reserve
        # Prices alone are no plan: rounding gets its share of the time.
        self.round_at = self.stop_at - (0.0 if limit is None else _ROUNDING * limit)
        self.listing_s = 0.0
        self.rng = np.random.default_rng(options.seed)
        self.value, self.bound = math.inf, -math.inf
        self.plan: Solution | None = None
        self.prices = np.zeros(0)
        self.exhausted = self.infeasible = False
        self.counts = {"newton_and_pricing": 0.0, "columns": 0.0, "shakes": 0.0, "nodes": 0.0, "moves": 0.0}

    def out_of_time(self) -> bool:
        return time.perf_counter() >= self.stop_at

    def time_to_round(self) -> bool:
        return time.perf_counter() >= self.round_at

    def time_to_widen(self) -> bool:
        """Whether a list of options a few times as long as the last one can be made and used."""
        return time.perf_counter() + _WIDER * self.listing_s < self.stop_at

    def good_enough(self) -> bool:
        return self._reaches(self.value, max(self.options.gap, 0.5 * OPTIMAL))

    def _reaches(self, value: float, gap: float) -> bool:
        return self.measure.gap(value, self.bound) <= gap

    def go(self) -> Run:
        """Run to the requested gap, the end of the time, or the end of the effort."""
        model = build(self.fleet)
        if not self._someone_hopeless(model):
            self._solve(model)
        if self.plan is not None:
            self.plan = replace(self.plan, prices=tuple(self.prices.tolist()))
        return self

    def result(self, value: float, bound: float) -> Result:
        """Return the plan as a result of this ``value`` and ``bound`` in terms of the objective."""
        if self.infeasible:
            return Result(Status("infeasible", False), math.inf, math.inf, None, "exact", 0.0, statistics=self.counts)
        gap = relative_gap(value, bound)
        reason: Reason = "time_limit"
        if gap <= OPTIMAL:
            reason = "optimal"
        elif gap <= self.options.gap:
            reason = "gap_reached"
        statistics = {**self.counts, "effort_exhausted": float(self.exhausted and gap > self.options.gap)}
        if self.plan is None:
            reason = "time_limit"
        status = Status(reason, self.plan is not None)
        return Result(status, value, bound, self.plan, "exact", 0.0, statistics=statistics)

    def _someone_hopeless(self, model: Model) -> bool:
        """A user without any option, even with everything to itself, ends the matter."""
        without = np.flatnonzero(np.isinf(model.solo_lin))
        if len(without):
            least = price(subset(model, without), np.zeros(model.num_prices))[2]
            self.infeasible = bool(np.isinf(least).any())
        return self.infeasible

    def _solve(self, model: Model) -> None:
        if self.options.time_limit_s is not None:
            # Whatever the clock leaves of the prices, there is a finite bound.
            least = float(alone(model, self.out_of_time).sum())
            self.bound = least * (1 - 1e-12) if math.isfinite(least) else 0.0
        stand_in, artificial = _with_artificial(model)
        start, coarsest, warm = self._warm(model)
        # Smoothing costs about R temperatures: no need to go far below the requested gap.
        finest = 0.005 * self.options.gap * model.num_users / max(1, model.num_resources)
        finest = min(1e-4, max(2e-6, finest))
        dual = maximise(stand_in, self.time_to_round, start, None, coarsest, finest)
        self.counts["newton_and_pricing"] += dual.work
        if math.isinf(dual.bound):
            # The clock ended the prices of a sample: what they prove for all takes one pass.
            dual.bound = price(stand_in, dual.prices, out_of_time=self.out_of_time)[0]
        self.bound, self.prices = max(self.bound, dual.bound), dual.prices
        search = self._round(stand_in, dual, warm)
        self._keep(stand_in, search, artificial)
        if artificial.any():
            if math.isfinite(self.value):
                # The stand-in price of not serving blurs the bound; it is no longer needed.
                dual = maximise(model, self.out_of_time, dual.prices, coarsest=0.002)
                self.bound, self.prices = max(self.bound, dual.bound), dual.prices
                search = self._restart(model, search, dual)
            else:
                self._prove_infeasible(model, dual)
                if self.infeasible or self.plan is None:
                    return
        if self.good_enough() or self.out_of_time():
            return
        self._improve(model, dual, search)

    def _warm(self, model: Model) -> tuple[Array | None, float, Ints]:
        """Prices, first temperature and options of the warm start (by user; -2: unknown, -1: solo)."""
        known = np.full(model.num_users, -2, dtype=np.int64)
        plan = self.options.warm_start
        if not isinstance(plan, Solution):
            return None, 0.03, known
        position = _match(self.fleet, plan)
        old = np.flatnonzero((position >= 0) & (position < len(plan.cuts)))
        cut = np.array(plan.cuts, dtype=np.int64)[position[old]]
        server = np.array(plan.servers, dtype=np.int64)[position[old]]
        known[old[server < 0]] = -1
        width = self.fleet.num_cuts
        wanted = old * width + cut
        have = model.pair_user * width + model.pair_cut
        at = np.searchsorted(have, wanted)
        valid = (server >= 0) & (server < model.num_servers) & (cut >= 0) & (cut < width) & (at < len(have))
        valid[valid] = have[at[valid]] == wanted[valid]
        valid[valid] = np.isfinite(model.delay[old[valid], server[valid]])
        if model.inverse_memory is not None:
            valid[valid] = model.memory_share(at[valid], server[valid]) <= 1 + MEMORY_SLIP
        known[old[valid]] = at[valid] * model.num_servers + server[valid]
        prices = np.array(plan.prices)
        if len(prices) == model.num_prices and 2 * len(old) >= model.num_users and np.isfinite(prices).all():
            return positive(prices, model.num_resources), 5e-4, known
        served = np.flatnonzero(known >= 0)
        if 2 * len(old) < model.num_users or not len(served):
            return None, 0.03, known
        pair, host = known[served] // model.num_servers, known[served] % model.num_servers
        load = np.zeros(model.num_resources)
        load += np.bincount(model.cell[served], model.pair_a[pair], model.num_resources)
        load += np.bincount(
            model.num_cells + host, model.pair_b[pair] * model.inverse_root_speed[host], model.num_resources
        )
        load = load * (model.num_users / len(old))
        return positive(with_memory(model, load), model.num_resources), 0.01, known

    def _round(self, model: Model, dual: Dual, warm: Ints) -> Search:
        """Choose by price, then search over options of growing reduced cost."""
        reach = 0.002 * dual.mean
        search = None
        for width in range(4):
            cols = self._near(model, dual, reach, warm[warm >= 0] if search is None else search.cols.key[search.choice])
            held = warm if search is None else search.cols.key[search.choice]
            search = Search(model, cols, _carry(cols, dual, held))
            self._polish(search)
            if width == 0 and (warm > -2).any() and not self._reaches(search.value, self.options.gap):
                other = Search(model, cols, _carry(cols, dual, None))
                self._polish(other)
                search = other if other.value < search.value else search
            if not self.time_to_widen() or self._reaches(search.value, self.options.gap):
                break
            if len(cols.user) > 60 * model.num_users or reach > search.value - self.bound:
                break
            reach *= 4
        assert search is not None
        return search

    def _near(self, model: Model, dual: Dual, reach: float, extra: Ints) -> Columns:
        started = time.perf_counter()
        # Where prices are rough, nearly everything is near them: no list is much longer than the one before.
        most = min(100 * model.num_users, max(20 * model.num_users, 5 * int(self.counts["columns"]))) + 20_000
        keys = price(model, dual.prices, reach, most)[1]
        cols = columns(model, np.unique(np.concatenate([keys, extra[extra >= 0]])))
        self.counts["columns"] = float(len(cols.user))
        self.listing_s = time.perf_counter() - started
        return cols

    def _polish(self, search: Search) -> None:
        search.unload(self.out_of_time)
        if math.isinf(search.value) and search.cols.slack is not None:
            search.repair(self.out_of_time)
        if math.isfinite(search.value):
            search.descend(self.out_of_time)
            search.exchange(self.out_of_time)
            search.settle()
        self.counts["moves"] += search.num_moves

    def _keep(self, model: Model, search: Search, artificial: NDArray[np.bool_]) -> None:
        """Remember a plan that is better than the best so far, if it serves all who must be served."""
        chosen = search.cols.take(search.choice)
        if (artificial & (chosen.key < 0)).any() or not math.isfinite(search.value) or search.overfull():
            return
        allocation = allocate(model, chosen)
        if allocation.value < self.value:
            self.value = allocation.value
            self.plan = solution(self.fleet, model, chosen, allocation)

    def _restart(self, model: Model, search: Search, dual: Dual) -> Search:
        """Return the same plan over columns of the true model."""
        keys = search.cols.key[search.choice]
        cols = self._near(model, dual, max(self.value - self.bound, 0.0), keys)
        return Search(model, cols, _carry(cols, dual, keys))

    def _prove_infeasible(self, model: Model, dual: Dual) -> None:
        """No plan was found: let the tree find one, or prove that there is none."""
        _, keys, _, reach = price(model, dual.prices, math.inf, _TREE_COLUMNS)
        cols = columns(model, keys)
        worst = _most(model, cols)
        most = DEFAULT_NODES if self.options.time_limit_s is None else 1_000_000
        nothing = np.zeros(0, dtype=np.int64)
        tail = finish(model, cols, dual.prices, nothing, worst, 0.0, most, self.out_of_time)
        self.counts["nodes"] += tail.num_nodes
        if len(tail.choice):
            search = Search(model, cols, tail.choice)
            self._keep(model, search, np.zeros(model.num_users, dtype=bool))
            if math.isinf(reach):
                self.bound = max(self.bound, tail.bound)
        elif math.isinf(reach) and tail.bound >= worst:
            self.infeasible = True
        else:
            self.exhausted = self.options.time_limit_s is None

    def _improve(self, model: Model, dual: Dual, search: Search) -> None:
        """Shake, then the tree if few options are left, then shake on until time or effort is over."""
        nobody = np.zeros(model.num_users, dtype=bool)
        # The tree proves tiny cases faster than shake-ups fail on them.
        self._shakes(search, min(DEFAULT_SHAKES, model.num_users))
        self._keep(model, search, nobody)
        if model.num_users <= _TREE_USERS and not self.good_enough() and not self.out_of_time():
            reach = (self.value - self.bound) * (1 + 1e-9) + 1e-12 * abs(self.value)
            keys = price(model, dual.prices, reach, _TREE_COLUMNS)
            if len(keys[1]) < _TREE_COLUMNS:
                self._tree(model, dual, search, keys[1])
        while not self.good_enough() and not self.out_of_time() and self.options.time_limit_s is not None:
            if not self._shakes(search, 20):
                # Nothing left to choose: the options of small reduced cost are used up.
                if not self.time_to_widen():
                    break
                search = Search(model, *self._wider(model, dual, search))
            self._keep(model, search, nobody)
        self.exhausted = self.options.time_limit_s is None and not self.good_enough()

    def _tree(self, model: Model, dual: Dual, search: Search, keys: Ints) -> None:
        held = search.cols.key[search.choice]
        cols = columns(model, np.unique(np.concatenate([keys, held[held >= 0]])))
        choice = _carry(cols, dual, held)
        most = DEFAULT_NODES if self.options.time_limit_s is None else 10_000_000
        gap = self.measure.tree_gap(self.value, self.options.gap)
        tail = finish(model, cols, dual.prices, choice, self.value, gap, most, self.out_of_time)
        self.counts["nodes"] += tail.num_nodes
        self._keep(model, Search(model, cols, tail.choice), np.zeros(model.num_users, dtype=bool))
        # Options outside the list cost more than the best plan; the bound over the list holds for all up to that.
        self.bound = max(self.bound, min(tail.bound, self.value))

    def _shakes(self, search: Search, patience: int) -> bool:
        """Shake until ``patience`` tries in a row fail; return whether there was anything to shake."""
        failures = 0
        if len(search.cols.user) == len(search.choice):
            return False
        while failures < patience and not self.out_of_time():
            self.counts["shakes"] += 1
            if search.shake(self.rng, self.out_of_time):
                failures = 0
                if self._reaches(search.value, max(self.options.gap, 0.5 * OPTIMAL)):
                    break
            else:
                failures += 1
            if failures and failures % 20 == 0:
                search.exchange(self.out_of_time)
        search.settle()
        return True

    def _wider(self, model: Model, dual: Dual, search: Search) -> tuple[Columns, Ints]:
        keys = search.cols.key[search.choice]
        cols = self._near(model, dual, 2 * max(self.value - self.bound, 0.0), keys)
        return cols, _carry(cols, dual, keys)


def _with_artificial(model: Model) -> tuple[Model, NDArray[np.bool_]]:
    """Let users without a solo option stay unserved at a price that should never pay, where not all need fit."""
    nobody = np.zeros(model.num_users, dtype=bool)
    if model.limit is None and model.inverse_memory is None:
        return model, nobody
    artificial = np.isinf(model.solo_lin)
    if not artificial.any():
        return model, nobody
    if model.limit is not None:
        finite = model.limit[np.isfinite(model.limit)]
        dear = 10 * (float(finite.sum()) + float(model.solo_lin[~artificial].sum()))
    else:
        keys = price(model, np.zeros(model.num_prices), 0.0)[1]
        dear = 10 * _most(model, columns(model, keys))
    return replace(model, solo_lin=np.where(artificial, dear, model.solo_lin)), artificial


def _most(model: Model, cols: Columns) -> float:
    """No plan over ``cols`` needs to cost more: what the deadlines allow, or everybody's dearest option at once."""
    if model.limit is not None:
        solo = np.where(np.isfinite(model.solo_lin), model.solo_lin, 0.0)
        return float(np.maximum(solo, model.limit).sum()) * (1 + 1e-6)
    lin, a, b = (np.maximum.reduceat(values, cols.first) for values in (cols.lin, cols.a, cols.b))
    cells = np.bincount(cols.cell[cols.first], a)
    return float(lin.sum() + (cells**2).sum() + b.sum() ** 2) * (1 + 1e-6)


def _match(fleet: Fleet, plan: Solution) -> Ints:
    """Position in ``plan`` of every user of the fleet, -1 for newcomers: by name if both have names, else by place."""
    if fleet.user_ids is None or not plan.user_ids:
        place = np.arange(fleet.num_users)
        return np.where(place < len(plan.cuts), place, -1)
    place_of = {name: place for place, name in enumerate(plan.user_ids)}
    return np.array([place_of.get(name, -1) for name in np.asarray(fleet.user_ids).tolist()], dtype=np.int64)


def _carry(cols: Columns, dual: Dual, keys: Ints | None) -> Ints:
    """Columns of the given keys (one per user, below -1: none), else of each user's cheapest option at the prices."""
    paid = charges(cols, dual.prices)
    least = np.minimum.reduceat(paid, cols.first)
    choice = np.zeros(len(cols.first), dtype=np.int64)
    cheapest = np.flatnonzero(paid <= least[cols.user])
    choice[cols.user[cheapest]] = cheapest
    if keys is not None:
        same = np.flatnonzero(cols.key == keys[cols.user])
        choice[cols.user[same]] = same
    return choice
