"""Completion bounds: what the rest of a plan must cost at least, from a relaxation with prices.

Without memory, device-once and budgets a chain is a shortest path over (element, state). Putting a price π_r >= 0 on
each of these resources keeps that shape and never charges a feasible plan more than it costs:

    value(plan) + Σ_r π_r · (use_r(plan) − limit_r) <= value(plan),      use_r <= limit_r for feasible plans.

The period enters with prices too: a weighted mean of busy times never exceeds the largest, so with Σ_r u_r = weight
of the period, Σ_r u_r · busy_r(plan) <= weight · period(plan). Reserved media enter with a price λ on their shares
(``media.py``): what they cost is at least Σ φ(λ) − λ.

One backward pass gives the cheapest completion from every (element, state); subgradient steps (Held & Karp 1971)
raise the bound at the root: dear where the relaxed path uses too much, cheap where it leaves room.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.chain.check import evaluate
from edgeopt_solvers.chain.deadline import look
from edgeopt_solvers.chain.instance import Chain, Solution
from edgeopt_solvers.chain.media import Charge
from edgeopt_solvers.chain.shares import with_shares
from edgeopt_solvers.chain.tables import Column, Steps, Tables

__all__ = ["Completion", "Incumbent", "Priced", "charged", "completion", "priced_columns", "relaxed_path"]


@dataclass(frozen=True, slots=True)
class Completion:
    """A column spelled out, with its cheapest completions.

    Attributes
    ----------
    rest : (L + 1, F, S)
        Least this column adds after element l - 1 ran in state s, for l = 1..L, with the constant.
    root
        Least value of any whole path.
    """

    column: Column
    steps: Steps
    rest: Array
    root: float


@dataclass(slots=True)
class Incumbent:
    """The best feasible plan so far."""

    objective: float = math.inf
    solution: Solution | None = None

    def offer(self, chain: Chain, solution: Solution) -> bool:
        """Take ``solution`` if it is feasible and better; the independent checker decides."""
        solution = with_shares(chain, solution)
        evaluation = evaluate(chain, solution)
        if evaluation.violations or not evaluation.objective < self.objective:
            return False
        self.objective, self.solution = evaluation.objective, solution
        return True


def completion(tables: Tables, column: Column) -> Completion:
    """Walk the relaxed chain backward."""
    steps = tables.steps(column)
    L, F, S = tables.chain.num_elements, tables.num_first, tables.num_states
    rest = np.full((L + 1, F, S), math.inf)
    rest[L] = steps.end + column.constant
    for cut in range(L - 1, 0, -1):
        look(tables.deadline)
        rest[cut] = (steps.step[cut] + rest[cut + 1][:, None, :]).min(axis=2)
    whole = steps.start + rest[1, tables.first, np.arange(S)]
    return Completion(column, steps, rest, float(whole.min(initial=math.inf)))


def relaxed_path(tables: Tables, bound: Completion) -> NDArray[np.intp]:
    """Return the states of the cheapest path that ``bound`` is the value of."""
    L = tables.chain.num_elements
    path = np.empty(L, dtype=np.intp)
    path[0] = np.argmin(bound.steps.start + bound.rest[1, tables.first, np.arange(tables.num_states)])
    row = tables.first[path[0]]
    for cut in range(1, L):
        path[cut] = np.argmin(bound.steps.step[cut, path[cut - 1]] + bound.rest[cut + 1, row])
    return path


@dataclass(frozen=True, slots=True)
class _Use:
    """What a relaxed path takes of every resource."""

    latency: float
    energy: float
    quality: float
    busy: Array
    link: Array
    memory: Array
    stage: Array
    path: NDArray[np.intp]


def charged(tables: Tables, path: NDArray[np.intp], charge: Charge) -> Array:
    """Sum what a path is charged for its transfers over each reserved medium, (G,)."""
    chain, index = tables.chain, tables.reserved.index
    device = tables.device[path]
    total = np.zeros(len(tables.reserved.media))
    cuts = np.flatnonzero(np.diff(path)) + 1
    sender, receiver = device[cuts - 1], device[cuts]
    np.add.at(total, index[sender, receiver], charge.cut[cuts, sender, receiver])
    first, last = device[0], device[-1]
    if chain.source is not None:
        total[index[chain.source, first]] += charge.cut[0, chain.source, first]
        total[index[last, chain.source]] += charge.cut[-1, last, chain.source]
    if tables.first_matters:
        total[index[last, first]] += charge.loop[last, first]
    return total


def _use(tables: Tables, path: NDArray[np.intp]) -> _Use:
    chain, D = tables.chain, tables.chain.num_devices
    elements = np.arange(chain.num_elements)
    device, variant = tables.device[path], tables.variant[path]
    busy = np.bincount(device, tables.seconds[path, elements], minlength=D).astype(np.float64)
    memory = np.bincount(device, tables.resident[path, elements], minlength=D).astype(np.float64)
    link = np.zeros((D, D))
    cuts = np.flatnonzero(np.diff(path)) + 1
    np.add.at(link, (device[cuts - 1], device[cuts]), tables.transfer_s[cuts, device[cuts - 1], device[cuts]])
    first, last = device[0], device[-1]
    if chain.source is not None:
        link[chain.source, first] += tables.transfer_s[0, chain.source, first]
        link[last, chain.source] += tables.transfer_s[-1, last, chain.source]
    if tables.first_matters:
        link[last, first] += tables.loop_s[last, first]
    begins = np.concatenate(([0], cuts))
    stage = np.bincount(device[begins], minlength=D).astype(float)
    if chain.reuse == "once":
        memory = memory + np.bincount(device[begins], tables.shared[path[begins]], minlength=D)
    joules = float(tables.joules[path, elements].sum() + (link * tables.link_w).sum())
    loss = float(tables.loss[path, elements].sum() + chain.handoff_loss[variant[cuts - 1], variant[cuts], cuts].sum())
    return _Use(float(busy.sum() + link.sum()), joules, loss, busy, link, memory, stage, path)


@dataclass(slots=True)
class _Prices:
    """One price per resource, in units of the objective per whole limit, so that they compare."""

    tables: Tables
    latency: float
    energy: float
    quality: float
    busy_share: Array  # shares of the period's weight, (D + D * D,), sum 1
    period: Array  # prices on the period budget, (D + D * D,)
    memory: Array
    once: Array
    stages: float
    share: Array  # per reserved medium: λ on its shares, or the price on what a level needs of them
    charge: tuple[Charge, Charge] | None = field(init=False, default=None)  # at ``share``: costs, and shares taken

    def scales(self) -> tuple[float, float, float]:
        chain = self.tables.chain
        quality = max(abs(chain.max_quality_loss or 0.0), chain.quality_scale)
        return chain.max_latency_s or 1.0, chain.max_energy_j or 1.0, quality or 1.0

    def column(self, objective: Column) -> Column:
        chain, D = self.tables.chain, self.tables.chain.num_devices
        lat_scale, en_scale, q_scale = self.scales()
        weight = chain.weights.get("throughput", 0.0)
        period_scale = chain.max_period_s or 1.0
        busy = weight * self.busy_share + self.period / period_scale
        link = busy[D:][self.tables.channel]
        extra, shares_constant = self.shares(lat_scale, en_scale)
        limit = np.where(self.tables.tracked & (self.tables.limit > 0), self.tables.limit, 1.0)
        constant = -float(self.memory[self.tables.tracked].sum()) - float(self.once.sum())
        constant -= self.stages
        # the checker lets a plan pass its limits by rounding; give the same away here
        given_away = self.latency + self.energy + self.quality + float(self.period.sum() + self.memory.sum())
        for price, scale, bound in (
            (self.latency, lat_scale, chain.max_latency_s),
            (self.energy, en_scale, chain.max_energy_j),
            (self.quality, q_scale, chain.max_quality_loss),
            (float(self.period.sum()), period_scale, chain.max_period_s),
        ):
            constant -= price / scale * (bound if bound is not None else 0.0)
        return Column(
            objective.latency + self.latency / lat_scale,
            objective.energy + self.energy / en_scale,
            objective.quality + self.quality / q_scale,
            objective.busy + busy[:D],
            objective.link + link,
            objective.memory + self.memory / limit,
            objective.stage + self.once + self.stages / (chain.max_stages or 1),
            constant + shares_constant - 1e-9 * given_away,
            extra,
            objective.movement,
        )

    def shares(self, lat_scale: float, en_scale: float) -> tuple[Charge | None, float]:
        """Return what transfers over reserved media cost at the prices, and the constant beside it."""
        tables = self.tables
        if tables.needs:
            price = float(self.share.sum())
            total = Charge(np.zeros_like(tables.transfer_s), np.zeros_like(tables.loop_s))
            needed = total
            for g, need in enumerate(tables.needs):
                needed = needed.plus(Charge(np.minimum(need.cut, 2.0), np.minimum(need.loop, 2.0)))  # inf: too much
                priced = [np.where(np.isinf(a), math.inf, self.share[g] * np.where(np.isinf(a), 0.0, a))
                          for a in (need.cut, need.loop)]  # fmt: skip
                total = total.plus(Charge(priced[0], priced[1]))
            self.charge = total, needed
            return total, -price * (1 + 1e-9)
        if not tables.reserved.serves_sum:
            return None, 0.0
        factor = tables.reserved.factor
        weight = factor["objective"] + self.latency / lat_scale * factor.get("max_latency_s", 0.0)
        weight += self.energy / en_scale * factor.get("max_energy_j", 0.0)
        self.charge = tables.reserved.priced(self.share)
        cost = self.charge[0]
        return Charge(weight * cost.cut, weight * cost.loop), -weight * float(self.share.sum())

    def excess(self, use: _Use) -> dict[str, Array]:
        """Subgradient: use − limit, in the scale of each price; 0 for resources that are not limited."""
        chain = self.tables.chain
        lat_scale, en_scale, q_scale = self.scales()
        link: Array = np.bincount(self.tables.channel.ravel(), use.link.ravel(), minlength=use.link.size).astype(float)
        busy: Array = np.concatenate((use.busy, link))
        limit = np.where(self.tables.limit > 0, self.tables.limit, 1.0)
        taken, spent = np.zeros(len(self.share)), 0.0  # of each reserved medium: shares, and their part of a budget
        if self.charge is not None:
            taken = charged(self.tables, use.path, self.charge[1])
            spent = float((charged(self.tables, use.path, self.charge[0]) - self.share).sum())
        factor = self.tables.reserved.factor
        latency = use.latency + spent * factor.get("max_latency_s", 0.0)
        energy = use.energy + spent * factor.get("max_energy_j", 0.0)
        over = np.array([
            0.0 if chain.max_latency_s is None else (latency - chain.max_latency_s) / lat_scale,
            0.0 if chain.max_energy_j is None else (energy - chain.max_energy_j) / en_scale,
            0.0 if chain.max_quality_loss is None else (use.quality - chain.max_quality_loss) / q_scale,
            0.0 if chain.max_stages is None else use.stage.sum() / chain.max_stages - 1.0,
        ])  # fmt: skip
        tracked = self.tables.tracked
        period = chain.max_period_s
        return {
            "budgets": over,
            "memory": np.where(tracked, np.where(tracked, use.memory, 0.0) / np.where(tracked, limit, 1.0) - 1.0, 0.0),
            "once": use.stage - 1.0 if chain.reuse == "once" else np.zeros_like(use.stage),
            "period": np.zeros_like(busy) if period is None else busy / (period or 1.0) - (1.0 if period else 0.0),
            "share": busy * chain.weights.get("throughput", 0.0),
            "need": taken - 1.0 if self.tables.needs else np.zeros_like(taken),
            "taken": taken,
        }

    def moved(self, excess: dict[str, Array], step: float, theta: float) -> _Prices:
        budgets = np.maximum(0.0, [self.latency, self.energy, self.quality, self.stages] + step * excess["budgets"])
        return replace(
            self,
            latency=float(budgets[0]), energy=float(budgets[1]), quality=float(budgets[2]), stages=float(budgets[3]),
            memory=np.maximum(0.0, self.memory + step * excess["memory"]),
            once=np.maximum(0.0, self.once + step * excess["once"]),
            period=np.maximum(0.0, self.period + step * excess["period"]),
            busy_share=_onto_simplex(self.busy_share + step * excess["share"]),
            share=(
                # with fixed rates and theta 1 this is the λ that suits the path at hand
                self.share * np.clip(excess["taken"], 0.3, 3.0) ** (2 * theta) if self.tables.reserved.serves_sum
                else np.maximum(0.0, self.share + step * excess["need"])
            ),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Priced:
    """Completions that bound the objective, and the prices behind the best of them (to start again from).

    Attributes
    ----------
    columns
        The plain objective and, where a resource can bind, the objective with the best prices found.
    root
        Best bound on any plan.
    """

    columns: list[Completion]
    prices: _Prices | None
    root: float

    @property
    def best(self) -> Completion:
        """The strongest of the columns."""
        return self.columns[-1]


def priced_columns(
    tables: Tables, incumbent: Incumbent, gap: float, deadline: float, max_iterations: int, start: Priced | None = None
) -> Priced:
    """Raise the bound by subgradient steps on the prices.

    Relaxed paths that happen to be feasible are offered to ``incumbent``. Stops early when the bound meets it.
    """
    D = tables.chain.num_devices
    objective = tables.objective_column()
    plain = completion(tables, objective)
    if math.isinf(plain.root):
        return Priced([plain], None, plain.root)
    if start is not None and start.prices is not None:
        prices = replace(start.prices, tables=tables)
    else:
        zeros, share = np.zeros(D), np.concatenate((np.full(D, 1.0 / D), np.zeros(D * D)))
        prices = _Prices(
            tables, 0.0, 0.0, 0.0, share, np.zeros(D + D * D), zeros, zeros, 0.0, _first_shares(tables, plain)
        )
    best, best_prices = plain, prices
    current = completion(tables, prices.column(objective))
    patience, theta = 0, 1.0
    seen: set[bytes] = set()
    for _ in range(max_iterations):
        path = relaxed_path(tables, current)
        if path.tobytes() not in seen:
            seen.add(path.tobytes())
            incumbent.offer(tables.chain, tables.solution(path))
        if current.root > best.root:
            best, best_prices, patience = current, prices, 0
        else:
            patience += 1
        target = incumbent.objective
        if math.isinf(best.root):
            break  # what reserved transfers need at this level leaves no path
        if best.root >= target - max(gap, 1e-10) * abs(target) or time.perf_counter() > deadline:
            break
        if patience >= 6:
            theta, patience, prices, current = theta / 2, 0, best_prices, best
            if theta < 0.02:
                break
            path = relaxed_path(tables, current)
        excess = prices.excess(_use(tables, path))
        norm = sum(float((part**2).sum()) for name, part in excess.items() if name not in ("share", "taken"))
        share = excess["share"]
        norm += float(((share - share[share > 0].mean()) ** 2).sum()) if share.any() else 0.0
        moving = any(tables.reserved.factor.values()) and bool((np.abs(excess["taken"] - 1.0) > 1e-3).any())
        if norm == 0 and not moving:
            break  # the relaxed path keeps every limit that has a price
        norm = norm or math.inf
        if math.isinf(target):
            target = current.root + 0.1 * abs(current.root) + 1e-9
        prices = prices.moved(excess, theta * max(target - current.root, 1e-6 * abs(target)) / norm, theta)
        current = completion(tables, prices.column(objective))
    columns = [plain] if best is plain else [plain, *_other_prices(tables, best_prices, objective), best]
    return Priced(columns, best_prices, best.root)


def _first_shares(tables: Tables, plain: Completion) -> Array:
    """λ that suits the shortest path (or two typical transfers), with radio as a fixed rate; no price on needs."""
    reserved = tables.reserved
    if not reserved.serves_sum:
        return np.zeros(len(reserved.media))
    path = relaxed_path(tables, plain)
    first = np.ones(len(reserved.media))
    for g in range(len(first)):
        root = reserved.root(g)
        sizes = root.cut[root.cut > 0]
        found = float(charged(tables, path, root)[g]) or (2 * float(sizes.mean()) if sizes.size else 1.0)
        first[g] = found * found
    return first


def _other_prices(tables: Tables, prices: _Prices, objective: Column) -> list[Completion]:
    """Bounds for plans that reserve less or more than the one that λ suits."""
    if not tables.reserved.serves_sum:
        return []
    others = [replace(prices, share=prices.share * factor) for factor in (0.5, 2.0)]
    return [completion(tables, other.column(objective)) for other in others]


def _onto_simplex(vector: Array) -> Array:
    """Project onto {u >= 0, Σ u = 1} (sorting method)."""
    vector = vector - vector.max()  # changes nothing but the rounding, which huge entries would drown 1 in
    ordered = np.sort(vector)[::-1]
    excess = (np.cumsum(ordered) - 1.0) / np.arange(1, len(vector) + 1)
    keep = np.flatnonzero(ordered > excess)[-1]
    projected: Array = np.maximum(vector - excess[keep], 0.0)
    return projected
