"""Correct profiles by executed plans: efficiency factors and launches of devices, latency and rate of links.

Predictions of stages are functions of a device's factors, through the very costs that plan: nothing about a model or a
technique is known here. With s the logarithm of the factors' changes, the fit minimises

    Σ ((predicted(s) - measured) / (σ measured))² + Σ (s / τ)²,

σ being the measured spread, at least 2 %, and τ = 10 so weak that it decides only what the runs leave open: factors
that no stage depends on stay as they were. The same holds for the latency and the rate of each link.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from edgeopt.costs.language import weight_formats
from edgeopt.errors import Finding, InputError
from edgeopt.planner import choose_strategy
from edgeopt.profiler.runs import Run, hardware_words
from edgeopt.profiles.calibration import Calibration, CalibrationReport, Correction, Residual
from edgeopt.profiles.device import Device
from edgeopt.profiles.network import LinkQuality, Network
from edgeopt.profiles.problem import Constraints, Problem, TextWorkload
from edgeopt.report.data import Samples, StageReport
from edgeopt.strategies import Strategy

__all__ = ["Calibrated", "calibrate"]

LEAST_SPREAD = 0.02
PRIOR = 10.0
#: A latency of zero cannot be multiplied: it counts as this, in s.
LEAST_LATENCY_S = 1e-6
#: Factors may change up to this many times.
_WIDEST = math.log(1000.0)

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """New profiles, and what could not be corrected."""

    devices: list[Device]
    networks: list[Network]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Observation:
    """A measured duration and its prediction from factors (logarithms of changes)."""

    what: str
    measured_s: float
    sigma: float
    predict: Callable[[Array], float]


def calibrate(runs: Sequence[Run], on: date) -> Calibrated:
    """Fit every device that computed and every link that carried something.

    Parameters
    ----------
    runs
        From :func:`edgeopt.profiler.runs.load_runs`, at least one.
    on
        The day to write down.

    Raises
    ------
    InputError
        A device or network has one name in two plans and different numbers.
    """
    notes: list[str] = []
    devices = [_fit_device(device, runs, on) for device in _devices(runs)]
    networks = [_fit_network(network, runs, on, notes) for network in _networks(runs)]
    return Calibrated(devices, [network for network in networks if network is not None], notes)


# ── devices ──────────────────────────────────────────────────────────────────────────────────────────────────


def _devices(runs: Sequence[Run]) -> list[Device]:
    """Devices that ran a stage, each once."""
    found: dict[str, Device] = {}
    for run in runs:
        used = {stage.device for stage in run.report.stages}
        for device in run.plan.problem.devices:
            if device.name not in used:
                continue
            other = found.setdefault(device.name, device)
            changed = [
                name
                for name in ("compute", "memory_bandwidth", "launch_overhead", "efficiency", "timings")
                if getattr(other, name) != getattr(device, name)
            ]
            if changed:
                message = f"device '{device.name}' has different numbers in two plans: {', '.join(changed)}"
                raise InputError(Finding("devices", message, "calibrate plans of one profile together"))
    return list(found.values())


def _fit_device(device: Device, runs: Sequence[Run], on: date) -> Device:
    observations = []
    for number, run in enumerate(runs, start=1):
        for stage in run.report.stages:
            if stage.device == device.name:
                observations += _stage_observations(device, run, stage, f"run {number} stage {stage.index}")
    models = {run.plan.problem.model.name for run in runs}
    upper = [-math.log(device.efficiency.compute), -math.log(device.efficiency.memory_bandwidth), _WIDEST, _WIDEST]
    logs = _fit(observations, np.array(upper))
    changed = _with_factors(device, logs, models)
    corrections = [
        _correction("efficiency.compute", device.efficiency.compute, changed.efficiency.compute),
        _correction(
            "efficiency.memory_bandwidth", device.efficiency.memory_bandwidth, changed.efficiency.memory_bandwidth
        ),
        _correction("launch_overhead", device.launch_overhead, changed.launch_overhead),
        *([_correction("timings", 1.0, math.exp(logs[3]))] if device.timings else []),
    ]
    how = f"calibrated on {on.isoformat()} by {len(runs)} executed plans; reports and residuals under `calibration`"
    return changed.model_copy(
        update={
            "name": f"{device.name}-calibrated",
            "efficiency": changed.efficiency.model_copy(update={"basis": "measured"}),
            "sources": {**device.sources, "efficiency": how, "launch_overhead": how},
            "calibration": _calibration(device.name, runs, on, corrections, observations, logs),
        }
    )


def _stage_observations(device: Device, run: Run, stage: StageReport, what: str) -> list[_Observation]:
    """Return the stage's seconds; those of a language model apart for prefill and decode, which have other bounds."""
    problem = run.plan.problem
    load = problem.workload
    variant = run.plan.variants[stage.index]
    models = {problem.model.name}
    technique = choose_strategy(problem, run.plan.strategy)  # once: it looks through the installed packages

    def seconds(logs: Array, workload: TextWorkload | None = None) -> float:
        table = _compute_s(technique, problem, _with_factors(device, logs, models), workload)
        return float(table[variant, stage.start : stage.stop].sum())

    if not isinstance(load, TextWorkload) or load.new_tokens == 1:
        return [_observe(what, stage.compute_s, seconds)]
    # What the plan counts beyond the tables is waking up after waits, about the same in each round; it is not fitted.
    woken = any(row.wake for row in device.timings)
    wakes_s = run.plan.stages[stage.index].compute_s - seconds(np.zeros(4)) if woken else 0.0
    wake_s = max(wakes_s, 0.0) / load.new_tokens
    first = load.model_copy(update={"new_tokens": 1})
    rest = Samples.of([a - b for a, b in zip(stage.compute_s.samples, stage.first_round_s.samples, strict=True)])
    return [
        _observe(f"{what} prefill", stage.first_round_s, lambda logs: seconds(logs, first) + wake_s),
        _observe(
            f"{what} decode", rest, lambda logs: seconds(logs) - seconds(logs, first) + wake_s * (load.new_tokens - 1)
        ),
    ]


