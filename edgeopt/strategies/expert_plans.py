"""A placement of experts as a plan's parts: what it costs, stages, transfers, timeline and notes."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edgeopt.plan import Stage, Transfer
from edgeopt.strategies.expert_requests import Request
from edgeopt.strategies.messages import Hop, hop_transfers
from edgeopt.strategies.pipeline import basis_notes
from edgeopt.strategies.timeline import Bar, link_lane
from edgeopt_solvers import placement as family

__all__ = ["Placed"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Placed:
    """A placement and what it comes to."""

    request: Request
    solution: family.ExpertsSolution

    @cached_property
    def share(self) -> Array:
        """Part of each expert's tokens that each device serves, (G, E, D)."""
        return self.request.shares(self.solution)

    @cached_property
    def _layers_s(self) -> list[float]:
        """Expected seconds of all layers' experts in one step, by kind of step: prefill, decode round."""
        request = self.request
        return [
            math.fsum(
                request.costs.layer_s(g, self.share[g], tokens, request.devices, request.wires)
                for g in range(len(self.share))
            )
            for tokens, _ in request.costs.steps
        ]

    @property
    def ttft_s(self) -> float:
        """Seconds until the first token."""
        return self.request.input_s + self.request.trunk_steps_s[0] + self._layers_s[0]

    @cached_property
    def latency_s(self) -> float:
        """Expected seconds of a request."""
        moving = sum(s * count for s, (_, count) in zip(self._layers_s, self.request.costs.steps, strict=True))
        return self.request.trunk_s + moving

    @cached_property
    def _totals(self) -> tuple[Array, Array, Array]:
        """Expected bytes sent to and back from each device, and messages each way, over the request: (D,) each."""
        costs, D = self.request.costs, len(self.request.devices)
        sent, back, messages = np.zeros(D), np.zeros(D), np.zeros(D)
        for tokens, count in costs.steps:
            for g in range(len(self.share)):
                out, home = costs.traffic(g, self.share[g], tokens)
                sent, back = sent + count * out, back + count * home
                messages = messages + count * costs.asked(g, self.share[g], tokens)
        return sent, back, messages

    @cached_property
    def computing_s(self) -> Array:
        """Expected seconds of each device's experts over the request, (D,)."""
        request = self.request
        seconds = np.zeros(len(request.devices))
        for d in np.flatnonzero(self.share.sum(axis=(0, 1)) > 0).tolist():
            for g in range(len(self.share)):
                frequency = request.costs.gates.frequency[g] * self.share[g, :, d]
                for tokens, count in request.costs.steps:
                    each, call_s = request.costs.computing_s(request.devices[d], g, frequency, tokens)
                    asked = float(request.costs.asked(g, self.share[g], tokens)[d])
                    seconds[d] += count * (each.sum() + asked * call_s)
        return seconds

    @cached_property
    def transfers(self) -> list[Transfer]:
        """Messages by purpose; between different devices only."""
        request = self.request
        trunk, source = request.trunk, request.source
        hops = [("input", source, trunk, request.input_bytes, 1.0)]
        sent, back, messages = self._totals
        for d in np.flatnonzero(back > 0).tolist():
            hops.append(("dispatch", trunk, d, float(sent[d]), float(messages[d])))
            hops.append(("combine", d, trunk, float(back[d]), float(messages[d])))
        held = np.flatnonzero(request.held(self.solution).any(axis=(0, 1))).tolist()
        hops += [("end", trunk, d, 0.0, 1.0) for d in held]
        hops.append(("output", trunk, source, request.output_bytes, 1.0))
        names = [device.name for device in request.devices]
        return hop_transfers(itertools.starmap(Hop, hops), names, request.links)

    def stages(self) -> list[Stage]:
        """Return the trunk's stage, with the experts that it holds itself, and one for each other device with any."""
        request, held = self.request, self.request.held(self.solution)
        counts = held.sum(axis=(0, 1))
        bytes_held = np.einsum("gd,ged->d", request.stored_bytes, held)
        others = [d for d in np.flatnonzero(counts).tolist() if d != request.trunk]
        stages = []
        for index, d in enumerate([request.trunk, *others]):
            here = d == request.trunk
            words = [f"{counts[d]} expert{'s' if counts[d] != 1 else ''}"] if counts[d] else []
            name = request.devices[d].name
            arriving = [t for t in self.transfers if t.destination == name and t.purpose != "output"]
            stages.append(
                Stage(
                    index=index,
                    device=name,
                    variant=request.formats[d],
                    start=0,
                    stop=int(counts[d]),
                    elements=" and ".join((["trunk"] if here else []) + words),
                    compute_s=float(self.computing_s[d]) + (sum(request.trunk_steps_s) if here else 0.0),
                    transfer_s=sum(t.seconds for t in arriving),
                    transfer_bytes=sum(t.bytes for t in arriving),
                    memory_bytes=float(bytes_held[d] + request.reserved[d]),
                )
            )
        return stages

    def bars(self) -> list[Bar]:
        """Return the prefill and one decode round; the experts of all layers as one bar each."""
        request = self.request
        name, source = request.devices[request.trunk].name, request.devices[request.source].name
        bars = [Bar(link_lane(source, name), "input", request.input_s)] if name != source else []
        rounds = max(1, request.load.new_tokens - 1)
        for k, label in enumerate(("prefill", "one round")[: len(self._layers_s)]):
            bars.append(Bar(name, f"trunk, {label}", request.trunk_steps_s[k] / (rounds if k else 1)))
            bars.append(Bar("experts", f"all layers, {label}", self._layers_s[k]))
        return bars

    def notes(self) -> list[str]:
        """Say where seconds and frequencies come from, and what the objective counts."""
        request, costs = self.request, self.request.costs
        gates = request.costs.model.gates
        basis = {}
        for stage in self.stages():
            device = next(each for each in request.devices if each.name == stage.device)
            basis[device.name] = costs.expert_s(device, 0, np.ones(1))[2]
            if stage.index == 0:
                known = costs.trunk.prefill_s(device)[1] and costs.trunk.decode_s(device)[1]
                basis[device.name] = known and (basis[device.name] or not stage.stop)
        chosen = "gates: no frequencies in the model's profile, every expert is taken to be chosen equally often"
        counted = (
            "the objective counts experts one after the other, latency_s those of a token at the same time"
            if request.apart
            else "the objective has every device that serves asked in every step, latency_s as often as the gates do"
        )
        return [*basis_notes(basis), f"gates: {gates.source}" if gates else chosen, counted]
