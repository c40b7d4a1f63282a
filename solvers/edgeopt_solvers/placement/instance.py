"""The four problems of the family, each in a file of its own, and what backends may be asked to express."""

from __future__ import annotations

from edgeopt_solvers.placement.deployment import DEPLOYMENT_FEATURES, Deployment, DeploymentSolution
from edgeopt_solvers.placement.experts import EXPERTS_FEATURES, Experts, ExpertsSolution
from edgeopt_solvers.placement.routing import ROUTING_FEATURES, Routing, RoutingSolution
from edgeopt_solvers.placement.serving import SERVING_FEATURES, Serving, ServingSolution
from edgeopt_solvers.policy.validate import LIMIT_TOLERANCE

__all__ = [
    "DEPLOYMENT_FEATURES",
    "EXPERTS_FEATURES",
    "FEATURES",
    "LIMIT_TOLERANCE",
    "ROUTING_FEATURES",
    "SERVING_FEATURES",
    "Deployment",
    "DeploymentSolution",
    "Experts",
    "ExpertsSolution",
    "Routing",
    "RoutingSolution",
    "Serving",
    "ServingSolution",
]

#: Optional features; backends state which of them they can express.
FEATURES = EXPERTS_FEATURES | ROUTING_FEATURES | DEPLOYMENT_FEATURES | SERVING_FEATURES
