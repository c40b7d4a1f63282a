"""What strategies of the chain family share: constraints of a problem as chain arguments, a solution as a plan."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

import edgeopt
from edgeopt.costs.energy import power_w
from edgeopt.costs.links import link_arrays, shannon_bytes_per_s
from edgeopt.costs.memory import usable_bytes
from edgeopt.costs.roofline import peak_flop_per_s
from edgeopt.errors import Finding, InputError
from edgeopt.plan import Plan, Stage, Transfer
from edgeopt.profiles.device import Device
from edgeopt.profiles.problem import Problem
from edgeopt.strategies.timeline import Bar, lay_out, single_pass
from edgeopt_solvers import Result
from edgeopt_solvers.chain import Chain, Solution

__all__ = [
    "able_devices", "chain_plan", "compute_table", "shared_arguments", "source_index", "transfers_of",
    "wants_quality", "with_cut_reasons",
]  # fmt: skip


def source_index(problem: Problem) -> int:
    """Index of the device that owns the request and wants the result."""
    names = [device.name for device in problem.devices]
    return names.index(problem.constraints.source) if problem.constraints.source else 0


def shared_arguments(problem: Problem, elements: Sequence[str]) -> dict[str, Any]:
    """Chain arguments that do not depend on the technique: links, memory, source, power, objective, budgets, pins."""
    names = [device.name for device in problem.devices]
    limits = problem.constraints
    busy = power_w(problem.devices, "busy")
    return {
        **link_arrays(problem.network, names).arguments(),
        "memory_bytes": np.array([usable_bytes(device) for device in problem.devices]),
        "source": source_index(problem),
        "objective": problem.objective,
        "power_w": busy,
        "send_power_w": None if busy is None else power_w(problem.devices, "send"),
        "receive_power_w": None if busy is None else power_w(problem.devices, "receive"),
        "max_latency_s": limits.deadline,
        "max_period_s": limits.period,
        "max_energy_j": limits.energy,
        "max_stages": limits.max_stages,
        "min_segment": limits.min_segment,
        "pins": _pins(problem, elements),
    }


def _pins(problem: Problem, elements: Sequence[str]) -> dict[int, int] | None:
    """Element index → device index, from ``first``, ``last`` and ``pin`` (names may hold wildcards: ``step.*``)."""
    limits = problem.constraints
    names = [device.name for device in problem.devices]
    pins: dict[int, int] = {}
    for pattern, device in limits.pin.items():
        matched = [i for i, element in enumerate(elements) if fnmatchcase(element, pattern) or str(i) == pattern]
        if not matched:
            raise InputError(
                [
                    Finding(
                        field=f"constraints.pin.{pattern}",
                        message=f"no element of the model is called {pattern!r}",
                        mend=f"elements are {', '.join(elements[:3])} … {elements[-1]}; wildcards and indices work too",
                    )
                ]
            )
        pins |= dict.fromkeys(matched, names.index(device))
    if limits.first:
        pins[0] = names.index(limits.first)
    if limits.last:
        pins[len(elements) - 1] = names.index(limits.last)
    return pins or None


def able_devices(problem: Problem) -> list[bool]:
    """Which devices may compute: not forbidden, and with a rate for the model's dtype or a measurement of the model."""
    model = problem.model
    return [
        device.name not in problem.constraints.forbid
        and (model.dtype in device.compute or any(timing.model == model.name for timing in device.timings))
        for device in problem.devices
    ]


def compute_table(problem: Problem, seconds: Callable[[Device], np.ndarray]) -> np.ndarray:
    """Stack ``seconds(device)`` over devices, ``inf`` for those that may not compute.

    Raises
    ------
    InputError
        No device that is allowed to compute has a rate for the model's dtype.
    """
    able = able_devices(problem)
    if not any(able):
        allowed = [device for device in problem.devices if device.name not in problem.constraints.forbid]
        peak_flop_per_s((allowed or problem.devices)[0], problem.model.dtype)
    known = {i: seconds(device) for i, device in enumerate(problem.devices) if able[i]}
    nowhere = np.full_like(next(iter(known.values())) if known else seconds(problem.devices[0]), np.inf)
    return np.stack([known.get(i, nowhere) for i in range(len(problem.devices))])


