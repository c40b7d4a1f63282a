"""How good samples are, and how the quality of a plan adds up over its steps; numbers only, no torch."""

from __future__ import annotations

from edgeopt.quality.metrics import (
    FeatureSpace,
    SampleQuality,
    evaluate,
    frechet_distance,
    kernel_distance,
    label_agreement,
    precision_recall,
)
from edgeopt.quality.surrogate import AdditiveFit, fit_additive, rank_correlation, safety_margin

__all__ = [
    "AdditiveFit", "FeatureSpace", "SampleQuality", "evaluate", "fit_additive", "frechet_distance", "kernel_distance",
    "label_agreement", "precision_recall", "rank_correlation", "safety_margin",
]  # fmt: skip
