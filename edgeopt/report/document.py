"""Plans as plain JSON documents, the words that other programs read."""

from __future__ import annotations

import math
from typing import Any

from edgeopt.plan import Plan

__all__ = ["plain", "plan_document"]


def plan_document(plan: Plan) -> dict[str, Any]:
    """Return what ``edgeopt solve --json`` prints: the decision, its cost by stage and its proof, in SI units.

    Technique-specific figures (for example ``ttft_s``) join at the top level. ``bandwidth`` lists the links that the
    plan uses: with the share that a transfer holds of a reserved medium and its rate at that share; elsewhere whoever
    sends has all of a link (share 1). ``alternatives`` says how other
    strategies fared; it is empty where one was asked for, or only one fits.
    """
    stage_keys = ("device", "variant", "start", "stop", "compute_s", "transfer_s", "transfer_bytes", "memory_bytes")
    document = {
        "status": plan.status,
        "objective": plan.objective,
        "bound": plan.bound,
        "gap": plan.gap,
        "runtime_s": plan.runtime_s,
        "strategy": plan.strategy,
        "backend": plan.backend,
        "latency_s": plan.latency_s,
        "throughput_per_s": plan.throughput_per_s,
        "energy_j": plan.energy_j,
        "quality": plan.quality,
        "stages": [{key: getattr(stage, key) for key in stage_keys} for stage in plan.stages],
        "bandwidth": _bandwidth(plan),
        "alternatives": [other.model_dump() for other in plan.alternatives],
    }
    return plain(document | {name: value for name, value in plan.metrics.items() if name not in document})


def _bandwidth(plan: Plan) -> list[dict[str, Any]]:
    """Return the links in use; one over which several transfers hold shares of their own is listed for each."""
    used = dict.fromkeys((one.source, one.destination, one.share, one.rate_bytes_per_s) for one in plan.transfers)
    return [
        {"link": f"{source} -> {destination}", "share": share, "rate_bytes_per_s": rate}
        for source, destination, share, rate in used
    ]


def plain(value: Any) -> Any:
    """Return ``value`` with infinities and NaN as ``None``: JSON has no word for them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
