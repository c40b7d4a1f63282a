"""Who does what in a run: one worker per device, and the boundaries that tensors cross between stages of a chain.

Boundaries of a plan with n stages: 0 is the input, k the cut before stage k, n the output, n + 1 the loop from the last
stage to the first. Where both ends are one device the tensors are handed over in memory.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from edgeopt.costs.weights import weights_bytes
from edgeopt.errors import Finding, InputError
from edgeopt.plan import Plan
from edgeopt.profiles.device import Yardstick
from edgeopt.profiles.model import Model
from edgeopt.profiles.problem import TextWorkload

__all__ = ["Boundary", "Host", "Layout", "yardstick_for"]

#: Weights that a core's own cache holds a good part of, bytes.
_CACHED_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Host:
    """A device as a worker process: rank 0 is the source."""

    rank: int
    device: str
    stages: tuple[int, ...]
    threads: int
    cpu_quota: float | None
    memory_bytes: float
    accelerator: str
    yardstick_s: float | None = None
    yardstick: Yardstick = "cached"

    @property
    def role(self) -> str:
        """What it does, for messages."""
        if not self.stages:
            return "the source and hosts no stage"
        return f"the host of stages {', '.join(map(str, self.stages))}"


@dataclass(frozen=True, slots=True)
class Boundary:
    """Where tensors pass from one stage (or the source) to the next; ``cut`` is the element index."""

    index: int
    purpose: Literal["input", "cut", "loop", "output"]
    cut: int
    sender: int
    receiver: int

    @property
    def crosses(self) -> bool:
        """Whether sender and receiver are different processes."""
        return self.sender != self.receiver


@dataclass(frozen=True, slots=True)
class Layout:
    """Hosts by rank, boundaries by index; parties that are no chain have none."""

    hosts: tuple[Host, ...]
    boundaries: tuple[Boundary, ...]
    num_stages: int
    #: Rounds that the prompt takes, of whatever a request begins with: the last of them yields the first result.
    prefill_rounds: int = 1

    @classmethod
    def of(cls, plan: Plan) -> Layout:
        """Read the layout from a plan.

        Raises
        ------
        InputError
            The plan names a device that its problem does not list, or has no stage.
        """
        devices = {device.name: device for device in plan.problem.devices}
        source = plan.problem.constraints.source or plan.problem.devices[0].name
        findings = [] if plan.stages else [Finding("stages", "the plan has no stage", "write it with edgeopt solve")]
        named = [
            ("problem.constraints.source", source),
            *((f"stages[{s.index}].device", s.device) for s in plan.stages),
        ]
        findings += [
            Finding(field, f"device {name!r} is not in the plan's problem", f"name one of {', '.join(devices)}")
            for field, name in named
            if name not in devices
        ]
        if [stage.index for stage in plan.stages] != list(range(len(plan.stages))):
            findings.append(Finding("stages", "indices do not count 0, 1, 2 …", "write the plan with edgeopt solve"))
        names = list(dict.fromkeys([source, *(stage.device for stage in plan.stages)]))
        if findings:
            raise InputError(findings)
        which = yardstick_for(plan.problem.model)
        hosts = tuple(
            Host(
                rank=rank,
                device=name,
                stages=tuple(stage.index for stage in plan.stages if stage.device == name),
                threads=devices[name].runtime.threads or usable_cores(),
                cpu_quota=devices[name].runtime.cpu_quota,
                memory_bytes=devices[name].memory,
                accelerator=devices[name].runtime.accelerator,
                yardstick_s=devices[name].runtime.yardstick_s(which),
                yardstick=which,
            )
            for rank, name in enumerate(names)
        )
        boundaries = _boundaries(plan, {host.device: host.rank for host in hosts}) if plan.is_chain else ()
        load = plan.problem.workload
        prefill_rounds = len(load.chunks) if isinstance(load, TextWorkload) and plan.is_chain else 1
        return cls(hosts, boundaries, len(plan.stages), prefill_rounds)

    @property
    def loop(self) -> int:
        """Index of the loop boundary."""
        return self.num_stages + 1

    def host_of(self, stage: int) -> Host:
        """Host of a stage."""
        return next(host for host in self.hosts if stage in host.stages)

    def arriving(self, stage: int, round_index: int) -> Boundary:
        """Boundary that stage ``stage`` receives from in a round; ``num_stages``: the source takes the result."""
        return self.boundaries[self.loop if stage == 0 and round_index > 0 else stage]

    def leaving(self, stage: int, last_round: bool) -> Boundary:
        """Boundary that stage ``stage`` sends over."""
        return self.boundaries[self.loop if stage == self.num_stages - 1 and not last_round else stage + 1]


def yardstick_for(model: Model) -> Yardstick:
    """Return which yardstick says how fast a machine runs a model (:mod:`edgeopt.executor.yardstick`)."""
    return "cached" if weights_bytes(model) <= _CACHED_BYTES else "streamed"


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _boundaries(plan: Plan, rank: dict[str, int]) -> tuple[Boundary, ...]:
    ranks = [rank[stage.device] for stage in plan.stages]
    stop, last = plan.stages[-1].stop, len(ranks)
    cuts = [Boundary(k, "cut", plan.stages[k].start, ranks[k - 1], ranks[k]) for k in range(1, last)]
    return (
        Boundary(0, "input", 0, 0, ranks[0]),
        *cuts,
        Boundary(last, "output", stop, ranks[-1], 0),
        Boundary(last + 1, "loop", stop, ranks[-1], ranks[0]),
    )
