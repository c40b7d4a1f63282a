"""Rates of the machine this process runs on, by short loops of torch calls.

Peaks are what the machine can do, so each is taken from the fast end of its samples: other processes only slow it down.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from edgeopt.profiler.jobs import MachineFigures, MachineJob
from edgeopt.profiles.base import DType
from edgeopt.programs.weights import torch_dtype

__all__ = ["measure_machine"]

_LOOP_S = 0.4
_COPY_BYTES = 256 * 2**20  # far beyond any cache
_BLOCK_TOKENS, _BLOCK_WIDTH = 256, 768


@torch.inference_mode()
def measure_machine(job: MachineJob) -> MachineFigures:
    """Measure peaks, and what a transformer block reaches of them."""
    rates = {dtype: _matrix_flop_per_s(dtype) for dtype in job.dtypes}
    first = job.dtypes[0]
    bandwidth = _copy_bytes_per_s()
    return MachineFigures(
        flop_per_s=rates,
        memory_bytes_per_s=bandwidth,
        launch_s=_launch_s(),
        compute_efficiency=min(1.0, _block_flop_per_s(torch_dtype(first)) / rates[first]),
        memory_efficiency=min(1.0, _weights_bytes_per_s(torch_dtype(first)) / bandwidth),
        torch_version=torch.__version__,
    )


def _fast_s(call: Callable[[], object]) -> float:
    """Seconds of a call, the fastest tenth of about ``_LOOP_S``, after warming up."""
    for _ in range(2):
        call()
    samples: list[float] = []
    end = time.perf_counter() + _LOOP_S
    while len(samples) < 5 or (time.perf_counter() < end and len(samples) < 2000):
        started = time.perf_counter()
        call()
        samples.append(time.perf_counter() - started)
    return sorted(samples)[len(samples) // 10]


def _matrix_flop_per_s(dtype: DType) -> float:
    """Rate of a square product, large enough to take some milliseconds but no longer than it must."""
    size = 256
    while True:
        a, b = (torch.randn(size, size).to(torch_dtype(dtype)) for _ in range(2))
        started = time.perf_counter()
        a @ b
        if time.perf_counter() - started > 0.02 or size >= 2048:
            break
        size *= 2
    return 2 * size**3 / _fast_s(lambda: a @ b)


def _copy_bytes_per_s() -> float:
    """Rate of a large copy; every byte is read once and written once, both count."""
    source = torch.ones(_COPY_BYTES // 4)
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / _fast_s(lambda: target.copy_(source))


class _Block(nn.Module):
    """A transformer block: the calls that a launch consists of."""

    def __init__(self, width: int, heads: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.norms = nn.ModuleList([nn.RMSNorm(width), nn.RMSNorm(width)]).to(dtype)
        self.attention = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in range(4)]).to(dtype)
        wide = [(width, 4 * width), (width, 4 * width), (4 * width, width)]
        self.mlp = nn.ModuleList([nn.Linear(i, o, bias=False) for i, o in wide]).to(dtype)

    @property
    def flop_per_token(self) -> int:
        return 2 * sum(parameter.numel() for module in (self.attention, self.mlp) for parameter in module.parameters())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norms[0](x)
        q, k, v = (
            f(y).view(1, x.shape[1], self.heads, self.width // self.heads).transpose(1, 2) for f in self.attention[:3]
        )
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=x.shape[1] > 1)
        x = x + self.attention[3](y.transpose(1, 2).reshape(x.shape))
        y = self.norms[1](x)
        return x + self.mlp[2](functional.silu(self.mlp[0](y)) * self.mlp[1](y))


def _launch_s() -> float:
    """Seconds of a block whose arithmetic is nothing: what every call of an element costs beside its work."""
    block, x = _Block(16, 2, torch.float32).eval(), torch.randn(1, 1, 16)
    return _fast_s(lambda: block(x))


def _block_flop_per_s(dtype: torch.dtype) -> float:
    block = _Block(_BLOCK_WIDTH, 12, dtype).eval()
    x = torch.randn(1, _BLOCK_TOKENS, _BLOCK_WIDTH).to(dtype)
    attention = 4 * _BLOCK_TOKENS * _BLOCK_WIDTH  # per token, counted as the full square
    return _BLOCK_TOKENS * (block.flop_per_token + attention) / _fast_s(lambda: block(x))


def _weights_bytes_per_s(dtype: torch.dtype) -> float:
    """Rate at which one token's products read weights that are in no cache."""
    layers = [torch.randn(4096, 2048).to(dtype) for _ in range(8)]
    x = torch.randn(1, 2048).to(dtype)
    return sum(w.nbytes for w in layers) / _fast_s(lambda: [functional.linear(x, w) for w in layers])
