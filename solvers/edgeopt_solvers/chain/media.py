"""Reserved media inside the solvers: what transfers cost when the best shares are not known yet.

The best shares of a plan make one medium cost V = min Σ_k ω_k T_k(b_k) over Σ b_k <= 1, b_k <= 1, with T_k the seconds
that bytes take at share b_k. Three readings of V, each a sum over transfers, keep the chain a path problem:

* root (fixed rates):  V = S²,  S = Σ_k √(ω_k w_k), w_k the seconds with the whole medium;
* price λ >= 0:        V >= Σ_k φ_k(λ) − λ,  φ_k(λ) = min over 0 < b <= 1 of ω_k T_k(b) + λ b, tight at the best λ;
* need at level τ:     every transfer lasts τ at most if and only if Σ_k b_k(τ) <= 1, b_k(τ) the share that takes τ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.bandwidth import radio
from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.chain.check import list_transfers
from edgeopt_solvers.chain.instance import Chain, Solution
from edgeopt_solvers.chain.shares import second_weights

__all__ = ["Charge", "Reserved"]


@dataclass(frozen=True, slots=True)
class Charge:
    """An amount per transfer: at each cut, (L + 1, D, D), and for the loop, (D, D); 0 where nothing is reserved."""

    cut: Array
    loop: Array

    def plus(self, other: Charge | None, factor: float = 1.0) -> Charge:
        """Add ``factor`` times another charge."""
        return self if other is None else Charge(self.cut + factor * other.cut, self.loop + factor * other.loop)


@dataclass(slots=True)
class Reserved:
    """The reserved media of a chain that any link uses.

    Attributes
    ----------
    media
        Their indices in the chain, G of them.
    links
        Which directed links are reserved, (D, D).
    index
        Position of each reserved link's medium in ``media``, (D, D); 0 elsewhere.
    """

    chain: Chain
    media: list[int] = field(init=False)
    links: NDArray[np.bool_] = field(init=False)
    index: NDArray[np.intp] = field(init=False)
    _weighted: Charge = field(init=False)
    _seconds: Charge = field(init=False)
    _delay: Charge = field(init=False)

    def __post_init__(self) -> None:
        chain = self.chain
        self.links = chain.links_of("reserved")
        self.media = np.unique(chain.medium[self.links]).tolist()
        self.index = np.searchsorted(self.media, np.where(self.links, chain.medium, 0)).astype(np.intp)
        self.index = np.where(self.links, self.index, 0)
        rate = np.where(self.links & (chain.rate_bytes_per_s > 0), chain.rate_bytes_per_s, math.inf)
        self._seconds = Charge(chain.cut_bytes[:, None, None] / rate, chain.loop_bytes / rate)
        weight = second_weights(chain) if self.media else np.ones_like(rate)
        self._weighted = Charge(self._seconds.cut * weight, self._seconds.loop * weight)
        delay = np.where(self.links, chain.latency_s, 0.0)
        self._delay = Charge(chain.cut_messages[:, None, None] * delay, chain.loop_messages * delay)

    def __bool__(self) -> bool:
        return bool(self.media)

    @property
    def serves_period(self) -> bool:
        """Whether shares are to keep busy times short."""
        return "period" in self.chain.share_goals()

    @property
    def serves_sum(self) -> bool:
        """Whether shares shorten seconds that count one by one (and not the largest of them)."""
        return bool(self) and not self.serves_period

    @property
    def factor(self) -> dict[str, float]:
        """By how much the objective and each budget grow with what the reserved media cost."""
        if not self.serves_sum:
            return {}
        chain, weights, goals = self.chain, self.chain.weights, self.chain.share_goals()
        factor = {"objective": 1.0 if goals == {"mix"} else weights.get("latency", 0.0) + weights.get("energy", 0.0)}
        if goals == {"latency"} and chain.max_latency_s is not None:
            factor["max_latency_s"] = 1.0
        if goals == {"energy"} and chain.max_energy_j is not None:
            factor["max_energy_j"] = 1.0
        return factor

    @property
    def delay(self) -> Charge:
        """Seconds of the messages' latency alone."""
        return self._delay

    @property
    def seconds(self) -> Charge:
        """Seconds of the bytes with the whole medium."""
        return self._seconds

    def is_radio(self, g: int) -> bool:
        """Whether medium ``g`` of :attr:`media` is radio."""
        return bool(self.chain.band_hz[self.media[g]] > 0)

    def on(self, g: int, charge: Charge) -> Charge:
        """Keep what moves over medium ``g``."""
        mine = self.links & (self.index == g)
        return Charge(np.where(mine, charge.cut, 0.0), np.where(mine, charge.loop, 0.0))

    def root(self, g: int) -> Charge:
        """√(ω w) of each transfer over medium ``g``."""
        return self.on(g, Charge(np.sqrt(self._weighted.cut), np.sqrt(self._weighted.loop)))

    def priced(self, price: Array) -> tuple[Charge, Charge]:
        """Return φ(λ) of every transfer at the prices λ (G,) of the media, and the shares it is reached with."""
        cut, cut_share = self._priced(price, self._weighted.cut)
        loop, loop_share = self._priced(price, self._weighted.loop)
        return Charge(cut, loop), Charge(cut_share, loop_share)

    def _priced(self, price: Array, weighted: Array) -> tuple[Array, Array]:
        shape = weighted.shape
        lam = np.broadcast_to(np.where(self.links, price[self.index], 0.0), shape)
        by_radio = np.broadcast_to(self.chain.is_radio & self.links, shape)
        return _cheapest(lam, weighted, by_radio, np.broadcast_to(self.chain.snr, shape))

    def price_of(self, solution: Solution) -> Array:
        """Return the λ of each medium at which :meth:`priced` is tight for a plan, (G,): its shares add up to 1."""
        chain = self.chain
        best = np.zeros(len(self.media))
        moves = [m for m in list_transfers(chain, solution) if self.links[m[1], m[2]] and m[3] > 0]
        sender, receiver = (
            np.array([m[1] for m in moves], dtype=np.intp),
            np.array([m[2] for m in moves], dtype=np.intp),
        )
        weighted = np.array([m[3] for m in moves]) / chain.rate_bytes_per_s[sender, receiver]
        weighted = weighted * second_weights(chain)[sender, receiver]
        for g in range(len(self.media)):
            mine = (self.index[sender, receiver] == g) & (weighted > 0)
            if not mine.any():
                continue
            w, snr = weighted[mine], chain.snr[sender, receiver][mine]
            by_radio = np.full(len(w), self.is_radio(g))
            best[g] = np.square(np.sqrt(w).sum())
            if not self.is_radio(g):
                continue
            low, high = -60.0, 1.0  # of ln(λ / S²): with radio a medium never costs more than with fixed rates
            for _ in range(80):
                middle = 0.5 * (low + high)
                _, share = _cheapest(np.full(len(w), best[g] * math.exp(middle)), w, by_radio, snr)
                low, high = (middle, high) if share.sum() > 1 else (low, middle)
            best[g] *= math.exp(low)
        return best

    def need(self, g: int, level: float) -> Charge:
        """Share of medium ``g`` with which each transfer is over after ``level`` seconds; ``inf`` where none is."""
        cut = self._needed(self._seconds.cut, self._delay.cut, level)
        return self.on(g, Charge(cut, self._needed(self._seconds.loop, self._delay.loop, level)))

    def _needed(self, seconds: Array, delay: Array, level: float) -> Array:
        left = level - delay
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(left > 0, seconds / left, math.inf)
        by_radio = np.broadcast_to(self.chain.is_radio & self.links, seconds.shape) & (seconds > 0) & (left > 0)
        if by_radio.any():
            snr = np.broadcast_to(self.chain.snr, seconds.shape)[by_radio]
            unit = seconds[by_radio] * np.log1p(snr)  # b ln(1 + γ/b) · T = unit
            u = radio.inverse_rate(unit / snr / left[by_radio])
            with np.errstate(divide="ignore"):
                share[by_radio] = np.where(u > 0, snr / np.where(u > 0, u, 1.0), math.inf)
        share = np.where(share <= 1 + 1e-9, share, math.inf)
        fits = (seconds == 0) & (delay <= level * (1 + 1e-12))
        return np.where(seconds == 0, np.where(fits, 0.0, math.inf), share)


