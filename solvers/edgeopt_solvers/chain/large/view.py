"""A chain as the large engines see it: one additive cost, one farthest end per (device, start).

With one variant and each device used once, everything a plan costs is a sum over stages and over hand-overs:

    enter[d_1] + sum_k (prefix[d_k, c_k] - prefix[d_k, c_{k-1}]) + sum_k link[page[c_k], d_k, d_{k+1}] + leave[d_K]

(what a device must load newly is part of its elements, and of coming to it) and everything that memory, pins,
impossible elements and the minimum segment length forbid is a window of ends for each start. Devices that cannot be
told apart become one device with several *copies*.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.instance import Chain, Solution
from edgeopt_solvers.chain.movement import element_loads, variant_loads

__all__ = ["Path", "View", "additive_view", "device_fields", "period_view"]

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Stages of a plan in a view: (device of the view, end of its segment).
Path = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class View:
    """Arrays of the relaxed problem; G distinct devices, L elements, R distinct matrices of hand-over costs.

    Attributes
    ----------
    prefix : (G, L + 1)
        Cost of elements 0..l-1 on a device; impossible elements count 0 and are excluded by ``last_end``.
    last_end : (G, L + 1)
        Farthest end of a segment that starts at l (at most l: none does); never decreases with l.
    min_segment
        Fewest elements in a segment.
    link : (R, G, G)
        Cost of handing over from device to device; ``inf`` where impossible, also on the diagonal of one copy.
    page : (L + 1,)
        Which matrix of ``link`` holds at a cut.
    enter, leave : (G,)
        Cost of bringing the input to the first, and the result back from the last device.
    members
        Devices of the instance behind each device of the view.
    """

    prefix: Array
    last_end: Ints
    min_segment: int
    link: Array
    page: Ints
    enter: Array
    leave: Array
    members: tuple[tuple[int, ...], ...]

    @property
    def num_devices(self) -> int:
        """G."""
        return int(self.prefix.shape[0])

    @property
    def num_elements(self) -> int:
        """L."""
        return int(self.prefix.shape[1]) - 1

    @property
    def copies(self) -> Ints:
        """How many devices of the instance each device of the view stands for, (G,)."""
        return np.array([len(group) for group in self.members], np.int64)

    def first_start(self) -> Ints:
        """Earliest start of a segment that ends at l, (G, L + 1); after the last legal start: none ends there."""
        num_starts = self.num_elements + 1
        ends = np.arange(num_starts)
        return np.array([np.searchsorted(row, ends, side="left") for row in self.last_end], np.int64)

    def reversed(self) -> View:
        """The same problem read from the last element to the first."""
        last = self.num_elements
        flipped = self.prefix[:, -1:] - self.prefix[:, ::-1]
        return View(
            prefix=np.ascontiguousarray(flipped),
            last_end=np.ascontiguousarray(np.maximum(last - self.first_start()[:, ::-1], 0)),
            min_segment=self.min_segment,
            link=np.ascontiguousarray(self.link.transpose(0, 2, 1)),
            page=np.ascontiguousarray(self.page[::-1]),
            enter=self.leave,
            leave=self.enter,
            members=self.members,
        )

    def keep(self, devices: Ints) -> View:
        """The problem on some of the devices only."""
        return View(
            prefix=np.ascontiguousarray(self.prefix[devices]),
            last_end=np.ascontiguousarray(self.last_end[devices]),
            min_segment=self.min_segment,
            link=np.ascontiguousarray(self.link[:, devices][:, :, devices]),
            page=self.page,
            enter=self.enter[devices],
            leave=self.leave[devices],
            members=tuple(self.members[d] for d in devices),
        )

    def cost(self, path: Path) -> float:
        """What a path costs; ``inf`` where it breaks a window, a link or the number of copies."""
        total, start, before = 0.0, 0, -1
        used = [0] * self.num_devices
        for device, end in path:
            used[device] += 1
            if (
                not start + self.min_segment <= end <= self.last_end[device, start]
                or used[device] > self.copies[device]
            ):
                return float("inf")
            total += self.enter[device] if before < 0 else self.link[self.page[start], before, device]
            total += self.prefix[device, end] - self.prefix[device, start]
            start, before = end, device
        return float(total + self.leave[before]) if start == self.num_elements else float("inf")

    def solution(self, path: Path) -> Solution:
        """Give each stage a device of the instance."""
        taken = [0] * self.num_devices
        devices = []
        for device, _ in path:
            devices.append(self.members[device][taken[device]])
            taken[device] += 1
        return Solution(tuple(end for _, end in path), tuple(devices), (0,) * len(path))

    def path(self, solution: Solution) -> Path:
        """Read a solution of the instance as a path; devices that the view lacks make it empty."""
        index = {device: group for group, devices in enumerate(self.members) for device in devices}
        if any(device not in index for device in solution.devices):
            return []
        return [(index[device], end) for device, end in zip(solution.devices, solution.cuts, strict=True)]


def device_fields(view: View) -> tuple[NDArray[np.uint64], NDArray[np.uint64], int]:
    """Where each device's count of used copies sits in a word: shift, mask of the field, and bits in all."""
    widths = [int(copies).bit_length() for copies in view.copies]
    shifts = np.concatenate([[0], np.cumsum(widths)])
    fields = np.array([(1 << width) - 1 for width in widths], np.uint64)
    return shifts[:-1].astype(np.uint64), fields, int(shifts[-1])


