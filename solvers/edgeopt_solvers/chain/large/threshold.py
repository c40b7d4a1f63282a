"""The period: the largest busy time of any device or link, by thresholds.

A lower bound comes from covering without hand-overs (``cover``), a plan from the cover and local search over orders.
Where hand-overs keep the two apart, thresholds in between are decided by the label search on what each allows.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from edgeopt_solvers.chain.large import cover as covering
from edgeopt_solvers.chain.large import labels, local_search
from edgeopt_solvers.chain.large.clock import Clock
from edgeopt_solvers.chain.large.latency import CLOSED, Proof, first_path
from edgeopt_solvers.chain.large.prices import plain_completions, raise_prices
from edgeopt_solvers.chain.large.view import Array, Path, View

__all__ = ["minimise_period", "period"]

#: Efforts at which thresholds are decided: width of the label search; moves and seconds of a cover go with it.
WIDTHS = (50, 500, 5_000, 50_000, 500_000)

#: Relaxations tried at the lowest threshold left, before bisection makes sure of an end.
NEWTON_TESTS = 3

#: Integer covers tried for a threshold: each may suit the hand-overs better than the last.
COVERS = 3


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
    proof = Proof()
    if start:
        proof.offer(period(view, start), start)
    found, impossible = first_path(view, clock)
    if impossible:
        proof.bound = math.inf
        return proof
    if found:
        _improve(view, proof, found, clock, 3_000, seed)
    candidates = _candidates(view)
    low = _raise_bound(view, proof, candidates, clock)
    if proof.within(gap) or clock.expired:
        return proof
    _decide(view, proof, _with_links(view, candidates[low:]), clock, gap, seed)
    return proof


def _improve(view: View, proof: Proof, path: Path, clock: Clock, moves: int, seed: int) -> None:
    proof.offer(period(view, path), path)
    _, better = local_search.improve(view, path, clock, moves=moves, seed=seed, bottleneck=True)
    if better:
        proof.offer(period(view, better), better)


def _candidates(view: View) -> Array:
    """Every time that a segment can take, and the fixed terms of the ends: the period is one of them or a link."""
    terms = [view.enter, view.leave]
    for d in range(view.num_devices):
        lengths = view.last_end[d] - np.arange(view.num_elements + 1)
        starts = np.repeat(np.arange(view.num_elements + 1), lengths)
        ends = starts + 1 + np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        terms.append(view.prefix[d, ends] - view.prefix[d, starts])
    times = np.concatenate(terms)
    return np.unique(times[np.isfinite(times)])


def _with_links(view: View, times: Array) -> Array:
    links = view.link[np.unique(view.page[1:-1])] if view.num_elements > 1 else view.link[:0]
    links = links[np.isfinite(links) & (links > times[0])]
    return np.unique(np.concatenate([times, links]))


def _raise_bound(view: View, proof: Proof, candidates: Array, clock: Clock) -> int:
    """Bisect for the smallest candidate that the covering relaxation allows; return its index."""
    copies, num_elements = view.copies, view.num_elements
    low, high = 0, len(candidates) - 1  # the answer is within; candidates[high] is allowed as far as is known
    if proof.path:
        high = min(high, int(np.searchsorted(candidates, proof.cost * (1 - 1e-12))))
    prices = np.ones(num_elements)
    finite = np.where(np.diff(view.last_end, axis=1) >= 0, np.diff(view.prefix, axis=1), np.nan)
    prices = np.nanmean(finite, axis=0)
    low = _farthest(view, candidates, prices, low, high)
    tests = 0
    while low < high and not clock.expired:
        # prices of a refuted threshold carry on far beyond it, so the lowest one left is tried first (Dinkelbach)
        middle = low if tests < NEWTON_TESTS else (low + high) // 2
        tests += 1
        try:
            found = covering.element_prices(
                covering.maximal_segments(view, candidates[middle]), num_elements, copies, clock.left_s
            )
        except TimeoutError:
            break
        if found is None:
            high = middle
        else:
            below = low
            low = max(low, _farthest(view, candidates, found, middle, high))
            if low <= middle:
                low = (
                    middle + 1
                    if covering.disproves(found, covering.maximal_segments(view, candidates[middle]), copies)
                    else low
                )
            if low == below:
                break  # the prices are too inexact to disprove what the relaxation refused
    proof.raise_to(float(candidates[min(low, len(candidates) - 1)]))
    return low


def _farthest(view: View, candidates: Array, prices: Array, low: int, high: int) -> int:
    """First index from ``low`` to ``high`` that the prices do not disprove (disproof is monotone in the period)."""
    copies = view.copies
    while low < high:
        middle = (low + high) // 2
        if covering.disproves(prices, covering.maximal_segments(view, candidates[middle]), copies):
            low = middle + 1
        else:
            high = middle
    return low


def _decide(view: View, proof: Proof, candidates: Array, clock: Clock, gap: float, seed: int) -> None:
    """Bisect the thresholds between bound and plan; what stays open at one effort is tried again at the next."""
    low = 0  # candidates below are refuted
    for width in WIDTHS:
        floor = low  # candidates below are refuted or stay open at this effort
        while not proof.within(gap) and not clock.expired:
            high = int(np.searchsorted(candidates, proof.cost * (1 - 1e-12))) if proof.path else len(candidates)
            if floor >= high:
                break
            guess = floor if floor == low and width == WIDTHS[0] and not proof.rounds else (floor + high) // 2
            proof.rounds += 1
            answer = _possible(view, proof, float(candidates[guess]), clock, seed + proof.rounds, width)
            if answer is None:
                floor = guess + 1
            elif not answer:
                low, floor = guess + 1, max(floor, guess + 1)
                if low == len(candidates):
                    proof.raise_to(math.inf)
                    return
                proof.raise_to(float(candidates[low]))
        if proof.path and low >= int(np.searchsorted(candidates, proof.cost * (1 - 1e-12))):
            proof.raise_to(proof.cost)


def _possible(view: View, proof: Proof, limit: float, clock: Clock, seed: int, width: int) -> bool | None:
    """Whether some plan stays within ``limit`` (it is offered to the proof); ``None`` when that stays open."""
    within = limit * (1 + 2 * covering.ROUNDING)
    allowed = _within(view, limit * (1 + covering.ROUNDING))
    link_into = np.ascontiguousarray(allowed.link.transpose(0, 2, 1))
    prices = raise_prices(allowed, link_into, clock, start=None, target=1.0, iterations=300)
    if prices.path:
        proof.offer(period(view, prices.path), prices.path)
        return True
    if prices.bound >= 1.0 - CLOSED:
        return False
    segments = covering.maximal_segments(view, limit)
    rng = np.random.default_rng(seed)
    for attempt in range(COVERS):
        weights = np.ones(len(segments.device)) if attempt == 0 else rng.uniform(1.0, 2.0, len(segments.device))
        try:
            chosen = covering.cover(segments, view.num_elements, view.copies, weights, min(clock.left_s, 0.2 * width))
        except TimeoutError:
            break
        if chosen is None:
            return False
        path = [(int(segments.device[i]), int(segments.end[i])) for i in chosen]
        _improve(view, proof, path, clock, 100 * width, seed + attempt)
        if proof.cost <= within:
            return True
    if proof.cost > within and proof.path:
        _improve(view, proof, proof.path, clock, 100 * width, seed + 1)
    if proof.cost <= within:
        return True
    if labels.bits_needed(view) > labels.MOST_BITS:
        return None
    found = labels.search(allowed, plain_completions(prices), clock, incumbent=1.0, tolerance=0.5, width=width)
    if found.path:
        proof.offer(period(view, found.path), found.path)
        return True
    return False if math.isinf(found.cut_off) else None


def _within(view: View, limit: float) -> View:
    """The view with only what takes at most ``limit``, at no cost."""
    reach = np.stack([np.searchsorted(row, row + limit, side="right") - 1 for row in view.prefix])
    last_end = np.maximum(np.minimum(view.last_end, reach), np.arange(view.num_elements + 1))

    def free(cost: Array) -> Array:
        return np.where(cost <= limit, 0.0, np.inf)

    return replace(
        view, prefix=np.zeros_like(view.prefix), last_end=last_end.astype(np.int64), link=free(view.link),
        enter=free(view.enter), leave=free(view.leave),
    )  # fmt: skip
