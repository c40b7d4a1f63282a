"""Equal layers behind one access point: the order of devices does not matter, so the plan is a knapsack.

When every hand-over i→j costs ``send[i] + receive[j]``, the elements between the first and the last are alike, and so
are the cuts, then a device in the middle that takes n elements costs ``receive + send + n * per_element``. Only the
first and the last device differ: they take the first and the last element and talk to the source. Exact in
O(G · L). This is the transformer behind one access point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edgeopt_solvers.chain.large.latency import Proof
from edgeopt_solvers.chain.large.view import Array, Ints, Path, View

__all__ = ["Knapsack", "equal_layers", "minimise"]

#: Relative difference below which two costs count as the same layer or link.
ALIKE = 1e-9


@dataclass(frozen=True, slots=True)
class Knapsack:
    """Costs per device of the instance (copies spread out), by role: 0 middle, 1 first, 2 last.

    Attributes
    ----------
    device : (D,)
        Device of the view.
    per_element : (D,)
        Cost of one inner element.
    charge, most : (D, 3)
        What a role costs beyond its elements, and how many elements it can take.
    """

    device: Ints
    per_element: Array
    charge: Array
    most: Ints


def equal_layers(view: View) -> Knapsack | None:
    """Recognise the case; ``None`` when layers, cuts or links are not of that kind."""
    last = view.num_elements
    if last < 2 or view.num_devices == 0 or len(set(view.page[1:last].tolist())) != 1:
        return None
    matrix = view.link[view.page[1]]
    separable = _separable(matrix, view.copies)
    costs = np.diff(view.prefix, axis=1)
    inner = costs[:, 1:-1] if last > 2 else costs[:, :1]
    per_element = inner.mean(axis=1)
    if separable is None or not np.allclose(inner, per_element[:, None], rtol=ALIKE, atol=0.0):
        return None
    most = _most(view)
    if most is None:
        return None
    send, receive = separable
    charge = np.stack(
        [
            send + receive,
            view.enter + send + costs[:, 0] - per_element,
            view.leave + receive + costs[:, -1] - per_element,
        ],
        axis=1,
    )
    device = np.repeat(np.arange(view.num_devices), view.copies)
    return Knapsack(device, per_element[device], charge[device], most[device])


def _separable(matrix: Array, copies: Ints) -> tuple[Array, Array] | None:
    """Send and receive costs that add up to the matrix (its diagonal counts only where there are copies)."""
    num = len(matrix)
    diagonal = np.diag_indices(num)
    if num == 1:
        return np.array([matrix[0, 0] if copies[0] > 1 else 0.0]), np.zeros(1)
    off = matrix.copy()
    off[diagonal] = 0.0
    if not np.isfinite(off).all():
        return None
    if num == 2:
        if (copies > 1).any():
            return None
        return np.array([off[0, 1], off[1, 0]]), np.zeros(2)
    rows, columns, total = off.sum(axis=1), off.sum(axis=0), off.sum()
    # with send summing to S and receive to R: rows = (n-1) send + R - receive, columns = S - send + (n-1) receive
    half = total / (num - 1) / 2  # S = R is a free choice
    send = ((num - 1) * (rows - half) + (columns - half)) / (num * (num - 2))
    receive = ((num - 1) * (columns - half) + (rows - half)) / (num * (num - 2))
    wanted = send[:, None] + receive[None, :]
    given = matrix.copy()
    single = copies == 1
    given[diagonal] = np.where(single, wanted[diagonal], matrix[diagonal])
    return (send, receive) if np.allclose(given, wanted, rtol=ALIKE, atol=ALIKE * np.abs(off).max()) else None


def _most(view: View) -> Ints | None:
    """Elements that a device can take as middle, first and last; ``None`` when it depends on where it starts."""
    last = view.num_elements
    starts = np.arange(last + 1)
    first = view.last_end[:, 0]
    middle = np.minimum(view.last_end, last - 1)[:, 1:last] - starts[1:last]
    capacity = middle.max(axis=1)
    if not (middle == np.minimum(capacity[:, None], last - 1 - starts[1:last])).all():
        return None
    final = last - view.first_start()[:, last]
    # the last segment starts after element 0, the first ends before the last element
    return np.stack([capacity, np.minimum(first, last - 1), np.minimum(final, last - 1)], axis=1)


def minimise(view: View, knapsack: Knapsack) -> Proof:
    """Solve the knapsack and read the plan off the table."""
    from edgeopt_solvers.chain.large import kernels_knapsack

    num_devices, num_elements = len(knapsack.device), view.num_elements
    table = np.empty((num_devices + 1, 4, num_elements + 1))
    kernels_knapsack.fill(knapsack.per_element, knapsack.charge, knapsack.most, view.min_segment, num_elements, table)
    proof = Proof()
    for device in range(view.num_devices):
        path = [(device, num_elements)]
        proof.offer(view.cost(path), path)
    if table[num_devices, 3, num_elements] < proof.cost:
        path = _read(view, knapsack, table)
        proof.offer(view.cost(path), path)
    proof.bound = proof.cost if proof.path else math.inf
    return proof


def _read(view: View, knapsack: Knapsack, table: Array) -> Path:
    """Trace the table back; middle devices keep their order, which does not matter."""
    amounts: list[tuple[int, int]] = []
    ends = {1: (-1, 0), 2: (-1, 0)}
    roles, left = 3, view.num_elements
    for d in range(len(knapsack.device) - 1, -1, -1):
        if table[d, roles, left] <= table[d + 1, roles, left]:
            continue
        best, choice = math.inf, (0, 0)
        for role in (0, 1, 2):
            if role and not roles & role:
                continue
            most = min(int(knapsack.most[d, role]), left)
            if most < view.min_segment:
                continue
            taken = np.arange(view.min_segment, most + 1)
            values = table[d, roles & ~role, left - taken] + knapsack.per_element[d] * taken + knapsack.charge[d, role]
            cheapest = int(np.argmin(values))
            if values[cheapest] < best:
                best, choice = float(values[cheapest]), (role, int(taken[cheapest]))
        role, amount = choice
        stage = (int(knapsack.device[d]), amount)
        if role:
            ends[role] = stage
        else:
            amounts.append(stage)
        roles &= ~role
        left -= amount
    path, end = [], 0
    for device, amount in (ends[1], *amounts, ends[2]):
        end += amount
        path.append((device, end))
    return path
