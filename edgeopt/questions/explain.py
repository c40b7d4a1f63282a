"""Why a plan is as it is: its cost by term, the limits that bind with their prices, and answers to "why not"."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from edgeopt.costs.energy import EnergyTerms, energy_terms
from edgeopt.plan import Plan
from edgeopt.questions.prices import Price, prices
from edgeopt.questions.terms import Term, busy_seconds, latency_terms
from edgeopt.questions.why_not import Answer, parse, why_not

__all__ = ["Explanation", "explain"]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a plan is as it is.

    Attributes
    ----------
    terms
        Where the latency comes from: addends of a chain's; those of other techniques overlap.
    busy
        Seconds per request of each device, link and medium, longest first.
    energy
        Joules by device; empty where the profiles do not say what they draw.
    prices
        Limits that bind, by what loosening them gains; ``None`` where only a question was asked.
    missed
        Limits that were not looked at in time.
    answers
        To the questions.
    """

    plan: Plan
    terms: tuple[Term, ...]
    busy: dict[str, float]
    energy: dict[str, EnergyTerms]
    prices: tuple[Price, ...] | None
    missed: tuple[str, ...]
    answers: tuple[Answer, ...]


def explain(plan: Plan, questions: Sequence[str] = (), time_limit_s: float | None = None) -> Explanation:
    """Explain a plan.

    Parameters
    ----------
    plan
        As :func:`edgeopt.planner.solve` returns it.
    questions
        As in :func:`edgeopt.questions.why_not.parse`; with any, prices of limits are left out.
    time_limit_s
        Wall seconds for everything that has to be solved.

    Raises
    ------
    InputError
        A question cannot be read; nothing has been solved by then.
    """
    for question in questions:
        parse(question, plan)
    deadline = None if time_limit_s is None else time.perf_counter() + time_limit_s

    def left_s() -> float | None:
        return None if deadline is None else max(deadline - time.perf_counter(), 1e-3)

    answers = tuple(why_not(plan, question, left_s()) for question in questions)
    found, missed = ([], []) if questions else prices(plan, left_s())
    return Explanation(
        plan=plan,
        terms=tuple(latency_terms(plan)),
        busy=busy_seconds(plan),
        energy=energy_terms(plan) if plan.energy_j is not None else {},
        prices=None if questions else tuple(found),
        missed=tuple(missed),
        answers=answers,
    )
