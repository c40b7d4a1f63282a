"""Predicted beside measured: plans of drawn clusters on emulated hosts, priced by profiles that never saw a plan."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from edgeopt import planner
from edgeopt.executor import execute
from edgeopt.plan import Plan
from edgeopt.profiles.device import Device
from edgeopt.report.data import Report
from tests.benchmarks.campaign.draws import MODELS, draw_cluster, draw_plan, measured_devices
from tests.benchmarks.campaign.ledger import Ledger

__all__ = ["PART", "devices_of", "plans_of", "run", "summary"]

PART = "predict"
#: Stages at least as long as this count for the overhead.
LONG_S = 0.02


def devices_of(ledger: Ledger, quick: bool, say) -> list[Device]:
    """Profile once; later parts and a resumed run use the same profiles."""
    found = ledger.get("profile", "devices")
    if found is None:
        begun = time.perf_counter()
        devices = measured_devices(1 if quick else 3, 1 if quick else 2, say)
        documents = [device.model_dump(mode="json", by_alias=True) for device in devices]
        found = ledger.put("profile", "devices", {"devices": documents, "seconds": time.perf_counter() - begun})
    return [Device.model_validate(document) for document in found["devices"]]


def plans_of(devices: list[Device], seed: int, clusters: int, each: int, steps: int) -> list[tuple[str, str, Plan]]:
    """Return (key, cluster, plan): of every cluster the best plan and some that were drawn, in the order of running.

    Clusters take turns, so that a slow minute of the machine does not fall on one of them.
    """
    rows = []
    for number in range(clusters):
        rng = np.random.default_rng([seed, number])
        strategy = list(MODELS)[number % len(MODELS)]
        best = None
        while best is None:  # a draw whose links or memories leave no plan is drawn again
            cluster = draw_cluster(rng, f"c{number}", strategy, devices, steps)
            best = _solved(cluster.problem)
        others: list[Plan] = []
        for _ in range(50):
            other = draw_plan(rng, cluster.problem)
            known = [_decisions(plan) for plan in [best, *others]]
            if other is not None and _decisions(other) not in known:
                others.append(other)
            if len(others) == each - 1:
                break
        rows += [(k, f"{cluster.name}.{k}", cluster.name, plan) for k, plan in enumerate([best, *others])]
    return [(key, cluster, plan) for _, key, cluster, plan in sorted(rows, key=lambda row: row[:2])]


def _solved(problem) -> Plan | None:
    from edgeopt.errors import NoPlanError

    try:
        return planner.solve(problem, time_limit_s=20.0)
    except NoPlanError:
        return None


def _decisions(plan: Plan) -> tuple[Any, ...]:
    return tuple(plan.cuts), tuple(plan.devices), tuple(plan.variants)


def run(ledger: Ledger, quick: bool, seed: int, say) -> None:
    """Profile, plan, run every plan, keep the figures and the reports."""
    devices = devices_of(ledger, quick, say)
    clusters, each, repeat = (2, 2, 2) if quick else (8, 4, 3)
    plans = plans_of(devices, seed, clusters, each, steps=4 if quick else 5)
    for number, (key, cluster, plan) in enumerate(plans, start=1):
        if ledger.get(PART, key) is not None:
            continue
        say(f"{key}, {number} of {len(plans)}: {len(plan.stages)} stages, {plan.latency_s:.3g} s predicted")
        report = execute(plan, on="emulated", repeat=repeat, warmup=2, check=False, timeout_s=180.0)
        (ledger.folder / f"{key}.plan.json").write_text(plan.model_dump_json(by_alias=True), encoding="utf-8")
        (ledger.folder / f"{key}.report.json").write_text(report.model_dump_json(), encoding="utf-8")
        ledger.put(PART, key, _row(cluster, plan, report))


def _row(cluster: str, plan: Plan, report: Report) -> dict[str, Any]:
    latency, error = report.latency_s, report.error
    assert error is not None
    compute_s = sum(stage.compute_s.median for stage in report.stages)
    links_s = sum(moved.seconds for moved in plan.transfers)
    shortest_s = min(
        stage.compute_s.median / max(getattr(plan.problem.workload, "new_tokens", 1), 1) for stage in report.stages
    )
    return {
        "cluster": cluster, "family": plan.strategy, "chosen": plan.backend != "drawn",
        "devices": len({stage.device for stage in plan.stages}), "stages": len(plan.stages),
        "predicted_s": plan.latency_s, "measured_s": latency.median, "samples_s": latency.samples,
        "error": plan.latency_s / latency.median - 1,
        "compute_error_s": error.compute_s, "transfer_error_s": error.transfer_s, "overhead_error_s": error.overhead_s,
        "predicted_compute_s": sum(stage.compute_s for stage in plan.stages), "predicted_transfer_s": links_s,
        "shortest_stage_s": shortest_s, "overhead_ratio": latency.median / (compute_s + links_s),
    }  # fmt: skip


def summary(ledger: Ledger) -> dict[str, Any] | None:
    """Error quantiles, rank correlation, and whether the plan chosen was the best measured."""
    rows = ledger.of(PART)
    if not rows:
        return None
    errors = [abs(row["error"]) for row in rows.values()]
    clusters: dict[str, list[dict[str, Any]]] = {}
    for row in rows.values():
        clusters.setdefault(row["cluster"], []).append(row)
    regrets = [
        next(row["measured_s"] for row in each if row["chosen"]) / min(row["measured_s"] for row in each) - 1
        for each in clusters.values()
        if any(row["chosen"] for row in each)
    ]
    predicted, measured = ([row[name] for row in rows.values()] for name in ("predicted_s", "measured_s"))
    pairs = [
        (a["predicted_s"] - b["predicted_s"]) * (a["measured_s"] - b["measured_s"]) > 0
        for each in clusters.values()
        for i, a in enumerate(each)
        for b in each[i + 1 :]
    ]
    long = [row["overhead_ratio"] for row in rows.values() if row["shortest_stage_s"] >= LONG_S]
    return {
        "plans": len(rows), "clusters": len(clusters),
        "error_median": statistics.median(errors), "error_p90": float(np.quantile(errors, 0.9)),
        "error_worst": max(errors), "signed_median": statistics.median(row["error"] for row in rows.values()),
        "kendall_all": float(kendalltau(predicted, measured).statistic) if len(rows) > 1 else None,
        "kendall_within": 2 * sum(pairs) / len(pairs) - 1 if pairs else None,
        "chosen_above_best_worst": max(regrets) if regrets else None,
        "long_plans": len(long), "overhead_median": statistics.median(long) if long else None,
        "overhead_worst": max(long) if long else None,
        **{
            f"{term}_median_s": statistics.median(row[f"{term}_error_s"] for row in rows.values())
            for term in ("compute", "transfer", "overhead")
        },
        "families": {
            family: statistics.median(abs(row["error"]) for row in rows.values() if row["family"] == family)
            for family in sorted({row["family"] for row in rows.values()})
        },
    }  # fmt: skip
