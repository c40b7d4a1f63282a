"""What a change of plan moves: bytes that devices must load newly, what they cost, and plans carried over.

A chain that names what devices ``held`` before charges each of them ``load_cost`` per byte that it does not hold yet:

    movement = Σ_d load_cost[d] · ( Σ w[v, l] over elements l run on d with v and not held there
                                  + Σ W[v]    over variants v run on d of which d holds nothing )

which is added to the objective. The first sum is additive over elements, the second over (device, variant) pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.chain.check import evaluate
from edgeopt_solvers.chain.instance import Chain, Solution
from edgeopt_solvers.chain.shares import with_shares
from edgeopt_solvers.errors import InstanceError

__all__ = ["Movement", "carried_over", "compare", "element_loads", "held_by", "variant_loads"]


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


# ── carrying a plan over to an instance with other devices ───────────────────────────────────────────────────────

#: Rounds in which one cut of a plan carried over moves to where it is best.
ROUNDS = 4

_Stage = tuple[int | None, int, int]  # device, variant, end


def carried_over(chain: Chain, previous: Solution, devices: Sequence[int | None]) -> Solution | None:
    """Map a plan to an instance whose devices changed, mended where a device has left: a warm start.

    What an absent device ran is split between its neighbours or goes to another device, whichever costs least; then
    single cuts move while that helps.

    Parameters
    ----------
    chain
        The new instance; elements and variants are those of the old one.
    previous
        A plan of the old instance.
    devices
        For each device of the old instance its index in the new one, ``None`` if it has left.

    Returns
    -------
    Solution or None
        A feasible plan; ``None`` where none was found so (there may still be one).

    Raises
    ------
    InstanceError
        ``devices`` is shorter than the plan needs, or names a device that the new instance lacks.
    """
    if any(not 0 <= d < len(devices) for d in previous.devices):
        raise InstanceError(f"devices maps {len(devices)} devices, and the plan uses device {max(previous.devices)}")
    for d in devices:
        if d is not None and not 0 <= d < chain.num_devices:
            raise InstanceError(f"devices names {d}, and the new instance has {chain.num_devices} devices")
    stages: list[_Stage] = [
        (devices[device], variant, stop)
        for device, variant, stop in zip(previous.devices, previous.variants, previous.cuts, strict=True)
    ]
    if previous.cuts[-1] != chain.num_elements:
        return None
    while (place := next((k for k, stage in enumerate(stages) if stage[0] is None), None)) is not None:
        stages = min(_mended(chain, stages, place), key=lambda way: _rank(chain, way))
    rank = _rank(chain, stages)
    for _ in range(ROUNDS):
        ways = _shifted(stages)
        if not ways or not (better := min((_rank(chain, way), way) for way in ways))[0] < rank:
            break
        rank, stages = better
    solution = _solution(chain, stages)
    return None if evaluate(chain, solution).violations else solution


def _mended(chain: Chain, stages: list[_Stage], place: int) -> list[list[_Stage]]:
    """Ways to do without the absent device of one stage; there is at least one."""
    _, variant, stop = stages[place]
    start = stages[place - 1][2] if place else 0
    before, after = stages[:place], stages[place + 1 :]
    ways: list[list[_Stage]] = []
    for cut in range(start, stop + 1):  # the stage before runs on to the cut, the one after begins there
        if (before or cut == start) and (after or cut == stop):
            ways.append([*before[:-1], (*before[-1][:2], cut), *after] if before else after)
    used = {device for device, _, _ in stages}
    idle = [d for d in range(chain.num_devices) if d not in used or chain.reuse == "many"]
    return ways + [[*before, (device, variant, stop), *after] for device in idle]


def _shifted(stages: list[_Stage]) -> list[list[_Stage]]:
    """The plan with one of its cuts somewhere else."""
    ends = [0, *(stop for _, _, stop in stages)]
    return [
        [*stages[:k], (*stages[k][:2], cut), *stages[k + 1 :]]
        for k in range(len(stages) - 1)
        for cut in range(ends[k] + 1, ends[k + 2])
        if cut != ends[k + 1]
    ]


def _rank(chain: Chain, stages: list[_Stage]) -> tuple[int, float, float]:
    """Broken rules, bytes that do not fit, objective: what makes one plan better than another."""
    outcome = evaluate(chain, _solution(chain, stages))
    excess = [
        outcome.metrics.get(f"memory_bytes[{d}]", 0.0) - chain.allowance(float(chain.memory_bytes[d]))
        for d in range(chain.num_devices)
    ]
    return len(outcome.violations), sum(max(0.0, e) for e in excess), outcome.objective


def _solution(chain: Chain, stages: list[_Stage]) -> Solution:
    """Decisions; a stage whose device is still absent is run by the one before it, else by the one after."""
    kept: list[tuple[int, int, int]] = []
    first = next(((d, v) for d, v, _ in stages if d is not None), (0, stages[0][1]))
    for device, variant, stop in stages:
        state = (device, variant) if device is not None else kept[-1][:2] if kept else first
        if kept and kept[-1][:2] == state:
            kept.pop()
        kept.append((*state, stop))
    cuts, devices, variants = [k[2] for k in kept], [k[0] for k in kept], [k[1] for k in kept]
    return with_shares(chain, Solution(tuple(cuts), tuple(devices), tuple(variants)))
