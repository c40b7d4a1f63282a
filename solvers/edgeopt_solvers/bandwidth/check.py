"""What an allocation costs and whether it is allowed, recomputed from its shares alone; and why none exists.

Rates come straight from their definition; nothing here is shared with any solver.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.bandwidth.instance import LIMIT_TOLERANCE, Bandwidth, Solution
from edgeopt_solvers.bandwidth.validate import Array

__all__ = ["Evaluation", "diagnose", "evaluate", "flow_rates", "flow_seconds"]

#: Sentences per broken rule before the rest is only counted.
MOST_SENTENCES = 5


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Cost and feasibility of one solution.

    Attributes
    ----------
    objective
        Weighted sum or maximum of the seconds until each flow ends; ``inf`` if a flow that counts never does.
    metrics
        ``weighted_sum_s``, ``weighted_max_s``, ``latest_s`` (last end of all flows, ``inf`` with a starved one) and,
        per medium g, ``share[g]`` (sum of its shares).
    violations
        One sentence for each broken rule, with names, amounts and units; empty when feasible.
    terms
        Where the objective goes: ``fixed_s`` and ``transfer_s`` (for ``max``: of the flow that decides it).
    """

    objective: float
    metrics: dict[str, float]
    violations: tuple[str, ...]
    terms: dict[str, float] = field(default_factory=dict)


def flow_rates(instance: Bandwidth, shares: Array) -> Array:
    """Return the bytes/s of each flow at its share, (K,)."""
    positive = shares > 0
    b = np.where(positive, shares, 1.0)
    with np.errstate(over="ignore", invalid="ignore"):
        fixed = b * instance.rate_bytes_per_s
        bits_per_s = instance.band_hz[instance.medium] * b * (np.log1p(instance.snr / b) / math.log(2.0))
    return np.where(positive, np.where(instance.is_radio, bits_per_s / 8.0, fixed), 0.0)


def flow_seconds(instance: Bandwidth, shares: Array) -> tuple[Array, Array]:
    """Return the seconds each flow transfers, and those until it ends (with ``fixed_s``), both (K,)."""
    full_rate = flow_rates(instance, np.ones_like(shares))
    idle = (instance.size_bytes == 0) | (full_rate == math.inf)
    with np.errstate(divide="ignore", over="ignore"):
        transfer = np.where(idle, 0.0, instance.size_bytes / np.where(idle, 1.0, flow_rates(instance, shares)))
    return transfer, instance.fixed_s + transfer


def evaluate(instance: Bandwidth, solution: Solution) -> Evaluation:
    """Recompute every metric of ``solution`` and list every rule it breaks.

    Parameters
    ----------
    instance
        The instance.
    solution
        Decisions; malformed ones (wrong length, negative shares) are reported as violations.
    """
    shares = solution.shares
    if shares.shape != (instance.num_flows,):
        return Evaluation(math.inf, {}, (f"{shares.shape[0]} shares for {instance.num_flows} flows",))
    if (shares < 0).any():
        k = int(np.argmin(shares))
        return Evaluation(math.inf, {}, (f"the share of flow {k} is {shares[k]:.6g}, below 0",))
    transfer, end = flow_seconds(instance, shares)
    counts = instance.weight > 0
    weighted = np.where(counts, instance.weight * np.where(counts, end, 0.0), 0.0)
    used = _sums(instance, shares)
    metrics = {
        "weighted_sum_s": math.fsum(weighted.tolist()),
        "weighted_max_s": float(weighted.max()),
        "latest_s": float(end.max()),
    }
    metrics.update({f"share[{g}]": value for g, value in enumerate(used)})
    if instance.objective == "sum":
        deciding = counts
        objective = metrics["weighted_sum_s"]
    else:
        deciding = np.arange(instance.num_flows) == int(np.argmax(weighted))
        objective = metrics["weighted_max_s"]
    deciding = deciding & counts
    terms = {
        "fixed_s": math.fsum((instance.weight * instance.fixed_s)[deciding].tolist()),
        "transfer_s": math.fsum((instance.weight[deciding] * transfer[deciding]).tolist()),
    }
    return Evaluation(objective, metrics, tuple(_broken_rules(instance, shares, end, used)), terms)


def _sums(instance: Bandwidth, values: Array) -> list[float]:
    """Return the sum of ``values`` on each medium, each rounded once."""
    if instance.num_media == 1:
        return [math.fsum(values.tolist())]
    order = np.argsort(instance.medium, kind="stable")
    stops = np.cumsum(np.bincount(instance.medium, minlength=instance.num_media)).tolist()
    listed = values[order].tolist()
    return [math.fsum(listed[start:stop]) for start, stop in zip([0, *stops[:-1]], stops, strict=True)]


