"""One load shared by devices that work at the same time: patches of an image, samples of a round, rows of a batch."""

from __future__ import annotations

from edgeopt_solvers.divisible.check import Evaluation, evaluate
from edgeopt_solvers.divisible.diagnose import diagnose
from edgeopt_solvers.divisible.instance import FEATURES, LIMIT_TOLERANCE, Divisible, Solution

__all__ = [
    "CAPABILITIES",
    "FEATURES",
    "LIMIT_TOLERANCE",
    "Divisible",
    "Evaluation",
    "Solution",
    "diagnose",
    "evaluate",
]

#: Backend → features it can express; anything else is refused before building. cvxpy divides the medium among given
#: loads ("choice" is a load to choose): seconds of a device are convex in its share only for a fixed load.
CAPABILITIES: dict[str, frozenset[str]] = {
    "exact": FEATURES,
    "pulp": FEATURES - {"pairwise"},
    "ortools": FEATURES - {"shared", "lead", "pairwise"},
    "cvxpy": FEATURES - {"choice", "lead", "pairwise"},
}
