"""The period: the largest busy time of any device or link, by thresholds.

The period is one of finitely many times. Prices (``relaxation``) refute the lowest of them at once; beams find a plan
above. In between a threshold is decided by prices, a beam and the integer program on what the prices leave
(``partition``): each plan lowers the incumbent to its own period, each refutation raises the bound, and only times
that a better plan can still have are asked about. Effort is counted in nodes and labels, not in time, so a seed gives
the same answer on any machine; the clock only cuts off.
"""

from __future__ import annotations

import math

import numpy as np

from edgeopt_solvers.chain.large import labels, local_search
from edgeopt_solvers.chain.large.clock import Clock
from edgeopt_solvers.chain.large.latency import Proof
from edgeopt_solvers.chain.large.partition import partition
from edgeopt_solvers.chain.large.relaxation import ROUNDING, Relaxation, Remaining
from edgeopt_solvers.chain.large.view import Array, Path, View

__all__ = ["minimise_period", "period"]

#: Efforts at which thresholds are decided: width of the beam, nodes of an integer program.
EFFORTS = ((50, 1), (200, 20), (1_000, 200), (5_000, 2_000), (50_000, 20_000), (500_000, 1_000_000))

#: Subgradient steps for one threshold.
STEPS = 250

#: Subgradient steps for a threshold that only guides the search.
PROBE_STEPS = 60

#: Relative distance ahead of the bound at which prices are improved first, and the smallest.
FIRST_LEAD, LAST_LEAD = 0.03, 1e-3

#: Relative rise of the bound by one round of prices below which the integer programs take over.
SLOW_RISE = 2e-4

#: Segments in the first integer program for a threshold, cheapest first, and how much larger the next ones are.
CORE, GROWTH = 250, 1.6

#: Most segments in an integer program, by effort as above.
MOST_SEGMENTS = (1_500, 3_000, 6_000, 12_000, 24_000, 48_000)

#: Relative distance above the bound at which the first beam looks for a plan; doubled until there is one.
FIRST_STRETCH = 0.005

#: Relative distance to the next threshold after a refutation; doubled as long as refutations go on.
FIRST_STRIDE = 1e-4


def period(view: View, path: Path) -> float:
    """Largest term of a path; ``inf`` where it breaks a rule."""
    if not math.isfinite(view.cost(path)):
        return math.inf
    terms, start, before = [float(view.leave[path[-1][0]])], 0, -1
    for device, end in path:
        terms.append(float(view.enter[device] if before < 0 else view.link[view.page[start], before, device]))
        terms.append(float(view.prefix[device, end] - view.prefix[device, start]))
        start, before = end, device
    return max(terms)


def minimise_period(view: View, clock: Clock, *, gap: float, seed: int, start: Path | None) -> Proof:
    """Find a path whose largest term is smallest, or the best found with its bound when the clock runs out."""
    search = _Thresholds(view, clock, gap, seed)
    if start:
        search.offer(start)
    search.raise_bound()
    if not search.done:
        search.first_plan()
    for effort in range(len(EFFORTS)):
        if search.done:
            break
        search.decide(effort)
    return search.proof


def _candidates(view: View) -> Array:
    """Every time that a segment, a hand-over or an end can take, ascending."""
    links = view.link[np.unique(view.page[1:-1])] if view.num_elements > 1 else view.link[:0]
    terms = [view.enter, view.leave, links.ravel()]
    for d in range(view.num_devices):
        lengths = view.last_end[d] - np.arange(view.num_elements + 1)
        starts = np.repeat(np.arange(view.num_elements + 1), lengths)
        ends = starts + 1 + np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        terms.append(view.prefix[d, ends] - view.prefix[d, starts])
    times = np.concatenate(terms)
    return np.unique(times[np.isfinite(times)])


