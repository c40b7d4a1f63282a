"""Exact placements: each problem of the family by the method that fits it.

Experts (``experts_exact.py``): prices and moves. Routing (``routing_exact.py``): an interior point, certified by
prices. Serving (``serving_exact.py``): convex bounds in boxes. Deployment (``deployment_exact.py``): branch and bound
over a facility-location relaxation.
"""

from __future__ import annotations

from typing import Any

from edgeopt_solvers.placement.deployment_exact import solve_deployment
from edgeopt_solvers.placement.experts_exact import solve_experts
from edgeopt_solvers.placement.instance import Experts, Routing, Serving
from edgeopt_solvers.placement.routing_exact import solve_routing
from edgeopt_solvers.placement.serving_exact import solve_serving
from edgeopt_solvers.result import Result
from edgeopt_solvers.solve import Options

__all__ = ["solve"]


def solve(instance: Any, options: Options) -> Result:
    """Solve any problem of the family."""
    if isinstance(instance, Experts):
        return solve_experts(instance, options)
    if isinstance(instance, Routing):
        return solve_routing(instance, options)
    if isinstance(instance, Serving):
        return solve_serving(instance, options)
    return solve_deployment(instance, options)
