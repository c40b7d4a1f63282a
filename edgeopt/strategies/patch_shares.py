"""The rows of one patch problem: seconds and bytes of every device, as a divisible load and as parts of a plan."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt.costs.diffusion import DiffusionCosts
from edgeopt.costs.links import link_arrays
from edgeopt.costs.memory import usable_bytes
from edgeopt.costs.patch import PatchCosts
from edgeopt.costs.strides import sent_steps
from edgeopt.errors import Finding, InputError
from edgeopt.plan import Interval, Stage, Transfer
from edgeopt.profiles.device import Device
from edgeopt.profiles.model import Diffusion
from edgeopt.profiles.problem import ImageWorkload, Problem
from edgeopt.strategies.chain import able_devices, source_index
from edgeopt.strategies.pipeline import basis_notes
from edgeopt.strategies.timeline import link_lane
from edgeopt_solvers.divisible import Divisible

__all__ = ["PatchShares", "missing_link"]

Array = NDArray[np.float64]

#: Slabs further off their line than this are worth a note.
_STRAIGHT = 0.05


@dataclass(frozen=True)
class PatchShares:
    """The rows of one problem: seconds and bytes by device."""

    problem: Problem
    costs: PatchCosts
    able: NDArray[np.bool_]
    source: int
    rate: Array
    latency: Array

    @classmethod
    def of(cls, problem: Problem) -> PatchShares:
        """Read them off a case."""
        assert isinstance(problem.model, Diffusion)
        assert isinstance(problem.workload, ImageWorkload)
        links = link_arrays(problem.network, [device.name for device in problem.devices])
        costs = PatchCosts(DiffusionCosts(problem.model, problem.workload), problem.constraints.patch)
        sharing = problem.constraints.patch.devices
        able = np.array(able_devices(problem)) & np.array([device.name in sharing for device in problem.devices])
        shares = cls(problem, costs, able, source_index(problem), links.rate_bytes_per_s, links.latency_s)
        shares._check()
        return shares

    def _check(self) -> None:
        names = [device.name for device in self.problem.devices]
        if missing := missing_link(self.problem, [names[d] for d in np.flatnonzero(self.able)]):
            message = f"patch sends from every device to every other, and {missing[0]} has no link to {missing[1]}"
            raise InputError([Finding("network.links", message, f"add it, or forbid {missing[1]}")])
        if self.costs.component_bytes() and not able_devices(self.problem)[self.source]:
            message = f"patch encodes and decodes on the source, and {names[self.source]} cannot compute"
            raise InputError([Finding("constraints.source", message, "name another source")])

    @property
    def strides(self) -> list[int]:
        """Every how many asynchronous steps each device computes; 1 for those that do not share."""
        options = self.problem.constraints.patch
        known = dict(zip(options.devices, options.strides, strict=False))
        return [known.get(device.name, 1) for device in self.problem.devices]

    @property
    def around_s(self) -> float:
        """Seconds of text encoder and decoder, before and after all patches."""
        if not self.costs.component_bytes():
            return 0.0
        return sum(self.costs.component_s(self.problem.devices[self.source]).values())

    def _steps(self) -> list[tuple[float, float]]:
        """Seconds of a step without rows and per unit, by device."""
        able, alone = zip(self.problem.devices, self.able, strict=True), self._is_alone
        return [self.costs.step_s(device, alone)[:2] if can else (0.0, math.inf) for device, can in able]

    def _carries(self) -> list[tuple[float, float]]:
        """Seconds of a stale step's messages, of a device and per unit on it."""
        return [self.costs.carry_s(device, int(self.able.sum())) for device in self.problem.devices]

    @property
    def _is_alone(self) -> bool:
        return int(self.able.sum()) == 1

    def _slowest(self, d: int) -> tuple[float, float]:
        """Rate and latency of the slowest link of a device to another that may take part."""
        others = [e for e in np.flatnonzero(self.able) if e != d]
        if not others or not self.able[d]:
            return math.inf, 0.0
        return float(self.rate[d, others].min()), float(self.latency[d, others].max())

    def instance(self) -> Divisible:
        """Return the load; see :mod:`edgeopt.costs.patch` for its seconds."""
        costs, steps, carries = self.costs, self._steps(), self._carries()
        fresh, alone = costs.fresh_calls, self._is_alone
        is_stale = fresh < costs.calls
        calls = [costs.own_calls(stride) - (fresh if is_stale else 0) for stride in self.strides]
        rows: dict[str, list[float]] = {
            name: []
            for name in (
                "fixed_s", "unit_s", "latency_s", "fixed_bytes", "unit_bytes", "rate_bytes_per_s", "lead_s",
                "lead_unit_s",
            )
        }  # fmt: skip
        for d, (start, each) in enumerate(steps):
            rate, latency = self._slowest(d)
            own_bytes = 0.0 if alone else costs.unit_bytes
            fixed_bytes = 0.0 if alone else costs.fixed_bytes
            waits = costs.exchange.messages * latency
            once, once_unit = (value / calls[d] for value in self._once(d))
            known = rate if math.isfinite(rate) else 1.0  # without bytes any will do
            moved = fixed_bytes, (own_bytes / rate + once_unit) * known, known
            if is_stale and math.isfinite(each):
                lead = fresh * (start + waits + fixed_bytes / rate), fresh * (each + own_bytes / rate)
                carry, carry_unit = carries[d]
                values = (start + carry + once, each + carry_unit + once_unit, latency + once, *moved, *lead)
            else:
                values = (start, each, waits + once, *moved, 0.0, 0.0)
            for name, value in zip(rows, values, strict=True):
                rows[name].append(value)
        limit = self.problem.constraints.deadline
        period = self.problem.constraints.period
        limits = [value for value in (limit, period) if value is not None]
        fixed_memory = np.full(len(steps), costs.fixed_memory_bytes)
        fixed_memory[self.source] += sum(costs.component_bytes().values())
        return Divisible(
            num_units=costs.num_units,
            exchange="overlapped" if is_stale else "pairwise",
            num_steps=np.array(calls, dtype=float),
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
        costs, steps, devices, carries = self.costs, self._steps(), self.problem.devices, self._carries()
        moved = self.transfers(units)
        stages, start = [], 0
        for d, count in enumerate(units):
            if not count:
                continue
            rows, calls = count * costs.exchange.multiple, costs.own_calls(self.strides[d])
            carry_s = (calls - costs.fresh_calls) * (carries[d][0] + carries[d][1] * count)
            arriving = [t for t in moved if t.destination == devices[d].name and t.purpose != "output"]
            stages.append(
                Stage(
                    index=len(stages), device=devices[d].name, variant=costs.variant, start=start, stop=start + rows,
                    elements=f"rows {start} to {start + rows - 1}",
                    compute_s=calls * (steps[d][0] + steps[d][1] * count) + carry_s,
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
        moves = [(self.source, d, "input", costs.conditioning_bytes, 1.0) for d in used if d != self.source]
        for place, i in enumerate(used):
            for other, j in enumerate(used):
                if i == j:
                    continue
                near = abs(place - other) == 1
                rounds = len(sent_steps(costs.calls, costs.fresh_calls, self.strides[i], self.strides[j]))
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
        devices, able = self.problem.devices, able_devices(self.problem)
        sharing = [device for device, shares in zip(devices, self.able, strict=True) if shares]
        notes = basis_notes({d.name: self.costs.step_s(d, self._is_alone)[2] for d in sharing}, [])
        notes += [] if self._is_alone else self._slab_notes(sharing)
        trio = zip(devices, able, self.able, strict=True)
        if left_out := [device.name for device, can, shares in trio if can and not shares]:
            notes.append(f"has no rows, since no set of devices with it is better: {', '.join(left_out)}")
        if unknown_quality:
            notes.append("quality is not known: the model has no measured loss for context this old")
        used = [
            (device.name, stride) for device, stride, count in zip(devices, self.strides, units, strict=True) if count
        ]
        if fewer := [f"{name} every {stride}." for name, stride in used if stride > 1]:
            notes.append(f"steps computed after the warm-up: {', '.join(fewer)}")
        return notes

    def _slab_notes(self, sharing: list[Device]) -> list[str]:
        """Say whose patches are reckoned from whole steps, and where timed slabs lie off their line."""
        lines = {device.name: self.costs.slab_line(device) for device in sharing}
        notes = []
        if without := [d.name for d in sharing if lines[d.name] is None and self.costs.step_s(d)[2]]:
            notes.append(
                "patches taken as shares of the measured whole step, as no slabs were timed (`edgeopt profile model "
                f"--patches` does it): {', '.join(without)}"
            )
        off = {name: line[2] for name, line in lines.items() if line is not None and line[2] > _STRAIGHT}
        if off:
            values = ", ".join(f"{name} {error:.0%}" for name, error in off.items())
            notes.append(f"timed slabs lie off the line through them: {values}")
        return notes


def missing_link(problem: Problem, sharing: list[str]) -> tuple[str, str] | None:
    """Return two devices of which one has no link to the other, among those that share and the source."""
    names = [device.name for device in problem.devices]
    rate = link_arrays(problem.network, names).rate_bytes_per_s
    ends = sorted({source_index(problem), *(names.index(name) for name in sharing)})
    return next(((names[i], names[j]) for i in ends for j in ends if i != j and rate[i, j] <= 0), None)
