"""Weights in 8 or 4 bits: stored so, computed in the model's own dtype.

``int8`` has one 16-bit scale per row (output channel), ``int4`` one per group of 128 weights in a row; neither has a
zero point. Vectors (norms, biases), embedding and head stay as they are, and so do the routers of mixtures, which are
small and choose. Model profiles state these sizes as ``weights_by_dtype``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from edgeopt.errors import Finding, InputError
from edgeopt.programs.weights import WeightSource, fill

__all__ = ["FORMATS", "GROUP", "QuantisedExperts", "QuantisedLinear", "fill_quantised", "quantise"]

#: Format → largest magnitude of a stored weight.
FORMATS = {"int8": 127, "int4": 7}
#: Weights that share a scale in ``int4``.
GROUP = 128
#: Weights that are brought back at once: more rows than these wait for their turn, so that little memory is needed.
_AT_ONCE = 1 << 22
#: Parameters of a mixture's experts, as the library names them, and how a router's ends.
_EXPERTS, _ROUTER = ("gate_up_proj", "down_proj"), ".gate.weight"


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


class QuantisedExperts(nn.Module):
    """Some experts of one layer of a mixture, their matrices stored in a format of :data:`FORMATS`.

    Computes what the library's module of the layer computes with the weights that are stored, one expert after the
    other; what experts contribute to a token is added up in the order in which they were chosen.

    Parameters
    ----------
    template
        The library's module of all experts of the layer, whose parameters may be without memory.
    experts
        Those to hold.
    read
        Returns the values of a parameter, by its name in ``template``, for one expert: shape (1, rows, width).
    """

    def __init__(
        self,
        template: Any,
        experts: Sequence[int],
        read: Callable[[str, int], torch.Tensor],
        weights: str,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.num_experts, self.act_fn = len(experts), template.act_fn

        def held(name: str) -> nn.ModuleList:
            values = (read(name, e)[0].to(device) for e in experts)
            return nn.ModuleList(QuantisedLinear(value, None, weights, dtype) for value in values)

        self.gate_up, self.down = held("gate_up_proj"), held("down_proj")

    def forward(self, states: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Compute the experts of each token.

        Parameters
        ----------
        states : (tokens, hidden)
        chosen : (tokens, k) int64
            By place among the experts that are held.
        weights : (tokens, k)
            Of their contributions.

        Returns
        -------
        (tokens, hidden)
        """
        rows = states.new_empty((*chosen.shape, states.shape[-1]))
        for expert in torch.unique(chosen).tolist():
            tokens, places = (chosen == expert).nonzero(as_tuple=True)
            gate, up = self.gate_up[expert](states[tokens]).chunk(2, dim=-1)
            rows[tokens, places] = self.down[expert](self.act_fn(gate) * up)
        return (rows * weights.unsqueeze(-1)).sum(dim=1).to(states.dtype)


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
        The layer has matrices that are neither those of linear layers nor of experts, or the format is not known.
    """
    if weights is None:
        return fill(layer, source, dtype=dtype, device=device, rename=rename)
    if weights not in FORMATS:
        mend = f"use {' or '.join(FORMATS)}"
        raise InputError(Finding("stages.variant", f"weights cannot be stored as '{weights}'", mend))
    linears = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
    mixtures = {name: module for name, module in layer.named_modules() if _holds_experts(module)}
    known = {f"{name}.weight" for name in linears} | {f"{name}.{each}" for name in mixtures for each in _EXPERTS}
    other = [
        name
        for name, value in layer.named_parameters()
        if value.dim() > 1 and name not in known and not name.endswith(_ROUTER)
    ]
    if other:
        message = f"'{other[0]}' is no matrix of a linear layer or of experts, so that it cannot be stored as {weights}"
        raise InputError(Finding("stages.variant", message, "plan this model in its own dtype"))
    for name, module in linears.items():
        values = source.read(rename(f"{name}.weight"), module.weight.shape)
        owner, _, leaf = name.rpartition(".")
        setattr(layer.get_submodule(owner), leaf, QuantisedLinear(values.to(device), module.bias, weights, dtype))
    for name, module in mixtures.items():

        def read(part: str, expert: int, name: str = name, module: nn.Module = module) -> torch.Tensor:
            return source.read(rename(f"{name}.{part}"), module.get_parameter(part).shape, [expert])

        owner, _, leaf = name.rpartition(".")
        whole: Any = module
        held = QuantisedExperts(whole, range(whole.num_experts), read, weights, dtype=dtype, device=device)
        setattr(layer.get_submodule(owner), leaf, held)
    return fill(layer, source, dtype=dtype, device=device, rename=rename)


def _holds_experts(module: nn.Module) -> bool:
    """Whether it is a mixture's experts: matrices of all of them as one tensor each, and nothing else."""
    return {name: value.dim() for name, value in module.named_parameters(recurse=False)} == dict.fromkeys(_EXPERTS, 3)
