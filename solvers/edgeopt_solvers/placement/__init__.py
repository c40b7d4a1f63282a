"""Items on devices, with replicas and capacities: experts of a mixture, models that answer queries, task variants."""

from __future__ import annotations

from edgeopt_solvers.placement.check import Evaluation, evaluate
from edgeopt_solvers.placement.diagnose import diagnose
from edgeopt_solvers.placement.instance import (
    DEPLOYMENT_FEATURES,
    EXPERTS_FEATURES,
    FEATURES,
    LIMIT_TOLERANCE,
    ROUTING_FEATURES,
    Deployment,
    DeploymentSolution,
    Experts,
    ExpertsSolution,
    Routing,
    RoutingSolution,
    Serving,
    ServingSolution,
)

__all__ = [
    "CAPABILITIES",
    "FEATURES",
    "LIMIT_TOLERANCE",
    "Deployment",
    "DeploymentSolution",
    "Evaluation",
    "Experts",
    "ExpertsSolution",
    "Routing",
    "RoutingSolution",
    "Serving",
    "ServingSolution",
    "diagnose",
    "evaluate",
]

#: Backend → features it can express; anything else is refused before building. Waiting is convex and not linear, so
#: that routing is the cone solver's; with models to choose it is neither convex nor linear, and the exact backend's.
CAPABILITIES: dict[str, frozenset[str]] = {
    "exact": FEATURES,
    "pulp": EXPERTS_FEATURES | DEPLOYMENT_FEATURES,
    "ortools": EXPERTS_FEATURES - {"exchange"},
    "cvxpy": ROUTING_FEATURES - {"placement"},
}
