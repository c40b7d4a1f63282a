"""One reserved medium with fixed rates: least C + S² over plans that use each device once.

C is everything additive, S = Σ √(f ω w) over the reserved transfers, and S² what they cost with the best shares (f: by
how much the objective grows with it). Plans are found by local search on tangents C + 2 μ S − μ²; bounds come from
tangents at several μ, with prices and with memory (``tangents.py``); plans that no μ makes cheapest are found, or
ruled out, by labels with both sums (``kernels_joint.py``). Effort is scheduled by work, not by time.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.instance import Chain
from edgeopt_solvers.chain.large import kernels_joint, labels, local_search
from edgeopt_solvers.chain.large.clock import Clock
from edgeopt_solvers.chain.large.latency import CLOSED, LABEL_WORK_PER_S, MEMORY_WORK_PER_S, SECONDS_PER_MOVE, Proof
from edgeopt_solvers.chain.large.prices import plain_completions
from edgeopt_solvers.chain.large.tangents import Tangent, Tangents
from edgeopt_solvers.chain.large.view import Array, Ints, Path, View, additive_view
from edgeopt_solvers.chain.media import Reserved

Masks = NDArray[np.uint64]

__all__ = ["Joint", "joint_view", "minimise"]

#: Bits of a label's set of devices, and labels that a pass may hold (some 100 bytes each).
MOST_DEVICES, MOST_LABELS = 64, 3_000_000

#: Widest pass; without a time limit, that many of them may leave something out.
MOST_WIDTH, WIDEST_PASSES = 100_000, 3

#: Most rounds in which μ follows S of the plan found, and in which it goes where the bound is lowest.
ROUNDS = 5

#: Work that goes into local search, per work on bounds: passes of labels find what it misses.
LOCAL_SHARE = 0.15

#: Relative distance of two slopes that are as good as one.
SAME = 0.04


@dataclass(frozen=True, slots=True)
class Joint:
    """The additive part as a view, and √(f ω w) of every transfer in the same shape (0 where nothing is reserved)."""

    view: View
    link: Array
    enter: Array
    leave: Array

    def keep(self, devices: Ints) -> Joint:
        """The problem on some of the devices only."""
        link = np.ascontiguousarray(self.link[:, devices][:, :, devices])
        return Joint(self.view.keep(devices), link, self.enter[devices], self.leave[devices])

    def at(self, mu: float) -> View:
        """The tangent at μ, without its constant."""
        return replace(
            self.view,
            link=np.ascontiguousarray(self.view.link + 2 * mu * self.link),
            enter=self.view.enter + 2 * mu * self.enter,
            leave=self.view.leave + 2 * mu * self.leave,
        )

    def root(self, path: Path) -> float:
        """S of a path."""
        total = self.enter[path[0][0]] + self.leave[path[-1][0]]
        for (device, end), (after, _) in itertools.pairwise(path):
            total += self.link[self.view.page[end], device, after]
        return float(total)

    def cost(self, path: Path) -> float:
        """C + S² of a path."""
        return self.view.cost(path) + self.root(path) ** 2

    def least_rest(self) -> Array:
        """Least S that any completion adds after a segment ended there, (L + 1, G), devices repeated or not."""
        view = self.view
        rest = np.zeros((view.num_elements + 1, view.num_devices))
        rest[-1] = self.leave
        through = np.full(view.num_devices, np.inf)  # least after any later end of a segment that runs on a device
        steps = np.where(np.isfinite(view.link), self.link, np.inf)
        for cut in range(view.num_elements - 1, 0, -1):
            through = np.minimum(through, rest[cut + 1])
            rest[cut] = (steps[view.page[cut]] + through[None, :]).min(axis=1)
        return np.where(np.isfinite(rest), rest, 0.0)


def joint_view(chain: Chain) -> Joint:
    """Split an instance with one reserved medium into its two sums."""
    reserved = Reserved(chain)
    bytes_free = np.where(reserved.links & (chain.rate_bytes_per_s > 0), math.inf, chain.rate_bytes_per_s)
    private = np.full_like(chain.medium, -1)
    none, silent = np.zeros(0), np.zeros_like(chain.snr)
    bare = replace(chain, rate_bytes_per_s=bytes_free, media=(), medium=private, band_hz=none, snr=silent)
    view = additive_view(bare)
    scale = math.sqrt(reserved.factor["objective"])
    root = scale * reserved.root(0).cut
    pages = np.zeros_like(view.link)
    for cut in range(1, chain.num_elements):
        if chain.cut_legal[cut]:
            pages[view.page[cut]] = root[cut]
    enter = leave = np.zeros(chain.num_devices)
    if chain.source is not None:
        enter, leave = root[0, chain.source].copy(), root[-1, :, chain.source].copy()
    return Joint(view, pages, enter, leave)


class _Search:
    def __init__(self, joint: Joint, clock: Clock, gap: float, seed: int) -> None:
        self.joint, self.clock, self.gap, self.seed = joint, clock, gap, seed
        self.proof = Proof()
        self.tangents = Tangents()
        self.least = joint.least_rest()
        self.labels_s = self.anneal_s = self.memory_s = 0.0

    @property
    def tolerance(self) -> float:
        return 0.99 * max(self.gap, CLOSED) * self.proof.cost if math.isfinite(self.proof.cost) else 0.0

    @property
    def done(self) -> bool:
        return self.proof.within(self.gap) or math.isinf(self.proof.bound) or self.clock.expired

    def offer(self, path: Path | None) -> bool:
        return path is not None and len(path) > 0 and self.proof.offer(self.joint.cost(path), path)

    def note_bound(self) -> None:
        """What the tangents prove together."""
        if self.tangents.items:
            self.proof.raise_to(max(0.0, self.tangents.lowest()[1]))

    def tangent(self, mu: float, iterations: int) -> Tangent:
        """The tangent at μ (or one as good), its prices raised by up to ``iterations`` steps."""
        near = self.tangents.nearest(mu) if self.tangents.items else None
        start = None if near is None else near.prices.price
        if near is None or abs(near.mu - mu) > SAME * mu:
            near = Tangent.of(mu, self.joint.at(mu))
            self.tangents.add(near)
        target = math.inf if not self.proof.path else near.view.cost(self.proof.path) - self.tolerance
        near.raise_prices(self.clock, start=start, target=target, iterations=iterations)
        self.offer(near.prices.path)
        self.note_bound()
        return near

    def here(self) -> Tangent:
        """The tangent nearest to the best plan."""
        assert self.proof.path is not None
        return self.tangents.nearest(self.joint.root(self.proof.path))

    def anneal(self, tangent: Tangent, moves: int, path: Path | None = None) -> Path:
        """Local search on a tangent, by default from the best plan."""
        self.seed += 1
        self.anneal_s += moves * SECONDS_PER_MOVE
        start = path or self.proof.path
        assert start is not None
        _, found = local_search.improve(tangent.view, start, self.clock, moves=moves, seed=self.seed)
        self.offer(found)
        return found

    def beam(self, tangent: Tangent, width: int) -> Path:
        """A plan that is good for a tangent, by a narrow pass; empty if it met none better than the best."""
        known = math.inf if not self.proof.path else tangent.view.cost(self.proof.path)
        found = labels.search(
            tangent.view, plain_completions(tangent.prices), self.clock, incumbent=known, tolerance=0.0, width=width
        )
        self.offer(found.path)
        if math.isinf(known) and not found.path and math.isinf(found.cut_off):
            self.proof.bound = math.inf
        return found.path

    def remember(self) -> None:
        """Raise the bound with memory where the tangents are lowest."""
        at, _ = self.tangents.lowest()
        tangent = self.tangents.nearest(at)
        memory = tangent.remember()
        before = memory.work
        memory.improve(self.proof.cost + tangent.mu**2, self.tolerance, 1, 10, self.clock)
        tangent.bound = max(tangent.bound, memory.bound)
        self.memory_s += (memory.work - before) / MEMORY_WORK_PER_S
        self.offer(memory.elementary[1])
        self.note_bound()

    def labels(self, width: int) -> bool:
        """One pass with both sums; whether that ends the search."""
        joint, view, cost, tolerance = self.joint, self.joint.view, self.proof.cost, self.tolerance
        low, high = self.tangents.range(cost)
        chosen = self.tangents.within(low, high)
        completions = [tangent.completions(cost - tolerance, self.clock) for tangent in chosen]
        if any(one is None for one in completions):
            return self.done
        closed = _stacked([one.closed for one in completions if one])
        opened = _stacked([one.opened for one in completions if one])
        price = np.array([one.price for one in completions if one])
        _, cut_off, stages, length, num_labels, work = kernels_joint.joint_search(
            view.prefix, view.last_end, view.min_segment, view.link, joint.link, view.page, view.enter, joint.enter,
            view.leave, joint.leave, np.array([tangent.mu for tangent in chosen]), price, price.sum(axis=1),
            *closed, *opened, self.least, low, high, cost, tolerance, width, MOST_LABELS, self.clock.stop,
        )  # fmt: skip
        self.offer([(int(device), int(end)) for device, end in stages[:length][::-1]])
        self.proof.labels += int(num_labels)
        self.proof.rounds += 1
        self.labels_s += work / LABEL_WORK_PER_S
        self.proof.raise_to(min(float(cut_off), self.proof.cost - tolerance))
        # a pass that left nothing out, and found a much cheaper plan, allowed for more rounding than that plan has
        return self.done or (math.isinf(cut_off) and self.labels(width))


def _stacked(lists: list[tuple[Ints, Array, Masks]]) -> tuple[Ints, Array, Masks]:
    """Lists of several slopes one after another: starts (K, states + 1), values, masks."""
    offsets = np.cumsum([0] + [len(values) for _, values, _ in lists[:-1]])
    starts = np.array([start + offset for (start, _, _), offset in zip(lists, offsets, strict=True)])
    return starts, np.concatenate([values for _, values, _ in lists]), np.concatenate([masks for *_, masks in lists])


def minimise(joint: Joint, clock: Clock, *, gap: float = 0.0, seed: int = 0, start: Path | None = None) -> Proof | None:
    """Find a cheapest path, or the best found with its bound when the clock runs out.

    Returns
    -------
    Proof or None
        ``None`` where there is no time limit, and labels do not suffice within what may be held of them.
    """
    search = _Search(joint, clock, gap, seed)
    if start and math.isfinite(joint.view.cost(start)):
        search.offer(start)
    _find(search)
    if search.done:
        return search.proof
    if not search.proof.path:
        return None
    _bound(search)
    return search.proof if _close(search) else None


def _find(search: _Search) -> None:
    """Follow S: a plan at slope μ, its S as the next μ, until they agree."""
    positive = search.joint.link[search.joint.link > 0]
    mu = 2 * float(np.median(positive)) if positive.size else 0.0
    for _ in range(ROUNDS):
        tangent = search.tangent(mu, 80)
        width, path = 20, []
        while not search.done and width <= 1_000_000:
            path = search.beam(tangent, width)
            if path or search.proof.path:
                break
            width *= 10  # nothing found yet: look wider
        if search.done or not search.proof.path:
            return
        path = search.anneal(tangent, 2_000, path)
        root = search.joint.root(search.proof.path)
        if abs(root - mu) <= SAME * root:
            return
        mu = root


def _bound(search: _Search) -> None:
    """Tangents where the bound is lowest, and plans for them."""
    for _ in range(ROUNDS):
        if search.done:
            return
        before = search.proof.bound
        tangent = search.tangent(search.tangents.lowest()[0], 150)
        if not search.done:
            search.anneal(tangent, 2_000)
        if search.proof.bound - before < 0.02 * (search.proof.cost - search.proof.bound):
            break


def _close(search: _Search) -> bool:
    """Label passes, memory and local search in turn, each with its share of the work; whether there was room enough."""
    width, moves, widest = 50, 5_000, 0
    while not search.done and not search.labels(width):
        widest += width == MOST_WIDTH
        if widest == WIDEST_PASSES and math.isinf(search.clock.left_s):
            return False
        while not search.done:
            search.remember()
            while not search.done and search.anneal_s < LOCAL_SHARE * (search.memory_s + search.labels_s):
                best = search.proof.cost
                search.anneal(search.here(), moves)
                if search.proof.cost == best:
                    moves = min(2 * moves, 500_000)
            if search.labels_s <= search.memory_s:
                break
        width = min(2 * width, MOST_WIDTH)
    return True
