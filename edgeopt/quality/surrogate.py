"""A metric of the samples as a sum over steps, which a planner can optimise.

A denoising step in variant v is worse than one in the best variant by its noise-error gap g[v, i]: how much worse it
predicts the noise of held-out images at that step's noise level. The metric of a sampled plan is taken as

    metric ≈ base + Σ_i loss[v_i, i],   loss ≥ 0,

with losses that start as one multiple of the gaps and are then drawn to the sampled plans by least squares:

    minimise  Σ_p (metric_p - base - Σ_i loss[v_i^p, i])² + w Σ_{v,i} (loss[v, i] - s g[v, i])².

The gaps say how losses are spread over the steps, which few plans can tell; the plans say how much they matter.
Plans that had no part in the fit tell its error, and the margin that a plan which is to keep a quality should leave.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["AdditiveFit", "fit_additive", "rank_correlation", "safety_margin"]

Array = NDArray[np.float64]

#: Weight w of the gaps. A plan sums dozens of losses, so a small weight leaves the plans in charge.
_PULL = 0.03


@dataclass(frozen=True, slots=True)
class AdditiveFit:
    """Losses of each variant's steps, and what they predict.

    Attributes
    ----------
    base : float
        Metric of the run in the best variant, as sampled.
    loss : (V, T)
        Zero for the best variant.
    scale : float
        Metric per unit of noise-error gap before the losses were drawn to the plans.
    """

    base: float
    loss: Array
    scale: float

    def predict(self, plans: Sequence[Sequence[int]]) -> Array:
        """Return the metric of each plan, given as its variant at each step."""
        steps = np.arange(self.loss.shape[1])
        return np.array([self.base + self.loss[np.asarray(plan), steps].sum() for plan in plans])

    def rms_error(self, plans: Sequence[Sequence[int]], metric: ArrayLike) -> float:
        """Return the root mean square error over sampled plans, in units of the metric."""
        return float(np.sqrt(np.mean((self.predict(plans) - np.asarray(metric, dtype=float)) ** 2)))


def fit_additive(
    gaps: ArrayLike, best: int, plans: Sequence[Sequence[int]], metric: ArrayLike, base: float, pull: float = _PULL
) -> AdditiveFit:
    """Fit losses to sampled plans.

    Parameters
    ----------
    gaps : (V, T)
        Noise-error gaps; what is below zero (noise of the measurement, or a variant that is better there) counts as 0.
    best
        The variant whose steps cost nothing.
    plans : P lists of T variants
    metric : (P,)
        Of the samples of each plan, smaller is better.
    base
        Metric of the run in ``best``.
    pull
        Weight of the gaps' shape against the plans.

    Raises
    ------
    ValueError
        Shapes that do not fit together, or no plan with a variant besides the best.
    """
    from scipy.optimize import nnls

    g = np.asarray(gaps, dtype=float).clip(min=0)
    y = np.asarray(metric, dtype=float) - base
    num_variants, num_steps = g.shape
    chosen = np.asarray(plans, dtype=int)
    if chosen.shape != (len(y), num_steps) or not 0 <= best < num_variants:
        raise ValueError(f"{chosen.shape} plan steps and {y.shape} figures for {g.shape} gaps")
    others = [v for v in range(num_variants) if v != best]
    uses = np.stack([chosen == v for v in others], axis=1).reshape(len(y), -1).astype(float)
    shape = g[others].ravel()
    sums = uses @ shape
    if not sums.any():
        raise ValueError("no plan uses a variant that is worse than the best one: nothing to fit")
    scale = max(0.0, float(sums @ y / (sums @ sums)))
    stacked = np.vstack([uses, np.sqrt(pull) * np.eye(len(shape))])
    flat, _ = nnls(stacked, np.concatenate([y, np.sqrt(pull) * scale * shape]))
    loss = np.zeros_like(g)
    loss[others] = flat.reshape(len(others), num_steps)
    return AdditiveFit(float(base), loss, scale)


def safety_margin(predicted: ArrayLike, sampled: ArrayLike, coverage: float = 0.9) -> float:
    """Return by which fraction a prediction has to be raised to hold for a further plan with a given probability.

    The split-conformal quantile (Vovk, Gammerman, Shafer 2005; Lei et al., arXiv 1604.04173): of n plans that had no
    part in the fit, the ceil((n + 1) coverage)-th smallest of sampled / predicted - 1. The next plan drawn like them
    stays below it with at least that probability. Errors of a distance grow with the distance, hence the ratio.

    Parameters
    ----------
    predicted, sampled : (n,)
        Positive; smaller is better.

    Returns
    -------
    float
        At least 0. Below ``coverage / (1 - coverage)`` plans it is the largest excess seen, which promises less.
    """
    guessed, seen = np.asarray(predicted, dtype=float), np.asarray(sampled, dtype=float)
    if guessed.shape != seen.shape or guessed.ndim != 1 or not len(guessed) or not (guessed > 0).all():
        raise ValueError(f"{guessed.shape} predictions and {seen.shape} samples: give two lists of positive numbers")
    excess = np.sort(seen / guessed - 1)
    rank = min(math.ceil(coverage * (len(excess) + 1) - 1e-9), len(excess))
    return max(0.0, float(excess[rank - 1]))


def rank_correlation(first: ArrayLike, second: ArrayLike) -> float:
    """Return Spearman's rank correlation, ties sharing their mean rank; ``nan`` where one list is constant."""
    x, y = _ranks(first), _ranks(second)
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(f"lists of {len(x)} and {len(y)} numbers have no rank correlation")
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm else float("nan")


def _ranks(values: ArrayLike) -> Array:
    _, place, counts = np.unique(np.asarray(values, dtype=float), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]
