"""Small experts problems: HiGHS improves the best placement and its bound before anything is branched on here."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from edgeopt_solvers.placement.experts import Experts
from edgeopt_solvers.result import relative_gap
from edgeopt_solvers.solve import Options

if TYPE_CHECKING:
    from edgeopt_solvers.placement.experts_exact import Incumbent

__all__ = ["closed_by_highs"]

#: Part of the time that it gets where time is limited.
SHARE = 0.8


def closed_by_highs(instance: Experts, best: Incumbent, bound: float, gap: float, stop_at: float) -> float:
    """Offer HiGHS's placement to ``best`` and return the better of the two bounds."""
    left = SHARE * (stop_at - time.perf_counter())
    if relative_gap(best.objective, bound) <= gap or left < 0.05:
        return bound
    from edgeopt_solvers.placement import milp  # PuLP is imported by those who need it

    limit = None if math.isinf(left) else left
    answer = milp.solve(instance, Options(limit, gap, warm_start=best.solution))
    if answer.solution is not None:
        best.offer(answer.solution)
    return max(bound, min(answer.bound, best.objective))
