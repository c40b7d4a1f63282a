"""One reserved medium with fixed rates: least C + f S² over plans that use each device once.

C is everything additive, S = Σ √(ω w) over the reserved transfers, and f S² what they cost with the best shares. For
any μ the tangent C + f (2 μ S − μ²) is an additive objective with a bound of its own, best at μ = S of the best plan;
plans that no μ makes cheapest are found, or ruled out, by labels with both sums (``kernels_joint.py``).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np

from edgeopt_solvers.chain.instance import Chain
from edgeopt_solvers.chain.large import kernels_joint, latency
from edgeopt_solvers.chain.large.clock import Clock
from edgeopt_solvers.chain.large.latency import Proof
from edgeopt_solvers.chain.large.prices import raise_prices
from edgeopt_solvers.chain.large.view import Array, Ints, Path, View, additive_view
from edgeopt_solvers.chain.media import Reserved

__all__ = ["Joint", "joint_view", "minimise"]

#: Bits of a label's set of devices, and labels that a pass may hold (some 80 bytes each).
MOST_DEVICES, MOST_LABELS = 64, 4_000_000

#: Rounds in which μ follows S of the plan found, and the factors around the last μ that bounds are taken at.
ROUNDS, AROUND = 4, (1.0, 0.93, 1.07)

#: Relative gap at which a tangent's plan is good enough to follow.
NEAR = 0.01


@dataclass(frozen=True, slots=True)
class Joint:
    """The additive part as a view, and √(ω w) of every transfer in the same shape (0 where nothing is reserved)."""

    view: View
    link: Array
    enter: Array
    leave: Array
    factor: float

    def keep(self, devices: Ints) -> Joint:
        """The problem on some of the devices only."""
        link = np.ascontiguousarray(self.link[:, devices][:, :, devices])
        return Joint(self.view.keep(devices), link, self.enter[devices], self.leave[devices], self.factor)

    def at(self, mu: float) -> View:
        """The tangent at μ, without its constant."""
        slope = 2 * self.factor * mu
        return replace(
            self.view,
            link=np.ascontiguousarray(self.view.link + slope * self.link),
            enter=self.view.enter + slope * self.enter,
            leave=self.view.leave + slope * self.leave,
        )

    def root(self, path: Path) -> float:
        """S of a path."""
        total = self.enter[path[0][0]] + self.leave[path[-1][0]]
        for (device, end), (after, _) in itertools.pairwise(path):
            total += self.link[self.view.page[end], device, after]
        return float(total)

    def cost(self, path: Path) -> float:
        """C + f S² of a path."""
        return self.view.cost(path) + self.factor * self.root(path) ** 2

    def least_rest(self) -> Array:
        """Least S that any completion adds after a segment ended there, (L + 1, G), devices repeated or not."""
        view = self.view
        rest = np.zeros((view.num_elements + 1, view.num_devices))
        rest[-1] = self.leave
        through = np.full(view.num_devices, np.inf)  # least after any later end of a segment that runs on a device
        for cut in range(view.num_elements - 1, 0, -1):
            through = np.minimum(through, rest[cut + 1])
            step = np.where(np.isfinite(view.link[view.page[cut]]), self.link[view.page[cut]], np.inf)
            rest[cut] = (step + through[None, :]).min(axis=1)
        return np.where(np.isfinite(rest), rest, 0.0)


def joint_view(chain: Chain) -> Joint:
    """Split an instance with one reserved medium into its two sums."""
    reserved = Reserved(chain)
    bytes_free = np.where(reserved.links & (chain.rate_bytes_per_s > 0), math.inf, chain.rate_bytes_per_s)
    private = np.full_like(chain.medium, -1)
    none, silent = np.zeros(0), np.zeros_like(chain.snr)
    bare = replace(chain, rate_bytes_per_s=bytes_free, media=(), medium=private, band_hz=none, snr=silent)
    view = additive_view(bare)
    root = reserved.root(0).cut
    pages = np.zeros_like(view.link)
    for cut in range(1, chain.num_elements):
        if chain.cut_legal[cut]:
            pages[view.page[cut]] = root[cut]
    enter = leave = np.zeros(chain.num_devices)
    if chain.source is not None:
        enter, leave = root[0, chain.source].copy(), root[-1, :, chain.source].copy()
    return Joint(view, pages, enter, leave, reserved.factor["objective"])


@dataclass(frozen=True, slots=True)
class _Bounds:
    """Completions at several μ (K of them)."""

    mu: Array
    price: Array
    base: Array
    closed: Array
    opened: Array
    bound: float


class _Search:
    def __init__(self, joint: Joint, clock: Clock, gap: float) -> None:
        self.joint, self.clock, self.gap = joint, clock, gap
        self.proof = Proof()
        self.least = joint.least_rest()

    @property
    def done(self) -> bool:
        return self.proof.within(self.gap) or math.isinf(self.proof.bound) or self.clock.expired

    def offer(self, path: Path) -> None:
        if path:
            self.proof.offer(self.joint.cost(path), path)

    def bounds(self, mus: list[float], iterations: int) -> _Bounds:
        found = []
        for mu in mus:
            view = self.joint.at(mu)
            into = np.ascontiguousarray(view.link.transpose(0, 2, 1))
            tangent = self.joint.factor * mu * mu
            target = self.proof.cost + tangent
            found.append(raise_prices(view, into, self.clock, start=None, target=target, iterations=iterations))
            self.offer(found[-1].path)
            self.proof.raise_to(max(0.0, found[-1].bound - tangent))
        best = max(prices.bound - self.joint.factor * mu * mu for prices, mu in zip(found, mus, strict=True))
        return _Bounds(
            np.array(mus), np.array([p.price for p in found]), np.array([p.base for p in found]),
            np.array([p.closed for p in found]), np.array([p.opened for p in found]), best,
        )  # fmt: skip

    def labels(self, bounds: _Bounds, width: int) -> bool:
        """One pass; whether it left nothing out."""
        joint, view = self.joint, self.joint.view
        cost = self.proof.cost
        tolerance = 0.99 * max(self.gap, 1e-9) * cost if math.isfinite(cost) else 0.0
        capacity = min(MOST_LABELS, max(200_000, width * view.num_elements * 4))
        _, cut_off, stages, length, num_labels = kernels_joint.joint_search(
            view.prefix, view.last_end, view.min_segment, view.link, joint.link, view.page, view.enter, joint.enter,
            view.leave, joint.leave, joint.factor, bounds.mu, bounds.price, bounds.base, bounds.closed, bounds.opened,
            self.least, cost, tolerance, width, capacity, self.clock.stop,
        )  # fmt: skip
        self.offer([(int(device), int(end)) for device, end in stages[:length][::-1]])
        self.proof.labels += int(num_labels)
        self.proof.rounds += 1
        self.proof.raise_to(min(float(cut_off), self.proof.cost - tolerance))
        return math.isinf(cut_off)


def minimise(joint: Joint, clock: Clock, *, gap: float = 0.0, seed: int = 0, start: Path | None = None) -> Proof | None:
    """Find a cheapest path, or the best found with its bound when the clock runs out.

    Returns
    -------
    Proof or None
        ``None`` where labels do not suffice within what may be held of them.
    """
    search = _Search(joint, clock, gap)
    if start and math.isfinite(joint.view.cost(start)):
        search.offer(start)
    positive = joint.link[joint.link > 0]
    mu = 2 * float(np.median(positive)) if positive.size else 0.0
    for _ in range(ROUNDS):
        tangent = joint.factor * mu * mu
        near = latency.minimise(joint.at(mu), clock, gap=max(gap, NEAR), seed=seed)
        if near.path is None:
            search.proof.bound = math.inf if math.isinf(near.bound) else search.proof.bound
            return search.proof if math.isinf(near.bound) or clock.expired else None
        search.offer(near.path)
        search.proof.raise_to(max(0.0, near.bound - tangent))
        assert search.proof.path is not None
        root = joint.root(search.proof.path)
        if search.done or abs(root - mu) <= 0.02 * root:
            break
        mu = root
    assert search.proof.path is not None
    mu = joint.root(search.proof.path)
    bounds = search.bounds([mu * factor for factor in AROUND], 300)
    width = 20
    while not search.done:
        if search.labels(bounds, width):
            break
        width *= 8
        if width > 1_000_000:
            return None
    return search.proof
