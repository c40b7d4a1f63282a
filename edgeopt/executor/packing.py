"""Tensors as bytes for files and for the pipe to the driver: safetensors, which hold no code."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["freeze", "pack", "thaw", "unpack"]


def freeze(tensors: Sequence[torch.Tensor]) -> bytes:
    """Write tensors, in order."""
    from safetensors.torch import save

    return save({f"{i:06d}": tensor.cpu().contiguous().clone() for i, tensor in enumerate(tensors)})


def thaw(data: bytes) -> list[torch.Tensor]:
    """Read what :func:`freeze` wrote."""
    from safetensors.torch import load

    tensors = load(data)
    return [tensors[name] for name in sorted(tensors)]


def pack(tensors: Sequence[torch.Tensor]) -> str:
    """Write tensors as text."""
    return base64.b64encode(freeze(tensors)).decode()


def unpack(text: str) -> list[torch.Tensor]:
    """Read what :func:`pack` wrote."""
    return thaw(base64.b64decode(text, validate=True))
