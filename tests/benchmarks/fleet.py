"""Fleet family: proven gaps within a time limit, the tangent program beside it, warm starts, and the cold first call.

Run ``python tests/benchmarks/fleet.py`` (``--quick``: two seeds, no 10,000 users, short reference limit;
``--processor-time``: time limits count processor seconds, for a machine that is busy with other work; ``--only
objectives``: memory caps and the other objectives). The last line is one JSON document. Instances are those of
``tests/solvers/fleet/draws.py``; ``radio 4`` is the light load, in which most users offload.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edgeopt_solvers import solve
from edgeopt_solvers.fleet import Fleet, changes
from tests.solvers.fleet.draws import population

PER_USER = {
    "local_s",
    "upload_bytes",
    "work",
    "rate_bytes_per_s",
    "latency_s",
    "cell",
    "weight",
    "user_ids",
    "resident_bytes",
}


def timed(fleet: Fleet, **options):
    """Return a result and its wall and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    result = solve(fleet, **options)
    return result, time.perf_counter() - wall, time.process_time() - processor


def some(fleet: Fleet, users: np.ndarray) -> Fleet:
    """Return the fleet of some users only."""
    return Fleet(
        **{
            field.name: getattr(fleet, field.name)[users] if field.name in PER_USER else getattr(fleet, field.name)
            for field in fields(fleet)
        }
    )


def within(num_users: int, num_cells: int, radio: float, limit_s: float, seeds: range) -> dict:
    """Gap after ``limit_s`` with 100 servers, and the time until the goal of the size is proven."""
    gaps, walls, processor, first = [], [], [], []
    goal = 0.0025 if num_users <= 1000 else 0.001
    for seed in seeds:
        fleet = population(num_users, 100, num_cells, seed, radio)
        result, wall, used = timed(fleet, time_limit_s=limit_s, seed=seed)
        gaps.append(result.gap)
        walls.append(wall)
        processor.append(used)
        first.append(timed(fleet, gap=goal, seed=seed)[2])
    return {
        "case": f"{num_users} x 100, {num_cells} cells, radio {radio:g}, {limit_s:g} s",
        "gap_median": statistics.median(gaps), "gap_worst": max(gaps), "wall_worst_s": max(walls),
        "processor_median_s": statistics.median(processor), "goal": goal,
        "goal_processor_s_median": statistics.median(first), "goal_processor_s_worst": max(first),
    }  # fmt: skip


def against_tangents(seeds: range, limit_s: float) -> dict:
    """100 users, 10 servers, one cell: how long the exact backend and the tangent program take, and what they prove."""
    ours, theirs, difference, gaps, their_gaps = [], [], [], [], []
    for seed in seeds:
        fleet = population(100, 10, 1, seed)
        result, _, wall = timed(fleet, gap=0.001, seed=seed)
        reference, _, reference_wall = timed(fleet, backend="pulp", time_limit_s=limit_s, gap=0.001)
        ours.append(wall)
        theirs.append(reference_wall)
        gaps.append(result.gap)
        their_gaps.append(reference.gap)
        if reference.status.has_solution:
            difference.append(result.objective / reference.objective - 1)
    return {
        "case": "100 x 10 against the tangent program, both to a gap of 0.1% (processor seconds)",
        "exact_s_median": statistics.median(ours), "pulp_s_median": statistics.median(theirs),
        "ratio_median": statistics.median(t / o for t, o in zip(theirs, ours, strict=True)),
        "objective_difference_worst": max(difference, default=None), "gap_worst": max(gaps),
        "pulp_gap_worst": max((gap for gap in their_gaps if np.isfinite(gap)), default=None),
    }  # fmt: skip


def warm(num_users: int, seeds: range) -> dict:
    """2% of the users leave, as many arrive: a warm and a cold re-solve in processor seconds, and what each changes."""
    fractions, moved, loaded, cold_moved = [], [], [], []
    for seed in seeds:
        everybody = num_users + num_users // 50
        world = population(everybody, 100, 10, seed, user_ids=np.arange(everybody))
        world = replace(world, resident_bytes=6e9 * np.asarray(world.work) / np.asarray(world.work).max())
        before = solve(some(world, np.arange(num_users)), gap=0.001)
        later = some(world, np.arange(everybody - num_users, everybody))
        fresh, _, cold = timed(later, gap=0.001)
        again, _, resumed = timed(later, gap=0.001, warm_start=before)
        assert again.gap <= 0.001
        fractions.append(resumed / cold)
        changed = changes(later, before.solution, again.solution)
        moved.append(len(changed.moved))
        loaded.append(changed.loaded_bytes)
        cold_moved.append(len(changes(later, before.solution, fresh.solution).moved))
    return {
        "case": f"{num_users} x 100, 2% of users replaced", "warm_over_cold_median": statistics.median(fractions),
        "users_moved_median": statistics.median(moved), "users_moved_cold_median": statistics.median(cold_moved),
        "loaded_bytes_median": statistics.median(loaded),
    }  # fmt: skip


