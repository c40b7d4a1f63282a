"""What a strategy is: one technique, from a problem to a solver's instance and from its solution to a plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module
from typing import Any, ClassVar

from edgeopt.plan import Plan
from edgeopt.profiles.problem import Problem
from edgeopt_solvers import Result
from edgeopt_solvers.chain import Solution

__all__ = ["Strategy"]


class Strategy(ABC):
    """One collaboration technique.

    Those of this package stand in :data:`edgeopt.strategies.BUNDLED`, those of others in the entry-point group
    ``edgeopt.strategies``. A technique whose instance is a chain needs :meth:`unfit`, :meth:`build` and :meth:`plan`
    only; others keep their decisions in ``plan.decisions`` and say in :meth:`solution` how to read them.
    """

    name: ClassVar[str]
    #: Seconds after which the best plan so far is taken where nobody gave a limit; ``None``: proofs end by themselves.
    patience_s: ClassVar[float | None] = None

    #: Relative gap up to which the technique's solver calls a plan optimal: rounding, or what a convex one leaves open.
    proven: ClassVar[float] = 1e-9

    @abstractmethod
    def unfit(self, problem: Problem) -> str | None:
        """Say why the technique does not apply to the problem's model and workload, or ``None`` if it does."""

    def cases(self, problem: Problem) -> list[Problem]:
        """Problems of which the best plan is the strategy's: by default the one.

        For a decision that an instance cannot carry, such as which of a family's denoisers is cut into blocks. Each is
        narrower than the problem; a plan carries the one that it is of.
        """
        return [problem]

    @abstractmethod
    def build(self, problem: Problem) -> Any:
        """Turn the problem into arrays: an instance of any family of :mod:`edgeopt_solvers`.

        Raises
        ------
        InputError
            A number that this technique needs is not in the profiles.
        """

    def settles(self, problem: Problem) -> bool:
        """Whether :meth:`settle` has anything to say about plans of a problem."""
        return False

    def settle(self, problem: Problem, instance: Any, result: Result) -> Result:
        """Have the last word on what a solver found.

        For a technique whose instance is less than what its plans take: the result that it returns has the objective of
        the plan, which need not be the solver's, and the solver's bound.
        """
        return result

    @abstractmethod
    def plan(self, problem: Problem, instance: Any, result: Result) -> Plan:
        """Turn the solver's decisions into a plan with its predicted cost by term."""

    def solution(self, plan: Plan) -> Any:
        """Return a plan's decisions as the solvers know them; here those of a chain.

        Raises
        ------
        ValueError
            They are no decisions of this technique.
        """
        shares = None if plan.shares is None else tuple(plan.shares)
        return Solution(tuple(plan.cuts), tuple(plan.devices), tuple(plan.variants), shares)

    def evaluate(self, instance: Any, solution: Any) -> Any:
        """Recompute cost and limits of a solution by the family's own checker.

        Returns
        -------
        Evaluation
            With ``objective``, ``metrics`` and ``violations``, as for example
            :class:`edgeopt_solvers.chain.Evaluation`.
        """
        return import_module(f"edgeopt_solvers.{instance.family}").evaluate(instance, solution)

    def describe(self, problem: Problem) -> Callable[[str], str]:
        """Return a function that puts the problem's names into a solver's message about indices."""
        names = [device.name for device in problem.devices]
        return lambda message: _name_devices(message, names)


def _name_devices(message: str, names: list[str]) -> str:
    """Replace ``device 2`` by ``device 'phone'``."""
    import re

    return re.sub(
        r"\bdevice (\d+)\b", lambda m: f"device {names[int(m[1])]!r}" if int(m[1]) < len(names) else m[0], message
    )