def additive_view(chain: Chain) -> View:
    """View of a chain whose objective is latency, energy, or a weighted sum of the two."""
    weights = chain.weights
    latency, energy = weights.get("latency", 0.0), weights.get("energy", 0.0)
    compute_factor = np.full(chain.num_devices, latency)
    link_factor = np.full((chain.num_devices, chain.num_devices), latency)
    if energy and chain.power_w is not None:
        compute_factor += energy * chain.power_w
        if chain.send_power_w is not None and chain.receive_power_w is not None:
            link_factor += energy * (chain.send_power_w[:, None] + chain.receive_power_w[None, :])
    view = _view(chain, compute_factor, link_factor)
    return _with_loads(chain, view) if chain.charges_loads else view


def _with_loads(chain: Chain, view: View) -> View:
    """Charge each device for what it must load: per element, and once where its segment begins."""
    prefix, first = view.prefix.copy(), variant_loads(chain)[:, 0]
    prefix[:, 1:] += np.cumsum(element_loads(chain)[:, 0], axis=1)
    return replace(view, prefix=prefix, enter=view.enter + first, link=view.link + first)


def period_view(chain: Chain) -> View:
    """View with plain seconds of every segment and hand-over, for the largest of them."""
    return _view(chain, np.ones(chain.num_devices), np.ones((chain.num_devices, chain.num_devices)))


def _view(chain: Chain, compute_factor: Array, link_factor: Array) -> View:
    seconds = chain.compute_s[:, 0, :]
    possible = np.isfinite(seconds)
    for element, device in chain.pins.items():
        possible[np.arange(chain.num_devices) != device, element] = False
    prefix = np.zeros((chain.num_devices, chain.num_elements + 1))
    np.cumsum(np.where(possible, seconds, 0.0) * compute_factor[:, None], axis=1, out=prefix[:, 1:])
    pages, page = _pages(chain, link_factor)
    if chain.source is None:
        enter = leave = np.zeros(chain.num_devices)
    else:
        enter = _weighted(chain.transfer_matrix(0), link_factor)[chain.source].copy()
        leave = _weighted(chain.transfer_matrix(chain.num_elements), link_factor)[:, chain.source].copy()
    return View(
        prefix=prefix,
        last_end=_last_end(chain, possible),
        min_segment=chain.min_segment,
        link=pages,
        page=page,
        enter=enter,
        leave=leave,
        members=tuple((device,) for device in range(chain.num_devices)),
    )


def _weighted(seconds: Array, factor: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return np.where(np.isinf(seconds), np.inf, seconds * factor)


def _pages(chain: Chain, link_factor: Array) -> tuple[Array, Ints]:
    """Hand-over costs, one matrix for each distinct (bytes, messages); an illegal cut has a matrix of ``inf``."""
    forbidden = np.full((chain.num_devices, chain.num_devices), np.inf)
    matrices: list[Array] = [forbidden]
    index: dict[tuple[float, float], int] = {}
    page = np.zeros(chain.num_elements + 1, np.int64)
    for cut in range(1, chain.num_elements):
        if not chain.cut_legal[cut]:
            continue
        key = (float(chain.cut_bytes[cut]), float(chain.cut_messages[cut]))
        if key not in index:
            index[key] = len(matrices)
            matrix = _weighted(chain.transfer_matrix(cut), link_factor)
            np.fill_diagonal(matrix, np.inf)
            matrices.append(matrix)
        page[cut] = index[key]
    return np.ascontiguousarray(np.stack(matrices)), page


def _last_end(chain: Chain, possible: NDArray[np.bool_]) -> Ints:
    """Farthest end for each device and start, from memory and from elements that a device cannot run."""
    num_devices, num_elements = possible.shape
    starts = np.arange(num_elements + 1)
    barrier = np.full((num_devices, num_elements + 1), num_elements, np.int64)
    barrier[:, :num_elements][~possible] = np.broadcast_to(starts[:num_elements], possible.shape)[~possible]
    ends = np.minimum.accumulate(barrier[:, ::-1], axis=1)[:, ::-1]
    resident, transient = chain.resident_bytes[0], chain.transient_bytes[0]
    if not np.isfinite(chain.memory_bytes).any() or not (resident.any() or transient.any() or chain.shared_bytes[0]):
        return np.ascontiguousarray(ends)
    total = np.concatenate([[0.0], np.cumsum(resident)])
    room = np.array([chain.allowance(float(limit)) for limit in chain.memory_bytes]) - float(chain.shared_bytes[0])
    if transient.any():
        fits = _fits_with_transients(total, transient, room)
    else:
        fits = np.stack([np.searchsorted(total, total + limit, side="right") - 1 for limit in room])
    return np.ascontiguousarray(np.maximum(np.minimum(ends, fits), starts))


def _fits_with_transients(total: Array, transient: Array, room: Array) -> Ints:
    """Two pointers per device: the largest transient of a window is kept in a decreasing queue."""
    num_elements = len(transient)
    fits = np.empty((len(room), num_elements + 1), np.int64)
    for device, limit in enumerate(room.tolist()):
        queue: list[int] = []
        end = 0
        for start in range(num_elements + 1):
            if end < start:
                end, queue = start, []
            while queue and queue[0] < start:
                queue.pop(0)
            while end < num_elements:
                peak = max(float(transient[end]), float(transient[queue[0]]) if queue else 0.0)
                if total[end + 1] - total[start] + peak > limit:
                    break
                while queue and transient[queue[-1]] <= transient[end]:
                    queue.pop()
                queue.append(end)
                end += 1
            fits[device, start] = end
    return fits
