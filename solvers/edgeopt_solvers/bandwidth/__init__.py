"""Shares of shared media for flows: who gets how much of an access point or a cell."""

from __future__ import annotations

from edgeopt_solvers.bandwidth.check import Evaluation, diagnose, evaluate
from edgeopt_solvers.bandwidth.instance import FEATURES, LIMIT_TOLERANCE, Bandwidth, Solution

__all__ = [
    "CAPABILITIES",
    "FEATURES",
    "LIMIT_TOLERANCE",
    "Bandwidth",
    "Evaluation",
    "Solution",
    "diagnose",
    "evaluate",
]

#: Backend → features it can express; anything else is refused before building.
CAPABILITIES: dict[str, frozenset[str]] = {
    "exact": FEATURES,
    "cvxpy": FEATURES,
}
