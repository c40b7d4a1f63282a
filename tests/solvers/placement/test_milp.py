"""The PuLP formulations: one tiny golden program per constraint family, solved right by every backend."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeopt_solvers import solve
from edgeopt_solvers.placement import Deployment, Experts, milp
from edgeopt_solvers.placement.deployment_ways import ways_of
from tests.solvers.golden import assert_is_golden
from tests.solvers.placement.draws import best_deployment, best_experts
from tests.solvers.placement.exchanges import best_exchange

GOLDEN = Path(__file__).parent / "golden"

LOADS = {"load": [[6.0, 2.0]], "unit_s": [1.0, 2.0]}
LINKS = {"dispatch_bytes": 2.0, "rate_bytes_per_s": [[0, 4.0], [4.0, 0]], "latency_s": [[0, 0.5], [0.5, 0]]}
PAIRS = {"load": [[3.0, 1.0], [2.0, 2.0]], "unit_s": [1.0, 2.0], "traffic": [[[2.0, 1.0], [0.0, 1.0]]],
         "exchange_bytes": 2.0, "rate_bytes_per_s": [[0, 4.0], [8.0, 0]]}  # fmt: skip
KEEP = {"task": [0, 0], "variant_bytes": [1.0, 2.0], "run_s": [1.0, 3.0], "request_per_s": [[2.0, 1.0]]}
LINKED = {"rate_bytes_per_s": [[0, 4.0], [4.0, 0]], "request_bytes": 4.0}

FAMILIES = {
    "experts_level": Experts(**LOADS),  # (1), (2), (4)
    "experts_latency": Experts(**LOADS, **LINKS),  # (3)
    "experts_memory": Experts(**LOADS, expert_bytes=2.0, memory_bytes=[3.0, 5.0], reserved_bytes=[1.0, 0.0]),  # (5)
    "experts_replicas": Experts(**LOADS, max_replicas=1),  # (2)
    # (4), (10)-(12)
    "experts_exchange": Experts(**PAIRS, latency_s=[[0, 0.25], [0, 0]], expert_bytes=1.0, memory_bytes=[3.0, 1.0]),
    "deployment_memory": Deployment(**KEEP, memory_bytes=[2.0, 0.0], **LINKED),  # (6)-(8)
    "deployment_quality": Deployment(**KEEP, quality=[0.5, 1.0], min_quality=0.75, download_bytes_per_s=[1.0, 0]),
}


def _program(instance):
    if isinstance(instance, Experts):
        return milp.build_experts(instance).problem
    return milp.build_deployment(instance, ways_of(instance))[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_program_is_the_golden_one(family, tmp_path):
    """Set UPDATE_GOLDEN=1 to rewrite the files; then read the difference line by line."""
    assert_is_golden(_program(FAMILIES[family]), GOLDEN / f"{family}.lp", tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_instances_are_solved_right(family):
    instance = FAMILIES[family]
    kinds = {"experts_exchange": best_exchange, "deployment_memory": best_deployment}
    best = kinds.get(family, best_experts if isinstance(instance, Experts) else best_deployment)(instance)
    for backend in ("exact", "pulp"):
        assert solve(instance, backend).objective == pytest.approx(best, rel=1e-6), backend
