"""Many users, each choosing a cut and a server, sharing spectrum per cell and compute per server."""

from __future__ import annotations

from edgeopt_solvers.fleet.changes import Changes, changes
from edgeopt_solvers.fleet.check import Evaluation, evaluate
from edgeopt_solvers.fleet.diagnose import diagnose
from edgeopt_solvers.fleet.instance import FEATURES, REFUSED, Fleet, Solution

__all__ = [
    "CAPABILITIES",
    "FEATURES",
    "REFUSED",
    "Changes",
    "Evaluation",
    "Fleet",
    "Solution",
    "changes",
    "diagnose",
    "evaluate",
]

#: Backend → features it can express; anything else is refused before building. The mixed-integer cone model has no
#: free solver here that survives it (SCIP is not among the dependencies), so cvxpy only divides shares.
CAPABILITIES: dict[str, frozenset[str]] = {
    "exact": FEATURES,
    "pulp": FEATURES,
    "cvxpy": FEATURES - {"choice", "refusal", "admitted"},
}
