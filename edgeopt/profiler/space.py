"""Memory that a process takes beside tensors: the runtime's own, and what the allocator cannot use again."""

from __future__ import annotations

import random

import torch
from torch.nn import functional

from edgeopt.executor.memory import peak_bytes, resident_bytes

__all__ = ["fragmentation", "total_bytes", "workspace_bytes"]

#: Tensors made and dropped in random order; most of the memory stays where it is, as weights and caches do.
_TURNS, _ALIVE_BYTES, _STAYING_BYTES = 2000, 512 * 2**20, 448 * 2**20
_SMALLEST, _LARGEST = 16 * 2**10, 16 * 2**20


def total_bytes(device: torch.device) -> int | None:
    """Memory of the accelerator, ``None`` for devices that compute in the host's."""
    return int(torch.cuda.mem_get_info(device)[1]) if device.type == "cuda" else None


def workspace_bytes(device: torch.device) -> int:
    """Bytes that the runtime holds once its kernels have run, before any model: libraries, context, scratch."""
    x = torch.randn(1, 8, 16, 16, device=device)
    functional.conv2d(x, torch.randn(8, 8, 3, 3, device=device))
    functional.linear(x, torch.randn(16, 16, device=device))
    if device.type != "cuda":
        return resident_bytes()
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info(device)
    return max(0, int(total - free - torch.cuda.memory_reserved(device)))


def fragmentation(device: torch.device) -> float:
    """Share of the memory taken from the system that is not tensors, after many came and went beside some that stay."""
    draw = random.Random(0)

    def tensor(size: int) -> torch.Tensor:
        return torch.ones(size, dtype=torch.uint8, device=device)

    before = resident_bytes()
    staying = [tensor(_LARGEST) for _ in range(_STAYING_BYTES // _LARGEST)]
    held = most = sum(each.nbytes for each in staying)
    alive: list[torch.Tensor] = []
    for _ in range(_TURNS):
        size = int(_SMALLEST * (_LARGEST / _SMALLEST) ** draw.random())
        while held + size > _ALIVE_BYTES:
            held -= alive.pop(draw.randrange(len(alive))).nbytes
        alive.append(tensor(size))
        held += size
        most = max(most, held)
    taken = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else peak_bytes() - before
    return min(0.9, max(0.001, 1 - most / max(taken, 1)))
