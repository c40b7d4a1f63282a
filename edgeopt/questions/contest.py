"""Several ways to plan one problem, side by side in one time limit.

Every way is solved in slices that grow fourfold, each from the plan that the one before ended with, the way with the
lowest bound first. One whose proven bound is above the best plan at hand cannot win any more: it is closed, and its
time goes to the others. So the winner is never worse than what any single way reaches in the time that the contest
gave it, and where every way ends closed or optimal it is the best of all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgeopt.errors import EdgeoptError, InputError, NoPlanError, TimeLimitError
from edgeopt.plan import Plan
from edgeopt_solvers import UnsupportedError

__all__ = ["FIRST_SLICE_S", "Entry", "Outcome", "failure_of", "hold_contest"]

#: Wall seconds that each way gets at first.
FIRST_SLICE_S = 1.0

#: A bound counts as above an objective from this relative distance.
TOLERANCE = 1e-9

Outcome = str
"""``open``, ``optimal``, ``gap_reached``, ``time_limit``, ``closed``, ``infeasible`` or ``refused``."""

Attempt = Callable[[str, float | None, Plan | None], Plan]
"""Name of the way, wall seconds, a plan to start from; raises what :func:`edgeopt.planner.solve` raises."""


@dataclass(slots=True)
class Entry:
    """How one way fared.

    Attributes
    ----------
    outcome
        One of :data:`Outcome`; ``open`` only while the contest lasts.
    plan
        Its best plan.
    bound
        Proven lower bound of what it can reach; ``-inf`` where nothing is proven.
    spent_s
        Wall seconds of its slices.
    beaten_by
        For a closed one the objective that its bound is above.
    error
        Why it holds no plan.
    """

    strategy: str
    outcome: Outcome = "open"
    plan: Plan | None = None
    bound: float = -math.inf
    spent_s: float = 0.0
    beaten_by: float | None = None
    error: EdgeoptError | UnsupportedError | None = None

    @property
    def objective(self) -> float:
        """Of its best plan, ``inf`` without one; the latency where that is asked for and the objective is below it."""
        return math.inf if self.plan is None else _promised(self.plan)

    def run(self, attempt: Attempt, limit_s: float | None) -> None:
        """Solve for one slice and note what came of it."""
        started = time.perf_counter()
        try:
            found = attempt(self.strategy, limit_s, self.plan)
        except TimeLimitError as error:
            self.error = error
        except NoPlanError as error:
            self.outcome, self.error, self.bound = "infeasible", error, math.inf
        except (InputError, UnsupportedError) as error:
            self.outcome, self.error = "refused", error
        else:
            self.error = None
            if _promised(found) < self.objective:
                self.plan = found
            self.bound = max(self.bound, found.bound)
            self.outcome = "open" if found.status == "time_limit" else found.status
        self.spent_s += time.perf_counter() - started

    def close_above(self, objective: float) -> bool:
        """Close it if its bound is above ``objective``; say whether it is closed."""
        if self.bound > objective + TOLERANCE * abs(objective):
            self.outcome, self.beaten_by = "closed", objective
        return self.outcome == "closed"


def _promised(plan: Plan) -> float:
    """What a plan is compared by: ``experts`` may minimise less than the seconds that a request takes."""
    return max(plan.objective, plan.latency_s) if plan.problem.objective == "latency" else plan.objective


def hold_contest(names: Sequence[str], attempt: Attempt, time_limit_s: float | None = None) -> list[Entry]:
    """Let several ways compete.

    Parameters
    ----------
    names
        Of the ways, as ``attempt`` knows them.
    attempt
        Solves one of them within a time limit, from a plan it found earlier.
    time_limit_s
        Wall seconds for all together; ``None``: until every way is closed or done.

    Returns
    -------
    list of Entry
        The best plan first, then the lowest bound; equal ones in the order of ``names``.
    """
    entries = [Entry(name) for name in names]
    deadline = math.inf if time_limit_s is None else time.perf_counter() + time_limit_s
    slice_s = math.inf if len(entries) == 1 else FIRST_SLICE_S
    while waiting := sorted((entry for entry in entries if entry.outcome == "open"), key=lambda entry: entry.bound):
        for place, entry in enumerate(waiting):
            left_s = deadline - time.perf_counter()
            if left_s <= 0 and entry.spent_s:
                entry.outcome = "time_limit"
                continue
            if entry.close_above(min(other.objective for other in entries)):
                continue
            share_s = min(slice_s, max(left_s, 1e-3) / (len(waiting) - place))
            entry.run(attempt, share_s if math.isfinite(share_s) else None)
        slice_s *= 4
    best = min(entry.objective for entry in entries)
    for entry in entries:
        if entry.outcome in ("time_limit", "gap_reached"):
            entry.close_above(best)
    return sorted(entries, key=lambda entry: (entry.objective, entry.bound))


def failure_of(entries: Sequence[Entry]) -> Exception:
    """Return the error to raise where no way found a plan: out of time before infeasible before refused."""
    errors = [entry.error for entry in entries if entry.error is not None]
    for kind in (TimeLimitError, NoPlanError):
        if any(isinstance(error, kind) for error in errors):
            return kind("; ".join(str(error) for error in errors if isinstance(error, kind)))
    inputs = [error for error in errors if isinstance(error, InputError)]
    return InputError([finding for error in inputs for finding in error.findings]) if inputs else errors[0]