def wants_quality(problem: Problem) -> str | None:
    """Return the field by which a problem asks for quality, ``None`` where it does not."""
    if problem.constraints.quality is not None:
        return "constraints.quality"
    wants = problem.objective if isinstance(problem.objective, dict) else {problem.objective: 1.0}
    return "objective" if wants.get("quality") else None


def with_cut_reasons(message: str, refusals: Mapping[int, str]) -> str:
    """Add to a message about ``cut_legal`` why the cuts that it names are not."""
    if "cut_legal" not in message:
        return message
    named = [int(number) for number in re.findall(r"\bstage begin(?:s|ning) at (?:element )?([\d, ]+)", message)
             for number in re.findall(r"\d+", number)]  # fmt: skip
    reasons = dict.fromkeys(f"{cut}: {refusals[cut]}" for cut in named if cut in refusals)
    return f"{message}; a stage may not begin at {'; nor at '.join(reasons)}" if reasons else message


def transfers_of(
    problem: Problem, chain: Chain, solution: Solution, wake_s: np.ndarray | None = None
) -> list[Transfer]:
    """Every transfer of a solution between different devices, in order: input, cuts, loop, output.

    ``wake_s``, (D,), is the part of the chain's latency into each device that its computing takes, not the link.
    """
    bytes_, messages = np.asarray(chain.cut_bytes), np.asarray(chain.cut_messages)
    hops: list[tuple[str, int, int, int, float, float]] = []
    if chain.source is not None:
        hops.append(("input", 0, chain.source, solution.devices[0], bytes_[0], messages[0]))
    for cut, a, b in zip(solution.cuts, solution.devices, solution.devices[1:], strict=False):
        hops.append(("cut", cut, a, b, bytes_[cut], messages[cut]))
    last = solution.cuts[-1]
    hops.append(("loop", last, solution.devices[-1], solution.devices[0], chain.loop_bytes, chain.loop_messages))
    if chain.source is not None:
        hops.append(("output", last, solution.devices[-1], chain.source, bytes_[last], messages[last]))
    moves = [hop for hop in hops if hop[2] != hop[3] and (hop[4] or hop[5])]
    shares = solution.shares or (1.0,) * len(moves)
    return [_transfer(problem, chain, hop, share, wake_s) for hop, share in zip(moves, shares, strict=True)]


def _transfer(
    problem: Problem,
    chain: Chain,
    hop: tuple[str, int, int, int, float, float],
    share: float,
    wake_s: np.ndarray | None,
) -> Transfer:
    purpose, cut, i, j, num_bytes, messages = hop
    latency_s = chain.latency_s[i, j]
    if wake_s is not None and purpose != "output":  # nothing is computed on the result
        latency_s = latency_s - wake_s[j]
    medium = int(chain.medium[i, j])
    if chain.is_radio[i, j]:
        rate = shannon_bytes_per_s(float(chain.band_hz[medium]), float(chain.snr[i, j]), share)
    else:
        rate = share * float(chain.rate_bytes_per_s[i, j])
    return Transfer(
        purpose=purpose,
        cut=cut,
        source=problem.devices[i].name,
        destination=problem.devices[j].name,
        bytes=float(num_bytes),
        messages=float(messages),
        seconds=float(messages * latency_s + (num_bytes / rate if num_bytes else 0.0)),
        medium=list(problem.network.media)[medium] if medium >= 0 else None,
        share=share,
        rate_bytes_per_s=rate,
    )


