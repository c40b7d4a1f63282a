# mypy: allow-untyped-defs
"""Compiled: fixed-charge knapsack over devices, with a first and a last device."""

from __future__ import annotations

import numpy as np
from numba import njit

from edgeopt_solvers.chain.large.kernels_arrays import copy_into

__all__ = ["fill"]


@njit(cache=True, nogil=True)
def fill(per_element, charge, most, least, num_elements, table):
    """Fill ``table[d, roles, n]``: cheapest way to place n elements on the first d devices.

    ``roles`` has bit 0 once a first, bit 1 once a last device is chosen. ``charge[d, role]`` is paid once (role 0
    middle, 1 first, 2 last) and ``most[d, role]`` bounds the elements; a sliding minimum serves all amounts.
    """
    num_devices = per_element.size
    table[:] = np.inf
    table[0, 0, 0] = 0.0
    queue = np.empty(num_elements + 1, np.int64)
    for d in range(num_devices):
        price = per_element[d]
        for roles in range(4):
            copy_into(table[d + 1, roles], table[d, roles], num_elements + 1)
        for roles in range(4):
            before = table[d, roles]
            for role in range(3):
                if role > 0 and roles & role:
                    continue
                cap, fixed = most[d, role], charge[d, role]
                if cap < least or fixed == np.inf:
                    continue
                after = table[d + 1, roles | role]
                head, tail = 0, 0
                for n in range(least, num_elements + 1):
                    new = n - least
                    if before[new] < np.inf:
                        value = before[new] - price * new
                        while tail > head and before[queue[tail - 1]] - price * queue[tail - 1] >= value:
                            tail -= 1
                        queue[tail] = new
                        tail += 1
                    while head < tail and queue[head] < n - cap:
                        head += 1
                    if head < tail:
                        value = before[queue[head]] + price * (n - queue[head]) + fixed
                        if value < after[n]:
                            after[n] = value