def objectives(num_users: int, num_servers: int, num_cells: int, limit_s: float, seeds: range) -> list[dict]:
    """Memory for 60% and 30% of what all layers on servers would take, and the other objectives; processor seconds."""
    rows = []
    for name in ("memory 60%", "memory 30%", "max", "admitted"):
        gaps, used = [], []
        for seed in seeds:
            fleet = population(num_users, num_servers, num_cells, seed)
            if name.startswith("memory"):
                resident = 8e9 * np.asarray(fleet.work) / np.asarray(fleet.work).max()
                cap = float(name[7:-1]) / 100 * resident.max(axis=1).sum() / num_servers
                fleet = replace(fleet, resident_bytes=resident, memory_bytes=np.full(num_servers, cap))
            elif name == "admitted":
                tight = 0.9 * solve(fleet, gap=0.01).metrics["mean_latency_s"]
                fleet = replace(fleet, objective=name, deadline_s=np.full(num_users, tight))
            else:
                fleet = replace(fleet, objective=name)
            result, _, processor = timed(fleet, time_limit_s=limit_s, gap=0.001, seed=seed)
            gaps.append(result.gap if result.status.has_solution else None)
            used.append(processor)
        known = [gap for gap in gaps if gap is not None and np.isfinite(gap)]
        rows.append({
            "case": f"{num_users} x {num_servers}, {name}, {limit_s:g} s", "with_gap": len(known),
            "gap_median": statistics.median(known) if known else None, "gap_worst": max(known, default=None),
            "processor_s_median": statistics.median(used),
        })  # fmt: skip
    return rows


def growth(num_solves: int) -> dict:
    """Growth of the largest resident memory over many small solves, after the first two hundred."""
    fleet = population(3, 2, 1, 0)
    for _ in range(200):
        solve(fleet)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    processor = time.process_time()
    for _ in range(num_solves):
        solve(fleet)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"case": f"{num_solves} solves", "grown_kib": grown, "processor_s": time.process_time() - processor}


def deadlines(num_users: int, limit_s: float, seeds: range) -> dict:
    """Deadlines at the 70% quantile of the free plan's latencies, refusals allowed."""
    gaps, refused = [], []
    for seed in seeds:
        free = solve(population(num_users, 10, 2, seed), gap=0.001)
        tight = np.full(num_users, 0.9 * free.metrics["mean_latency_s"])
        fleet = population(num_users, 10, 2, seed, deadline_s=tight, refusal_cost=3 * tight)
        result = solve(fleet, time_limit_s=limit_s, seed=seed)
        gaps.append(result.gap)
        refused.append(result.metrics["num_refused"])
    return {
        "case": f"{num_users} x 10, deadlines and admission, {limit_s:g} s",
        "gap_median": statistics.median(gaps), "gap_worst": max(gaps), "refused_median": statistics.median(refused),
    }  # fmt: skip


def cold_call_s() -> float:
    """Seconds of a fresh Python that imports the family and solves two users."""
    code = (
        "from edgeopt_solvers import solve\nfrom edgeopt_solvers.fleet import Fleet\n"
        "solve(Fleet([[0, 1], [0, 2]], [[1, 0], [1, 0]], [[1, 0], [2, 0]], [2, 2], [4], [[0.1], [0.1]]))"
    )
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - started


def main() -> None:
    """Print one line per case, then everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--only", choices=["objectives"])
    arguments = parser.parse_args()
    quick = arguments.quick
    if arguments.processor_time:
        # The solvers look at this clock.
        time.perf_counter = time.process_time
    seeds = range(2 if quick else 5)
    rows = []

    def show(row: dict) -> None:
        rows.append(row)
        values = ", ".join(
            f"{key} {'-' if value is None else f'{value:.3g}'}" for key, value in row.items() if key != "case"
        )
        print(f"{row['case']:60} {values}", flush=True)

    def other() -> None:
        for size, limit_s, number in (((100, 10, 1), 5.0, len(seeds)), ((1000, 100, 10), 5.0, 2)):
            for row in objectives(*size, limit_s, range(number)):
                show(row)
        if not quick:
            for row in objectives(10_000, 100, 10, 10.0, range(1)):
                show(row)

    if arguments.only:
        other()
        print(json.dumps({"benchmark": "fleet", "seeds": len(seeds), "rows": rows}, allow_nan=False))
        return
    for num_cells, radio in ((1, 1.0), (10, 1.0), (10, 4.0)):
        show(within(1000, num_cells, radio, 1.0, seeds))
    if not quick:
        show(within(10_000, 10, 1.0, 10.0, seeds))
        show(within(10_000, 10, 4.0, 10.0, seeds))
    show(warm(1000, seeds))
    if not quick:
        show(warm(10_000, seeds))
    show(deadlines(150, 5.0, seeds))
    other()
    show(growth(1000 if quick else 10_000))
    show(against_tangents(seeds, 20.0 if quick else 60.0))
    show({"case": "cold first call, Python start included", "seconds": statistics.median(cold_call_s() for _ in seeds)})
    print(json.dumps({"benchmark": "fleet", "seeds": len(seeds), "rows": rows}, allow_nan=False))


if __name__ == "__main__":
    main()