def _broken_rules(instance: Bandwidth, shares: Array, end: Array, used: list[float]) -> list[str]:
    slack = 1 + LIMIT_TOLERANCE
    broken = [
        f"medium {g}: the shares add up to {value:.15g}, its budget is {budget:.15g}"
        for g, (value, budget) in enumerate(zip(used, instance.budget.tolist(), strict=True))
        if value > budget * slack
    ]

    def complain(where: NDArray[np.bool_], sentence: str, value: Array, limit: Array) -> None:
        if not where.any():
            return
        for k in np.flatnonzero(where)[:MOST_SENTENCES].tolist():
            broken.append(sentence.format(k=k, g=instance.medium[k], value=value[k], limit=limit[k]))
        if where.sum() > MOST_SENTENCES:
            broken.append(f"… and {int(where.sum()) - MOST_SENTENCES} more of this kind")

    low, high = instance.min_share, instance.max_share
    complain(shares * slack < low, "flow {k}: share {value:.9g} is below min_share {limit:.9g}", shares, low)
    complain(shares > high * slack, "flow {k}: share {value:.9g} is above max_share {limit:.9g}", shares, high)
    late = end > instance.deadline_s * slack
    complain(
        late, "flow {k} on medium {g} ends after {value:.9g} s, its deadline is {limit:.9g} s", end, instance.deadline_s
    )
    endless = (end == math.inf) & (instance.weight > 0) & ~late
    complain(endless, "flow {k} on medium {g} counts in the objective and never ends: its rate is 0", end, end)
    return broken


# ── why no allocation exists ─────────────────────────────────────────────────────────────────────────────────────


def diagnose(instance: Bandwidth) -> str:
    """Name the flow or medium that leaves no allocation, and by how much it fails.

    Every share that a deadline needs is found by bisection on the rate as defined, apart from the solver's own method.
    """
    most = np.minimum(instance.max_share, instance.budget[instance.medium])
    transfer, end = flow_seconds(instance, most)
    sends = transfer > 0
    for alone in (_late_alone(instance, most, end), _without_link(instance, transfer)):
        if alone:
            return alone
    need = np.maximum(instance.min_share, np.where(sends, _share_for_deadline(instance, most), 0.0))
    total = np.array(_sums(instance, need))
    excess = total - instance.budget
    g = int(np.argmax(np.where(total > 0, excess / np.maximum(instance.budget, 1e-300), -math.inf)))
    starved = np.isin(instance.medium, np.flatnonzero(excess >= 0)) & sends & (need == 0) & (instance.weight > 0)
    if starved.any() and not excess[g] > LIMIT_TOLERANCE * instance.budget[g]:
        k = int(np.argmax(starved))
        g = int(instance.medium[k])
        return (
            f"medium {g}: minimum shares and deadlines take all of its budget {instance.budget[g]:.9g}, "
            f"nothing is left for flow {k}; give flow {k} weight 0 or lower a limit"
        )
    on_g = instance.medium == g
    largest = int(np.argmax(np.where(on_g, need, -1.0)))
    others = int((excess > LIMIT_TOLERANCE * instance.budget).sum()) - 1
    return (
        f"medium {g}: minimum shares and deadlines need {total[g]:.15g} of its budget {instance.budget[g]:.15g}, "
        f"{excess[g]:.6g} too much; flow {largest} alone needs {need[largest]:.6g}"
        + (f" ({others} more media are overfull)" if others > 0 else "")
    )


def _late_alone(instance: Bandwidth, most: Array, end: Array) -> str:
    """Say which flow cannot keep its limits even if nobody else sends."""
    low = instance.min_share > most * (1 + LIMIT_TOLERANCE)
    if low.any():
        k = int(np.argmax(low))
        g = instance.medium[k]
        return (
            f"medium {g}: min_share {instance.min_share[k]:.9g} of flow {k} is above the budget "
            f"{instance.budget[g]:.9g}, {instance.min_share[k] - instance.budget[g]:.6g} too much"
        )
    with np.errstate(invalid="ignore"):
        by = np.where(np.isfinite(instance.deadline_s), end - instance.deadline_s, -math.inf)
    k = int(np.argmax(by))
    if not by[k] > 1e-12 * instance.deadline_s[k]:
        return ""
    if instance.fixed_s[k] > instance.deadline_s[k]:
        what = f"its fixed {instance.fixed_s[k]:.9g} s alone"
    else:
        what = f"{end[k]:.9g} s with its largest share {most[k]:.6g}"
    return (
        f"flow {k} on medium {instance.medium[k]} needs {what}, its deadline is {instance.deadline_s[k]:.9g} s "
        f"({by[k]:.6g} s too late)"
    )


def _without_link(instance: Bandwidth, transfer: Array) -> str:
    dead = (transfer == math.inf) & (instance.weight > 0)
    if not dead.any():
        return ""
    k = int(np.argmax(dead))
    why = "may hold no share" if min(instance.max_share[k], instance.budget[instance.medium[k]]) == 0 else "has no link"
    return f"flow {k} on medium {instance.medium[k]} {why}: its {instance.size_bytes[k]:.6g} bytes never arrive"


def _share_for_deadline(instance: Bandwidth, most: Array) -> Array:
    """Return the smallest share with which each flow keeps its deadline (0 without one), (K,)."""
    limited = np.isfinite(instance.deadline_s) & (most > 0)
    low, high = np.full(instance.num_flows, -400.0), np.log(np.where(limited, most, 1.0))
    for _ in range(70):
        middle = 0.5 * (low + high)
        enough = flow_seconds(instance, np.exp(middle))[1] <= instance.deadline_s
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(limited, np.exp(high), 0.0)
