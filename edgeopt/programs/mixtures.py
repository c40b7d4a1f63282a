"""Experts of the mixtures of `transformers`: where a model has them, and some of a layer's as a module of their own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from edgeopt.programs.quantised import QuantisedExperts
from edgeopt.programs.weights import WeightSource, meta_parameters

__all__ = ["HeldExperts", "expert_layers"]


def expert_layers(model: Any) -> dict[int, nn.Module]:
    """Return the modules that hold the experts of each layer, by the layer's index; dense layers have none."""
    return {index: layer.mlp.experts for index, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "experts")}


class HeldExperts:
    """Some experts of one layer, computed by the library's own class, or from weights in fewer bits.

    Parameters
    ----------
    template
        The module of all experts of the layer, whose parameters may be without memory.
    layer
        Index of the layer in the model.
    experts
        Those to hold; only their weights are kept.
    weights
        Format that they are stored in (:mod:`edgeopt.programs.quantised`); ``None``: ``dtype``.
    """

    def __init__(
        self,
        template: Any,
        layer: int,
        experts: Sequence[int],
        source: WeightSource,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        weights: str | None = None,
    ) -> None:
        self.device = torch.device(device)
        self._place = torch.full((template.num_experts,), -1, device=self.device)
        self._place[list(experts)] = torch.arange(len(experts), device=self.device)
        shapes = {name: parameter.shape for name, parameter in template.named_parameters()}

        def read(name: str, rows: Sequence[int]) -> torch.Tensor:
            return source.read(f"model.layers.{layer}.mlp.experts.{name}", shapes[name], rows)

        if weights is not None:
            self._module: nn.Module = QuantisedExperts(
                template, experts, lambda name, e: read(name, [e]), weights, dtype=dtype, device=device
            )
            return
        config = copy.deepcopy(template.config)
        for name in ("num_experts", "num_local_experts"):
            if hasattr(config, name):
                setattr(config, name, len(experts))
        with meta_parameters():
            self._module = type(template)(config)
        for name in shapes:
            filled = nn.Parameter(read(name, experts).to(device=device, dtype=dtype), requires_grad=False)
            setattr(self._module, name, filled)
        self._module.eval()

    def __call__(self, states: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Apply one expert to each state.

        Parameters
        ----------
        states : (rows, hidden)
        chosen : (rows,) int64
            Experts by their index in the layer.

        Returns
        -------
        (rows, hidden)
            Weighted by nothing.
        """
        places = self._place[chosen.to(self.device)]
        if bool((places < 0).any()):
            missing = sorted(set(chosen[places.cpu() < 0].tolist()))
            raise ValueError(f"experts {missing} are asked for and not held here")
        ones = torch.ones((len(places), 1), dtype=states.dtype, device=self.device)
        rows: torch.Tensor = self._module(states, places[:, None], ones)
        return rows