def _observe(what: str, measured: Samples, predict: Callable[[Array], float]) -> _Observation:
    return _Observation(what, measured.median, max(measured.spread / measured.median, LEAST_SPREAD), predict)


def _compute_s(technique: Strategy, problem: Problem, device: Device, workload: TextWorkload | None) -> Array:
    """Seconds of every variant and element on a device, as the strategy plans them, (V, L)."""
    alone = problem.model_copy(
        update={
            "devices": [device],
            "network": problem.network.model_copy(update={"default": None, "links": []}),
            # Whether weights may be stored otherwise, and so how many variants there are, depends on it.
            "constraints": Constraints(quality=0.0 if weight_formats(problem) else None),
            "objective": "latency",
            "workload": workload or problem.workload,
        }
    )
    return np.asarray(technique.build(alone).compute_s[0])


def _with_factors(device: Device, logs: Array, models: set[str]) -> Device:
    """Return the device with compute, bandwidth and launch factors multiplied, and measured tables of ``models``."""
    compute, bandwidth, launch, tables = (float(factor) for factor in np.exp(logs))
    known = device.efficiency
    timings = [
        row.model_copy(update={"elements": [value * tables for value in row.elements]}) if row.model in models else row
        for row in device.timings
    ]
    return device.model_copy(
        update={
            "efficiency": known.model_copy(
                update={
                    "compute": min(1.0, known.compute * compute),
                    "memory_bandwidth": min(1.0, known.memory_bandwidth * bandwidth),
                    "compute_by_rows": [min(1.0, share * compute) for share in known.compute_by_rows],
                }
            ),
            "launch_overhead": device.launch_overhead * launch,
            "timings": timings,
        }
    )


# ── links ────────────────────────────────────────────────────────────────────────────────────────────────────


def _networks(runs: Sequence[Run]) -> list[Network]:
    found: dict[str, Network] = {}
    for run in runs:
        network = run.plan.problem.network
        if found.setdefault(network.name, network) != network:
            message = f"network '{network.name}' has different numbers in two plans"
            raise InputError(Finding("network", message, "calibrate plans of one profile together"))
    return list(found.values())


