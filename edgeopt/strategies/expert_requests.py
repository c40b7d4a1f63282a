"""What a request to a mixture with its experts spread out is made of: arrays, and decisions in names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.costs.experts import INDEX_BYTES, ExpertCosts, Wires
from edgeopt.costs.links import LinkArrays, link_arrays
from edgeopt.costs.memory import usable_bytes
from edgeopt.profiles.model import CausalLM
from edgeopt.profiles.problem import Problem, TextWorkload
from edgeopt.strategies.chain import able_devices, source_index
from edgeopt_solvers import placement as family

__all__ = ["Request"]

Array = NDArray[np.float64]

#: Where a decode round has fewer (token, expert) than this many times the devices, devices are mostly not asked.
_FULL = 4

_TOKEN_BYTES = 8
_LEAST_CHOSEN = 1e-9


class Request:
    """One problem with its trunk on one device."""

    def __init__(self, problem: Problem, trunk: int) -> None:
        assert isinstance(problem.model, CausalLM)
        assert isinstance(problem.workload, TextWorkload)
        self.problem, self.load, self.trunk = problem, problem.workload, trunk
        self.devices = problem.devices
        formats = problem.constraints.experts.weights or {}
        at_trunk = formats.get(problem.devices[trunk].name)
        self.costs = ExpertCosts(problem.model, problem.workload, at_trunk, formats)
        self.able = np.array(able_devices(problem))
        self.source = source_index(problem)
        self.num_experts = int(self.costs.gates.frequency.shape[1])

    @classmethod
    def of(cls, problem: Problem) -> Request:
        """Take the trunk that the problem's constraints name, or the first device."""
        names = [device.name for device in problem.devices]
        named = problem.constraints.experts.trunk
        return cls(problem, 0 if named is None else names.index(named))

    @property
    def apart(self) -> bool:
        """Whether experts are counted one by one, since a decode round asks few devices.

        Otherwise a layer takes as long as its slowest device, and every device that serves is asked in every step.
        """
        return self.load.new_tokens > 1 and (self.load.batch * self.costs.gates.num_active < _FULL * len(self.devices))

    @cached_property
    def links(self) -> LinkArrays:
        """Rates and latencies."""
        return link_arrays(self.problem.network, [device.name for device in self.devices])

    @cached_property
    def wires(self) -> Wires:
        """Links between the trunk and everybody."""
        return Wires.of(self.links.rate_bytes_per_s, self.links.latency_s, self.trunk)

    def sending_s(self, i: int, j: int, num_bytes: float) -> float:
        """Seconds of one message."""
        rate = float(self.links.rate_bytes_per_s[i, j])
        if i == j:
            return 0.0
        return float(self.links.latency_s[i, j]) + num_bytes / rate if rate else math.inf

    @property
    def input_s(self) -> float:
        """Seconds until the trunk has the prompt."""
        return self.sending_s(self.source, self.trunk, self.input_bytes)

    @property
    def input_bytes(self) -> float:
        """Bytes of the prompt."""
        return float(_TOKEN_BYTES * self.load.batch * self.load.prompt_tokens)

    @property
    def output_s(self) -> float:
        """Seconds until the source has the tokens."""
        return self.sending_s(self.trunk, self.source, self.output_bytes)

    @property
    def output_bytes(self) -> float:
        """Bytes of the result."""
        return float(_TOKEN_BYTES * self.load.batch * self.load.new_tokens)

    @cached_property
    def trunk_steps_s(self) -> tuple[float, float]:
        """Seconds of the trunk alone: the prefill, and all decode rounds."""
        device = self.devices[self.trunk]
        prefill, decode = (table(device)[0] for table in (self.costs.trunk.prefill_s, self.costs.trunk.decode_s))
        return float(prefill.sum()), float(decode.sum())

    @property
    def trunk_s(self) -> float:
        """Seconds of a request that do not depend on where the experts are."""
        return self.input_s + sum(self.trunk_steps_s) + self.output_s

    # ── the solver's side ────────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def load_tokens(self) -> Array:
        """Expected (token, expert) of a request, (G, E)."""
        return sum(tokens * count for tokens, count in self.costs.steps) * self.costs.gates.frequency

    def instance(self) -> family.Experts:
        """Return the placement to be solved."""
        common: dict[str, Any] = {"memory_bytes": self.room + self.reserved, "reserved_bytes": self.reserved}
        sizes = self.costs.expert_bytes
        if self.apart:
            tokens = sum(tokens * count for tokens, count in self.costs.steps) * self._frequency
            unit_s = np.where(self.able, self._apart_s() / tokens[:, :, None], math.inf)
            return family.Experts(
                load=self.load_tokens.reshape(-1, 1),
                unit_s=unit_s.reshape(-1, len(self.devices)),
                expert_bytes=np.repeat(sizes, self.num_experts),
                max_replicas=1,  # copies could not share the work of a single token
                **common,
            )
        num_steps, (seconds, call_s) = sum(count for _, count in self.costs.steps), self._computing_s()
        latency_s = self.links.latency_s.copy()
        latency_s[self.trunk] += call_s.mean(axis=0)  # whoever is asked answers with a call
        return family.Experts(
            load=self.load_tokens,
            unit_s=np.where(self.able, seconds.sum(axis=1) / self.load_tokens.sum(axis=1)[:, None], math.inf),
            expert_bytes=sizes,
            dispatch_bytes=self.costs.state_bytes + INDEX_BYTES,
            combine_bytes=self.costs.state_bytes,
            rate_bytes_per_s=self.links.rate_bytes_per_s,
            latency_s=num_steps * latency_s,
            home=np.eye(len(self.devices))[self.trunk],
            max_replicas=self.problem.constraints.experts.max_replicas,
            **common,
        )

    @cached_property
    def formats(self) -> list[str | None]:
        """Format in which each device stores what it holds; ``None``: the model's dtype."""
        return [self.costs.formats.get(device.name) for device in self.devices]

    @cached_property
    def stored_bytes(self) -> Array:
        """Memory of an expert of each layer on each device, (G, D)."""
        return np.stack([self.costs.bytes_in(name) for name in self.formats], axis=1)

    @cached_property
    def _usable(self) -> Array:
        return np.array([usable_bytes(device) for device in self.devices])

    @cached_property
    def reserved(self) -> Array:
        """Memory beside experts, (D,): the trunk, and elsewhere the states that come and go."""
        reserved = np.minimum(self.costs.visiting_bytes, self._usable)
        reserved[self.trunk] = self.costs.trunk_bytes
        return reserved

    @cached_property
    def room(self) -> Array:
        """Memory for experts, (D,), as if all were stored in the model's dtype.

        Where all are equal no part of one is left over, which makes bounds tighter; where layers shrink unequally, a
        device's room is taken to hold no more than it would of those that shrink least.
        """
        sizes = self.costs.expert_bytes
        stored = self.stored_bytes
        grown = np.divide(sizes[:, None], stored, out=np.ones_like(stored), where=stored > 0)
        room = (self._usable - self.reserved) * grown.min(axis=0)
        if np.ptp(sizes) > 0 or sizes[0] == 0:
            return room
        whole = np.floor(room / sizes[0] * (1 + 1e-12)) * sizes[0]
        return np.where(room >= sizes[0], whole, room)

    @property
    def _frequency(self) -> Array:
        """Frequencies, (G, E), with a little for experts that were never chosen: they too take seconds per token."""
        return np.maximum(self.costs.gates.frequency, _LEAST_CHOSEN)

    def _computing_s(self) -> tuple[Array, Array]:
        """Expected seconds of a request's computing of each expert, if it served all its tokens, and of calls.

        Returns
        -------
        seconds : (G, E, D)
        call_s : (G, D)
            Of one call, however many experts it computes.
        """
        G, D = len(self.costs.layers), len(self.devices)
        seconds, call_s = np.full((G, self.num_experts, D), math.inf), np.zeros((G, D))
        for g in range(G):
            for d in np.flatnonzero(self.able).tolist():
                frequency = self._frequency[g]
                seconds[g, :, d] = 0.0
                for tokens, count in self.costs.steps:
                    each, call_s[g, d] = self.costs.computing_s(self.devices[d], g, frequency, tokens)
                    seconds[g, :, d] += count * each
        return seconds, call_s

    def _apart_s(self) -> Array:
        """Expected seconds of each expert on each device, (G, E, D), messages included, if experts took turns."""
        frequency, state = self._frequency, self.costs.state_bytes[:, None, None]
        with np.errstate(invalid="ignore"):
            seconds, call_s = self._computing_s()
            for tokens, count in self.costs.steps:
                hit = self.costs.hits(frequency, tokens)
                seconds += count * hit[:, :, None] * (self.wires.latency_s + call_s[:, None, :])
            served = sum(tokens * count for tokens, count in self.costs.steps) * frequency[:, :, None]
            seconds += served * ((state + INDEX_BYTES) * self.wires.out_s + state * self.wires.back_s)
        return seconds

    # ── decisions in names ───────────────────────────────────────────────────────────────────────────────────

    def shares(self, solution: family.ExpertsSolution) -> Array:
        """Part of each expert's tokens that each device serves, (G, E, D)."""
        return np.asarray(solution.share).reshape(len(self.costs.layers), self.num_experts, len(self.devices))

    def held(self, solution: family.ExpertsSolution) -> NDArray[np.bool_]:
        """Return which devices hold which experts, (G, E, D)."""
        return np.asarray(solution.replicas).reshape(self.shares(solution).shape)

    def write(self, solution: family.ExpertsSolution) -> dict[str, Any]:
        """Return what the plan decides: for each layer and expert the devices that hold it, with their shares."""
        names, share, held = [device.name for device in self.devices], self.shares(solution), self.held(solution)
        return {
            "trunk": names[self.trunk],
            **({"weights": dict(self.costs.formats)} if self.costs.formats else {}),
            "experts": {
                layer: [
                    {names[d]: float(share[g, e, d]) for d in np.flatnonzero(held[g, e]).tolist()}
                    for e in range(self.num_experts)
                ]
                for g, layer in enumerate(self.costs.names)
            },
        }

    def read(self, decisions: Mapping[str, Any]) -> family.ExpertsSolution:
        """Return the solution that :meth:`write` wrote.

        Raises
        ------
        ValueError
            Layers, experts or the trunk are not the problem's.
        """
        names = [device.name for device in self.devices]
        if decisions["trunk"] != names[self.trunk]:
            raise ValueError(
                f"decisions.trunk is {decisions['trunk']!r}, constraints.experts.trunk {names[self.trunk]!r}"
            )
        if decisions.get("weights", {}) != dict(self.costs.formats):
            raise ValueError(
                f"decisions.weights is {decisions.get('weights', {})}, constraints.experts.weights "
                f"{dict(self.costs.formats)}"
            )
        layers = decisions["experts"]
        if list(layers) != self.costs.names or any(len(rows) != self.num_experts for rows in layers.values()):
            raise ValueError(
                f"decisions.experts has not the {len(self.costs.names)} layers of {self.num_experts} experts"
            )
        share = np.zeros((len(layers), self.num_experts, len(names)))
        held = np.zeros(share.shape, dtype=np.bool_)
        for g, rows in enumerate(layers.values()):
            for e, row in enumerate(rows):
                for name, part in row.items():
                    share[g, e, names.index(name)] = float(part)
                    held[g, e, names.index(name)] = True
        if self.apart:
            share, held = (x.reshape(-1, 1, len(names)) for x in (share, held))
        return family.ExpertsSolution(held, share)
