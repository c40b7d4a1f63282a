"""Measure the quality of a trained family of denoisers: of its steps, of its runs, and of one plan."""

from __future__ import annotations

from edgeopt.profiler.quality.cascade import LevelSampler, profile_cascade
from edgeopt.profiler.quality.family import PlanQuality, profile_quality, sample_plan
from edgeopt.profiler.quality.reference import Reference
from edgeopt.profiler.quality.sampling import PlanSampler, noise_errors

__all__ = [
    "LevelSampler", "PlanQuality", "PlanSampler", "Reference", "noise_errors", "profile_cascade", "profile_quality",
    "sample_plan",
]  # fmt: skip
