"""What CP-SAT's statuses mean here, for every family."""

from __future__ import annotations

from ortools.sat.python import cp_model

from edgeopt_solvers.result import Reason

__all__ = ["STATUS"]

#: CP-SAT status → why it stopped; MODEL_INVALID is a failure.
STATUS: dict[int, Reason] = {
    cp_model.OPTIMAL: "optimal",
    cp_model.FEASIBLE: "time_limit",
    cp_model.INFEASIBLE: "infeasible",
    cp_model.UNKNOWN: "time_limit",
}
