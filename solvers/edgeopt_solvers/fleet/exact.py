"""The fleet's own method: prices for the bound, rounding and local search for the plan, a tree for small gaps.

1. :mod:`~edgeopt_solvers.fleet.prices` maximises the dual: the proven bound, and prices near equilibrium.
2. Users take their cheapest options at these prices; best response and exchanges of two users over the options of
   small reduced cost close most of the rest (:mod:`~edgeopt_solvers.fleet.search`).
3. Options whose reduced cost exceeds the gap are proven useless. If few remain, a branch and bound finishes the proof
   (:mod:`~edgeopt_solvers.fleet.tree`); otherwise shake-ups go on while there is time.

That is a :class:`~edgeopt_solvers.fleet.run.Run` over the sum of costs; how many can be served
(:mod:`~edgeopt_solvers.fleet.admission`) and the least largest cost (:mod:`~edgeopt_solvers.fleet.levels`) are runs
over fleets with other weights, deadlines and refusal costs.

Without a time limit the effort is bounded by counts, never by the clock, so the answer is reproducible: see
:data:`~edgeopt_solvers.fleet.run.DEFAULT_SHAKES` and :data:`~edgeopt_solvers.fleet.run.DEFAULT_NODES`. That effort
stands in for a time limit: when it ends above the requested gap, the reason is ``time_limit`` (the gap attained is in
the result) and ``statistics["effort_exhausted"]`` is 1.
"""

from __future__ import annotations

from edgeopt_solvers.fleet import admission, levels
from edgeopt_solvers.fleet.instance import Fleet
from edgeopt_solvers.fleet.run import Run
from edgeopt_solvers.result import Result
from edgeopt_solvers.solve import Options

__all__ = ["solve"]


def solve(fleet: Fleet, options: Options) -> Result:
    """Solve a fleet with every feature; see the module docstring for the method and the stopping rules."""
    if fleet.objective == "admitted":
        return admission.solve(fleet, options)
    if fleet.objective == "max":
        return levels.solve(fleet, options)
    run = Run(fleet, options).go()
    return run.result(run.value, run.bound)
