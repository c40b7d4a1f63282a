"""Why no policy keeps every limit: the one that binds, and by how much."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np

from edgeopt_solvers.policy.instance import Cascade, Speculative, StagedSpeculative

__all__ = ["diagnose"]


def diagnose(instance: Speculative | StagedSpeculative | Cascade, time_limit_s: float | None = None) -> str:
    """Name the limit that leaves no policy, with values and units."""
    stop_at = math.inf if time_limit_s is None else time.perf_counter() + time_limit_s
    try:
        if isinstance(instance, StagedSpeculative):
            return _staged(instance, stop_at)
        if isinstance(instance, Speculative):
            return _speculative(instance)
        return _cascade(instance, stop_at)
    except TimeoutError:
        return "no policy keeps every limit; time ran out before the binding one was found"


def _best(instance: Speculative | StagedSpeculative | Cascade, stop_at: float = math.inf) -> float:
    from edgeopt_solvers.policy.exact import solve
    from edgeopt_solvers.solve import Options

    left = stop_at - time.perf_counter()
    if left <= 0:
        raise TimeoutError
    result = solve(instance, Options(None if math.isinf(left) else left))
    if result.status.reason == "time_limit":
        raise TimeoutError
    return result.objective


def _speculative(instance: Speculative) -> str:
    largest = float(instance.memory_bytes.max())
    for name, sizes, needed in (
        ("target", instance.target_bytes, True),
        ("draft", instance.draft_bytes, instance.min_length > 0),
    ):
        if needed and float(sizes.min()) > largest:
            k = int(np.argmin(sizes))
            return (
                f"memory: {name} {k}, the smallest, needs {float(sizes[k]):.9g} bytes, the largest memory is "
                f"{largest:.9g} bytes on device {int(np.argmax(instance.memory_bytes))}, "
                f"{float(sizes[k]) - largest:.6g} too few"
            )
    free = replace(
        instance, objective="time", max_time_per_token_s=None, max_energy_per_token_j=None, max_cost_per_token=None
    )
    if math.isinf(_best(free)):
        if math.isinf(_best(replace(free, memory_bytes=np.full(instance.num_devices, math.inf)))):
            return "links: no draft and target that can run have a link both ways, or one device for both"
        return "memory: no draft and target fit devices that can run them and have a link both ways, or one for both"
    for name, limit, objective, unit in (
        ("max_time_per_token_s", instance.max_time_per_token_s, "time", " s"),
        ("max_energy_per_token_j", instance.max_energy_per_token_j, "energy", " J"),
        ("max_cost_per_token", instance.max_cost_per_token, "cost", ""),
    ):
        if limit is None:
            continue
        least = _best(replace(free, objective=objective))
        if least > limit:
            return (
                f"{name} is {limit:.9g}{unit}, the least of any policy is {least:.9g}{unit}, "
                f"{least - limit:.6g}{unit} too much"
            )
        without: dict[str, Any] = {"objective": objective, name: None}
        within = _best(replace(instance, **without))
        if within > limit:
            return (
                f"{name} is {limit:.9g}{unit}, within the other budgets at least {within:.9g}{unit} are needed, "
                f"{within - limit:.6g}{unit} too much"
            )
    return ""


def _staged(instance: StagedSpeculative, stop_at: float) -> str:
    """Say whether the target, the draft, or the time is too large."""
    able = np.isfinite(instance.prefill_s).all(axis=1) & np.isfinite(instance.verify_s).all(axis=(1, 2))
    needed, there = float(instance.resident_bytes.sum()), float(instance.memory_bytes[able].sum())
    if needed > there:
        return (
            f"memory: the target in as many stages as there are devices needs {needed:.9g} bytes, the memory of all "
            f"that can run it is {there:.9g} bytes, {needed - there:.6g} too few"
        )
    if instance.min_length > 0 and (least := float(instance.draft_bytes.min())) > (
        largest := float(instance.memory_bytes.max())
    ):
        return (
            f"memory: the smallest draft needs {least:.9g} bytes, the largest memory is {largest:.9g} bytes, "
            f"{least - largest:.6g} too few"
        )
    free = replace(instance, max_time_s=None)
    if instance.max_time_s is not None and math.isfinite(least := _best(free, stop_at)):
        limit = instance.max_time_s
        return f"max_time_s is {limit:.9g} s, the least of any request is {least:.9g} s, {least - limit:.6g} s too much"
    unlimited = replace(free, memory_bytes=np.full(instance.num_devices, math.inf))
    if math.isinf(_best(unlimited, stop_at)):
        return "links: no devices that can run draft and target are connected as they must be"
    least = float((instance.resident_bytes + instance.transient_bytes).max())
    memories = ", ".join(f"{float(instance.memory_bytes[d]):.9g} on device {d}" for d in np.flatnonzero(able).tolist())
    most = f" in at most {instance.max_stages} stages (max_stages)" if instance.max_stages is not None else ""
    return (
        f"memory: no cut of the target{most} fits the devices beside what else they hold; it needs {needed:.9g} bytes, "
        f"its largest element {least:.9g}, and there are {memories}"
    )


def _cascade(instance: Cascade, stop_at: float) -> str:
    free = replace(instance, min_accuracy=None, max_latency_s=None, max_cost=None, max_busy_s=None)
    for name, limit, objective, unit in (
        ("max_latency_s", instance.max_latency_s, "latency", " s"),
        ("max_cost", instance.max_cost, "cost", ""),
    ):
        least = _best(replace(free, objective=objective), stop_at) if limit is not None else 0.0
        if limit is not None and least > limit:
            return (
                f"{name} is {limit:.9g}{unit}, the cheapest model alone takes {least:.9g}{unit}, "
                f"{least - limit:.6g}{unit} too much"
            )
    if instance.max_busy_s is not None and math.isinf(_best(replace(free, max_busy_s=instance.max_busy_s), stop_at)):
        least = _least_busy(instance)
        return (
            f"max_busy_s is {instance.max_busy_s:.9g} s, a model alone keeps its device busy {least:.9g} s per query "
            f"at least, {least - instance.max_busy_s:.6g} s too much"
        )
    if instance.min_accuracy is None or math.isinf(_best(replace(instance, min_accuracy=None), stop_at)):
        if instance.max_busy_s is not None and math.isfinite(
            _best(replace(instance, min_accuracy=None, max_busy_s=None), stop_at)
        ):
            return f"max_busy_s is {instance.max_busy_s:.9g} s: no cascade within it keeps the other budgets too"
        limit_s, limit = float(instance.max_latency_s or 0.0), float(instance.max_cost or 0.0)
        within = _best(replace(instance, min_accuracy=None, max_latency_s=None, objective="latency"), stop_at)
        return (
            f"max_latency_s is {limit_s:.9g} s, within max_cost = {limit:.9g} at least {within:.9g} s are needed, "
            f"{within - limit_s:.6g} s too much"
        )
    most = _most_accurate(replace(instance, min_accuracy=None))
    limits = (instance.max_latency_s, instance.max_cost, instance.max_busy_s)
    kept = " within the budgets" if any(limit is not None for limit in limits) else ""
    return (
        f"min_accuracy is {instance.min_accuracy:.9g}, the best accuracy found{kept} is {most:.9g}, "
        f"{100 * (instance.min_accuracy - most):.4g} points too few"
    )


def _least_busy(instance: Cascade) -> float:
    busy = instance.seconds if instance.busy_s is None else instance.busy_s
    return float(busy.mean(axis=0).min())


def _most_accurate(instance: Cascade) -> float:
    """Return the best accuracy of the frontier, on a coarser grid where the thresholds are too many to list."""
    from edgeopt_solvers.errors import InstanceError
    from edgeopt_solvers.policy.curve import frontier

    for levels in (instance.num_levels, 16, 4):
        try:
            grid = instance.grid if levels == instance.num_levels else None
            return float(frontier(replace(instance, num_levels=levels, grid=grid)).accuracy[-1])
        except InstanceError:  # too many vectors to list
            continue
    return float(instance.correct.mean(axis=0).max())
