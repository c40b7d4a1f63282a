"""Handing a PuLP program to HiGHS or CBC, and reading their answers without trusting a word too many.

Traps met: ``status`` says "Optimal" after a time limit; HiGHS stops at a relative gap of 1e-4 unless told otherwise;
changing ``threads`` within a process leaves HiGHS with status "Not Set" and objective 0; CBC reports no bound.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Any

import pulp

from edgeopt_solvers.errors import BackendError
from edgeopt_solvers.result import Reason

__all__ = ["CBC_STATUS", "HIGHS_STATUS", "HIGHS_TURN", "Answer", "run"]

#: HiGHS model status → why it stopped. Everything else is a failure of the backend. ``gap_reached`` is told from
#: ``optimal`` by the bound.
HIGHS_STATUS: dict[str, Reason] = {
    "kOptimal": "optimal",
    "kInfeasible": "infeasible",
    "kUnboundedOrInfeasible": "infeasible",  # every objective here is bounded below
    "kTimeLimit": "time_limit",
    "kInterrupt": "time_limit",
}

#: PuLP's ``sol_status`` after CBC; ``status`` says "Optimal" even at the time limit.
CBC_STATUS: dict[int, Reason] = {
    pulp.LpSolutionOptimal: "optimal",
    pulp.LpSolutionIntegerFeasible: "time_limit",
    pulp.LpSolutionInfeasible: "infeasible",
    pulp.LpSolutionNoSolutionFound: "time_limit",
}

#: HiGHS has one scheduler per process: solves from several threads take turns.
HIGHS_TURN = threading.Lock()


@dataclass(frozen=True, slots=True)
class Answer:
    """Why a backend stopped, its proven bound in the program's own units, and whether variables carry values."""

    reason: Reason
    bound: float
    found: bool


def run(problem: Any, *, time_limit_s: float | None, gap: float, seed: int, start: dict[str, float]) -> Answer:
    """Solve ``problem`` in place.

    Parameters
    ----------
    problem
        A ``pulp.LpProblem`` to minimise.
    time_limit_s, gap, seed
        As in :func:`edgeopt_solvers.solve`.
    start
        Values of some variables by name, from an earlier solution; may be empty.

    Raises
    ------
    BackendError
        The solver stopped for a reason that has no meaning here.
    """
    runner = _run_highs if pulp.HiGHS().available() else _run_cbc
    return runner(problem, time_limit_s, gap, seed, start)


def _run_highs(problem: Any, time_limit_s: float | None, gap: float, seed: int, start: dict[str, float]) -> Answer:
    solver = pulp.HiGHS(msg=False, timeLimit=time_limit_s, gapRel=gap, gapAbs=0.0, random_seed=seed % 2**31)

    def call(problem: Any) -> None:
        known = [(variable.index, start[variable.name]) for variable in problem.variables() if variable.name in start]
        if known:
            indices, values = zip(*known, strict=True)
            problem.solverModel.setSolution(len(indices), indices, values)  # HiGHS completes the rest
        problem.solverModel.run()

    solver.callSolver = call
    with HIGHS_TURN:
        problem.solve(solver)
        status = problem.solverModel.getModelStatus().name
        info = problem.solverModel.getInfo()
    if status not in HIGHS_STATUS:
        raise BackendError(f"HiGHS stopped with {status}; try backend='exact'")
    found = info.primal_solution_status == 2 and HIGHS_STATUS[status] != "infeasible"
    return Answer(HIGHS_STATUS[status], float(info.mip_dual_bound), found)


def _run_cbc(problem: Any, time_limit_s: float | None, gap: float, seed: int, start: dict[str, float]) -> Answer:
    for variable in problem.variables():
        if variable.name in start:
            variable.setInitialValue(start[variable.name])
    options = [f"randomCbcSeed {seed % 2**31}"]
    solver = pulp.PULP_CBC_CMD(
        msg=False, timeLimit=time_limit_s, gapRel=gap or None, warmStart=bool(start), options=options
    )
    problem.solve(solver)
    if problem.sol_status not in CBC_STATUS:
        raise BackendError(f"CBC stopped with {pulp.LpStatus[problem.status]}; try backend='exact'")
    reason = CBC_STATUS[problem.sol_status]
    # CBC tells PuLP no bound: its word counts when it finished, otherwise nothing does.
    finished = reason == "optimal" and gap == 0
    bound = float(pulp.value(problem.objective) or 0.0) if finished else -math.inf
    return Answer(reason, bound, problem.sol_status in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible))
