"""What plans are compared by: objective, latency, throughput, energy, quality, traffic, memory."""

from __future__ import annotations

import math

from edgeopt.errors import InputError
from edgeopt.plan import Alternative, Plan
from edgeopt.profiles.problem import Problem
from edgeopt.questions.contest import Entry

__all__ = ["alternative_of", "amount", "memory_by_device", "objective_unit", "short", "traffic_bytes"]

_UNITS = {"latency": "s", "throughput": "s per request", "energy": "J", "quality": "", "ttft": "s", "tpot": "s"}


def traffic_bytes(plan: Plan) -> float:
    """Bytes that cross links per request, those of the loop, of the input and of the result included."""
    return sum(transfer.bytes for transfer in plan.transfers)


def memory_by_device(plan: Plan) -> dict[str, float]:
    """Bytes that each used device holds: weights and caches once, and its largest working memory."""
    if not plan.is_chain:  # every party holds its own, though several may share a device
        held: dict[str, float] = {}
        for stage in plan.stages:
            held[stage.device] = held.get(stage.device, 0.0) + stage.memory_bytes
        return held
    from edgeopt.planner import choose_strategy

    technique = choose_strategy(plan.problem, plan.strategy)
    metrics = technique.evaluate(technique.build(plan.problem), technique.solution(plan)).metrics
    return {plan.problem.devices[d].name: metrics[f"memory_bytes[{d}]"] for d in sorted(set(plan.devices))}


def objective_unit(problem: Problem) -> str:
    """Unit of the objective's value; ``weighted`` where several metrics add up."""
    goal = problem.objective
    return _UNITS[goal] if isinstance(goal, str) else "weighted"


def amount(value: float, problem: Problem, signed: bool = False) -> str:
    """Write a value of the objective with its unit, as in ``-0.8 s``; with a sign where it is a difference."""
    return f"{short(value, signed)} {objective_unit(problem)}".rstrip()


def short(value: float, signed: bool = False) -> str:
    """Return four digits, never ``-0``."""
    return f"{value or 0.0:{'+' if signed and value else ''}.4g}"


def alternative_of(entry: Entry, problem: Problem) -> Alternative:
    """Return how a strategy fared in a contest, as a record."""
    common = {
        "strategy": entry.strategy,
        "outcome": entry.outcome,
        "bound": entry.bound if math.isfinite(entry.bound) else None,
        "runtime_s": entry.spent_s,
        "remark": _remark(entry, problem),
    }
    plan = entry.plan
    if plan is None:
        return Alternative(**common)
    return Alternative(
        **common,
        objective=plan.objective,
        gap=max(0.0, plan.objective - entry.bound) / max(abs(plan.objective), 1e-300),
        latency_s=plan.latency_s,
        throughput_per_s=plan.throughput_per_s,
        energy_j=plan.energy_j,
        quality=plan.quality,
        traffic_bytes=traffic_bytes(plan),
        memory_bytes=max(memory_by_device(plan).values()),
        devices=list(dict.fromkeys(stage.device for stage in plan.stages)),
    )


def _remark(entry: Entry, problem: Problem) -> str:
    if entry.beaten_by is not None:
        return f"closed: its bound {amount(entry.bound, problem)} is above {amount(entry.beaten_by, problem)}"
    if isinstance(entry.error, InputError):
        return "; ".join(str(finding) for finding in entry.error.findings)
    return "" if entry.error is None else str(entry.error)
