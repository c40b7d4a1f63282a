"""What a division costs and whether it is allowed, recomputed from its decisions alone.

Plain loops over devices, straight from the definition; nothing here is shared with any solver.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from edgeopt_solvers.divisible.instance import LIMIT_TOLERANCE, Divisible, Solution

__all__ = ["Evaluation", "device_seconds", "evaluate"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Cost and feasibility of one solution.

    Attributes
    ----------
    objective
        Makespan, energy or their weighted sum, as the instance asks.
    metrics
        ``makespan_s``, ``energy_j``, ``num_devices`` and ``share`` (sum of the shares of the medium).
    violations
        One sentence for each broken rule, with names, amounts and units; empty when feasible.
    terms
        Of the device that ends last: ``compute_s``, ``exchange_s`` and its index ``device``; and ``lead_s``, the first
        part of the one that takes longest for it.
    """

    objective: float
    metrics: dict[str, float]
    violations: tuple[str, ...]
    terms: dict[str, float] = field(default_factory=dict)


def device_seconds(instance: Divisible, device: int, units: int, share: float) -> tuple[float, float]:
    """Return compute and exchange seconds of a used device; ``share`` is ignored on a private link."""
    steps = float(instance.num_steps[device])
    compute = steps * (float(instance.fixed_s[device]) + float(instance.unit_s[device]) * units)
    num_bytes = steps * _step_bytes(instance, device, units)
    rate = float(instance.rate_bytes_per_s[device])
    if num_bytes == 0 or rate == math.inf:
        moving = 0.0
    elif rate == 0 or (instance.shared[device] and share <= 0):
        moving = math.inf
    else:
        moving = num_bytes / rate / (share if instance.shared[device] else 1.0)
    return compute, steps * float(instance.latency_s[device]) + moving


def _step_bytes(instance: Divisible, device: int, units: int) -> float:
    return float(instance.fixed_bytes[device]) + float(instance.unit_bytes[device]) * units


def evaluate(instance: Divisible, solution: Solution) -> Evaluation:
    """Recompute every metric of ``solution`` and list every rule it breaks.

    Parameters
    ----------
    instance
        The instance.
    solution
        Decisions; malformed ones (wrong length, negative loads) are reported as violations.
    """
    D = instance.num_devices
    loads, shares = solution.loads, solution.shares
    if len(loads) != D or len(shares) != D:
        return Evaluation(math.inf, {}, (f"{len(loads)} loads and {len(shares)} shares for {D} devices",))
    bad = [d for d in range(D) if loads[d] < 0 or not shares[d] >= 0]
    if bad:
        d = bad[0]
        return Evaluation(math.inf, {}, (f"device {d} has load {loads[d]} and share {shares[d]}: below 0",))
    used = [d for d in range(D) if loads[d] > 0]
    makespan, last, terms = 0.0, -1, {"compute_s": 0.0, "exchange_s": 0.0, "device": -1.0}
    lead = max((float(instance.lead_s[d] + instance.lead_unit_s[d] * loads[d]) for d in used), default=0.0)
    joules = []
    for d in used:
        compute, exchange = device_seconds(instance, d, loads[d], shares[d])
        end = max(compute, exchange) if instance.exchange == "overlapped" else compute + exchange
        if last < 0 or end > makespan:
            makespan, last = end, d
            terms = {"compute_s": compute, "exchange_s": exchange, "device": float(d)}
        num_bytes = float(instance.num_steps[d]) * _step_bytes(instance, d, loads[d])
        power = float(instance.power_w[d])
        joules.append((power * compute if power else 0.0) + float(instance.byte_j[d]) * num_bytes)
    if instance.exchange == "pairwise" and len(used) > 1:
        spans = [device_seconds(instance, d, loads[d], shares[d]) for d in used]
        first, second = sorted((sum(span) for span in spans), reverse=True)[:2]
        makespan = max(max(compute for compute, _ in spans), (first + second) / 2)
    makespan += lead
    energy = math.fsum(joules)
    share = math.fsum(shares[d] for d in range(D) if instance.shared[d])
    metrics = {"makespan_s": makespan, "energy_j": energy, "num_devices": float(len(used)), "share": share}
    objective = math.fsum(weight * metrics[METRIC[name]] for name, weight in instance.weights.items())
    broken = tuple(_broken_rules(instance, solution, used, metrics, last))
    return Evaluation(objective, metrics, broken, terms | {"lead_s": lead})


#: Objective name → metric.
METRIC = {"makespan": "makespan_s", "energy": "energy_j"}


def _broken_rules(
    instance: Divisible, solution: Solution, used: list[int], metrics: dict[str, float], last: int
) -> list[str]:
    slack = 1 + LIMIT_TOLERANCE
    broken = []
    total = sum(solution.loads)
    if total != instance.num_units:
        broken.append(f"the loads add up to {total} units, the instance has {instance.num_units}")
    for d in used:
        units = solution.loads[d]
        if units < instance.min_units[d]:
            broken.append(f"device {d} is used with {units} units, its min_units is {instance.min_units[d]}")
        need = float(instance.fixed_memory_bytes[d]) + float(instance.unit_memory_bytes[d]) * units
        room = float(instance.memory_bytes[d])
        if need > room * slack:
            broken.append(f"device {d} needs {need:.9g} bytes, its memory is {room:.9g} ({need - room:.6g} too much)")
    if metrics["share"] > slack:
        broken.append(f"the shares of the medium add up to {metrics['share']:.15g}, above 1")
    if instance.max_devices is not None and len(used) > instance.max_devices:
        broken.append(f"{len(used)} devices are used, max_devices is {instance.max_devices}")
    if metrics["makespan_s"] == math.inf:
        broken.append(f"device {last} never ends: it cannot compute, or has no link or no share for its bytes")
    for name, limit, unit in (
        ("makespan_s", instance.max_makespan_s, "s"),
        ("energy_j", instance.max_energy_j, "J"),
    ):
        if limit is not None and metrics[name] > limit * slack:
            broken.append(f"{name} is {metrics[name]:.9g} {unit}, max_{name} is {limit:.9g} {unit}")
    return broken
