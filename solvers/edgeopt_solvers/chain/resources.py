"""What a label holds of limited resources, and how a step changes it.

Columns of ``held`` (smaller is better, all of them), present only where the instance needs them:

==================  ===============  ====================================================================
column              reuse            meaning
==================  ===============  ====================================================================
``short``           both             elements the open stage still lacks of ``min_segment``
``stages``          both             stages begun
``resident``        once             bytes of the open stage, where its device's memory can bind
``transient``       once             its largest transient
``closed``          once             memory of the devices already left (for the capacity test)
``busy``            once             compute seconds of the open stage
``period``          once             largest busy time of closed stages and links
``medium[c]`` …     once             busy time of each time-shared medium
``resident[d]`` …   many             the same per device, and ``busy[d]``, ``link[c]`` for the period
==================  ===============  ====================================================================

``mask`` has one bit per used device (once), or per (device, variant) whose shared bytes are paid for (many). Of two
labels with "many" the one that has not paid may have to, so when it is compared it owes what the other has paid: a
*debt* is (word, bit, what it adds to the memory of a device, what it adds to the objective).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.chain.tables import Tables

__all__ = ["Labels", "Resources"]

WORD = 63


@dataclass(slots=True)
class Labels:
    """Partial plans, one per row; ``layer`` elements of the chain are done in all of them."""

    parent: NDArray[np.int64]
    state: NDArray[np.intp]
    first: NDArray[np.intp]
    sums: Array
    held: Array
    mask: NDArray[np.uint64]
    layer: int = 1

    def __len__(self) -> int:
        return len(self.state)

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Labels:
        """Return the given rows (indices, or a mask)."""
        return Labels(
            self.parent[rows], self.state[rows], self.first[rows],
            self.sums[rows], self.held[rows], self.mask[rows], self.layer,
        )  # fmt: skip

    @staticmethod
    def concatenated(parts: list[Labels]) -> Labels:
        """Stack parts of the same layer."""
        return Labels(
            parent=np.concatenate([part.parent for part in parts]),
            state=np.concatenate([part.state for part in parts]),
            first=np.concatenate([part.first for part in parts]),
            sums=np.concatenate([part.sums for part in parts]),
            held=np.concatenate([part.held for part in parts]),
            mask=np.concatenate([part.mask for part in parts]),
            layer=parts[0].layer,
        )


class Resources:
    """Bookkeeping of everything that is not a plain sum."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        chain = tables.chain
        D = chain.num_devices
        self.once = chain.reuse == "once"
        self.tracks_period = "throughput" in chain.weights or chain.max_period_s is not None
        self.limits_memory = bool(tables.tracked.any())
        self.has_transient = self.limits_memory and bool(tables.transient.any())
        self.names: list[str] = []
        self.short = self._add("short", chain.min_segment > 1)
        self.stages = self._add("stages", self._stages_can_bind())
        if self.once:
            self.resident = self._add("resident", self.limits_memory)
            self.transient = self._add("transient", self.has_transient)
            self.busy = self._add("busy", self.tracks_period)
            self.period_col = self._add("period", self.tracks_period)
            self.medium_of = self._channels("medium", tables.chain.links_of("time_shared"))
            num_bits = D
        else:
            tracked = np.flatnonzero(tables.tracked).tolist()
            self.resident_of = np.array([self._add(f"resident[{d}]", d in tracked) for d in range(D)])
            self.transient_of = np.array(
                [self._add(f"transient[{d}]", d in tracked and self.has_transient) for d in range(D)]
            )
            self.busy_of = np.array([self._add(f"busy[{d}]", self.tracks_period) for d in range(D)])
            self.link_of = self._channels("link", ~np.eye(D, dtype=bool))
            num_bits = D * chain.num_variants
        self.num_words = max(1, -(-num_bits // WORD))
        self.bits = self._bits()
        self.in_use = bool(self.bits.any())
        self._prepare_capacity()

    def _add(self, name: str, present: bool) -> int:
        if not present:
            return -1
        self.names.append(name)
        return len(self.names) - 1

    def _channels(self, name: str, links: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Add a column for the busy time of each channel of ``links``; return that of each link, -1 for none."""
        columns = np.full(links.shape, -1, dtype=np.intp)
        if self.tracks_period:
            for channel in np.unique(self.tables.channel[links]):
                columns[links & (self.tables.channel == channel)] = self._add(f"{name}[{channel}]", True)
        return columns

    def _stages_can_bind(self) -> bool:
        chain = self.tables.chain
        most = min(chain.num_elements, chain.num_devices if self.once else chain.num_elements)
        return chain.max_stages is not None and chain.max_stages < most

    def _bits(self) -> NDArray[np.uint64]:
        """Bits that a stage in state s sets, (S, words)."""
        tables = self.tables
        bits = np.zeros((tables.num_states, self.num_words), dtype=np.uint64)
        for s in range(tables.num_states):
            if self.once:
                position = int(tables.device[s])
            elif tables.shared_load[s] > 0 or (tables.tracked[tables.device[s]] and tables.shared[s] > 0):
                position = int(tables.device[s]) * tables.chain.num_variants + int(tables.variant[s])
            else:
                continue
            bits[s, position // WORD] = np.uint64(1 << (position % WORD))
        return bits

    def _prepare_capacity(self) -> None:
        """Least resident bytes still to place after l elements; only a test where every memory is finite."""
        tables = self.tables
        self.tests_capacity = self.limits_memory and bool(np.isfinite(tables.limit).all())
        least = np.where(tables.allowed, tables.resident, math.inf).min(axis=0, initial=math.inf)
        least = np.where(np.isfinite(least), least, 0.0)
        self.to_place = np.concatenate((np.cumsum(least[::-1])[::-1], [0.0]))

    def due(self, labels: Labels) -> Array:
        """What the shared bytes of the labels' states, where they are needed for the first time, add to the objective.

        Only with reuse "many"; to be asked before the step is accounted for.
        """
        state = labels.state
        unpaid = ((labels.mask & self.bits[state]) == 0).all(axis=1)
        return np.where(unpaid, self.tables.shared_load[state], 0.0)

    @property
    def charges_shared_loads(self) -> bool:
        """Whether :meth:`due` is ever anything but zero."""
        return not self.once and bool(self.tables.shared_load.any())

    def debts(self) -> list[tuple[int, int, int, float, float]]:
        """List (word, bit, column of held or -1, bytes, objective) of all that labels may have paid for (many)."""
        tables, owed = self.tables, []
        for s in np.flatnonzero(self.bits.any(axis=1)) if not self.once else ():
            position = int(tables.device[s]) * tables.chain.num_variants + int(tables.variant[s])
            column = int(self.resident_of[tables.device[s]])
            num_bytes = float(tables.shared[s]) if column >= 0 else 0.0
            owed.append((position // WORD, position % WORD, column, num_bytes, float(tables.shared_load[s])))
        return owed

    def empty(self, rows: int) -> Array:
        """Return holdings of nothing."""
        return np.zeros((rows, len(self.names)))

    def no_bits(self, rows: int) -> NDArray[np.uint64]:
        """Return empty masks."""
        return np.zeros((rows, self.num_words), dtype=np.uint64)

    # ── steps ────────────────────────────────────────────────────────────────────────────────────────────────

    def begin(self, labels: Labels) -> NDArray[np.bool_]:
        """Account for element 0 (and the input); return which labels are within the limits."""
        tables, chain = self.tables, self.tables.chain
        device = tables.device[labels.state]
        if self.tracks_period and chain.source is not None:
            self._carry(labels, np.full(len(labels), chain.source), device, tables.transfer_s[0])
        return self._run_element(labels, np.ones(len(labels), dtype=bool), 0)

    def may_switch(self, labels: Labels, rows: slice) -> NDArray[np.bool_]:
        """Which (label, next state) pairs break no rule of stages; staying is always allowed here."""
        tables = self.tables
        state = labels.state[rows]
        allowed = np.ones((len(state), tables.num_states), dtype=bool)
        if self.once:
            mask = labels.mask[rows]
            for word in range(self.num_words):
                allowed &= (mask[:, word, None] & self.bits[None, :, word]) == 0
        if self.short >= 0:
            allowed &= (labels.held[rows, self.short] == 0)[:, None]
        if self.stages >= 0:
            allowed &= (labels.held[rows, self.stages] < (tables.chain.max_stages or 0))[:, None]
        allowed[np.arange(len(state)), state] = True
        return allowed

    def advance(self, labels: Labels, before: NDArray[np.intp], cut: int) -> NDArray[np.bool_]:
        """Account for cut and element ``cut`` in place; return which labels are within the limits."""
        tables = self.tables
        labels.layer = cut + 1
        switched = labels.state != before
        if self.tracks_period:
            sender, receiver = tables.device[before], tables.device[labels.state]
            if self.once:  # the stage left behind is final
                closed = np.maximum(labels.held[:, self.period_col], labels.held[:, self.busy])
                labels.held[:, self.period_col] = np.where(switched, closed, labels.held[:, self.period_col])
            self._carry(labels, sender, receiver, tables.transfer_s[cut])
        return self._run_element(labels, switched, cut)

    def finish(self, labels: Labels) -> NDArray[np.bool_]:
        """Account for result and loop in place; return which labels are complete and within the limits."""
        tables, chain = self.tables, self.tables.chain
        ok = np.ones(len(labels), dtype=bool)
        if self.short >= 0:
            ok &= labels.held[:, self.short] == 0
        if not self.tracks_period:
            return ok
        last, first = tables.device[labels.state], labels.first
        if self.once:
            rows = np.arange(len(labels))
            links = np.zeros((len(labels), 3))  # input, result, loop: they meet on one link only where two ends meet
            alone = self.medium_of < 0
            if chain.source is not None:
                back = np.full(len(labels), chain.source)
                self._carry(labels, last, back, np.where(alone, 0.0, tables.transfer_s[-1]))
                links[:, 1] = np.where(alone, tables.transfer_s[-1], 0.0)[last, chain.source]
            if tables.first_matters:
                self._carry(labels, last, first, np.where(alone, 0.0, tables.loop_s))
                links[:, 2] = np.where(alone, tables.loop_s, 0.0)[last, first]
                if chain.source is not None:
                    links[:, 0] = np.where(alone, tables.transfer_s[0], 0.0)[chain.source, first]
                    links[:, 2] += np.where(first == chain.source, links[:, 1], 0.0)
                    links[:, 2] += np.where(last == chain.source, links[:, 0], 0.0)
            worst = links[rows].max(axis=1)
            labels.held[:, self.period_col] = np.maximum(labels.held[:, self.period_col], worst)
        else:
            if chain.source is not None:
                self._carry(labels, last, np.full(len(labels), chain.source), tables.transfer_s[-1])
            if tables.first_matters:
                self._carry(labels, last, first, tables.loop_s)
        return ok & (self.period(labels) <= tables.period_limit)

    def period(self, labels: Labels) -> Array:
        """Largest busy time so far."""
        if not self.tracks_period:
            return np.zeros(len(labels))
        if self.once:
            columns = [self.busy, self.period_col, *np.unique(self.medium_of[self.medium_of >= 0]).tolist()]
        else:
            columns = [*self.busy_of.tolist(), *np.unique(self.link_of[self.link_of >= 0]).tolist()]
        return np.asarray(labels.held[:, columns].max(axis=1))

    def _carry(self, labels: Labels, sender: NDArray[np.intp], receiver: NDArray[np.intp], seconds: Array) -> None:
        """Add a transfer to its channel's busy time."""
        amount = seconds[sender, receiver]
        if self.once:  # a link carries one transfer, a medium all of its own
            column = self.medium_of[sender, receiver]
            shared = np.flatnonzero(column >= 0)
            labels.held[shared, column[shared]] += amount[shared]
            amount = np.where(column < 0, amount, 0.0)
            labels.held[:, self.period_col] = np.maximum(labels.held[:, self.period_col], amount)
            return
        moving = np.flatnonzero(sender != receiver)
        labels.held[moving, self.link_of[sender[moving], receiver[moving]]] += amount[moving]

    def _run_element(self, labels: Labels, new: NDArray[np.bool_], element: int) -> NDArray[np.bool_]:
        tables, chain, held = self.tables, self.tables.chain, labels.held
        state = labels.state
        device = tables.device[state]
        ok = np.ones(len(labels), dtype=bool)
        if self.short >= 0:
            held[:, self.short] = np.where(new, chain.min_segment - 1, np.maximum(held[:, self.short] - 1, 0))
        if self.stages >= 0:
            held[:, self.stages] += new
        bits = self.bits[state]
        paid = ((labels.mask & bits) != 0).any(axis=1) if not self.once else ~new
        if self.limits_memory:
            ok &= self._fits(labels, new, paid, element)
        if self.tracks_period:
            seconds = tables.seconds[state, element]
            if self.once:
                held[:, self.busy] = np.where(new, 0.0, held[:, self.busy]) + seconds
            else:
                held[np.arange(len(labels)), self.busy_of[device]] += seconds
            ok &= self.period(labels) <= tables.period_limit
        labels.mask |= bits
        return ok

    def _fits(self, labels: Labels, new: NDArray[np.bool_], paid: NDArray[np.bool_], element: int) -> NDArray[np.bool_]:
        """Add the element's bytes to its device; return where they fit, and where the rest still can."""
        tables, held, state = self.tables, labels.held, labels.state
        device = tables.device[state]
        tracked = tables.tracked[device]
        added = tables.resident[state, element] + np.where(paid, 0.0, tables.shared[state])
        working = tables.transient[state, element]
        rows = np.arange(len(labels))
        if self.once:
            stays = np.where(new, 0.0, held[:, self.resident])
            held[:, self.resident] = np.where(tracked, stays + added, 0.0)
            used = held[:, self.resident]
            if self.has_transient:
                stays = np.where(new, 0.0, held[:, self.transient])
                held[:, self.transient] = np.where(tracked, np.maximum(stays, working), 0.0)
                used = used + held[:, self.transient]
            left = self._left_once(labels, used) if self.tests_capacity else None
        else:
            rows = rows[tracked]
            held[rows, self.resident_of[device[rows]]] += added[rows]
            used = np.zeros(len(labels))
            used[rows] = held[rows, self.resident_of[device[rows]]]
            if self.has_transient:
                column = self.transient_of[device[rows]]
                held[rows, column] = np.maximum(held[rows, column], working[rows])
                used[rows] += held[rows, column]
            columns = self.resident_of[self.resident_of >= 0]
            left = None
            if self.tests_capacity and tables.tracked.all():
                left = tables.limit.sum() - held[:, columns].sum(axis=1)
        ok = ~tracked | (used <= tables.limit[device])
        if left is not None:
            ok &= left >= self.to_place[element + 1] * (1 - 1e-9)
        return np.asarray(ok)

    def _left_once(self, labels: Labels, used: Array) -> Array:
        """Memory still free: on the current device, and on those not used yet."""
        tables = self.tables
        left = np.where(tables.tracked[tables.device[labels.state]], -used, 0.0)
        current = self.bits[labels.state]
        for d in range(tables.chain.num_devices):
            word, bit = d // WORD, np.uint64(1 << (d % WORD))
            free = ((labels.mask[:, word] | 0) & bit) == 0
            free |= (current[:, word] & bit) != 0
            left += np.where(free, tables.limit[d], 0.0)
        return left
