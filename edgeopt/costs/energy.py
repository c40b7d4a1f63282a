"""Power of devices as the chain wants it, and the energy of a plan by device and activity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from edgeopt.costs.terms import Terms
from edgeopt.profiles.device import Device

if TYPE_CHECKING:
    from edgeopt.plan import Plan

__all__ = ["EnergyTerms", "busy_j", "energy_terms", "power_w"]


def power_w(devices: Sequence[Device], activity: Literal["busy", "send", "receive"]) -> NDArray[np.float64] | None:
    """Watts of each device in an activity, shape (D,); ``None`` when any device's profile lacks it.

    Absent is not zero: with one device of unknown busy power no energy is stated at all (a problem that asks for
    energy is refused while it is read). Unknown radio power is left out of the energy, and the plan says so.
    """
    values = [getattr(device.power, activity) if device.power else None for device in devices]
    return None if None in values else np.array(values, float)


@dataclass(frozen=True, slots=True)
class EnergyTerms:
    """Joules of one device over one request; ``None``: its profile does not say what this draws.

    ``idle`` is what the device draws while the others work. A plan's energy leaves it out, since a device that is on
    anyway draws it whatever the plan; add it for devices that are switched on for the request.
    """

    busy: float | None
    send: float | None
    receive: float | None
    idle: float | None

    @property
    def counted(self) -> float:
        """What a plan's energy counts: all that is known but idling."""
        return sum(value for value in (self.busy, self.send, self.receive) if value is not None)


def energy_terms(plan: Plan) -> dict[str, EnergyTerms]:
    """Split the energy of a plan by device and activity; the ``counted`` parts add up to ``plan.energy_j``.

    Radios count only where every device's sending and receiving power is known, as in the plan.
    """
    devices = plan.problem.devices
    radio = power_w(devices, "send") is not None and power_w(devices, "receive") is not None
    split = {}
    for device in devices:
        power = device.power
        compute_s = sum(stage.compute_s for stage in plan.stages if stage.device == device.name)
        send_s = sum(move.seconds for move in plan.transfers if move.source == device.name)
        receive_s = sum(move.seconds for move in plan.transfers if move.destination == device.name)

        def joules(watts: float | None, seconds: float) -> float | None:
            return None if watts is None else watts * seconds

        split[device.name] = EnergyTerms(
            busy=joules(power.busy if power else None, compute_s),
            send=joules(power.send if power and radio else None, send_s),
            receive=joules(power.receive if power and radio else None, receive_s),
            idle=joules(power.idle if power else None, max(0.0, plan.latency_s - compute_s - send_s - receive_s)),
        )
    return split


def busy_j(device: Device, terms: Terms) -> Terms | None:
    """Joules of computing by the cause of its seconds, or ``None`` when the busy power is not known."""
    if device.power is None or device.power.busy is None:
        return None
    return Terms(**{name: device.power.busy * value for name, value in terms})
