"""Handing a PuLP program to HiGHS or CBC, and reading their answers without trusting a word too many.

Traps met: ``status`` says "Optimal" after a time limit; HiGHS stops at a relative gap of 1e-4 unless told otherwise;
changing ``threads`` within a process leaves HiGHS with status "Not Set" and objective 0; CBC reports no bound.
"""

from __future__ import annotations

import math
import threading
import time
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

#: Time that reading the answer takes, relative to handing the program over.
READING = 0.1

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
        As in :func:`edgeopt_solvers.solve`; the solver gets what is left once the program is handed over.
    start
        Values of some variables by name, from an earlier solution; may be empty.

    Raises
    ------
    BackendError
        The solver stopped for a reason that has no meaning here.
    """
    deadline = math.inf if time_limit_s is None else time.perf_counter() + time_limit_s
    runner = _run_highs if pulp.HiGHS().available() else _run_cbc
    return runner(problem, deadline, gap, seed, start)


def _run_highs(problem: Any, deadline: float, gap: float, seed: int, start: dict[str, float]) -> Answer:
    solver = pulp.HiGHS(msg=False, gapRel=gap, gapAbs=0.0, random_seed=seed % 2**31)
    started = math.inf

    def call(problem: Any) -> None:
        loaded = problem.solverModel.getNumCol(), problem.solverModel.getNumRow()
        if loaded != (len(problem.variables()), problem.numConstraints()):
            raise BackendError("HiGHS refused rows or columns: numbers too far apart for it; try backend='exact'")
        if deadline < math.inf:
            now = time.perf_counter()
            left = deadline - now - READING * (now - started)
            if left <= 0:
                return  # handing the program over took all the time
            problem.solverModel.setOptionValue("time_limit", left)
        known = [(variable.index, start[variable.name]) for variable in problem.variables() if variable.name in start]
        if known:
            indices, values = zip(*known, strict=True)
            problem.solverModel.setSolution(len(indices), indices, values)  # HiGHS completes the rest
        problem.solverModel.run()

    solver.callSolver = call
    if not HIGHS_TURN.acquire(timeout=max(0.0, min(deadline - time.perf_counter(), threading.TIMEOUT_MAX))):
        return Answer("time_limit", -math.inf, False)
    try:
        started = time.perf_counter()
        problem.solve(solver)
        status = problem.solverModel.getModelStatus().name
        info = problem.solverModel.getInfo()
    finally:
        HIGHS_TURN.release()
    if status == "kNotset" and time.perf_counter() + READING * (time.perf_counter() - started) >= deadline:
        return Answer("time_limit", -math.inf, False)
    if status not in HIGHS_STATUS:
        raise BackendError(f"HiGHS stopped with {status}; try backend='exact'")
    found = info.primal_solution_status == 2 and HIGHS_STATUS[status] != "infeasible"
    return Answer(HIGHS_STATUS[status], float(info.mip_dual_bound), found)


def _run_cbc(problem: Any, deadline: float, gap: float, seed: int, start: dict[str, float]) -> Answer:
    left = None if math.isinf(deadline) else max(0.01, deadline - time.perf_counter())
    for variable in problem.variables():
        if variable.name in start:
            variable.setInitialValue(start[variable.name])
    options = [f"randomCbcSeed {seed % 2**31}"]
    solver = pulp.PULP_CBC_CMD(msg=False, timeLimit=left, gapRel=gap or None, warmStart=bool(start), options=options)
    problem.solve(solver)
    if problem.sol_status not in CBC_STATUS:
        raise BackendError(f"CBC stopped with {pulp.LpStatus[problem.status]}; try backend='exact'")
    reason = CBC_STATUS[problem.sol_status]
    # CBC tells PuLP no bound: its word counts when it finished, otherwise nothing does.
    finished = reason == "optimal" and gap == 0
    bound = float(pulp.value(problem.objective) or 0.0) if finished else -math.inf
    return Answer(reason, bound, problem.sol_status in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible))