class _Thresholds:
    """Candidates for the period: those below ``low`` are refuted, those from ``high`` on no better than the plan."""

    def __init__(self, view: View, clock: Clock, gap: float, seed: int) -> None:
        self.view, self.clock, self.gap, self.seed = view, clock, gap, seed
        self.relaxation = Relaxation(view, clock)
        self.candidates = _candidates(view)
        self.low = 0
        self.proof = Proof()
        self.narrow_enough = labels.bits_needed(view) <= labels.MOST_BITS

    @property
    def done(self) -> bool:
        return self.proof.within(self.gap) or self.proof.bound == math.inf or self.clock.expired

    @property
    def high(self) -> int:
        if not self.proof.path:
            return len(self.candidates)
        return int(np.searchsorted(self.candidates, self.proof.cost * (1 - 1e-12)))

    def offer(self, path: Path) -> bool:
        """Take a plan if it is better, and improve it a little."""
        if not self.proof.offer(period(self.view, path), path):
            return False
        self.seed += 1
        _, better = local_search.improve(self.view, path, self.clock, moves=2_000, seed=self.seed, bottleneck=True)
        self.proof.offer(period(self.view, better), better)
        return True

    def refute_below(self, index: int) -> None:
        """Note that candidates before ``index`` are refuted."""
        self.low = max(self.low, index)
        if self.low >= self.high:
            self.proof.raise_to(self.proof.cost)  # inf without a plan: there is none
            if not self.proof.path:
                self.proof.bound = math.inf
        else:
            self.proof.raise_to(float(self.candidates[self.low]))

    def refuted_by_prices(self, index: int, steps: int = STEPS) -> bool:
        """Improve the prices against a candidate; a refutation is carried as far as the prices hold."""
        _, path = self.relaxation.refute(float(self.candidates[index]), steps)
        if path:
            self.offer(path)
        self.refute_below(self.relaxation.first_open(self.candidates, self.low, self.high))
        return self.low > index

    def raise_bound(self) -> None:
        """Raise the bound as far as prices reach; prices for a time ahead of the bound carry it farthest."""
        self.refute_below(self.relaxation.first_open(self.candidates, 0, self.high))
        lead = FIRST_LEAD
        while not self.done:
            ahead = int(np.searchsorted(self.candidates, self.candidates[self.low] * (1 + lead)))
            index, before = min(ahead, self.high - 1), self.low
            bound = self.proof.bound
            refuted = self.refuted_by_prices(index, PROBE_STEPS if index > before else STEPS)
            if index == before and (not refuted or self.proof.bound < bound * (1 + SLOW_RISE)):
                return
            if not refuted:
                lead = lead / 4 if lead > LAST_LEAD else 0.0

    def first_plan(self) -> None:
        """Look for a plan by narrow beams, at growing distance from the bound."""
        stretch = FIRST_STRETCH
        while self.narrow_enough and not self.proof.path and not self.done:
            index = int(np.searchsorted(self.candidates, self.candidates[self.low] * (1 + stretch)))
            index = min(index, len(self.candidates) - 1)
            if not self.refuted_by_prices(index, PROBE_STEPS):
                self.beam(index, EFFORTS[0][0])
            if index == len(self.candidates) - 1:
                return
            stretch *= 2

    def beam(self, index: int, width: int) -> bool | None:
        """Whether labels find a plan within a candidate; ``None``: left open."""
        if not self.narrow_enough:
            return None
        found = self.relaxation.beam(float(self.candidates[index]), width)
        self.proof.labels += found.num_labels
        if found.path:
            self.offer(found.path)
            return True
        return False if found.cut_off == math.inf else None

    def narrow(self) -> None:
        """Keep only the candidates that a plan better than the known one can have."""
        if self.done or not self.proof.path or self.refuted_by_prices(self.high - 1, PROBE_STEPS) or self.done:
            return
        remaining = self.remaining(self.high - 1)
        if remaining is None:
            return
        times = _times(self.view, remaining)
        kept = np.unique(times[(times >= self.candidates[self.low]) & (times <= self.candidates[self.high - 1])])
        self.candidates, self.low = kept, 0
        self.refute_below(0)

    def remaining(self, index: int) -> Remaining | None:
        try:
            return self.relaxation.remaining(float(self.candidates[index]))
        except OverflowError:
            return None

    def decide(self, effort: int) -> None:
        """Gallop from the bound while thresholds are refuted, then bisect; skip what stays open at this effort."""
        floor = self.low
        stride: float | None = 0.0  # None: a plan was found, bisect
        self.narrow()
        while not self.done:
            floor = max(self.low, min(floor, self.high))
            if floor >= self.high:
                return
            guess = (floor + self.high - 1) // 2
            if stride is not None:
                reach = int(np.searchsorted(self.candidates, self.candidates[floor] * (1 + stride)))
                guess = min(guess, max(reach, floor))
            self.proof.rounds += 1
            answer = self.possible(guess, effort)
            if answer:
                stride = None
                floor = min(floor, self.low)
                before = float(self.candidates[floor]) if floor < len(self.candidates) else math.inf
                self.narrow()
                floor = int(np.searchsorted(self.candidates, before))
            else:
                if answer is None:
                    floor = guess + 1
                else:
                    self.refute_below(guess + 1)
                stride = None if stride is None else max(FIRST_STRIDE, 2 * stride)

    def possible(self, index: int, effort: int) -> bool | None:
        """Whether a plan keeps a candidate (it is offered); ``None`` when that stays open at this effort."""
        width, nodes = EFFORTS[effort]
        best = self.proof.cost
        if self.refuted_by_prices(index):
            return False
        if self.proof.cost < best and self.high <= index:
            return True
        answer = self.beam(index, width)
        if answer is not None or self.clock.expired:
            return answer
        remaining = self.remaining(index)
        if remaining is None:
            return None
        size = CORE
        while True:
            count = min(size, len(remaining.rows))
            if count > MOST_SEGMENTS[effort]:
                return None
            core = Remaining(remaining.limit, remaining.rows[:count], remaining.through[:count])
            try:
                path = partition(self.view, core, time_limit_s=self.clock.left_s, nodes=nodes)
            except TimeoutError:
                return None
            if path:
                self.offer(path)
                return True
            if count == len(remaining.rows):
                return False
            size = math.ceil(GROWTH * size)


def _times(view: View, remaining: Remaining) -> Array:
    """Every time that a plan made of the remaining segments can have."""
    device, start, end = remaining.rows.T
    terms = [view.prefix[device, end] - view.prefix[device, start], view.enter, view.leave]
    for cut in range(1, view.num_elements):
        senders, receivers = np.unique(device[end == cut]), np.unique(device[start == cut])
        terms.append(view.link[view.page[cut]][np.ix_(senders, receivers)].ravel())
    times = np.concatenate(terms)
    return times[times <= remaining.limit * (1 + ROUNDING)]
