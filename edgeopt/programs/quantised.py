"""Weights in 8 or 4 bits: stored so, computed in the model's own dtype.

``int8`` has one 16-bit scale per row (output channel), ``int4`` one per group of 128 weights in a row; neither has a
zero point. Vectors (norms, biases), embedding and head stay as they are. Model profiles state these sizes as
``weights_by_dtype``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from edgeopt.errors import Finding, InputError
from edgeopt.programs.weights import WeightSource, fill

__all__ = ["FORMATS", "GROUP", "QuantisedLinear", "fill_quantised", "quantise"]

#: Format → largest magnitude of a stored weight.
FORMATS = {"int8": 127, "int4": 7}
#: Weights that share a scale in ``int4``.
GROUP = 128
#: Weights that are brought back at once: more rows than these wait for their turn, so that little memory is needed.
_AT_ONCE = 1 << 22


def quantise(weight: torch.Tensor, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a matrix to the nearest of its format.

    Parameters
    ----------
    weight : (rows, width)
    dtype
        One of :data:`FORMATS`.

    Returns
    -------
    stored
        ``int8``: (rows, width) int8. ``int4``: (rows, ceil(width / 2)) uint8, the even column in the lower four bits,
        each weight plus 8.
    scale : (rows, groups) float16
    """
    largest, width = FORMATS[dtype], weight.shape[1]
    group = width if dtype == "int8" else GROUP
    padded = nn.functional.pad(weight.float(), (0, -width % group)).unflatten(1, (-1, group))
    scale = (padded.abs().amax(-1) / largest).half().clamp(min=2**-24)
    stored = (padded / scale.float()[..., None]).round().clamp(-largest, largest).flatten(1)[:, :width]
    if dtype == "int8":
        return stored.to(torch.int8), scale
    nibbles = nn.functional.pad((stored + 8).to(torch.uint8), (0, width % 2))
    return nibbles[:, ::2] | nibbles[:, 1::2] << 4, scale


class QuantisedLinear(nn.Module):
    """A linear layer whose matrix is stored in a format of :data:`FORMATS`; the bias, if any, is not."""

    def __init__(self, weight: torch.Tensor, bias: nn.Parameter | None, dtype: str, compute: torch.dtype) -> None:
        super().__init__()
        self.format, self.width, self.compute = dtype, weight.shape[1], compute
        stored, scale = quantise(weight, dtype)
        self.register_buffer("stored", stored)
        self.register_buffer("scale", scale)
        self.bias = bias

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Bring some rows of the matrix back, (stop - start, width)."""
        stored, scale = self.get_buffer("stored")[start:stop], self.get_buffer("scale")[start:stop].float()
        if self.format == "int8":
            return (stored.float() * scale).to(self.compute)
        halves = torch.stack([stored & 15, stored >> 4], dim=-1).flatten(1)[:, : self.width]
        group = torch.arange(self.width, device=scale.device) // GROUP
        return ((halves.float() - 8) * scale[:, group]).to(self.compute)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute as a linear layer of the weights that are stored."""
        rows = self.get_buffer("stored").shape[0]
        step = max(1, _AT_ONCE // self.width)
        pieces = [nn.functional.linear(x, self.rows(at, min(at + step, rows))) for at in range(0, rows, step)]
        y = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)
        return y if self.bias is None else y + self.bias


def fill_quantised(
    layer: nn.Module,
    source: WeightSource,
    weights: str | None,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    rename: Callable[[str], str] = str,
) -> nn.Module:
    """Fill a layer as :func:`~edgeopt.programs.weights.fill` does, its matrices stored in a format.

    Parameters
    ----------
    weights
        One of :data:`FORMATS`; ``None``: in ``dtype``, like everything else.

    Raises
    ------
    InputError
        The layer has matrices that are not those of linear layers (experts), or the format is not known.
    """
    if weights is None:
        return fill(layer, source, dtype=dtype, device=device, rename=rename)
    if weights not in FORMATS:
        mend = f"use {' or '.join(FORMATS)}"
        raise InputError(Finding("stages.variant", f"weights cannot be stored as '{weights}'", mend))
    linears = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
    matrices = {f"{name}.weight" for name in linears}
    other = [name for name, value in layer.named_parameters() if value.dim() > 1 and name not in matrices]
    if other:
        message = f"'{other[0]}' is no linear layer's matrix, so that the program cannot store it as {weights}"
        raise InputError(Finding("stages.variant", message, "plan mixtures of experts in their own dtype"))
    for name, module in linears.items():
        values = source.read(rename(f"{name}.weight"), module.weight.shape)
        owner, _, leaf = name.rpartition(".")
        setattr(layer.get_submodule(owner), leaf, QuantisedLinear(values.to(device), module.bias, weights, dtype))
    return fill(layer, source, dtype=dtype, device=device, rename=rename)
