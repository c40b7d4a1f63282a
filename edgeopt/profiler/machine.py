"""Rates of the machine this process runs on, by short loops of torch calls.

Peaks are what the machine can do, so each is taken from the fast end of its samples: other processes only slow it down.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from edgeopt.profiler.carrying import message_seconds, rested_message_seconds
from edgeopt.profiler.clocks import clock_for
from edgeopt.profiler.jobs import MachineFigures, MachineJob
from edgeopt.profiler.space import fragmentation, total_bytes, workspace_bytes
from edgeopt.profiles.base import DType
from edgeopt.programs.weights import torch_dtype

__all__ = ["ROWS", "measure_machine"]

_LOOP_S = 0.4
_COPY_BYTES = 256 * 2**20  # far beyond any cache
#: A product's weights, and how many bytes of others are read before its turn comes again: more than a cache holds.
_WIDTH, _WIDE, _COLD_BYTES = 1024, 2816, 160 * 2**20
#: Numbers of rows for which products are timed; from the last on, more rows are hardly faster each.
ROWS = (1, 2, 3, 4, 8, 16, 32, 64, 128, 256)


@torch.inference_mode()
def measure_machine(job: MachineJob) -> MachineFigures:
    """Measure peaks, and what kernels reach of them as layers use them."""
    device = torch.device(job.accelerator)
    first = job.dtypes[0]
    space = workspace_bytes(device), fragmentation(device)  # first, before anything large was made and kept
    with device:
        by_rows = {rows: _product_flop_per_s(torch_dtype(first), rows) for rows in ROWS}
        rates = {dtype: _matrix_flop_per_s(dtype) for dtype in job.dtypes}
        # The best that was seen is the peak, or an efficiency would exceed one.
        rates[first] = max(rates[first], *by_rows.values())
        bandwidth = _copy_bytes_per_s()
        launch_s = _launch_s()
    itemsize = torch_dtype(first).itemsize
    message_s, message_s_per_byte = message_seconds()
    return MachineFigures(
        flop_per_s=rates,
        memory_bytes_per_s=bandwidth,
        launch_s=launch_s,
        compute_efficiency=by_rows[ROWS[-1]] / rates[first],
        rows=list(ROWS),
        compute_by_rows=[by_rows[rows] / rates[first] for rows in ROWS],
        message_s=message_s,
        message_s_per_byte=message_s_per_byte,
        rested_message_s=rested_message_seconds(),
        memory_efficiency=min(1.0, by_rows[1] / 2 * itemsize / bandwidth),
        total_bytes=total_bytes(device),
        workspace_bytes=space[0],
        fragmentation=space[1],
        torch_version=torch.__version__,
    )


def _fast_s(call: Callable[[], object]) -> float:
    """Seconds of a call, the fastest tenth of about ``_LOOP_S``, after warming up."""
    clock = clock_for(torch.get_default_device())
    for _ in range(2):
        call()
    samples: list[float] = []
    while len(samples) < 5 or (sum(samples) < _LOOP_S and len(samples) < 2000):
        marks = [clock.mark()]
        call()
        marks.append(clock.mark())
        samples += clock.seconds(marks)
    return sorted(samples)[len(samples) // 10]


def _matrix_flop_per_s(dtype: DType) -> float:
    """Rate of a square product, large enough to take some milliseconds but no longer than it must."""
    size = 256
    while True:
        a, b = (torch.randn(size, size).to(torch_dtype(dtype)) for _ in range(2))
        a @ b
        clock = clock_for(a.device)
        marks = [clock.mark()]
        a @ b
        marks.append(clock.mark())
        (seconds,) = clock.seconds(marks)
        limit = 8192 if a.is_cuda else 2048
        if seconds > 0.02 or size >= limit:
            break
        size *= 2
    return 2 * size**3 / _fast_s(lambda: a @ b)


def _product_flop_per_s(dtype: torch.dtype, rows: int) -> float:
    """Rate of a linear layer's product with so many rows, its weights in no cache."""
    number = max(2, _COLD_BYTES // (_WIDTH * _WIDE * dtype.itemsize)) if rows <= 32 else 4
    weights = [torch.randn(_WIDE, _WIDTH).to(dtype) for _ in range(number)]
    x = torch.randn(1, rows, _WIDTH).to(dtype)
    return 2 * rows * _WIDTH * _WIDE * number / _fast_s(lambda: [functional.linear(x, w) for w in weights])


def _copy_bytes_per_s() -> float:
    """Rate of a large copy; every byte is read once and written once, both count."""
    source = torch.ones(_COPY_BYTES // 4)
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / _fast_s(lambda: target.copy_(source))


class _Norm(nn.Module):
    """Root mean square, out of operations, as libraries write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class _Block(nn.Module):
    """A decoder block too narrow to compute anything: what starting its operations takes."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.norms = nn.ModuleList([_Norm(width), _Norm(width)])
        self.attention = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in range(4)])
        wide = [(width, 4 * width), (width, 4 * width), (4 * width, width)]
        self.mlp = nn.ModuleList([nn.Linear(i, o, bias=False) for i, o in wide])

    def forward(self, x: torch.Tensor, cached: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
        y = self.norms[0](x)
        q, k, v = (
            f(y).view(1, x.shape[1], self.heads, self.width // self.heads).transpose(1, 2) for f in self.attention[:3]
        )
        q, k = _rotate(q, turn), torch.cat([cached, _rotate(k, turn)], dim=2)
        y = functional.scaled_dot_product_attention(q, k, torch.cat([cached, v], dim=2))
        x = x + self.attention[3](y.transpose(1, 2).reshape(x.shape))
        y = self.norms[1](x)
        return x + self.mlp[2](functional.silu(self.mlp[0](y)) * self.mlp[1](y))


def _rotate(x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    return x * turn + torch.cat([-b, a], dim=-1) * turn


class _Kernels(TorchDispatchMode):
    """Counts operations that make or change a tensor, as model profiles do."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        # A view has no memory of its own: nothing is launched for it.
        if not any(value.alias_info for value in func._schema.returns) or func._schema.is_mutable:
            self.number += 1
        return result


def _launch_s() -> float:
    """Seconds for each operation of a block whose arithmetic is nothing, views and calls of modules included."""
    block, x = _Block(16, 2).eval(), torch.randn(1, 1, 16)
    cached, turn = torch.randn(1, 2, 8, 8), torch.randn(8)
    with _Kernels() as kernels:
        block(x, cached, turn)
    return _fast_s(lambda: block(x, cached, turn)) / kernels.number
