"""Quality of a multi-stage plan as losses on the chain, smaller is better.

``additive``: quality = base + sum over steps of loss[variant, step] (+ a constant per hand-off). ``table``: the
quality of "first variant for a fraction, second for the rest" was measured; the chain carries it exactly: the second
variant at the first step costs table(0), a hand-over at cut c costs table(c), the first variant at the last step
costs table(1), and every other hand-off between denoisers was not measured and is forbidden. ``whole``: runs with one
variant were measured; it costs its quality at the first step, and no hand-off to another is allowed.

Losses that were fitted come with a margin, by which samples may exceed the sum: a plan that has to keep a quality q is
held to q / (1 + margin), but never to less than ``base``, which was itself sampled.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.costs.diffusion import DiffusionCosts
from edgeopt.profiles.model import AdditiveQuality, TableQuality, WholeQuality
from edgeopt.profiles.problem import Problem

__all__ = ["QualityTerms", "asked_for", "quality_terms", "resample"]

Array = NDArray[np.float64]


class QualityTerms(NamedTuple):
    """Quality = ``base`` + losses of a plan's steps and hand-offs.

    Attributes
    ----------
    base : float
    loss : (V, L)
        Chain variant by element.
    handoff : (V, V, L + 1)
        ``inf`` where the profile says nothing.
    unmeasured : list of int
        Chain variants whose quality the profile does not hold; a plan may not use them.
    margin : float
        Fraction by which samples may exceed what is predicted.
    """

    base: float
    loss: Array
    handoff: Array
    unmeasured: list[int]
    margin: float = 0.0

    def target(self, asked: float) -> float:
        """Return the predicted quality that keeps ``asked`` with the margin left."""
        return asked if asked < self.base else max(self.base, asked / (1.0 + self.margin))


def quality_terms(costs: DiffusionCosts) -> QualityTerms | None:
    """Return the model's quality as chain losses, or ``None`` for a model without quality."""
    quality = costs.model.quality
    if quality is None:
        return None
    if isinstance(quality, AdditiveQuality):
        return _additive(quality, costs)
    if isinstance(quality, WholeQuality):
        return _whole(quality, costs)
    return _table(quality, costs)


def asked_for(problem: Problem, predicted: float) -> float:
    """Return the quality to ask for so that plans predicted at ``predicted`` keep it, margin and all."""
    margin = getattr(getattr(problem.model, "quality", None), "margin", None) or 0.0
    return max(predicted, predicted * (1.0 + margin))


def _additive(quality: AdditiveQuality, costs: DiffusionCosts) -> QualityTerms:
    num_variants, num_elements = len(costs.variants), len(costs.names)
    loss = np.zeros((num_variants, num_elements))
    unmeasured = []
    for row, name in enumerate(costs.variants[1:], start=1):
        if name in quality.loss:
            loss[row, costs.steps] = resample(quality.loss[name], costs.solver.calls)
        else:
            unmeasured.append(row)
    handoff = np.zeros((num_variants, num_variants, num_elements + 1))
    handoff[1:, 1:] = (quality.handoff * (1 - np.eye(num_variants - 1)))[:, :, None]
    return QualityTerms(quality.base, loss, handoff, unmeasured, quality.margin or 0.0)


def resample(loss: list[float], num_steps: int) -> Array:
    """Spread per-step losses over another number of steps so that every leading fraction keeps its sum."""
    cumulative = np.concatenate([[0.0], np.cumsum(loss)])
    at = np.interp(np.linspace(0, 1, num_steps + 1), np.linspace(0, 1, len(loss) + 1), cumulative)
    return np.diff(at)


def _table(quality: TableQuality, costs: DiffusionCosts) -> QualityTerms:
    num_variants, num_elements = len(costs.variants), len(costs.names)
    first, second = (costs.variants.index(name) for name in (quality.first, quality.second))
    start, end = costs.steps.start, costs.steps.stop
    loss = np.zeros((num_variants, num_elements))
    loss[second, start], loss[first, end - 1] = quality.quality[0], quality.quality[-1]
    handoff = _no_handoff(num_variants, num_elements)
    inside = np.arange(start + 1, end)
    handoff[first, second, inside] = np.interp((inside - start) / (end - start), quality.fraction, quality.quality)
    unmeasured = [v for v in range(1, num_variants) if v not in (first, second)]
    return QualityTerms(0.0, loss, handoff, unmeasured)


def _whole(quality: WholeQuality, costs: DiffusionCosts) -> QualityTerms:
    num_variants, num_elements = len(costs.variants), len(costs.names)
    loss = np.zeros((num_variants, num_elements))
    for name, value in quality.quality.items():
        loss[costs.variants.index(name), costs.steps.start] = value
    unmeasured = [v for v in range(1, num_variants) if costs.variants[v] not in quality.quality]
    return QualityTerms(0.0, loss, _no_handoff(num_variants, num_elements), unmeasured, quality.margin or 0.0)


def _no_handoff(num_variants: int, num_elements: int) -> Array:
    """Forbid every hand-over between two denoisers."""
    handoff = np.zeros((num_variants, num_variants, num_elements + 1))
    for v in range(1, num_variants):
        handoff[v, [w for w in range(1, num_variants) if w != v]] = np.inf
    return handoff
