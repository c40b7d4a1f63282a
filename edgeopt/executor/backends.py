"""Who computes on which GPU, and what carries the tensors: NCCL between GPUs, gloo wherever a processor takes part.

Workers tell each other what they have through the rendezvous; every one of them then comes to the same decision.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch.distributed as dist

__all__ = ["Seat", "agree_on_seats", "gpu_indices", "own_seat", "tensor_backend"]


@dataclass(frozen=True, slots=True)
class Seat:
    """What one worker has.

    Attributes
    ----------
    machine
        As :func:`edgeopt.executor.hardware.machine_id` says.
    accelerator
        Of its device in the plan.
    gpus
        Names of the GPUs it sees, the same in every process of the machine; none unless the accelerator is ``cuda``.
    nccl
        Whether its torch has NCCL, and an interface is known that it may listen on.
    """

    machine: str
    accelerator: str
    gpus: tuple[str, ...] = ()
    nccl: bool = False


def gpu_indices(seats: Sequence[Seat]) -> list[int | None]:
    """Which of the GPUs that it sees each worker uses, by rank: one that no lower rank has, else its first."""
    taken: set[str] = set()
    chosen: list[int | None] = []
    for seat in seats:
        free = [index for index, gpu in enumerate(seat.gpus) if gpu not in taken]
        index = (free[0] if free else 0) if seat.gpus else None
        if index is not None:
            taken.add(seat.gpus[index])
        chosen.append(index)
    return chosen


def tensor_backend(seats: Sequence[Seat], in_flight: int) -> Literal["gloo", "nccl"]:
    """Return what carries tensors between the workers of a chain.

    NCCL where every worker computes on a GPU of its own and one request is under way: it matches messages by their
    order, which several requests in flight do not keep. Otherwise gloo, from and to main memory.
    """
    used = [seat.gpus[index] for seat, index in zip(seats, gpu_indices(seats), strict=True) if index is not None]
    alone = len(used) == len(seats) == len(set(used))
    ready = all(seat.accelerator == "cuda" and seat.nccl for seat in seats)
    return "nccl" if len(seats) > 1 and in_flight == 1 and alone and ready else "gloo"


def own_seat(accelerator: str, interface: str | None) -> Seat:
    """Look around; ``interface``: that NCCL may listen on."""
    from edgeopt.executor.hardware import machine_id

    if accelerator != "cuda":
        return Seat(machine_id(), accelerator)
    import torch
    import torch.distributed as dist

    gpus = [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]
    return Seat(machine_id(), accelerator, tuple(gpus), interface is not None and dist.is_nccl_available())


def agree_on_seats(store: dist.Store, rank: int, size: int, seat: Seat) -> list[Seat]:
    """Tell the others, and hear from all of them, by rank."""
    store.set(f"seat-{rank}", json.dumps(asdict(seat)))
    told = [json.loads(store.get(f"seat-{other}")) for other in range(size)]
    return [Seat(**{**fields, "gpus": tuple(fields["gpus"])}) for fields in told]
