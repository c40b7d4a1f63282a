"""Contiguous segments of a chain on devices: layers of a model, or denoising steps of a diffusion run."""

from __future__ import annotations

from edgeopt_solvers.chain.carry import carried_over, carried_start
from edgeopt_solvers.chain.certificate import Certificate
from edgeopt_solvers.chain.check import Evaluation, evaluate
from edgeopt_solvers.chain.diagnose import diagnose
from edgeopt_solvers.chain.instance import FEATURES, Chain, Solution
from edgeopt_solvers.chain.movement import Movement, compare, held_by, without

__all__ = [
    "CAPABILITIES", "FEATURES", "Certificate", "Chain", "Evaluation", "Movement", "Solution", "carried_over",
    "carried_start", "compare", "diagnose", "evaluate", "held_by", "prepare", "without",
]  # fmt: skip

#: Backend → features it can express; anything else is refused before building.
CAPABILITIES: dict[str, frozenset[str]] = {
    "exact": FEATURES - {"reserved_conflict"},
    "pulp": FEATURES - {"reserved_conflict", "reserved_period"},
    "ortools": FEATURES - {"reserved", "reserved_conflict", "reserved_period"},
    "cvxpy": FEATURES - {"reserved_conflict", "reserved_period"},  # Clarabel for cones, HiGHS for integers
}


def prepare() -> float:
    """Compile the engines for large chains ahead of time; see :func:`edgeopt_solvers.chain.large.prepare.prepare`."""
    from edgeopt_solvers.chain.large.prepare import prepare as compile_all

    return compile_all()
