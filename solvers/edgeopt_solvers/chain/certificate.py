"""What the bound of a large chain rests on, to be handed to the next solve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array

__all__ = ["Certificate"]


@dataclass(frozen=True, slots=True, eq=False)
class Certificate:
    """Prices on devices, and which devices relaxed plans may not return to; both prove a bound for any chain.

    Attributes
    ----------
    price : (D,)
        What each stage on a device is charged, and refunded once, because a device can have one only.
    objective
        Of the plan that the proof was for; prices are scaled by what another plan costs against it.
    remembers : (L + 1, D, D), bool, or None
        Whether a relaxed plan that is on device d at cut l still knows that it was on device e.
    """

    price: Array
    objective: float
    remembers: NDArray[np.bool_] | None = None

    def renumbered(self, devices: Sequence[int | None], num_devices: int) -> Certificate:
        """Carry it over to other devices.

        Parameters
        ----------
        devices
            For each old device its new number, ``None`` if it has left.
        num_devices
            How many there are now; new ones are priced 0.
        """
        old = [d for d, new in enumerate(devices) if new is not None]
        new = [d for d in devices if d is not None]
        price = np.zeros(num_devices)
        price[new] = self.price[old]
        if self.remembers is None:
            return Certificate(price, self.objective)
        remembers = np.zeros((len(self.remembers), num_devices, num_devices), bool)
        remembers[:, np.array(new)[:, None], new] = self.remembers[:, np.array(old)[:, None], old]
        return Certificate(price, self.objective, remembers)
