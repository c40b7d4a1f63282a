"""Exact label setting along the chain: one layer of labels per element, all labels of a layer in numpy arrays.

A label is a partial plan, reduced to what its future depends on: the state it stands in, what its criteria sum to,
and how much of each limited resource it holds. In every layer

1. each label continues in its state or switches to another (``_expand``), unless a rule or a limit forbids it, or a
   completion bound shows that no completion beats the incumbent;
2. a label goes when another in the same state is no worse in every column and holds a subset of its devices
   (``_dominate``);
3. beyond ``width`` labels only the most promising stay; the smallest bound among those dropped remains a bound.

Passes of growing width find an incumbent early; a pass that dropped nothing has proven it. Without a width this is
label setting for the resource-constrained shortest path (Irnich & Desaulniers 2005, doi:10.1007/0-387-25486-2_2).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.chain.bounds import Completion, Incumbent, completion
from edgeopt_solvers.chain.criteria import Criteria
from edgeopt_solvers.chain.resources import Labels, Resources
from edgeopt_solvers.chain.tables import Tables

__all__ = ["PassOutcome", "Search"]

#: Pairs (label, next state) expanded at once; bounds memory and the time between looks at the clock.
CHUNK = 400_000

#: Predecessors in cost order that a label is compared with. Missing a dominator costs time, never correctness.
COMPARISONS = 96


@dataclass(frozen=True, slots=True)
class PassOutcome:
    """What one pass has shown.

    Attributes
    ----------
    bound
        Every plan that this pass did not complete or discard for the incumbent costs at least this.
    complete
        No label was dropped: the incumbent is optimal within the gap, or there is no plan.
    timed_out
        The deadline ended the pass.
    num_labels
        Labels kept over all layers.
    """

    bound: float
    complete: bool
    timed_out: bool
    num_labels: int


@dataclass(slots=True)
class Search:
    """Label setting over prepared tables and completion bounds.

    Attributes
    ----------
    tables
        The instance.
    priced
        Completions whose values bound the objective; the first is the plain objective.
    incumbent
        Improved in place.
    gap
        Relative gap at which to stop caring.
    """

    tables: Tables
    priced: list[Completion]
    incumbent: Incumbent
    gap: float = 0.0
    budgets: list[tuple[Completion, float]] = field(init=False)
    resources: Resources = field(init=False)
    factors: Array = field(init=False)
    criteria: Criteria = field(init=False)
    period_weight: float = field(init=False)

    def __post_init__(self) -> None:
        self.budgets = [(completion(self.tables, column), limit) for _, column, limit in self.tables.budgets()]
        self.resources = Resources(self.tables)
        named = self.tables.reserved.factor
        self.factors = np.array(
            [named.get("objective", 0.0), *(named.get(name, 0.0) for name, *_ in self.tables.budgets())]
        )
        self.criteria = Criteria.of(self.tables, self._most_shared())
        self.period_weight = self.tables.chain.weights.get("throughput", 0.0)

    @property
    def columns(self) -> list[Completion]:
        """Objective, budgets, criteria of reserved media, priced objectives: the order of ``Labels.sums``."""
        budgets = (bound for bound, _ in self.budgets)
        return [self.priced[0], *budgets, *self.criteria.columns, *self.priced[1:]]

    def _most_shared(self) -> float:
        """Most that reserved media may cost in a plan worth having."""
        limits = [self.cutoff - self.priced[0].root, *(limit - bound.root for bound, limit in self.budgets)]
        grows = [limit / factor for limit, factor in zip(limits, self.factors, strict=True) if factor > 0]
        return max(0.0, min(grows, default=math.inf)) * (1 + 1e-9)

    @property
    def cutoff(self) -> float:
        """Value from which on a plan is no improvement worth having."""
        value = self.incumbent.objective
        return value if math.isinf(value) else value - max(self.gap * (1 - 1e-9), 1e-10) * abs(value)

    def run(self, width: int, deadline: float) -> PassOutcome:
        """Walk the chain once, keeping at most ``width`` labels per layer."""
        L = self.tables.chain.num_elements
        self.criteria = Criteria.of(self.tables, self._most_shared())  # tighter with every incumbent
        dropped, num_labels = math.inf, 0
        layers: list[tuple[NDArray[np.int64], NDArray[np.intp]]] = []
        labels, bounds = self._begin()
        for cut in range(1, L + 1):
            if len(labels) > width:
                keep = np.argpartition(bounds, width)
                dropped = min(dropped, float(bounds[keep[width:]].min()))
                keep = np.sort(keep[:width])
                labels, bounds = labels.take(keep), bounds[keep]
            layers.append((labels.parent, labels.state))
            num_labels += len(labels)
            if not len(labels) or cut == L:
                break
            expanded = self._expand(labels, cut, deadline)
            if expanded is None:
                floor = min(dropped, float(bounds.min()))
                return PassOutcome(min(floor, self.cutoff), False, True, num_labels)
            labels, bounds = expanded
        if len(labels):
            self._finish(labels, layers)
        return PassOutcome(min(dropped, self.cutoff), dropped >= self.cutoff, False, num_labels)

    # ── steps of a pass ──────────────────────────────────────────────────────────────────────────────────────

    def _begin(self) -> tuple[Labels, Array]:
        columns = self.columns
        states = np.arange(self.tables.num_states)
        sums = np.stack([column.steps.start for column in columns], axis=1)
        rows = self.tables.first
        alive, bounds = self._bounded(sums, [column.rest[1, rows, states] for column in columns])
        states = states[alive]
        labels = Labels(
            parent=np.full(len(states), -1, dtype=np.int64),
            state=states,
            first=rows[alive],
            sums=sums[alive],
            held=self.resources.empty(len(states)),
            mask=self.resources.no_bits(len(states)),
        )
        bounds = self._with_loads(labels, bounds[alive])
        fits = self.resources.begin(labels)
        bounds = self._with_period(labels, bounds)
        fits &= bounds < self.cutoff
        return labels.take(fits), bounds[fits]

    def _expand(self, labels: Labels, cut: int, deadline: float) -> tuple[Labels, Array] | None:
        """Return the next layer, or ``None`` when the deadline passes."""
        size = max(1, CHUNK // self.tables.num_states)
        parts: list[tuple[Labels, Array]] = []
        for low in range(0, len(labels), size):
            if time.perf_counter() > deadline:
                return None
            part = self._expand_chunk(labels, slice(low, low + size), cut)
            parts.append(self._dominate(*part, deadline))
        if len(parts) == 1:
            return parts[0]
        merged = Labels.concatenated([part for part, _ in parts])
        return self._dominate(merged, np.concatenate([bounds for _, bounds in parts]), deadline)

    def _expand_chunk(self, labels: Labels, rows: slice, cut: int) -> tuple[Labels, Array]:
        columns = self.columns
        state, first = labels.state[rows], labels.first[rows]
        allowed = self.resources.may_switch(labels, rows)
        stepped = [labels.sums[rows, k, None] + column.steps.step[cut][state] for k, column in enumerate(columns)]
        alive, bounds = self._bounded(
            np.stack(stepped, axis=2), [column.rest[cut + 1][first] for column in columns], allowed
        )
        index, target = np.nonzero(alive)
        parent = index + rows.start
        grown = Labels(
            parent=parent,
            state=target,
            first=labels.first[parent],
            sums=np.stack([values[index, target] for values in stepped], axis=1),
            held=labels.held[parent],
            mask=labels.mask[parent],
        )
        values = self._with_loads(grown, bounds[index, target])
        fits = self.resources.advance(grown, labels.state[parent], cut)
        values = self._with_period(grown, values)
        fits &= values < self.cutoff
        return grown.take(fits), values[fits]

    def _bounded(
        self, sums: Array, rests: list[Array], alive: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.bool_], Array]:
        """Return which partial plans may still lead somewhere, and the best bound on each."""
        best = np.full(sums.shape[:-1], -math.inf)
        alive = np.ones(sums.shape[:-1], dtype=bool) if alive is None else alive
        num_real = 1 + len(self.budgets)
        first_price = num_real + len(self.criteria.columns)
        shared = self.criteria.least_cost(sums[..., num_real:first_price], rests[num_real:first_price])
        for k, rest in enumerate(rests):
            if num_real <= k < first_price:
                continue
            least = sums[..., k] + rest
            if k < num_real and self.factors[k] > 0:
                least = least + self.factors[k] * shared
            if 1 <= k < num_real:
                alive &= least <= self.budgets[k - 1][1]
            else:
                best = np.maximum(best, least)
        alive &= (best < self.cutoff) & np.isfinite(best)
        return alive, best

    def _with_period(self, labels: Labels, bounds: Array) -> Array:
        """Raise bounds by the period that is already certain."""
        if not self.period_weight or not len(labels):
            return bounds
        plain = self.priced[0].rest  # additive part of the objective: certain so far plus the least to come
        least = labels.sums[:, 0] + plain[labels.layer, labels.first, labels.state]
        raised: Array = np.maximum(bounds, least + self.period_weight * self.resources.period(labels))
        return raised

    def _with_loads(self, labels: Labels, bounds: Array) -> Array:
        """Charge labels in place for shared bytes that they load newly, and raise their bounds."""
        if not self.resources.charges_shared_loads:
            return bounds
        due = self.resources.due(labels)
        first_price = 1 + len(self.budgets) + len(self.criteria.columns)
        labels.sums[:, 0] += due
        labels.sums[:, first_price:] += due[:, None]
        return bounds + due

    def _owed(self, num_offered: int) -> list[_Debt]:
        """Spell debts out by column of what labels offer; media join the objective with others: then no debt does."""
        joined = bool(self.criteria.columns or self.criteria.curves)
        owed = []
        for word, bit, column, num_bytes, cost in self.resources.debts():
            amounts = {num_offered + column: num_bytes} if num_bytes else {}
            if cost:
                amounts[0] = math.inf if joined else cost
            owed.append(_Debt(word, bit, amounts))
        return owed

    def _dominate(self, labels: Labels, bounds: Array, deadline: float) -> tuple[Labels, Array]:
        """Drop labels that another one makes pointless."""
        if len(labels) < 2:
            return labels, bounds
        num_real = 1 + len(self.budgets)
        real, sums = labels.sums[:, :num_real], labels.sums[:, num_real : num_real + len(self.criteria.columns)]
        offered, wanted = self.criteria.compared(real, sums, self.factors)
        values = np.concatenate((offered, labels.held), axis=1)
        beaten_by = values if offered is wanted else np.concatenate((wanted, labels.held), axis=1)
        group = labels.first * self.tables.num_states + labels.state
        lead = values[:, 0] if not self.period_weight else values[:, 0] + self.resources.period(labels)
        order = np.lexsort((values.sum(axis=1), lead, group))
        labels, bounds = labels.take(order), bounds[order]
        owed = None if self.resources.once else self._owed(offered.shape[1])
        keep = _undominated(values[order], beaten_by[order], labels.mask, group[order], owed, deadline)
        return labels.take(keep), bounds[keep]

    def _finish(self, labels: Labels, layers: list[tuple[NDArray[np.int64], NDArray[np.intp]]]) -> None:
        """Offer the best complete plans of the last layer to the incumbent."""
        columns = self.columns
        ends = np.stack([column.steps.end[labels.first, labels.state] for column in columns], axis=1)
        totals = labels.sums + ends
        feasible = self.resources.finish(labels)
        num_real = 1 + len(self.budgets)
        shared = np.square(totals[:, [num_real + k for k in self.criteria.roots]]).sum(axis=1)
        for k, (_, limit) in enumerate(self.budgets, start=1):
            feasible &= totals[:, k] + np.where(self.factors[k] > 0, self.factors[k] * shared, 0.0) <= limit
        values = totals[:, 0] + self.factors[0] * shared
        if self.period_weight:
            values = values + self.period_weight * self.resources.period(labels)
        values = np.where(feasible, values, math.inf)
        # with a level, rounding may keep a plan that meets it exactly from being taken
        most = len(values) if self.tables.needs else 8
        if self.criteria.curves:  # by radio only a bound is known here: every plan that may be better is looked at
            for k, column in enumerate(self.priced[1:], start=num_real + len(self.criteria.columns)):
                values = np.maximum(values, totals[:, k] + column.column.constant)
            most = len(values)
        for row in np.argsort(values, kind="stable")[:most]:
            if not values[row] < self.incumbent.objective:
                return
            taken = self.incumbent.offer(self.tables.chain, self.tables.solution(_backtrack(layers, int(row))))
            if taken and not self.criteria.curves:
                return


def _backtrack(layers: list[tuple[NDArray[np.int64], NDArray[np.intp]]], row: int) -> NDArray[np.intp]:
    path = np.empty(len(layers), dtype=np.intp)
    for layer in range(len(layers) - 1, -1, -1):
        parent, state = layers[layer]
        path[layer] = state[row]
        row = int(parent[row])
    return path


@dataclass(frozen=True, slots=True)
class _Debt:
    """What the lack of one bit of the mask may yet add, by column of what labels offer."""

    word: int
    bit: int
    amounts: dict[int, float]


def _undominated(
    values: Array,
    wanted: Array,
    mask: NDArray[np.uint64],
    group: NDArray[np.intp],
    owed: list[_Debt] | None,
    deadline: float,
) -> NDArray[np.intp]:
    """Return the rows that survive; rows are sorted by group, then by leading value.

    A row is beaten by one whose ``values`` are at most its ``wanted``, which are its own values where what a label has
    still to pay is known exactly. Without ``owed`` the mask of the better row must be part of its own (devices used
    up); otherwise the better row owes for every bit that only its own mask has.

    Row i - k is compared with row i for growing k, all rows at once; survivors close ranks every few rounds.
    """
    rows = np.arange(len(values))
    slack = 1e-13 * np.abs(values).max(axis=0, initial=0.0)  # equal sums added in another order differ by this
    shift = 1
    while shift <= COMPARISONS and shift < len(rows):
        same = group[shift:] == group[:-shift]
        if not same.any() or time.perf_counter() > deadline:
            break
        beaten = same
        debt = _debts_between(mask[:-shift], mask[shift:], owed or [])
        for k in range(values.shape[1]):
            better = values[:-shift, k] + debt[k] if k in debt else values[:-shift, k]
            beaten &= better <= wanted[shift:, k] + slack[k]
        for word in range(mask.shape[1] if owed is None else 0):
            beaten &= (mask[:-shift, word] & ~mask[shift:, word]) == 0
        if beaten.any():
            keep = np.ones(len(rows), dtype=bool)
            keep[shift:] = ~beaten
            rows, values, wanted = rows[keep], values[keep], wanted[keep]
            mask, group = mask[keep], group[keep]
            if shift > 1 and len(rows) < 0.98 * len(keep):
                continue  # ranks closed: the same distance now reaches farther
        shift += 1
    return rows


def _debts_between(better: NDArray[np.uint64], worse: NDArray[np.uint64], owed: list[_Debt]) -> dict[int, Array]:
    """What each better row owes its worse one, by column."""
    total: dict[int, Array] = {}
    lacking = worse & ~better
    if not owed or not lacking.any():
        return total
    for debt in owed:
        lacks = (lacking[:, debt.word] >> np.uint64(debt.bit)) & np.uint64(1) > 0
        for column, amount in debt.amounts.items():
            total[column] = total.get(column, 0.0) + np.where(lacks, amount, 0.0)
    return total