def _fit_network(network: Network, runs: Sequence[Run], on: date, notes: list[str]) -> Network | None:
    """Correct each of the network's entries that carried something; ``None`` if none did."""
    entries: dict[int, list[_Observation]] = {}
    for number, run in enumerate(runs, start=1):
        if run.plan.problem.network.name != network.name:
            continue
        planned = {(one.purpose, one.cut): one for one in run.plan.transfers}
        for moved in run.report.transfers:
            plan = planned.get((moved.purpose, moved.cut))
            if plan is None or not moved.seconds.median > 0:
                continue
            at = _entry(network, plan.source, plan.destination)
            quality = _quality(network, at)
            sending_s = plan.seconds - plan.messages * quality.latency
            waiting_s = plan.messages * max(quality.latency, LEAST_LATENCY_S)
            predict = _link_prediction(waiting_s, sending_s)
            what = f"run {number} {plan.purpose} {plan.source} → {plan.destination}"
            entries.setdefault(at, []).append(_observe(what, moved.seconds, predict))
    corrections, residuals = [], []
    links, default = list(network.links), network.default
    for at, observations in sorted(entries.items()):
        quality = _quality(network, at)
        if quality.rate is None:
            notes.append(f"network {network.name}: the link by radio was left as it is; measure its efficiency instead")
            continue
        logs = _fit(observations, np.array([_WIDEST, _WIDEST]))
        before = max(quality.latency, LEAST_LATENCY_S)
        update = {"latency": before * math.exp(logs[0]), "rate": quality.rate * math.exp(logs[1])}
        name = "default" if at < 0 else f"links[{at}]"
        corrections += [
            _correction(f"{name}.{key}", getattr(quality, key), value) for key, value in sorted(update.items())
        ]
        residuals += _residuals(observations, logs)
        if at < 0:
            default = quality.model_copy(update=update)
        else:
            links[at] = links[at].model_copy(update=update)
    if not corrections:
        return None
    how = f"calibrated on {on.isoformat()} by {len(runs)} executed plans; reports and residuals under `calibration`"
    base = _calibration(network.name, runs, on, corrections, [], np.zeros(2))
    return network.model_copy(
        update={
            "name": f"{network.name}-calibrated",
            "sources": {**network.sources, **{one.field: how for one in corrections}},
            "default": default,
            "links": links,
            "calibration": base.model_copy(update={"residuals": residuals}),
        }
    )


def _link_prediction(waiting_s: float, sending_s: float) -> Callable[[Array], float]:
    return lambda logs: waiting_s * math.exp(logs[0]) + sending_s * math.exp(-logs[1])


def _entry(network: Network, source: str, destination: str) -> int:
    """Index of the link entry that serves a direction, -1 for the default."""
    for i, link in enumerate(network.links):
        ends = link.between or (str(link.from_), str(link.to))
        if (source, destination) == ends or (link.between and (destination, source) == ends):
            return i
    return -1


def _quality(network: Network, at: int) -> LinkQuality:
    quality = network.default if at < 0 else network.links[at]
    assert quality is not None, "a plan has no transfer without a link"
    return quality


# ── the fit ──────────────────────────────────────────────────────────────────────────────────────────────────


def _fit(observations: Sequence[_Observation], upper: Array) -> Array:
    """Logarithms of the factors' changes; several starts, since the roofline's maximum has kinks."""

    def misfit(logs: Array) -> Array:
        errors = [(one.predict(logs) - one.measured_s) / (one.sigma * one.measured_s) for one in observations]
        return np.array([*errors, *(logs / PRIOR)])

    lower = np.full_like(upper, -_WIDEST)
    upper = np.maximum(upper, 1e-9)
    best, least = np.zeros_like(upper), math.inf
    for start in (0.0, -1.0, 1.0):
        at = np.clip(np.full_like(upper, start), lower, upper)
        found = least_squares(misfit, at, bounds=(lower, upper), x_scale=1.0, diff_step=1e-4, max_nfev=60)
        if found.cost < least:
            best, least = np.asarray(found.x), float(found.cost)
    return best


def _residuals(observations: Sequence[_Observation], logs: Array) -> list[Residual]:
    def error(one: _Observation, at: Array) -> float:
        return (one.predict(at) - one.measured_s) / one.measured_s

    return [
        Residual(what=one.what, measured_s=one.measured_s, before=error(one, 0 * logs), after=error(one, logs))
        for one in observations
    ]


def _correction(name: str, before: float, after: float) -> Correction:
    return Correction(field=name, before=before, after=after)


def _calibration(
    base: str,
    runs: Sequence[Run],
    on: date,
    corrections: list[Correction],
    observations: Sequence[_Observation],
    logs: Array,
) -> Calibration:
    reports = [
        CalibrationReport(
            sha256=run.sha256, plan_digest=run.plan.digest(), date=run.report.date, emulated=run.report.emulated
        )
        for run in runs
    ]
    return Calibration(
        base=base,
        date=on,
        hardware=hardware_words(runs[0].report),
        reports=reports,
        corrections=corrections,
        residuals=_residuals(observations, logs),
    )
