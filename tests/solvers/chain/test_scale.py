"""The large engines against brute force: every small instance with every feature they claim."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest

from edgeopt_solvers.chain import Chain, Solution, evaluate
from edgeopt_solvers.chain.large import supports, try_solve
from edgeopt_solvers.solve import Options
from tests.solvers.generators import cluster, tiny


def brute_force(chain: Chain) -> float:
    """Smallest objective over all plans, each judged by the checker; ``inf`` when none is feasible."""
    best = math.inf

    def extend(cuts: tuple[int, ...], devices: tuple[int, ...]) -> None:
        nonlocal best
        start = cuts[-1] if cuts else 0
        if start == chain.num_elements:
            evaluation = evaluate(chain, Solution(cuts, devices, (0,) * len(cuts)))
            if not evaluation.violations:
                best = min(best, evaluation.objective)
            return
        for device in set(range(chain.num_devices)) - set(devices):
            for end in range(start + 1, chain.num_elements + 1):
                extend((*cuts, end), (*devices, device))

    extend((), ())
    return best


def subset_dp(chain: Chain) -> float:
    """Held-Karp over (devices used, last device, elements done) for latency with memory: the oracle to 9 devices."""
    num, last = chain.num_devices, chain.num_elements
    weights = np.concatenate([[0.0], np.cumsum(chain.resident_bytes[0])])
    prefix = np.hstack([np.zeros((num, 1)), np.cumsum(chain.compute_s[:, 0], axis=1)])
    links = [chain.transfer_matrix(cut) for cut in range(last + 1)]
    source = chain.source
    table = np.full((1 << num, num, last + 1), np.inf)

    def fits(d: int, start: int, end: int) -> bool:
        return bool(weights[end] - weights[start] <= chain.memory_bytes[d] * (1 + 1e-12))

    best = math.inf
    for used in range(1, 1 << num):
        for d in range(num):
            if not used >> d & 1:
                continue
            rest = used & ~(1 << d)
            for start in range(last):
                if rest == 0:
                    before = (0.0 if source is None else links[0][source, d]) if start == 0 else np.inf
                else:
                    before = min(table[rest, e, start] + links[start][e, d] for e in range(num) if rest >> e & 1)
                if before == np.inf:
                    continue
                for end in range(start + 1, last + 1):
                    if not fits(d, start, end):
                        break
                    value = before + prefix[d, end] - prefix[d, start]
                    table[used, d, end] = min(table[used, d, end], value)
            back = 0.0 if source is None else links[last][d, source]
            best = min(best, table[used, d, last] + back)
    return best


def solved(chain: Chain, **options: object) -> tuple[float, float, str]:
    """Objective, bound and reason, after the checker has agreed with the result."""
    result = try_solve(chain, Options(**options))
    assert result is not None
    if result.solution is None:
        return math.inf, result.bound, result.status.reason
    evaluation = evaluate(chain, result.solution)
    assert evaluation.violations == ()
    assert evaluation.objective == pytest.approx(result.objective, rel=1e-9, abs=1e-12)
    assert result.bound <= result.objective * (1 + 1e-9)
    return result.objective, result.bound, result.status.reason


@pytest.mark.parametrize("block", range(10))
@pytest.mark.parametrize("objective", ["as drawn", "throughput"])
def test_equals_brute_force(block: int, objective: str) -> None:
    for seed in range(20 * block, 20 * block + 20):
        chain = tiny(seed, **({"objective": objective} if objective == "throughput" else {}))
        value, bound, reason = solved(chain)
        expected = brute_force(chain)
        assert value == pytest.approx(expected, rel=1e-9), seed
        assert reason == ("infeasible" if math.isinf(expected) else "optimal"), seed
        assert bound == value


@pytest.mark.parametrize("links", ["pair", "asymmetric", "star"])
@pytest.mark.parametrize("equal_layers", [False, True])
def test_equals_subset_program(links: str, equal_layers: bool) -> None:
    for seed in range(6):
        chain = cluster(12, 7, seed=seed, load=0.6, links=links, equal_layers=equal_layers, source=seed % 2 == 0)
        if seed % 2:
            chain = cluster(12, 8, seed=seed, load=0.6, links=links, equal_layers=equal_layers, source=False)
        value, _bound, reason = solved(chain)
        assert value == pytest.approx(subset_dp(chain), rel=1e-9), seed
        assert math.isinf(value) or reason == "optimal"


def test_types_equal_their_distinct_copies() -> None:
    for seed in range(6):
        chain = cluster(12, 8, seed=seed, load=0.6, distinct=False, num_types=3, source=False)
        value, _, reason = solved(chain)
        assert value == pytest.approx(subset_dp(chain), rel=1e-9), seed
        assert math.isinf(value) or reason == "optimal"


def test_more_devices_than_a_word_has_bits() -> None:
    """Devices that are useless must not change the answer, even when there are more of them than bits in a word."""
    small = cluster(10, 5, seed=4, load=0.5, source=False)
    spare = 90
    slow = np.random.default_rng(0).uniform(2.0, 3.0, (spare, 10)) * 10
    num = 5 + spare
    rate, latency = np.full((num, num), 1e6), np.full((num, num), 0.01)
    rate[:5, :5], latency[:5, :5] = small.rate_bytes_per_s, small.latency_s
    large = Chain(
        compute_s=np.vstack([small.compute_s[:, 0], slow]),
        cut_bytes=small.cut_bytes,
        rate_bytes_per_s=rate,
        latency_s=latency,
        memory_bytes=np.append(small.memory_bytes, np.full(spare, 1e9)),
        resident_bytes=small.resident_bytes[0],
        source=None,
    )
    value, _, reason = solved(large)
    assert reason == "optimal"
    assert value == pytest.approx(subset_dp(small), rel=1e-9)


def test_refuses_what_it_does_not_know() -> None:
    chain = tiny(1)
    assert supports(chain)
    for fields in ({"reuse": "many"}, {"max_stages": 2}, {"max_latency_s": 5.0}, {"loop_bytes": 3.0}):
        assert try_solve(tiny(1, **fields), Options()) is None, fields


def test_seed_decides_the_answer() -> None:
    chain = cluster(48, 24, seed=3, load=0.5)
    results = [try_solve(chain, Options(seed=4)) for _ in range(2)]
    assert results[0] is not None
    assert results[1] is not None
    assert results[0].solution == results[1].solution
    assert results[0].statistics == results[1].statistics


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_time_limit_is_kept_with_a_valid_bound(objective: str) -> None:
    chain = cluster(128, 64, seed=1, load=0.5, objective=objective)
    best = math.inf
    for limit_s in (0.3, 1.0, 2.0):
        result = try_solve(chain, Options(time_limit_s=limit_s))
        assert result is not None
        assert result.runtime_s < limit_s + 1.0  # generous: the machine that tests may be busy
        if result.solution is not None:
            best = min(best, result.objective)
        assert result.bound <= best * (1 + 1e-9)


def test_a_short_time_limit_does_not_wait_for_a_compiler(tmp_path):
    script = (
        "import numpy as np; from edgeopt_solvers import solve; from tests.solvers.generators import cluster\n"
        "result = solve(cluster(30, 8, seed=0), time_limit_s=5.0)\n"
        "print(result.status.has_solution)"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
    assert not list(tmp_path.rglob("*.nbi")), "nothing was compiled"
