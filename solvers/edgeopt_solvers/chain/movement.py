"""What a change of plan moves: bytes that devices must load newly, and what they cost.

A chain that names what devices ``held`` before charges each of them ``load_cost`` per byte that it does not hold yet:

    movement = Σ_d load_cost[d] · ( Σ w[v, l] over elements l run on d with v and not held there
                                  + Σ W[v]    over variants v run on d of which d holds nothing )

which is added to the objective. The first sum is additive over elements, the second over (device, variant) pairs.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.chain.instance import Chain, Solution
from edgeopt_solvers.errors import InstanceError

__all__ = ["Movement", "compare", "element_loads", "held_by", "variant_loads", "without"]


def element_loads(chain: Chain) -> Array:
    """What newly loading each element adds to the objective, (D, V, L)."""
    cost = chain.load_cost[:, None, None] * chain.resident_bytes
    return cost if chain.held is None else np.where(chain.held, 0.0, cost)


def variant_loads(chain: Chain) -> Array:
    """What newly loading each variant's shared bytes adds to the objective, (D, V)."""
    cost = chain.load_cost[:, None] * chain.shared_bytes
    return cost if chain.held is None else np.where(chain.held.any(axis=2), 0.0, cost)


def held_by(chain: Chain, solution: Solution) -> NDArray[np.bool_]:
    """What every device holds under a plan, (D, V, L): the ``held`` of the next instance.

    Raises
    ------
    InstanceError
        The plan does not belong to the instance: a device, variant or cut that it lacks.
    """
    held = np.zeros((chain.num_devices, chain.num_variants, chain.num_elements), dtype=np.bool_)
    fits = len(solution.cuts) > 0 and solution.cuts[-1] == chain.num_elements
    fits &= all(0 <= d < chain.num_devices for d in solution.devices)
    if not fits or not all(0 <= v < chain.num_variants for v in solution.variants):
        raise InstanceError(f"{solution} is no plan for {chain.num_devices} devices and {chain.num_elements} elements")
    for start, stop, device, variant in zip(
        solution.starts, solution.cuts, solution.devices, solution.variants, strict=True
    ):
        held[device, variant, start:stop] = True
    return held


@dataclass(frozen=True, slots=True)
class Movement:
    """What changes from one plan to the next.

    Attributes
    ----------
    elements
        (element, (device, variant) before, (device, variant) after) of each element that changes either.
    load_bytes, drop_bytes : (D,)
        Bytes that each device must load, and may drop: resident bytes, and shared ones of variants new or gone there.
    """

    elements: tuple[tuple[int, tuple[int, int], tuple[int, int]], ...]
    load_bytes: Array
    drop_bytes: Array

    @property
    def moved_bytes(self) -> float:
        """Bytes that all devices together must load."""
        return float(self.load_bytes.sum())


def compare(chain: Chain, before: Solution, after: Solution) -> Movement:
    """Say what changes between two plans of one instance.

    Raises
    ------
    InstanceError
        One of them is no plan of it.
    """
    held, wanted = held_by(chain, before), held_by(chain, after)
    moved = []
    for element in range(chain.num_elements):
        places = [np.argwhere(plan[:, :, element])[0].tolist() for plan in (held, wanted)]
        if places[0] != places[1]:
            moved.append((element, (places[0][0], places[0][1]), (places[1][0], places[1][1])))
    return Movement(tuple(moved), _missing(chain, wanted, held), _missing(chain, held, wanted))


def _missing(chain: Chain, wanted: NDArray[np.bool_], held: NDArray[np.bool_]) -> Array:
    """Bytes of ``wanted`` that ``held`` lacks, (D,)."""
    elements = np.where(wanted & ~held, chain.resident_bytes, 0.0).sum(axis=(1, 2))
    variants = np.where(wanted.any(axis=2) & ~held.any(axis=2), chain.shared_bytes, 0.0).sum(axis=1)
    total: Array = elements + variants
    return total


def without(chain: Chain, gone: Collection[int]) -> tuple[Chain, list[int | None]]:
    """Leave devices out of an instance.

    Returns
    -------
    Chain
        The instance on the devices that stay, in their order.
    list of int or None
        For each device of ``chain`` its index there, ``None`` if it is gone: what
        :func:`~edgeopt_solvers.chain.carry.carried_over` asks for.

    Raises
    ------
    InstanceError
        Nothing stays, the source is to leave, or an element is pinned to a device that is.
    """
    keep = [d for d in range(chain.num_devices) if d not in gone]
    index: list[int | None] = [keep.index(d) if d in keep else None for d in range(chain.num_devices)]
    if not keep or chain.source in gone:
        raise InstanceError(f"source is device {chain.source} of {chain.num_devices}, and cannot leave with {gone}")
    for element, device in chain.pins.items():
        if device in gone:
            raise InstanceError(f"pins[{element}] is device {device}, which is to leave; pin it elsewhere first")
    rows: dict[str, Any] = {
        name: None if getattr(chain, name) is None else getattr(chain, name)[keep]
        for name in ("compute_s", "memory_bytes", "power_w", "send_power_w", "receive_power_w", "held", "load_cost")
    }
    pairs = {
        name: getattr(chain, name)[np.ix_(keep, keep)] for name in ("rate_bytes_per_s", "latency_s", "medium", "snr")
    }
    pins = {element: keep.index(device) for element, device in chain.pins.items()}
    source = None if chain.source is None else index[chain.source]
    return replace(chain, **rows, **pairs, pins=pins, source=source), index