def _cheapest(lam: Array, weighted: Array, by_radio: NDArray[np.bool_], snr: Array) -> tuple[Array, Array]:
    """Return min over 0 < b <= 1 of ω T(b) + λ b, and its b, for transfers of ``weighted`` = ω T(1)."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        share = np.sqrt(weighted / lam)
    share = np.where((weighted > 0) & (lam > 0), np.minimum(share, 1.0), (weighted > 0).astype(np.float64))
    curved = by_radio & (weighted > 0) & (lam > 0) & (snr > 0)
    slower = np.where(share > 0, 1.0 / np.where(share > 0, share, 1.0), 0.0)
    if curved.any():
        gamma = snr[curved]
        # ω T(1) = a ω / ln(1 + γ); one more unit of share saves (a ω / γ²) F(u), u = γ / b
        unit = weighted[curved] * np.log1p(gamma)
        dearest = np.log(radio.price(gamma))  # below that price the whole medium is taken
        log_u, _ = radio.inverse_price(np.maximum(np.log(lam[curved]) - np.log(unit) + 2 * np.log(gamma), dearest))
        share[curved] = np.minimum(gamma * np.exp(-np.clip(log_u, -600.0, 600.0)), 1.0)
        slower[curved] = np.log1p(gamma) / (share[curved] * np.log1p(gamma / share[curved]))
    # the minimum is met up to rounding; a hair below stays below
    return (np.where(weighted > 0, weighted * slower, 0.0) + lam * share) * (1 - 1e-14), share
