"""The problems of the family, each in a file of its own, and what backends may be asked to express."""

from __future__ import annotations

from edgeopt_solvers.policy.cascade import CASCADE_FEATURES, Cascade, CascadeSolution
from edgeopt_solvers.policy.speculative import SPECULATIVE_FEATURES, Speculative, SpeculativeSolution
from edgeopt_solvers.policy.staged import STAGED_FEATURES, StagedSolution, StagedSpeculative
from edgeopt_solvers.policy.validate import LIMIT_TOLERANCE

__all__ = [
    "CASCADE_FEATURES",
    "FEATURES",
    "LIMIT_TOLERANCE",
    "SPECULATIVE_FEATURES",
    "STAGED_FEATURES",
    "Cascade",
    "CascadeSolution",
    "Speculative",
    "SpeculativeSolution",
    "StagedSolution",
    "StagedSpeculative",
]

#: Optional features; backends state which of them they can express.
FEATURES = SPECULATIVE_FEATURES | STAGED_FEATURES | CASCADE_FEATURES
