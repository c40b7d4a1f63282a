"""What can happen to the devices of a request that is under way, and the problem that it leaves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgeopt.errors import Finding, InputError
from edgeopt.executor.recovery import without_device
from edgeopt.plan import Plan
from edgeopt.profiles import load_device
from edgeopt.profiles.device import Device
from edgeopt.profiles.library import nearest
from edgeopt.profiles.problem import Problem

__all__ = ["EXAMPLES", "Event", "changed", "parse_event", "slower"]

EXAMPLES = "'leave:phone', 'slow:phone:2x', 'join:laptop-cpu' or 'join:NAME=FILE'"

_SLOW = re.compile(r"(?P<device>.+):(?P<factor>[0-9.]+)x?")


@dataclass(frozen=True, slots=True)
class Event:
    """A device leaves, joins (with the profile that it brings) or takes ``factor`` times as long from now on."""

    kind: Literal["leave", "join", "slow"]
    device: str
    factor: float = 1.0
    profile: Device | None = None

    def __str__(self) -> str:
        return f"{self.device} {f'takes {self.factor:g} times as long' if self.kind == 'slow' else f'{self.kind}s'}"


def parse_event(text: str) -> Event:
    """Read ``leave:NAME``, ``slow:NAME:2x``, ``join:PROFILE`` or ``join:NAME=PROFILE``.

    Raises
    ------
    InputError
        It is no event, a factor is not above 0, or the profile of a device that joins does not exist.
    """
    kind, _, rest = text.strip().partition(":")
    if kind == "leave" and rest:
        return Event("leave", rest)
    if kind == "join" and rest:
        name, given, profile = rest.partition("=")
        device = load_device(profile if given else name)
        return Event("join", name if given else device.name, profile=device)
    if kind == "slow" and (match := _SLOW.fullmatch(rest)):
        try:
            factor = float(match["factor"])
        except ValueError:
            factor = 0.0
        if factor > 0:
            return Event("slow", match["device"], factor)
        raise _refused(f"'{match['factor']}' is no factor above 0", "write for example slow:phone:2x")
    raise _refused(f"'{text}' is no event", f"write {EXAMPLES}")


def _refused(message: str, mend: str) -> InputError:
    return InputError(Finding("--event", message, mend))


def slower(device: Device, factor: float) -> Device:
    """Return a device that takes ``factor`` times as long for everything it computes; below 1 it is faster."""
    how = f"; times {factor:g}"
    timings = [
        row.model_copy(update={"elements": [value * factor for value in row.elements], "source": row.source + how})
        for row in device.timings
    ]
    return device.model_copy(
        update={
            "compute": {dtype: rate / factor for dtype, rate in device.compute.items()},
            "memory_bandwidth": device.memory_bandwidth / factor,
            "launch_overhead": device.launch_overhead * factor,
            "timings": timings,
        }
    )


def changed(plan: Plan, events: Sequence[Event]) -> Problem:
    """Return the plan's problem after events; the source stays who it was.

    Raises
    ------
    InputError
        A device that is not there leaves or slows down, one joins under a name that is taken or without any link,
        or the source, which holds the request and wants the image, leaves.
    """
    source = plan.problem.constraints.source or plan.problem.devices[0].name
    limits = plan.problem.constraints.model_copy(update={"source": source})
    problem = plan.problem.model_copy(update={"constraints": limits})
    for event in events:
        names = [device.name for device in problem.devices]
        if event.kind == "join":
            problem = _joined(problem, event, names)
        elif event.device not in names:
            near = nearest(event.device, names)
            mend = f"did you mean {near}?" if near else f"devices are {', '.join(names)}"
            raise _refused(f"there is no device '{event.device}'", mend)
        elif event.kind == "slow":
            devices = [slower(d, event.factor) if d.name == event.device else d for d in problem.devices]
            problem = problem.model_copy(update={"devices": devices})
        elif event.device == source:
            raise _refused(f"'{source}' is the source: it holds the request and wants the image", "let another leave")
        else:
            problem = without_device(plan.model_copy(update={"problem": problem}), event.device)
    return problem


def _joined(problem: Problem, event: Event, names: list[str]) -> Problem:
    assert event.profile is not None
    if event.device in names:
        raise _refused(f"there is a device '{event.device}' already", f"write join:NAME={event.profile.name}")
    linked = any(
        event.device in (*(link.between or ()), link.from_, link.to) for link in problem.network.links
    )  # fmt: skip
    if problem.network.default is None and not linked:
        message = f"'{event.device}' has no link: network '{problem.network.name}' lists others and has no default"
        raise _refused(message, "add a `default:` to the network, or links of the device, and solve again")
    device = event.profile.model_copy(update={"name": event.device})
    return problem.model_copy(update={"devices": [*problem.devices, device]})
