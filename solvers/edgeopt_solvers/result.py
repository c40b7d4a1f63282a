"""What a solver hands back: why it stopped, whether it holds a plan, and how good that plan provably is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Reason", "Result", "Status", "relative_gap"]

Reason = Literal["optimal", "infeasible", "time_limit", "gap_reached"]


@dataclass(frozen=True, slots=True)
class Status:
    """Why the solver stopped, and whether it holds a solution.

    Attributes
    ----------
    reason
        ``optimal``: proven within the requested tolerance of zero; ``gap_reached``: stopped at the requested gap;
        ``time_limit``: out of time, with or without a solution; ``infeasible``: proven that no solution exists.
    has_solution
        A time limit with an incumbent is a success with a gap, never "infeasible".
    """

    reason: Reason
    has_solution: bool


def relative_gap(objective: float, bound: float) -> float:
    """Return ``(objective - bound) / |objective|``: 0 when they agree, ``inf`` without an incumbent."""
    if objective == bound:
        return 0.0
    if math.isinf(objective) or math.isinf(bound):
        return math.inf
    return max(0.0, objective - bound) / max(abs(objective), 1e-300)


@dataclass(frozen=True, slots=True)
class Result:
    """Decisions with a proof.

    Attributes
    ----------
    status
        Why it stopped and whether there is a solution.
    objective
        Value of ``solution`` as recomputed by the family's checker; ``inf`` without one.
    bound
        Proven lower bound on the optimum (all families minimise); ``inf`` when infeasible.
    solution
        The family's ``Solution``, or ``None``.
    backend
        Name of the backend that answered.
    runtime_s
        Wall seconds spent inside :func:`edgeopt_solvers.solve`.
    metrics
        Every metric of the solution, from the checker (for example ``latency_s``, ``period_s``, ``energy_j``).
    message
        For an infeasible instance, the binding limit and by how much it fails; otherwise empty.
    statistics
        What the backend counted on its way (labels, nodes, columns); keys differ per backend.
    certificate
        What the bound rests on, where the backend can start the next proof from it (for example
        :class:`edgeopt_solvers.chain.Certificate`); otherwise ``None``.
    """

    status: Status
    objective: float
    bound: float
    solution: Any | None
    backend: str
    runtime_s: float
    metrics: dict[str, float] = field(default_factory=dict)
    message: str = ""
    statistics: dict[str, float] = field(default_factory=dict)
    certificate: Any | None = None

    @property
    def gap(self) -> float:
        """Relative distance of the objective from the bound (0 when proven optimal)."""
        return relative_gap(self.objective, self.bound)
