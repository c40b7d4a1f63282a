"""Predicted beside measured: plans of drawn clusters on emulated hosts, priced by profiles that never saw a plan."""

from __future__ import annotations

import statistics
import time
from itertools import combinations
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

__all__ = ["PART", "devices_of", "plans_of", "run", "solved", "summary"]

PART = "predict"
#: Every plan is run so often, with new processes and all others in between.
TURNS = 2
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
            best = solved(cluster.problem)
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


def solved(problem) -> Plan | None:
    """Return the planner's plan, `None` where no plan exists."""
    from edgeopt.errors import NoPlanError

    try:
        return planner.solve(problem, time_limit_s=20.0)
    except NoPlanError:
        return None


def _decisions(plan: Plan) -> tuple[Any, ...]:
    return tuple(plan.cuts), tuple(plan.devices), tuple(plan.variants)


def run(ledger: Ledger, quick: bool, seed: int, say) -> None:
    """Profile, plan, run every plan in turns, keep the figures and the reports."""
    devices = devices_of(ledger, quick, say)
    clusters, each, turns = (2, 2, 1) if quick else (8, 4, TURNS)
    plans = plans_of(devices, seed, clusters, each, steps=4 if quick else 5)
    for turn in range(turns):
        for number, (key, cluster, plan) in enumerate(plans, start=1):
            found = ledger.get(PART, key)
            if found is not None and found["turns"] > turn:
                continue
            about = f"{len(plan.stages)} stages, {plan.latency_s:.3g} s predicted"
            say(f"turn {turn + 1} of {turns}, {key}, {number} of {len(plans)}: {about}")
            report = execute(plan, on="emulated", repeat=2 if quick else 3, warmup=1, check=False, timeout_s=180.0)
            if turn == 0:
                (ledger.folder / f"{key}.plan.json").write_text(plan.model_dump_json(by_alias=True), encoding="utf-8")
            report_file = ledger.folder / (f"{key}.report.json" if turn == 0 else f"{key}.report-{turn}.json")
            report_file.write_text(report.model_dump_json(), encoding="utf-8")
            seen = [] if found is None else found["parts"]
            ledger.put(PART, key, _row(cluster, plan, [*seen, _part(plan, report)]))


def _part(plan: Plan, report: Report) -> dict[str, Any]:
    """What one turn of a plan found; its processes are new, so that its memory lies elsewhere than the last turn's."""
    error = report.error
    compute_s = sum(stage.compute_s.median for stage in report.stages)
    shortest_s = min(
        stage.compute_s.median / max(getattr(plan.problem.workload, "new_tokens", 1), 1) for stage in report.stages
    )
    return {
        "samples_s": report.latency_s.samples, "shortest_stage_s": shortest_s,
        "overhead_ratio": report.latency_s.median / (compute_s + sum(moved.seconds for moved in plan.transfers)),
        "compute_error_s": error.compute_s, "transfer_error_s": error.transfer_s, "overhead_error_s": error.overhead_s,
    }  # fmt: skip


def _row(cluster: str, plan: Plan, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """All turns of a plan: the median of all requests, and the mean of the turns' terms."""
    samples_s = [sample for part in parts for sample in part["samples_s"]]
    measured_s = statistics.median(samples_s)
    terms = ("compute_error_s", "transfer_error_s", "overhead_error_s", "shortest_stage_s", "overhead_ratio")
    return {
        "cluster": cluster, "family": plan.strategy, "chosen": plan.backend != "drawn",
        "devices": len({stage.device for stage in plan.stages}), "stages": len(plan.stages),
        "predicted_s": plan.latency_s, "measured_s": measured_s, "samples_s": samples_s,
        "error": plan.latency_s / measured_s - 1,
        "predicted_compute_s": sum(stage.compute_s for stage in plan.stages),
        "predicted_transfer_s": sum(moved.seconds for moved in plan.transfers),
        **{name: statistics.mean(part[name] for part in parts) for name in terms},
        "turns": len(parts), "parts": parts,
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
    apart = [
        (a["predicted_s"] - b["predicted_s"]) * (a["measured_s"] - b["measured_s"]) > 0
        for a, b in combinations(rows.values(), 2)
        if min(a["samples_s"]) > max(b["samples_s"]) or min(b["samples_s"]) > max(a["samples_s"])
    ]
    long = [row["overhead_ratio"] for row in rows.values() if row["shortest_stage_s"] >= LONG_S]
    return {
        "turns": min(row["turns"] for row in rows.values()),
        "requests": min(len(row["samples_s"]) for row in rows.values()),
        "plans": len(rows), "clusters": len(clusters),
        "error_median": statistics.median(errors), "error_p90": float(np.quantile(errors, 0.9)),
        "error_worst": max(errors), "signed_median": statistics.median(row["error"] for row in rows.values()),
        "kendall_all": float(kendalltau(predicted, measured).statistic) if len(rows) > 1 else None,
        "kendall_apart": 2 * sum(apart) / len(apart) - 1 if apart else None,
        "pairs_apart": len(apart), "pairs": len(rows) * (len(rows) - 1) // 2,
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
