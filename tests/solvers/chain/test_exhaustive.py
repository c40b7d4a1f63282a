"""Exact = brute force = PuLP = CP-SAT on small chains over every feature, and the checker agrees."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings

from edgeopt_solvers import solve
from edgeopt_solvers.chain import Chain, cp, evaluate, exact, milp
from edgeopt_solvers.solve import Options
from tests.solvers.chain.brute import brute_force
from tests.solvers.chain.draws import chains

# The seeds are fixed so that a failure here is a failure everywhere; raise max_examples to search for more.
MANY = settings(max_examples=550, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
SOME = settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def _agree(chain: Chain, module, best: float) -> None:
    result = module.solve(chain, Options())
    if math.isinf(best):
        assert result.status.reason == "infeasible"
        assert result.solution is None
        assert result.bound == math.inf
        return
    assert result.status.reason == "optimal"
    assert result.objective == pytest.approx(best, rel=1e-8, abs=1e-8)
    assert result.bound <= best + 1e-8 * max(1.0, abs(best))
    evaluation = evaluate(chain, result.solution)
    assert evaluation.violations == ()
    assert evaluation.objective == pytest.approx(best, rel=1e-8, abs=1e-8)


@MANY
@given(chains())
def test_exact_and_pulp_find_what_brute_force_finds(chain):
    best = brute_force(chain)
    _agree(chain, exact, best)
    _agree(chain, milp, best)


@MANY
@given(chains(max_plans=5_000))
def test_cp_sat_finds_what_brute_force_finds(chain):
    _agree(chain, cp, brute_force(chain))


@SOME
@given(chains(max_plans=5_000))
def test_solve_says_what_an_infeasible_chain_lacks(chain):
    result = solve(chain)
    assert result.status.has_solution == math.isfinite(brute_force(chain))
    if result.status.has_solution:
        assert result.message == ""
        return
    named = [name for name in LIMITS if name in result.message]
    assert named, result.message
    assert any(digit in result.message for digit in "0123456789") or "inf" in result.message


LIMITS = [
    "max_latency_s", "max_period_s", "max_energy_j", "max_quality_loss", "memory_bytes", "max_stages",
    "rate_bytes_per_s", "pin", "cut_legal", "min_segment", "compute_s", "handoff_loss", "reuse",
]  # fmt: skip
