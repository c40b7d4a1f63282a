"""Execute, report, calibrate: do corrected profiles predict new plans better?

The first profile is the one that a user begins with: rates of the machine, no timing of any model, so that a roofline
predicts. Plans of the part ``predict`` are priced anew with it (the decisions stay, the measurements have not seen any
profile). Two plans of every second pair of clusters calibrate the devices; the plans of the other clusters are
predicted by both profiles.
"""

from __future__ import annotations

import statistics
from datetime import date
from typing import Any

from edgeopt.plan import Plan
from edgeopt.profiler.calibrate import calibrate
from edgeopt.profiler.runs import Run
from edgeopt.profiles.device import Device
from edgeopt.report.data import Comparison, Report
from edgeopt_solvers.chain import Solution
from tests.benchmarks.campaign import predict
from tests.benchmarks.campaign.draws import priced
from tests.benchmarks.campaign.ledger import Ledger

__all__ = ["PART", "run", "summary"]

PART = "calibrate"
#: Of a cluster that calibrates: a fit takes seconds for each.
_PLANS = 2


def run(ledger: Ledger, quick: bool, seed: int, say) -> None:
    """Calibrate on every other pair of clusters, predict the rest; runs ``predict`` first if it has not been."""
    predict.run(ledger, quick, seed, say)
    rows = ledger.of(predict.PART)
    names = sorted({row["cluster"] for row in rows.values()}, key=lambda name: int(name[1:]))
    seen = {name for name in names if int(name[1:]) // 2 % 2 == 0} if len(names) > 2 else set(names)
    first = {
        device.name: device.model_copy(update={"timings": []}) for device in predict.devices_of(ledger, quick, say)
    }
    runs = []
    for key, row in rows.items():
        if row["cluster"] in seen and int(key.partition(".")[2]) < _PLANS:
            plan, report = _kept(ledger, key)
            again = _with_devices(plan, first)
            runs.append(Run(_against(again, report), again, report.plan_digest))
    say(f"calibrating with {len(runs)} plans")
    fitted = calibrate(runs, date.today())
    second = first | {device.name.removesuffix("-calibrated"): device for device in fitted.devices}
    for key, row in rows.items():
        new = row["cluster"] not in seen or len(names) <= 2
        if new:
            plan, _ = _kept(ledger, key)
            before, after = (_with_devices(plan, profiles).latency_s for profiles in (first, second))
            measured = row["measured_s"]
            record = {"measured_s": measured, "before": before / measured - 1, "after": after / measured - 1}
            ledger.put(PART, key, {"family": row["family"], **record, "runs": len(runs)})


def _kept(ledger: Ledger, key: str) -> tuple[Plan, Report]:
    plan = Plan.model_validate_json((ledger.folder / f"{key}.plan.json").read_text(encoding="utf-8"))
    return plan, Report.model_validate_json((ledger.folder / f"{key}.report.json").read_text(encoding="utf-8"))


def _with_devices(plan: Plan, profiles: dict[str, Device]) -> Plan:
    """Price the same decisions with other profiles; what a cluster's device may hold stays."""
    devices = [
        profiles[old.name].model_copy(update={"name": old.name, "memory": old.memory, "margin": None})
        for old in plan.problem.devices
    ]
    problem = plan.problem.model_copy(update={"devices": devices})
    return priced(problem, Solution(tuple(plan.cuts), tuple(plan.devices), tuple(plan.variants), None))


def _against(plan: Plan, report: Report) -> Report:
    """Put the report's measurements beside another prediction."""
    stages = [
        stage.model_copy(update={"compute_s": Comparison.between(planned.compute_s, stage.compute_s.samples)})
        for stage, planned in zip(report.stages, plan.stages, strict=True)
    ]
    return report.model_copy(update={"stages": stages, "plan_digest": plan.digest()})


def summary(ledger: Ledger) -> dict[str, Any] | None:
    """Median absolute error of new plans before and after."""
    rows = list(ledger.of(PART).values())
    if not rows:
        return None
    return {
        "runs": rows[0]["runs"], "new_plans": len(rows),
        "before_median": statistics.median(abs(row["before"]) for row in rows),
        "after_median": statistics.median(abs(row["after"]) for row in rows),
        "before_worst": max(abs(row["before"]) for row in rows), "after_worst": max(abs(row["after"]) for row in rows),
        "better": sum(abs(row["after"]) < abs(row["before"]) for row in rows),
    }  # fmt: skip
