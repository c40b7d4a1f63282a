"""A few small integers or thresholds on top of a placement: speculative decoding, and cascades of models."""

from __future__ import annotations

from edgeopt_solvers.policy.check import evaluate
from edgeopt_solvers.policy.curve import Frontier, frontier
from edgeopt_solvers.policy.diagnose import diagnose
from edgeopt_solvers.policy.evaluation import Evaluation
from edgeopt_solvers.policy.instance import (
    CASCADE_FEATURES,
    FEATURES,
    LIMIT_TOLERANCE,
    Cascade,
    CascadeSolution,
    Speculative,
    SpeculativeSolution,
    StagedSolution,
    StagedSpeculative,
)

__all__ = [
    "CAPABILITIES",
    "CASCADE_FEATURES",
    "FEATURES",
    "LIMIT_TOLERANCE",
    "Cascade",
    "CascadeSolution",
    "Evaluation",
    "Frontier",
    "Speculative",
    "SpeculativeSolution",
    "StagedSolution",
    "StagedSpeculative",
    "diagnose",
    "evaluate",
    "frontier",
]

#: Backend → features it can express; anything else is refused before building. Speculative decoding is a choice among
#: at most millions of candidates, which are simply all evaluated: a program would list them as its columns; where the
#: target may be cut, the chains of these candidates have programs of their own. Cascades have no convex form:
#: thresholds move queries one by one.
CAPABILITIES: dict[str, frozenset[str]] = {
    "exact": FEATURES,
    "pulp": CASCADE_FEATURES,
    "ortools": CASCADE_FEATURES,
}
