"""Exact policies: every candidate of speculative decoding, every threshold vector of a cascade's grid.

Cascades: for each choice of models whose thresholds can be listed, all of them at once (``grid.py``). Choices with more
threshold vectors than that are searched by boxes (``boxes.py``), begun from the best cascade of a coarser grid with its
thresholds moved one at a time.
"""

from __future__ import annotations

import math
import time

import numpy as np

from edgeopt_solvers.policy.boxes import Best, polish, price, search
from edgeopt_solvers.policy.grid import MOST_CELLS, grid_of, num_cells
from edgeopt_solvers.policy.instance import Cascade, CascadeSolution, Speculative, StagedSpeculative
from edgeopt_solvers.policy.speculate import solve_speculative
from edgeopt_solvers.policy.traces import Traces, coarser, subsequences, traces_of
from edgeopt_solvers.result import Reason, Result, Status, relative_gap
from edgeopt_solvers.solve import Options

__all__ = ["solve"]

#: Relative gap up to which a result is called optimal: rounding of sums.
PROVEN = 1e-9

#: Thresholds per model in the coarser grid that a search by boxes starts from.
COARSE = 11


def solve(instance: Speculative | StagedSpeculative | Cascade, options: Options) -> Result:
    """Solve any problem of the family."""
    if isinstance(instance, StagedSpeculative):
        from edgeopt_solvers.policy.stages import solve_staged  # chains load more than numpy

        return solve_staged(instance, options)
    if isinstance(instance, Speculative):
        return solve_speculative(instance, options)
    return _solve_cascade(instance, options)


def _solve_cascade(instance: Cascade, options: Options) -> Result:
    stop_at = math.inf if options.time_limit_s is None else time.perf_counter() + options.time_limit_s
    traces = traces_of(instance)
    choices = subsequences(instance, traces)
    best = Best()
    _take_warm_start(instance, traces, options.warm_start, best)
    listed = [models for models in choices if num_cells(traces, models) <= MOST_CELLS]
    others = [models for models in choices if num_cells(traces, models) > MOST_CELLS]
    bound, finished = _list(traces, listed, best, stop_at)
    num_boxes = 0
    if others:
        coarse = coarser(instance, traces, COARSE)
        start = Best()
        _list(coarse, [m for m in others if num_cells(coarse, m) <= MOST_CELLS], start, stop_at)
        if start.levels is not None:
            levels = _translated(coarse, traces, start)
            polish(traces, start.models, levels, best)
        lam = price(coarse, others) if time.perf_counter() < stop_at else 0.0
        other, num_boxes, ended = search(traces, others, best, max(options.gap, PROVEN / 2), stop_at, lam)
        bound, finished = min(bound, other), finished and ended
    N = instance.num_queries
    statistics = {"num_vectors": float(sum(num_cells(traces, m) for m in listed)), "num_boxes": float(num_boxes)}
    bound = min(bound, best.value)
    if best.levels is None:
        proven = finished and bound == math.inf
        reason: Reason = "infeasible" if proven else "time_limit"
        return Result(Status(reason, False), math.inf, bound / N, None, "exact", 0.0, statistics=statistics)
    gap = relative_gap(best.value, bound)
    reason = "optimal" if gap <= PROVEN else "gap_reached" if finished else "time_limit"
    message = ""
    if reason == "gap_reached" and gap > options.gap:
        message = f"stopped after {num_boxes} boxes of thresholds; fewer num_levels can be proven"
    solution = traces.solution(best.models, best.levels)
    return Result(
        Status(reason, True), best.value / N, bound / N, solution, "exact", 0.0, message=message, statistics=statistics
    )


def _list(traces: Traces, choices: list[tuple[int, ...]], best: Best, stop_at: float) -> tuple[float, bool]:
    """Evaluate all threshold vectors of ``choices``; return a bound on them and whether all were looked at."""
    for done, models in enumerate(choices):
        if time.perf_counter() > stop_at:
            left = min(float(traces.value[models[0]].sum()) for models in choices[done:])
            return min(best.value, left), False
        if float(traces.value[models[0]].sum()) >= best.value:
            continue  # the first model alone takes as much
        grid = grid_of(traces, models)
        reached = grid.correct >= traces.floor
        if grid.allowed is not None:
            reached &= grid.allowed
        value = np.where(reached, grid.value, math.inf)
        index = int(np.argmin(value))
        if value.flat[index] < best.value:
            best.value, best.models, best.levels = float(value.flat[index]), models, grid.levels(index)
    return best.value, True


def _translated(coarse: Traces, traces: Traces, start: Best) -> np.ndarray:
    """Return the threshold numbers of ``start`` among the finer thresholds."""
    assert start.levels is not None
    return np.array(
        [
            1 + int(np.searchsorted(traces.thresholds[m], coarse.thresholds[m][t - 1]))
            for m, t in zip(start.models, start.levels.tolist(), strict=False)
        ],
        dtype=np.int64,
    )


def _take_warm_start(instance: Cascade, traces: Traces, start: object, best: Best) -> None:
    """Begin from an earlier cascade, its thresholds moved to the nearest allowed ones."""
    if not isinstance(start, CascadeSolution) or not start.models:
        return
    models = start.models
    if list(models) != sorted(set(models)) or models[0] < 0 or models[-1] >= instance.num_models:
        return
    if len(models) > (instance.max_models or len(models)) or len(models) == 1 or not instance.may_ask(models):
        return
    if not all(len(traces.thresholds[m]) for m in models[:-1]):
        return
    levels = [
        int(np.clip(np.searchsorted(traces.thresholds[m], t), 0, len(traces.thresholds[m]) - 1)) + 1
        for m, t in zip(models, start.thresholds, strict=False)
    ]
    polish(traces, models, np.array(levels, dtype=np.int64), best)
