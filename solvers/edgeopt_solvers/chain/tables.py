"""The instance as tables for label search: what each step from one state to the next adds to each sum.

A *state* s is a pair (device, variant); a plan is one state per element. Everything a plan is charged is a sum over
elements (compute, resident bytes), over changes of state (transfers, hand-offs, stage starts) and over the two ends.
A :class:`Column` is one linear combination of these: the objective itself, a budget, or the objective with prices on
resources (see ``bounds.py``). :meth:`Tables.steps` turns a column into arrays that the passes walk over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.chain.deadline import look, ticking
from edgeopt_solvers.chain.instance import LIMIT_TOLERANCE, Chain, Solution
from edgeopt_solvers.chain.media import Charge, Reserved
from edgeopt_solvers.chain.movement import element_loads, variant_loads

__all__ = ["Column", "Steps", "Tables"]

#: Steps spelled out between two looks at the clock.
CHUNK = 1_000_000


@dataclass(frozen=True, slots=True)
class Column:
    """A linear combination of what a plan is charged.

    ``value = latency·seconds + energy·joules + quality·loss + Σ busy[d]·compute seconds on d + Σ link[i, j]·transfer
    seconds on i→j + Σ memory[d]·resident bytes on d + Σ stage[d]·stages on d + Σ extra of each transfer
    + movement·cost of new loads + constant``, where with reuse "many" the loads of shared bytes are left out: a label
    adds them where it is the first to need them.
    """

    latency: float
    energy: float
    quality: float
    busy: Array
    link: Array
    memory: Array
    stage: Array
    constant: float = 0.0
    extra: Charge | None = None
    movement: float = 0.0


@dataclass(frozen=True, slots=True)
class Steps:
    """A column as arrays; ``inf`` marks what is forbidden.

    Attributes
    ----------
    start : (S,)
        Input, stage start and element 0 in state s.
    step : (L, S, S)
        From state s over cut c to state s' and element c, for c = 1..L-1 (``step[0]`` is unused).
    end : (F, S)
        Result and loop when the plan ends in state s, by first device (F = 1 when nothing depends on it).
    """

    start: Array
    step: Array
    end: Array


@dataclass(slots=True)
class Tables:
    """Cleaned arrays of a chain, indexed by state.

    Attributes
    ----------
    barred
        (device, variant) pairs left out: branching on what a device holds.
    device, variant : (S,)
        The pair behind each state; S = D * V minus the pairs that can run no element.
    allowed : (S, L)
        Whether the element can run there (time finite, pins, and it alone fits the memory).
    seconds, joules, loss, resident, transient : (S, L)
        Per element; 0 where not allowed.
    shared : (S,)
        Bytes the state's variant counts once per device.
    load, shared_load : (S, L), (S,)
        What newly loading an element, and the variant's shared bytes, adds to the objective.
    transfer_s, linked : (L + 1, D, D)
        Seconds over each link at each cut (0 where there is no link), and whether there is one. Where a medium is
        reserved only the seconds that no share changes: the messages' latency, or none when shares serve the period.
    deadline
        When preparing anything here raises :class:`~edgeopt_solvers.chain.deadline.OutOfTimeError`.
    level
        Busy time within which every reserved transfer must be over, where shares serve the period.
    reserved
        What the shares of reserved media make of the rest.
    channel : (D, D)
        What each link keeps busy: its own number i·D + j, that of one link for all of a time-shared medium.
    limit : (D,)
        Memory with half the rounding allowance.
    tracked : (D,)
        Devices whose memory can bind at all.
    """

    chain: Chain
    barred: frozenset[tuple[int, int]] = frozenset()
    level: float = math.inf
    deadline: float = math.inf
    device: NDArray[np.intp] = field(init=False)
    variant: NDArray[np.intp] = field(init=False)
    allowed: NDArray[np.bool_] = field(init=False)
    seconds: Array = field(init=False)
    joules: Array = field(init=False)
    loss: Array = field(init=False)
    resident: Array = field(init=False)
    transient: Array = field(init=False)
    shared: Array = field(init=False)
    load: Array = field(init=False)
    shared_load: Array = field(init=False)
    transfer_s: Array = field(init=False)
    linked: NDArray[np.bool_] = field(init=False)
    loop_s: Array = field(init=False)
    looped: NDArray[np.bool_] = field(init=False)
    link_w: Array = field(init=False)
    limit: Array = field(init=False)
    tracked: NDArray[np.bool_] = field(init=False)
    first_matters: bool = field(init=False)
    reserved: Reserved = field(init=False)
    needs: list[Charge] = field(init=False)
    channel: NDArray[np.intp] = field(init=False)
    switchable: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        chain = self.chain
        D, V, L = chain.num_devices, chain.num_variants, chain.num_elements
        device, variant = np.repeat(np.arange(D), V), np.tile(np.arange(V), D)
        self.limit = np.array([_half_allowance(m) for m in chain.memory_bytes])
        allowed = np.isfinite(chain.compute_s.reshape(D * V, L))
        alone = chain.resident_bytes + chain.shared_bytes[:, None] + chain.transient_bytes
        allowed &= alone[variant] <= self.limit[device][:, None]
        for element, pinned in chain.pins.items():
            allowed[device != pinned, element] = False
        for barred_device, barred_variant in self.barred:
            allowed[(device == barred_device) & (variant == barred_variant)] = False
        useful = allowed.any(axis=1)
        self.device, self.variant, self.allowed = device[useful], variant[useful], allowed[useful]
        self.seconds = np.where(self.allowed, chain.compute_s.reshape(D * V, L)[useful], 0.0)
        power = np.zeros(D) if chain.power_w is None else chain.power_w
        self.joules = self.seconds * power[self.device][:, None]
        self.loss = np.where(self.allowed, chain.quality_loss[self.variant], 0.0)
        self.resident = np.where(self.allowed, chain.resident_bytes[self.variant], 0.0)
        self.transient = np.where(self.allowed, chain.transient_bytes[self.variant], 0.0)
        self.shared = chain.shared_bytes[self.variant]
        self.load = np.where(self.allowed, element_loads(chain)[self.device, self.variant], 0.0)
        self.shared_load = variant_loads(chain)[self.device, self.variant]
        self.tracked = self._tracked()

        matrices = np.stack([chain.transfer_matrix(cut) for cut in ticking(range(L + 1), self.deadline)])
        self.linked = np.isfinite(matrices)
        look(self.deadline)
        self.transfer_s = np.where(self.linked, matrices, 0.0)
        look(self.deadline)
        loop = chain.loop_matrix()
        self.looped = np.isfinite(loop)
        self.loop_s = np.where(self.looped, loop, 0.0)
        self._prepare_media()
        self.link_w = np.zeros((D, D))
        if chain.send_power_w is not None and chain.receive_power_w is not None:
            self.link_w = chain.send_power_w[:, None] + chain.receive_power_w[None, :]
        self.first_matters = D > 1 and (chain.loop_bytes > 0 or chain.loop_messages > 0)
        self.switchable = self._switchable()

    def _prepare_media(self) -> None:
        chain, D = self.chain, self.chain.num_devices
        self.channel = np.arange(D * D).reshape(D, D)
        for g, mode in enumerate(chain.media):
            if mode == "time_shared":
                self.channel[chain.medium == g] = min(self.channel[chain.medium == g], default=0)
        self.reserved = Reserved(chain)
        self.needs = []
        if not self.reserved:
            return
        delay = self.reserved.delay
        nothing = self.reserved.serves_period
        if nothing:
            self.level = min(self.level, self.period_limit)
            self.needs = [self.reserved.need(g, self.level) for g in range(len(self.reserved.media))]
        links = self.reserved.links
        self.transfer_s = np.where(links & self.linked, 0.0 if nothing else delay.cut, self.transfer_s)
        self.loop_s = np.where(links & self.looped, 0.0 if nothing else delay.loop, self.loop_s)

    @property
    def num_states(self) -> int:
        """S."""
        return len(self.device)

    @property
    def num_first(self) -> int:
        """F: how many first devices a label must tell apart."""
        return self.chain.num_devices if self.first_matters else 1

    @property
    def first(self) -> NDArray[np.intp]:
        """Row of ``Steps.end`` that a plan beginning in state s uses, (S,)."""
        return self.device if self.first_matters else np.zeros_like(self.device)

    def column(self, latency: float = 0.0, energy: float = 0.0, quality: float = 0.0) -> Column:
        """Return a column of plain metrics without prices."""
        zeros = np.zeros(self.chain.num_devices)
        return Column(latency, energy, quality, zeros, np.zeros((len(zeros), len(zeros))), zeros, zeros)

    def objective_column(self) -> Column:
        """Return the additive part of the objective (everything but the period)."""
        weights = self.chain.weights
        plain = self.column(weights.get("latency", 0.0), weights.get("energy", 0.0), weights.get("quality", 0.0))
        return replace(plain, movement=1.0)

    def budgets(self) -> list[tuple[str, Column, float]]:
        """Return (name, column, limit with half the rounding allowance) of each additive budget."""
        chain = self.chain
        entries = [
            ("max_latency_s", self.column(latency=1.0), chain.max_latency_s, 0.0),
            ("max_energy_j", self.column(energy=1.0), chain.max_energy_j, 0.0),
            ("max_quality_loss", self.column(quality=1.0), chain.max_quality_loss, chain.quality_scale),
        ]
        limits = [
            (name, col, _half_allowance(limit, scale)) for name, col, limit, scale in entries if limit is not None
        ]
        for g, need in enumerate(self.needs):
            limits.append((f"share[{g}]", replace(self.column(), extra=need), 1.0 + 1e-12))
        return limits

    @property
    def period_limit(self) -> float:
        """Largest busy time allowed, with half the rounding allowance; ``inf`` without a budget."""
        return math.inf if self.chain.max_period_s is None else _half_allowance(self.chain.max_period_s)

    def steps(self, column: Column) -> Steps:
        """Spell a column out for every step."""
        chain, dev = self.chain, self.device
        element = column.latency * self.seconds + column.energy * self.joules + column.quality * self.loss
        element = element + column.busy[dev][:, None] * self.seconds + column.memory[dev][:, None] * self.resident
        element = element + column.movement * self.load
        element = np.where(self.allowed, element, math.inf)
        per_second = column.latency + column.energy * self.link_w + column.link
        begin = column.stage[dev]
        if chain.reuse == "once":  # one stage per device: its variant's shared bytes come with it
            begin = begin + column.memory[dev] * self.shared + column.movement * self.shared_load

        L = chain.num_elements
        step = np.empty((L, self.num_states, self.num_states))
        step[0] = math.inf
        same = np.arange(self.num_states)
        pairs = dev[:, None], dev[None, :]
        handoff = np.where(np.isinf(chain.handoff_loss), 0.0, chain.handoff_loss) if column.quality else None
        size = max(1, CHUNK // max(1, self.num_states) ** 2)
        for low in range(1, L, size):
            look(self.deadline)
            cuts = slice(low, min(low + size, L))
            moved = self.transfer_s[cuts] * per_second
            if column.extra is not None:
                moved = moved + column.extra.cut[cuts]
            part = moved[:, *pairs] + begin
            if handoff is not None:
                losses = handoff[self.variant[:, None], self.variant[None, :], cuts]
                part += column.quality * losses.transpose(2, 0, 1)
            part[~self.switchable[cuts]] = math.inf
            part[:, same, same] = 0.0
            np.add(part, element.T[cuts, None, :], out=step[cuts])

        start, end = begin + element[:, 0], np.zeros((self.num_first, self.num_states))
        extra = column.extra
        if chain.source is not None:
            source = chain.source
            if extra is not None:
                start = start + extra.cut[0, source, dev]
                end = end + extra.cut[L, dev, source]
            start = start + self.transfer_s[0, source, dev] * per_second[source, dev]
            start = np.where(self.linked[0, source, dev], start, math.inf)
            end = end + self.transfer_s[L, dev, source] * per_second[dev, source]
            end = np.where(self.linked[L, dev, source], end, math.inf)
        if self.first_matters:
            end = end + (self.loop_s * per_second)[dev].T
            if extra is not None:
                end = end + extra.loop[dev].T
            end = np.where(self.looped[dev].T, end, math.inf)
        return Steps(start, step, end)

    def solution(self, path: NDArray[np.intp]) -> Solution:
        """Turn one state per element into stages."""
        ends = np.flatnonzero(np.diff(path)) + 1
        cuts = [*ends.tolist(), len(path)]
        states = path[np.array(cuts) - 1]
        return Solution(tuple(cuts), tuple(self.device[states].tolist()), tuple(self.variant[states].tolist()))

    def path(self, solution: Solution) -> NDArray[np.intp] | None:
        """Turn stages into one state per element; ``None`` when one of them is no state here."""
        index = {pair: s for s, pair in enumerate(zip(self.device.tolist(), self.variant.tolist(), strict=True))}
        path: list[int] = []
        stages = zip(solution.starts, solution.cuts, solution.devices, solution.variants, strict=True)
        for start, stop, device, variant in stages:
            if (device, variant) not in index:
                return None
            path += [index[device, variant]] * (stop - start)
        return np.array(path, dtype=np.intp)

    def _tracked(self) -> NDArray[np.bool_]:
        """Devices that could not hold everything they are able to run."""
        tracked = np.zeros(self.chain.num_devices, dtype=bool)
        for d in range(self.chain.num_devices):
            mine = self.device == d
            most = self.resident[mine].max(axis=0, initial=0.0).sum() + self.shared[mine].sum()
            tracked[d] = most + self.transient[mine].max(initial=0.0) > self.limit[d]
        return tracked

    def _switchable(self) -> NDArray[np.bool_]:
        """Where a new stage may begin, (L, S, S): legal cut, a link, an allowed hand-off, another device if once."""
        chain, dev, var = self.chain, self.device, self.variant
        L = chain.num_elements
        ok = np.empty((L, self.num_states, self.num_states), dtype=bool)
        finite = np.isfinite(chain.handoff_loss)
        pairs, kinds = (dev[:, None], dev[None, :]), (var[:, None], var[None, :])
        size = max(1, CHUNK // max(1, self.num_states) ** 2)
        for low in range(0, L, size):
            look(self.deadline)
            cuts = slice(low, min(low + size, L))
            np.logical_and(self.linked[cuts][:, *pairs], finite[*kinds, cuts].transpose(2, 0, 1), out=ok[cuts])
        shortest = np.arange(L)
        ok[~(chain.cut_legal[:L] & (shortest >= chain.min_segment) & (L - shortest >= chain.min_segment))] = False
        if chain.reuse == "once":
            ok &= dev[:, None] != dev[None, :]
        if chain.max_stages == 1:
            ok[:] = False
        same = np.arange(self.num_states)
        ok[:, same, same] = False
        return ok


def _half_allowance(limit: float, scale: float = 0.0) -> float:
    """Widen a limit by half of what the checker forgives, so that no sum here passes what its sum there does not."""
    if math.isinf(limit):
        return math.inf
    return float(limit + 0.5 * LIMIT_TOLERANCE * max(abs(limit), scale))
