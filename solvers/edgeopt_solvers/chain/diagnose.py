"""Why a chain has no plan: which limit binds, and by how much it fails.

Each limit is taken away alone. Where that brings a plan back, the limit is named, beside the least value that it
would have to allow. Where no single one does, the smallest set that still conflicts is named instead.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.check import evaluate
from edgeopt_solvers.chain.instance import Chain, Solution
from edgeopt_solvers.result import Result
from edgeopt_solvers.solve import Options

__all__ = ["diagnose"]

#: Wall seconds for the whole diagnosis, and for one of its solves.
TOTAL_S, EACH_S = 2.0, 0.5

#: The chain without one of its limits, or ``None`` where it has no such limit.
Relaxation = Callable[[Chain], Chain | None]


def diagnose(chain: Chain, time_limit_s: float | None = None) -> str:
    """Name the limit that leaves no plan, and by how much it fails.

    Parameters
    ----------
    chain
        An infeasible instance (for a feasible one the answer says so).
    time_limit_s
        Wall seconds, at most about two in any case.

    Returns
    -------
    str
        One or more clauses with field names, values and units.
    """
    return _Diagnosis(chain, TOTAL_S if time_limit_s is None else min(TOTAL_S, time_limit_s)).text()


class _Diagnosis:
    def __init__(self, chain: Chain, total_s: float) -> None:
        self.chain = chain
        self.deadline = time.perf_counter() + total_s

    def text(self) -> str:
        certain = _structural(self.chain)
        if certain:
            return "; ".join(certain)
        if self.solve(self.chain) is not None:
            return "a plan exists: nothing to diagnose"
        present = {name: relax for name, relax in _RELAXATIONS.items() if relax(self.chain) is not None}
        clauses = []
        for name, relax in present.items():
            solution = self.solve(relax(self.chain) or self.chain)
            if solution is not None:
                clauses.append(self.amount(self.chain, name, solution))
        return "; or ".join(clauses) if clauses else self.conflict(present)

    def solve(self, chain: Chain) -> Solution | None:
        """Return a plan if one is found, never beyond the time that is left."""
        result = self.result(chain, _objective_for(chain))
        return None if result is None or result.solution is None else cast(Solution, result.solution)

    def result(self, chain: Chain, objective: str) -> Result | None:
        from edgeopt_solvers.chain import exact  # the engines are not needed to import the family

        left = min(EACH_S, self.deadline - time.perf_counter())
        if left <= 0:
            return None
        return exact.solve(_changed(chain, objective=objective, load_cost=None), Options(time_limit_s=left))

    def conflict(self, present: dict[str, Relaxation]) -> str:
        """Give up every limit, then take them back while a plan remains: those that cannot come back all fail."""
        kept = dict(present)
        for name in present:
            fewer = {other: relax for other, relax in kept.items() if other != name}
            if self.solve(_without(self.chain, fewer)) is not None:
                kept = fewer
        if time.perf_counter() > self.deadline:
            return "no plan keeps all limits; finding out which of them binds needs more time (time_limit_s)"
        if not kept or self.solve(_without(self.chain, kept)) is None:
            return "no plan keeps all limits, and giving up any single one does not help"
        clauses = []
        for name in kept:
            base = _without(self.chain, {other: relax for other, relax in kept.items() if other != name})
            solution = self.solve(kept[name](base) or base)
            if solution is not None:
                clauses.append(self.amount(base, name, solution))
        return f"{' and '.join(kept)} fail together; each even without the others: {'; '.join(clauses)}"

    # ── by how much a limit of ``base`` fails, given a plan that breaks it alone ─────────────────────────────────

    def amount(self, base: Chain, name: str, solution: Solution) -> str:
        if name in _BUDGETS:
            return self.budget(base, name)
        if name == "memory_bytes":
            return self.memory(base)
        if name == "max_stages":
            return self.stages(base, len(solution.cuts))
        if name == "rate_bytes_per_s":
            return self.links(base)
        if name == "pins":
            return self.pins(base)
        if name == "compute_s":
            broken = [v for v in evaluate(base, solution).violations if "cannot run" in v]
            return f"compute_s is inf where a plan needs a time ({'; '.join(broken[:3])})"
        if name == "cut_legal":
            wanted = ", ".join(str(cut) for cut in solution.cuts[:-1] if not base.cut_legal[cut])
            return f"cut_legal forbids the cuts that a plan needs (one exists with a stage beginning at {wanted})"
        if name == "min_segment":
            shortest = min(stop - start for start, stop in zip(solution.starts, solution.cuts, strict=True))
            return f"min_segment is {base.min_segment}, but a plan needs a stage of {shortest} elements"
        if name == "reuse":
            return "reuse is 'once', but a plan needs to return to a device (reuse 'many')"
        return "handoff_loss forbids (inf) the hand-offs that a plan needs"

    def budget(self, base: Chain, name: str) -> str:
        objective, unit = _BUDGETS[name]
        result = self.result(_changed(base, **{name: None}), objective)
        limit = getattr(base, name)
        if result is None:
            return f"{name} is {limit:.6g}{unit}, and no plan keeps it"
        if result.bound < result.objective:
            return f"{name} is {limit:.6g}{unit}, but nothing below {result.bound:.6g}{unit} is possible"
        return f"{name} is {limit:.6g}{unit}, but the best possible is {result.objective:.6g}{unit}"

    def memory(self, base: Chain) -> str:
        """Least extra memory that would do: on one device where that is enough, else on every device."""
        needed, held = float(base.resident_bytes.min(axis=0).sum()), float(base.memory_bytes.sum())
        together = "others are unlimited" if math.isinf(held) else f"all devices together have {held:.6g} bytes"
        total = f"{together}, the elements keep at least {needed:.6g} bytes"
        options = []
        for device in np.flatnonzero(np.isfinite(base.memory_bytes)).tolist()[:16]:
            extra = self.least_extra(base, np.arange(base.num_devices) == device)
            if extra is not None:
                options.append((extra, device))
        if options:
            extra, device = min(options)
            return f"memory_bytes: device {device} would need at least {extra:.6g} bytes more ({total})"
        extra_each = self.least_extra(base, np.ones(base.num_devices, dtype=bool))
        if extra_each is None:
            return f"memory_bytes: too little memory ({total})"
        return f"memory_bytes: some devices would need up to {extra_each:.6g} bytes more ({total})"

    def least_extra(self, base: Chain, where: NDArray[np.bool_]) -> float | None:
        """Bisect the extra bytes (on the devices that ``where`` marks) with which a plan exists."""
        most = float((base.resident_bytes + base.transient_bytes).max(axis=0).sum() + base.shared_bytes.sum())

        def overflow(extra: float) -> float | None:
            solution = self.solve(_changed(base, memory_bytes=base.memory_bytes + extra * where))
            if solution is None:
                return None
            metrics = evaluate(base, solution).metrics
            return max(metrics[f"memory_bytes[{d}]"] - float(base.memory_bytes[d]) for d in solution.devices)

        high = overflow(most)
        if high is None:
            return None
        low = 0.0
        while high - low > 1e-4 * high and time.perf_counter() < self.deadline:
            middle = (low + high) / 2
            used = overflow(middle)
            low, high = (middle, high) if used is None else (low, used)
        return high

    def stages(self, base: Chain, enough: int) -> str:
        limit = base.max_stages or 0
        for allowed in range(limit + 1, enough):
            if self.solve(_changed(base, max_stages=allowed)) is not None:
                enough = allowed
                break
        return f"max_stages is {limit}, but a plan needs {enough} stages"

    def links(self, base: Chain) -> str:
        """Name the missing links that a plan with the fewest of them would use."""
        missing = (base.rate_bytes_per_s == 0) & ~np.eye(base.num_devices, dtype=bool)
        solution = self.solve(
            _changed(
                base,
                rate_bytes_per_s=np.where(missing, math.inf, base.rate_bytes_per_s),
                latency_s=np.where(missing, 1e6 * (1.0 + _finite_sum(base)), base.latency_s),
                medium=np.where(missing, -1, base.medium),
                **dict.fromkeys(("max_latency_s", "max_period_s", "max_energy_j")),
            )
        )
        broken = [] if solution is None else evaluate(base, solution).violations
        named = [violation for violation in broken if violation.startswith("no link")]
        return "rate_bytes_per_s: " + (" and ".join(named) or "no link (0) where every plan needs one")

    def pins(self, base: Chain) -> str:
        for element, device in base.pins.items():
            others = {e: d for e, d in base.pins.items() if e != element}
            if self.solve(_changed(base, pins=others)) is not None:
                return f"pins: element {element} is pinned to device {device}, and no plan runs it there"
        return f"pins: {dict(base.pins)} (element: device) together leave no plan"


def _objective_for(chain: Chain) -> str:
    """Latency, unless the shares of reserved media are to serve a budget on something else."""
    budgets = {"energy": chain.max_energy_j, "throughput": chain.max_period_s}
    limited = [name for name, limit in budgets.items() if limit is not None]
    return limited[0] if limited and "reserved" in chain.media else "latency"


def _changed(chain: Chain, **changes: Any) -> Chain:
    return replace(chain, **changes)


def _structural(chain: Chain) -> list[str]:
    """Elements that can be run nowhere, whatever the rest of the plan."""
    if chain.min_segment > chain.num_elements:
        return [f"min_segment is {chain.min_segment}, and the chain has {chain.num_elements} elements"]
    clauses = []
    alone = chain.resident_bytes + chain.shared_bytes[:, None] + chain.transient_bytes
    for element in range(chain.num_elements):
        runs = np.isfinite(chain.compute_s[:, :, element])
        pinned = chain.pins.get(element)
        if not runs.any():
            clauses.append(f"element {element} runs on no device (compute_s is inf everywhere)")
            continue
        if pinned is not None:
            if not runs[pinned].any():
                clauses.append(f"element {element} is pinned to device {pinned}, where compute_s is inf")
                continue
            runs[np.arange(chain.num_devices) != pinned] = False
        short = np.where(runs, alone[:, element][None, :] - chain.memory_bytes[:, None], math.inf)
        device, variant = divmod(int(short.argmin()), chain.num_variants)
        limit = float(chain.memory_bytes[device])
        if alone[variant, element] > chain.allowance(limit):
            more, need = float(short[device, variant]), float(alone[variant, element])
            clauses.append(
                f"memory_bytes: element {element} alone needs {need:.6g} bytes, device {device} has {limit:.6g} bytes, "
                f"{more:.6g} bytes too few, and no other device that may run it is closer"
            )
    return clauses


def _finite_sum(chain: Chain) -> float:
    compute = chain.compute_s[np.isfinite(chain.compute_s)]
    rate = chain.rate_bytes_per_s[(chain.rate_bytes_per_s > 0) & np.isfinite(chain.rate_bytes_per_s)]
    moved = float(chain.cut_bytes.sum() + chain.loop_bytes) / float(rate.min()) if rate.size else 0.0
    return (
        float(compute.sum()) + moved + float(chain.latency_s.sum() * (chain.cut_messages.sum() + chain.loop_messages))
    )


# ── what giving up a limit means ─────────────────────────────────────────────────────────────────────────────────


def _no_memory(chain: Chain) -> Chain | None:
    return _changed(chain, memory_bytes=None) if np.isfinite(chain.memory_bytes).any() else None


def _all_links(chain: Chain) -> Chain | None:
    missing = (chain.rate_bytes_per_s == 0) & ~np.eye(chain.num_devices, dtype=bool)
    if not missing.any():
        return None
    rate = np.where(missing, math.inf, chain.rate_bytes_per_s)
    medium = np.where(missing, -1, chain.medium)
    return _changed(chain, rate_bytes_per_s=rate, latency_s=np.where(missing, 0.0, chain.latency_s), medium=medium)


def _everything_runs(chain: Chain) -> Chain | None:
    stuck = np.isinf(chain.compute_s)
    if not stuck.any():
        return None
    fastest = np.where(stuck, math.inf, chain.compute_s).min(axis=(0, 1))
    return _changed(chain, compute_s=np.where(stuck, fastest, chain.compute_s))


def _all_handoffs(chain: Chain) -> Chain | None:
    stuck = np.isinf(chain.handoff_loss)
    if not stuck.any():
        return None
    least = float(np.where(stuck, 0.0, chain.handoff_loss).min())
    return _changed(chain, handoff_loss=np.where(stuck, least, chain.handoff_loss))


def _unset(field: str, neutral: object = None) -> Relaxation:
    def relax(chain: Chain) -> Chain | None:
        value = getattr(chain, field)
        return None if value == neutral or value == {} else _changed(chain, **{field: neutral})

    return relax


def _all_cuts(chain: Chain) -> Chain | None:
    return None if chain.cut_legal[1:-1].all() else _changed(chain, cut_legal=None)


def _return_to_devices(chain: Chain) -> Chain | None:
    return _changed(chain, reuse="many") if chain.reuse == "once" else None


_BUDGETS = {
    "max_latency_s": ("latency", " s"),
    "max_period_s": ("throughput", " s"),
    "max_energy_j": ("energy", " J"),
    "max_quality_loss": ("quality", ""),
}

_RELAXATIONS: dict[str, Relaxation] = {
    "max_latency_s": _unset("max_latency_s"),
    "max_period_s": _unset("max_period_s"),
    "max_energy_j": _unset("max_energy_j"),
    "max_quality_loss": _unset("max_quality_loss"),
    "memory_bytes": _no_memory,
    "max_stages": _unset("max_stages"),
    "rate_bytes_per_s": _all_links,
    "pins": _unset("pins"),
    "cut_legal": _all_cuts,
    "min_segment": _unset("min_segment", 1),
    "compute_s": _everything_runs,
    "handoff_loss": _all_handoffs,
    "reuse": _return_to_devices,
}


def _without(chain: Chain, relaxations: dict[str, Relaxation]) -> Chain:
    for relax in relaxations.values():
        chain = relax(chain) or chain
    return chain
