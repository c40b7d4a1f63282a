"""Power of devices as the chain wants it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgeopt.profiles.device import Device

__all__ = ["power_w"]


def power_w(devices: Sequence[Device], activity: Literal["busy", "send", "receive"]) -> NDArray[np.float64] | None:
    """Watts of each device in an activity, shape (D,); ``None`` when any device's profile lacks it.

    Absent is not zero: with one device of unknown busy power no energy is stated at all (a problem that asks for
    energy is refused while it is read). Unknown radio power is left out of the energy, and the plan says so.
    """
    values = [getattr(device.power, activity) if device.power else None for device in devices]
    return None if None in values else np.array(values, float)