def chain_plan(
    problem: Problem,
    strategy: str,
    chain: Chain,
    result: Result,
    elements: Sequence[str],
    variants: Sequence[str | None],
    quality_base: float | None = None,
    metrics: dict[str, float] | None = None,
    bars: Sequence[Bar] | None = None,
    notes: Sequence[str] = (),
    wake_s: np.ndarray | None = None,
) -> Plan:
    """Write a chain solution down as a plan.

    ``latency_s``, ``energy_j`` and ``quality`` come from the solver's checker; the split by stage and transfer is
    recomputed here from the chain's arrays. ``quality_base`` is what the metric reads before any loss is added
    (``None``: the model carries no quality). ``bars`` is the timeline; by default one pass over stages and transfers.
    ``wake_s`` as for :func:`transfers_of`; it counts as computing of the stage that a message arrives at.
    """
    solution: Solution = result.solution
    transfers = transfers_of(problem, chain, solution, wake_s)
    arriving = {t.cut: t for t in transfers if t.purpose in ("input", "cut")}
    stages = [_stage(problem, chain, solution, k, elements, variants, arriving) for k in range(len(solution.cuts))]
    if wake_s is not None:
        stages = [_woken(stage, transfers, wake_s[solution.devices[stage.index]]) for stage in stages]
    offset = (quality_base or 0.0) * chain.weights.get("quality", 0.0)
    return Plan(
        edgeopt_version=edgeopt.__version__,
        problem=problem,
        strategy=strategy,
        backend=result.backend,
        status=result.status.reason,
        objective=result.objective + offset,
        bound=result.bound + offset,
        gap=result.gap,
        runtime_s=result.runtime_s,
        latency_s=result.metrics["latency_s"],
        throughput_per_s=1.0 / result.metrics["period_s"] if result.metrics["period_s"] > 0 else float("inf"),
        energy_j=result.metrics.get("energy_j") if chain.has_energy else None,
        quality=None if quality_base is None else result.metrics["quality_loss"] + quality_base,
        metrics=metrics or {},
        cuts=list(solution.cuts),
        devices=list(solution.devices),
        variants=list(solution.variants),
        shares=None if solution.shares is None else list(solution.shares),
        stages=stages,
        transfers=transfers,
        timeline=lay_out(bars if bars is not None else single_pass(stages, transfers)),
        notes=[*notes, *_usage_notes(problem, chain, solution, result.status.reason == "optimal")],
    )


def _woken(stage: Stage, transfers: Sequence[Transfer], wake_s: float) -> Stage:
    """Add what the stage takes longer in the rounds that it waits for."""
    waits = sum(
        moved.messages
        for moved in transfers
        if (moved.purpose in ("input", "cut") and moved.cut == stage.start)
        or (moved.purpose == "loop" and stage.index == 0)
    )
    return stage.model_copy(update={"compute_s": stage.compute_s + float(waits * wake_s)})


def _usage_notes(problem: Problem, chain: Chain, solution: Solution, proven: bool) -> list[str]:
    """Say which devices the plan leaves out and why, and what the energy does not count."""
    able = able_devices(problem)
    idle = [d.name for i, d in enumerate(problem.devices) if able[i] and i not in solution.devices]
    why = "no plan that gives it a stage is better" if len(idle) == 1 else "no plan that gives them a stage is better"
    notes = [f"hosts no stage{f', since {why}' if proven else ''}: {', '.join(idle)}"] if idle else []
    if problem.constraints.forbid:
        notes.append(f"forbidden by the problem: {', '.join(problem.constraints.forbid)}")
    unable = [d.name for d in problem.devices if problem.model.dtype not in d.compute and not d.timings]
    if unable:
        notes.append(f"no {problem.model.dtype} rate in the profile, so no compute there: {', '.join(unable)}")
    if chain.has_energy and power_w(problem.devices, "send") is None:
        notes.append("energy counts computing only: a device's sending power is not in its profile")
    return notes


def _stage(
    problem: Problem,
    chain: Chain,
    solution: Solution,
    k: int,
    elements: Sequence[str],
    variants: Sequence[str | None],
    arriving: dict[int, Transfer],
) -> Stage:
    start, stop = solution.starts[k], solution.cuts[k]
    d, v = solution.devices[k], solution.variants[k]
    transfer = arriving.get(start)
    resident = 0.0 if chain.resident_bytes is None else np.asarray(chain.resident_bytes)[v, start:stop].sum()
    shared = 0.0 if chain.shared_bytes is None else np.asarray(chain.shared_bytes)[v]
    transient = 0.0 if chain.transient_bytes is None else np.asarray(chain.transient_bytes)[v, start:stop].max()
    return Stage(
        index=k,
        device=problem.devices[d].name,
        variant=variants[v],
        start=start,
        stop=stop,
        elements=elements[start] if stop == start + 1 else f"{elements[start]} … {elements[stop - 1]}",
        compute_s=float(np.asarray(chain.compute_s)[d, v, start:stop].sum()),
        transfer_s=transfer.seconds if transfer else 0.0,
        transfer_bytes=transfer.bytes if transfer else 0.0,
        memory_bytes=float(resident + shared + transient),
    )
