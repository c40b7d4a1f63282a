"""Patches: the rows of the latent are shared out, and all devices take all steps at the same time.

How many rows each gets is the divisible-load problem of :mod:`edgeopt_solvers.divisible`; the cost model is
:mod:`edgeopt.costs.patch`. Each denoiser that can be cut so is a case of its own. Text encoder and decoder run on the
source. Between devices of equal speed: Li et al., DistriFusion, arXiv:2402.19481.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

import edgeopt
from edgeopt.costs.diffusion import DiffusionCosts
from edgeopt.costs.energy import energy_terms, power_w
from edgeopt.costs.links import link_arrays
from edgeopt.costs.memory import usable_bytes
from edgeopt.costs.patch import PatchCosts
from edgeopt.errors import Finding, InputError, NoPlanError
from edgeopt.plan import Interval, Plan, Stage, Transfer
from edgeopt.profiles.model import Diffusion, StaleQuality
from edgeopt.profiles.problem import ImageWorkload, Problem
from edgeopt.strategies.base import Strategy
from edgeopt.strategies.cases import narrowed, qualities, quality_of
from edgeopt.strategies.chain import able_devices, source_index, wants_quality
from edgeopt.strategies.pipeline import basis_notes
from edgeopt.strategies.timeline import link_lane
from edgeopt_solvers import Result
from edgeopt_solvers.divisible import Divisible, Solution

__all__ = ["Patch"]

Array = NDArray[np.float64]


class Patch(Strategy):
    """Plan which device has which rows of the latent."""

    name: ClassVar[str] = "patch"

    def unfit(self, problem: Problem) -> str | None:
        """Refuse what has no patches, and goals and links that a division of rows does not know."""
        model, limits = problem.model, problem.constraints
        if not (isinstance(model, Diffusion) and isinstance(problem.workload, ImageWorkload)):
            return f"patch shares out the rows of an image; {model.name!r} is a {model.family} model"
        if not any(variant.patch for variant in model.variants.values()):
            return (
                f"patch needs what patches exchange, and {model.name!r} does not say it (`edgeopt profile model` "
                "derives it for the denoisers that can be cut so)"
            )
        if reason := _other_goal(problem):
            return reason
        if limits.pin or limits.first or limits.last or limits.max_stages or limits.min_segment > 1:
            return "patch has no elements that could be pinned or counted (constraints pin, first, last, stages)"
        if any(link.medium for link in [problem.network.default, *problem.network.links] if link):
            return "patch sends over all links at once, and these share a medium"
        return None

    def cases(self, problem: Problem) -> list[Problem]:
        """One problem for each denoiser that has patches and, where quality is asked for, is good enough.

        Raises
        ------
        InputError
            The problem asks for quality, and the model carries none for these denoisers, or not for stale context.
        NoPlanError
            None is good enough.
        """
        model, workload = problem.model, problem.workload
        assert isinstance(model, Diffusion)
        assert isinstance(workload, ImageWorkload)
        if reason := _other_goal(problem):
            raise InputError([Finding("objective", reason, "use `latency`, `throughput` or `quality`")])
        known, floor = qualities(model, workload), problem.constraints.quality
        able = [name for name, variant in model.variants.items() if variant.patch]
        if field := wants_quality(problem):
            floor = math.inf if floor is None else floor
            losses = {name: _stale_loss(problem, name) for name in able}
            best = {name: known[name] + loss for name, loss in losses.items() if name in known and loss is not None}
            if not best:
                message = f"the problem asks for quality and model {model.name!r} has none for these patches"
                mend = "add measured `quality:` and `stale:` blocks to the model, use `mode: synchronous`, or drop it"
                raise InputError([Finding(field=field, message=message, mend=mend)])
            able = [name for name, value in best.items() if value <= floor]
            if not able:
                name = min(best, key=lambda each: best[each])
                raise NoPlanError(
                    f"constraints.quality is {floor:g}, and by patches {name!r} reaches {best[name]:.4g} at best"
                )
        return [narrowed(problem, model, name, known.get(name)) for name in able]

    def build(self, problem: Problem) -> Divisible:
        """Build the load of the problem's first denoiser (of a case: its only one).

        Raises
        ------
        InputError
            As :meth:`cases`; two devices that may take part have no link; or the source cannot encode and decode.
        """
        return _Shares.of(self.cases(problem)[0]).instance()

    def solution(self, plan: Plan) -> Solution:
        """Return the rows of every device, in units."""
        units = plan.decisions["units"]
        if not isinstance(units, list) or not all(isinstance(unit, int) for unit in units):
            raise ValueError(f"decisions.units is {units!r}, not a whole number for each device")
        return Solution(tuple(units), tuple(1.0 if unit else 0.0 for unit in units))  # type: ignore[arg-type, misc]

    def plan(self, problem: Problem, instance: Divisible, result: Result) -> Plan:
        """Write a stage for each device with rows, then those of the text encoder and the decoder."""
        problem = self.cases(problem)[0]
        shares = _Shares.of(problem)
        units, latency_s = list(result.solution.loads), result.metrics["makespan_s"] + shares.around_s
        stages, transfers = shares.stages(units), shares.transfers(units)
        quality = None
        assert isinstance(problem.model, Diffusion)
        stale = _stale_loss(problem, shares.costs.variant)
        if problem.model.quality is not None and stale is not None:
            quality = quality_of(problem) + stale
        objective, bound, gap = result.objective + shares.around_s, result.bound + shares.around_s, result.gap
        if problem.objective == "quality":  # of this denoiser, however its rows are shared out
            assert quality is not None
            objective, bound, gap = quality, quality, 0.0
        plan = Plan(
            edgeopt_version=edgeopt.__version__,
            problem=problem,
            strategy=self.name,
            backend=result.backend,
            status=result.status.reason,
            objective=objective,
            bound=bound,
            gap=gap,
            runtime_s=result.runtime_s,
            latency_s=latency_s,
            throughput_per_s=1.0 / latency_s if latency_s > 0 else math.inf,
            quality=quality,
            metrics={"images_per_s": shares.costs.costs.workload.images / latency_s},
            decisions={
                "mode": problem.constraints.patch.mode,
                "warmup_steps": shares.costs.fresh_calls,
                "units": units,
                "rows_per_unit": shares.costs.exchange.multiple,
            },
            stages=stages,
            transfers=transfers,
            timeline=shares.timeline(stages, transfers, latency_s),
            notes=shares.notes(units, quality is None and problem.model.quality is not None),
        )
        if power_w(problem.devices, "busy") is None:
            return plan
        return plan.model_copy(update={"energy_j": sum(terms.counted for terms in energy_terms(plan).values())})


def _other_goal(problem: Problem) -> str:
    """Say which goal of a problem is none of patches; empty where all are."""
    if problem.objective in ("latency", "throughput", "quality") and problem.constraints.energy is None:
        return ""
    return "patch makes requests short; it weighs neither energy nor several goals"


def _stale_loss(problem: Problem, variant: str) -> float | None:
    """Return what stale context costs: the loss measured with at most as many synchronous steps, over as few steps.

    0 where there is none, ``None`` where nothing was measured.
    """
    model, workload = problem.model, problem.workload
    assert isinstance(model, Diffusion)
    assert isinstance(workload, ImageWorkload)
    options = problem.constraints.patch
    if options.mode == "synchronous" or options.warmup_steps >= workload.steps:
        return 0.0
    known: StaleQuality | None = model.stale
    if known is None or workload.steps < known.steps:
        return None
    measured = zip(known.warmup_steps, known.loss.get(variant, []), strict=False)
    losses = [(steps, loss) for steps, loss in measured if steps <= options.warmup_steps]
    return max(losses)[1] if losses else None


@dataclass(frozen=True)
class _Shares:
    """The rows of one problem: seconds and bytes by device."""

    problem: Problem
    costs: PatchCosts
    able: NDArray[np.bool_]
    source: int
    rate: Array
    latency: Array

    @classmethod
    def of(cls, problem: Problem) -> _Shares:
        """Read them off a case."""
        assert isinstance(problem.model, Diffusion)
        assert isinstance(problem.workload, ImageWorkload)
        links = link_arrays(problem.network, [device.name for device in problem.devices])
        costs = PatchCosts(DiffusionCosts(problem.model, problem.workload), problem.constraints.patch)
        able = np.array(able_devices(problem))
        shares = cls(problem, costs, able, source_index(problem), links.rate_bytes_per_s, links.latency_s)
        shares._check()
        return shares

    def _check(self) -> None:
        names = [device.name for device in self.problem.devices]
        ends = [d for d in range(len(names)) if self.able[d] or d == self.source]
        for i in ends:
            for j in ends:
                if i != j and self.rate[i, j] <= 0:
                    message = f"patch sends from every device to every other, and {names[i]} has no link to {names[j]}"
                    raise InputError([Finding("network.links", message, f"add it, or forbid {names[j]}")])
        if self.costs.component_bytes() and not self.able[self.source]:
            message = f"patch encodes and decodes on the source, and {names[self.source]} cannot compute"
            raise InputError([Finding("constraints.source", message, "name another source")])

    @property
    def around_s(self) -> float:
        """Seconds of text encoder and decoder, before and after all patches."""
        if not self.costs.component_bytes():
            return 0.0
        return sum(self.costs.component_s(self.problem.devices[self.source]).values())

    def _steps(self) -> list[tuple[float, float]]:
        """Seconds of a step without rows and per unit, by device."""
        able = zip(self.problem.devices, self.able, strict=True)
        return [self.costs.step_s(device)[:2] if can else (0.0, math.inf) for device, can in able]

    def _slowest(self, d: int) -> tuple[float, float]:
        """Rate and latency of the slowest link of a device to another that may take part."""
        others = [e for e in np.flatnonzero(self.able) if e != d]
        if not others:
            return math.inf, 0.0
        return float(self.rate[d, others].min()), float(self.latency[d, others].max())

    def instance(self) -> Divisible:
        """Return the load; see :mod:`edgeopt.costs.patch` for its seconds."""
        costs, steps = self.costs, self._steps()
        calls, fresh = costs.calls, costs.fresh_calls
        share, alone = fresh / calls, int(self.able.sum()) == 1
        rows: dict[str, list[float]] = {
            name: [] for name in ("fixed_s", "unit_s", "latency_s", "fixed_bytes", "unit_bytes", "rate_bytes_per_s")
        }
        for d, (start, each) in enumerate(steps):
            rate, latency = self._slowest(d)
            own_bytes = 0.0 if alone else costs.unit_bytes
            fixed_bytes = 0.0 if alone else costs.fixed_bytes
            waits = costs.exchange.messages * latency
            once, once_unit = self._once(d)
            once, once_unit = once / calls, once_unit / calls
            unit_s = own_bytes / rate + once_unit
            if fresh == calls:
                values = (start, each, waits + once, fixed_bytes, unit_s)
            else:
                fixed_e, unit_e = waits + fixed_bytes / rate, own_bytes / rate
                values = (
                    start + share * fixed_e + once, each + share * unit_e + once_unit,
                    share * (start + waits) + (1 - share) * latency + once, fixed_bytes,
                    unit_s + share * (each if math.isfinite(each) else 0.0),
                )  # fmt: skip
            known = rate if math.isfinite(rate) else 1.0  # without bytes any will do
            for name, value in zip(rows, (*values[:4], values[4] * known, known), strict=True):
                rows[name].append(value)
        limit = self.problem.constraints.deadline
        period = self.problem.constraints.period
        limits = [value for value in (limit, period) if value is not None]
        fixed_memory = np.full(len(steps), costs.fixed_memory_bytes)
        fixed_memory[self.source] += sum(costs.component_bytes().values())
        return Divisible(
            num_units=costs.num_units,
            exchange="synchronous" if fresh == calls else "overlapped",
            num_steps=np.full(len(steps), float(calls)),
            memory_bytes=np.array([usable_bytes(device) for device in self.problem.devices]),
            fixed_memory_bytes=fixed_memory,
            unit_memory_bytes=np.full(len(steps), costs.unit_memory_bytes),
            max_makespan_s=min(limits) - self.around_s if limits else None,
            **{name: np.array(values) for name, values in rows.items()},
        )

    def _once(self, d: int) -> tuple[float, float]:
        """Seconds to get the conditioning to a device and its rows back: fixed, and per unit."""
        s = self.source
        if d == s or not self.able[d]:
            return 0.0, 0.0
        there = self.latency[s, d] + self.costs.conditioning_bytes / self.rate[s, d]
        return float(there + self.latency[d, s]), float(self.costs.unit_latent_bytes / self.rate[d, s])

    def stages(self, units: list[int]) -> list[Stage]:
        """Return what every device computes; ``transfer_s`` is what it gives and gets around that."""
        costs, steps, devices = self.costs, self._steps(), self.problem.devices
        moved = self.transfers(units)
        stages, start = [], 0
        for d, count in enumerate(units):
            if not count:
                continue
            rows = count * costs.exchange.multiple
            arriving = [t for t in moved if t.destination == devices[d].name and t.purpose != "output"]
            stages.append(
                Stage(
                    index=len(stages), device=devices[d].name, variant=costs.variant, start=start, stop=start + rows,
                    elements=f"rows {start} to {start + rows - 1}",
                    compute_s=costs.calls * (steps[d][0] + steps[d][1] * count),
                    transfer_s=max((t.seconds for t in arriving), default=0.0),
                    transfer_bytes=sum(t.bytes for t in arriving),
                    memory_bytes=costs.fixed_memory_bytes + costs.unit_memory_bytes * count,
                )
            )  # fmt: skip
            start += rows
        source = devices[self.source]
        held = costs.component_bytes()
        for name, seconds in (costs.component_s(source) if held else {}).items():
            stages.append(
                Stage(
                    index=len(stages), device=source.name, variant=None, start=0, stop=0, elements=name,
                    compute_s=seconds, transfer_s=0.0, transfer_bytes=0.0, memory_bytes=held[name],
                )
            )  # fmt: skip
        return stages

    def transfers(self, units: list[int]) -> list[Transfer]:
        """Return what every device gives to every other: conditioning, context of all steps, finished rows."""
        costs, used = self.costs, [d for d, count in enumerate(units) if count]
        exchange, batch = costs.exchange, costs.costs.step_batch
        # What is sent in an asynchronous last step would be used in the next.
        rounds = costs.calls if costs.fresh_calls == costs.calls else costs.calls - 1
        moves = [(self.source, d, "input", costs.conditioning_bytes, 1.0) for d in used if d != self.source]
        for place, i in enumerate(used):
            for other, j in enumerate(used):
                if i == j:
                    continue
                near = abs(place - other) == 1
                messages = exchange.messages - (0 if near else exchange.halo_messages)
                num_bytes = costs.unit_bytes * units[i] + batch * (exchange.sums + (exchange.halo if near else 0.0))
                if messages:
                    moves.append((i, j, "context", rounds * num_bytes, float(rounds * messages)))
        moves += [(d, self.source, "output", costs.unit_latent_bytes * units[d], 1.0) for d in used if d != self.source]
        names = [device.name for device in self.problem.devices]
        return [
            Transfer(
                purpose=purpose, source=names[i], destination=names[j], bytes=num_bytes, messages=messages,
                seconds=float(messages * self.latency[i, j] + num_bytes / self.rate[i, j]),
                rate_bytes_per_s=float(self.rate[i, j]),
            )
            for i, j, purpose, num_bytes, messages in moves
        ]  # fmt: skip

    def timeline(self, stages: list[Stage], transfers: list[Transfer], latency_s: float) -> list[Interval]:
        """Return a bar for each device and way: all patches begin together."""
        encode_s = next((stage.compute_s for stage in stages if stage.elements == "text_encoder"), 0.0)
        decode_s = self.around_s - encode_s
        input_s = {t.destination: t.seconds for t in transfers if t.purpose == "input"}
        bars = []
        for stage in stages:
            begin = encode_s + input_s.get(stage.device, 0.0)
            if stage.variant is None:
                begin = 0.0 if stage.elements == "text_encoder" else latency_s - decode_s
            bars.append((stage.device, stage.elements, begin, begin + stage.compute_s))
        for move in transfers:
            begin = encode_s + (input_s.get(move.source, 0.0) if move.purpose == "context" else 0.0)
            if move.purpose == "output":
                begin = latency_s - decode_s - move.seconds
            bars.append((link_lane(move.source, move.destination), move.purpose, begin, begin + move.seconds))
        return [
            Interval(lane=lane, label=label, start_s=start, stop_s=stop)
            for lane, label, start, stop in sorted(bars, key=lambda bar: bar[2])
        ]

    def notes(self, units: list[int], unknown_quality: bool) -> list[str]:
        """Say what the figures rest on and who has no rows."""
        names = [device.name for device in self.problem.devices]
        able = [device for device, can in zip(self.problem.devices, self.able, strict=True) if can]
        notes = basis_notes({device.name: self.costs.step_s(device)[2] for device in able}, [])
        idle = [names[d] for d in np.flatnonzero(self.able) if not units[d]]
        if idle:
            notes.append(
                f"has no rows: {', '.join(idle)}; its links count as if it had, forbid it to see the rest alone"
            )
        if unknown_quality:
            notes.append("quality is not known: the model has no measured loss for context that is one step old")
        return notes
