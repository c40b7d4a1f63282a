"""Costs of a mixture of experts whose experts lie on several devices: the trunk, single experts, and steps of both.

The trunk is everything but the experts: embedding, attention, norms, gates, shared experts, head. In a layer the trunk
sends each device the hidden states of the tokens that it has experts for (once, however many of its experts work on a
token), computes the experts that it has itself, and receives a state for each (token, expert). A step is a prefill or
a decode round; all its tokens go through a layer together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edgeopt.costs.gates import GateChances, asked_subsets
from edgeopt.costs.language import LanguageCosts
from edgeopt.costs.roofline import Work, roofline
from edgeopt.costs.timings import interpolate_s, matching
from edgeopt.profiles.device import Device
from edgeopt.profiles.gates import layers_with_experts
from edgeopt.profiles.model import CausalLM, Layer
from edgeopt.profiles.problem import TextWorkload

__all__ = ["INDEX_BYTES", "ExpertCosts", "Wires", "trunk_model"]

Array = NDArray[np.float64]

#: Beside the states: which row goes to which expert, two 32-bit numbers for each (token, expert).
INDEX_BYTES = 8.0

#: What an expert launches: two products, the activation, the product of its halves, rows taken and put together.
_KERNELS = 6


def trunk_model(model: CausalLM) -> CausalLM:
    """Return everything but the experts as a model of its own, ``MODEL.trunk``."""
    layers = []
    for layer in model.layers:
        if (experts := layer.experts) is None:
            layers.append(layer)
            continue
        in_bits = {dtype: _rest_bytes(layer.stored_as(dtype)) for dtype in layer.weights_by_dtype}
        update = {
            "weights": _rest_bytes(layer),
            "weights_by_dtype": in_bits,
            "flop_per_token": layer.flop_per_token - experts.num_active * _flop_per_token(layer),
            "kernels": None if layer.kernels is None else max(1, layer.kernels - _KERNELS),
            "experts": None,
        }
        layers.append(layer.model_copy(update=update))
    own = {"name": f"{model.name}.trunk", "layers": layers, "drafts": {}, "gates": None}
    return model.model_copy(update=own)


def _rest_bytes(layer: Layer) -> float:
    """Bytes of a layer beside its experts."""
    assert layer.experts is not None
    return max(0.0, layer.weights - layer.experts.num_experts * layer.experts.weights)


def _flop_per_token(layer: Layer) -> float:
    """Operations of one expert for one token: as its share of the weights that work on a token."""
    assert layer.experts is not None
    experts = layer.experts
    working = layer.weights - (experts.num_experts - experts.num_active) * experts.weights
    return layer.flop_per_token * experts.weights / working


@dataclass(frozen=True)
class Wires:
    """Links between the trunk and D devices; at the trunk itself nothing is sent.

    Attributes
    ----------
    out_s, back_s : (D,)
        Seconds per byte to and from each device; ``inf``: no link.
    latency_s : (D,)
        Of a message there and one back.
    trunk
        Index of its device.
    """

    out_s: Array
    back_s: Array
    latency_s: Array
    trunk: int

    @classmethod
    def of(cls, rate: Array, latency: Array, trunk: int) -> Wires:
        """Read them from matrices of bytes/s (0: no link) and seconds."""
        with np.errstate(divide="ignore"):
            out_s, back_s = 1 / rate[trunk], 1 / rate[:, trunk]
        both = latency[trunk] + latency[:, trunk]
        here = np.arange(len(both)) == trunk
        return cls(*(np.where(here, 0.0, values) for values in (out_s, back_s, both)), trunk)


@dataclass(frozen=True)
class ExpertCosts:
    """Seconds and bytes of one mixture under one workload: G layers with experts, E experts in each.

    ``formats`` are those that devices store what they hold in, by name; the others have it in the model's dtype.
    ``trunk_format`` is that of the trunk's device.
    """

    model: CausalLM
    workload: TextWorkload
    trunk_format: str | None = None
    formats: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def trunk(self) -> LanguageCosts:
        """Costs of everything but the experts."""
        return LanguageCosts(trunk_model(self.model), self.workload, self.trunk_format)

    @cached_property
    def gates(self) -> GateChances:
        """How often experts are chosen."""
        return GateChances(self.model)

    @cached_property
    def layers(self) -> list[Layer]:
        """The G layers with experts."""
        return layers_with_experts(self.model)

    @cached_property
    def names(self) -> list[str]:
        """Their names: ``block.0`` …"""
        return [n for n, layer in zip(self.whole.names, self.whole.layers, strict=True) if layer.experts is not None]

    @cached_property
    def whole(self) -> LanguageCosts:
        """Costs of the whole model in one piece."""
        return LanguageCosts(self.model, self.workload)

    @property
    def steps(self) -> list[tuple[float, int]]:
        """Tokens of a step and how many there are: the prefill, and the decode rounds."""
        load = self.workload
        steps = [(float(load.batch * load.prompt_tokens), 1), (float(load.batch), load.new_tokens - 1)]
        return [step for step in steps if step[1]]

    @property
    def expert_bytes(self) -> Array:
        """Memory of an expert of each layer in the model's dtype, (G,)."""
        return self.bytes_in(None)

    def bytes_in(self, weights: str | None) -> Array:
        """Memory of an expert of each layer in a format, (G,); ``None``: the model's dtype."""
        layers = [layer if weights is None else layer.stored_as(weights) for layer in self.layers]
        return np.array([layer.experts.weights for layer in layers if layer.experts is not None], float)

    @property
    def state_bytes(self) -> Array:
        """Hidden state of one token at each layer, (G,)."""
        return np.array([layer.output_per_token for layer in self.layers], float)

    @property
    def trunk_bytes(self) -> float:
        """Memory of the trunk: weights, cache at its longest and activations of the prefill."""
        return float(self.trunk.resident_bytes.sum() + self.trunk.transient_bytes.max())

    @property
    def visiting_bytes(self) -> float:
        """Memory that a device with experts needs for the prefill's states, in and out."""
        load = self.workload
        return float(load.batch * load.prompt_tokens * (1 + self.gates.num_active) * self.state_bytes.max())

    def expert_s(self, device: Device, g: int, rows: Array) -> tuple[Array, float, bool]:
        """Seconds of experts of layer g in one call.

        Returns
        -------
        each : (len(rows),)
            Seconds that an expert over each number of tokens adds to a call.
        call : float
            Seconds of the call itself, however many experts it computes; nought where no table tells it apart.
        measured : bool
            Whether both are.
        """
        weights = self.formats.get(device.name)
        measured = self._measured_s(device, rows, weights)
        if measured is not None:
            return *measured, True
        found, call = self._roofline_s(device, g, rows, weights), _KERNELS * device.launch_overhead
        if weights is not None and (own := self._measured_s(device, rows, None)) is not None:
            # Better than its own measurement by all that rooflines leave out, unless that is put back in.
            return found * own[0] / self._roofline_s(device, g, rows, None), own[1], False
        return found, call, False

    def _measured_s(self, device: Device, rows: Array, weights: str | None) -> tuple[Array, float] | None:
        """Seconds that each expert adds to a call, and those of the call, where tables tell."""
        timings = matching(device, self.model.name, "expert", self.model.dtype, weights)
        whole = np.arange(math.floor(rows.min()), math.ceil(rows.max()) + 1)
        alone = interpolate_s(timings, 1, "tokens", whole)
        if alone is None:
            return None
        most = max(timing.batch for timing in timings)
        several = interpolate_s(timings, most, "tokens", whole) if most > 1 else None
        each = alone[:, 0] if several is None else (several - alone)[:, 0] / (most - 1)
        call = max(0.0, float(np.median(alone[:, 0] - each)))
        return np.interp(rows, whole, np.maximum(alone[:, 0] - call, 0.0)), call

    def _roofline_s(self, device: Device, g: int, rows: Array, weights: str | None) -> Array:
        layer = self.layers[g]
        work = Work(
            flop=rows * _flop_per_token(layer),
            weights=self.bytes_in(weights)[g],
            rows=rows,
            activations=rows * 2 * layer.output_per_token,
            kernels=0,
        )
        return np.asarray(roofline(device, self.model.dtype, work).total)

    def computing_s(self, device: Device, g: int, frequency: Array, tokens: float) -> tuple[Array, float]:
        """Expected seconds of experts that get parts ``frequency`` of a step's tokens, and seconds of each call.

        An expert that gets any of T tokens (chance h = 1 - (1 - f)^T) gets T f / h of them on average, and takes what
        that many take: exact where its seconds grow linearly with its tokens.
        """
        hit = self.hits(frequency, tokens)
        rows = np.where(hit > 0, tokens * frequency / np.maximum(hit, 1e-300), 1.0)
        seconds, call, _ = self.expert_s(device, g, np.maximum(rows, 1.0))
        return hit * seconds, call

    @staticmethod
    def hits(frequency: Array, tokens: float) -> Array:
        """Chance that a step sends an expert any token."""
        chances: Array = 1 - (1 - np.minimum(frequency, 1.0)) ** tokens
        return chances

    def device_s(self, g: int, share: Array, tokens: float, devices: list[Device], wires: Wires) -> tuple[Array, Array]:
        """Expected seconds of each device in a step, (D,), and what it takes beside whenever it is asked, (D,).

        Parameters
        ----------
        share : (E, D)
            Part of each expert's tokens that each device serves.
        """
        seconds, fixed = np.zeros(len(devices)), wires.latency_s.copy()
        sent, back = self.traffic(g, share, tokens)
        for d in np.flatnonzero(back > 0).tolist():
            computing, call = self.computing_s(devices[d], g, self.gates.frequency[g] * share[:, d], tokens)
            seconds[d] = computing.sum() + (sent[d] * wires.out_s[d] + back[d] * wires.back_s[d])
            fixed[d] += call
        return seconds, fixed

    def traffic(self, g: int, share: Array, tokens: float) -> tuple[Array, Array]:
        """Expected bytes that a step sends to each device and gets back, (D,) each, if it were no trunk."""
        served = tokens * (self.gates.frequency[g] @ share)
        visits = tokens * (1 - self.gates.within(g, (1 - share).T))
        state = float(self.state_bytes[g])
        return np.where(served > 0, visits * state + served * INDEX_BYTES, 0.0), served * state

    def layer_s(self, g: int, share: Array, tokens: float, devices: list[Device], wires: Wires) -> float:
        """Expected seconds from a layer's gate until the last state is back: those of the slowest device asked.

        A trunk that has to wait is slower afterwards (``wake`` of its decode rounds in the device's tables).
        Which devices are asked is followed exactly; what a device that is asked then does is taken at its mean.
        """
        used = np.flatnonzero(self.gates.frequency[g] @ share > 0)
        chance, asked = asked_subsets(self.gates, g, share[:, used], tokens)
        each, fixed = (values[used] for values in self.device_s(g, share, tokens, devices, wires))
        often = chance @ asked
        seconds = fixed + each / np.maximum(often, 1e-300)
        away = asked[:, used != wires.trunk].any(axis=1)
        wake_s = self.trunk.wake_s(devices[wires.trunk]) / len(self.layers)
        return float(chance @ (np.where(asked, seconds, 0.0).max(axis=1) + wake_s * away))

    def asked(self, g: int, share: Array, tokens: float) -> Array:
        """Chance that a step asks each device, (D,)."""
        return np.asarray(1 - np.clip(self.gates.within(g, (1 - share).T), 0.0, 1.0) ** tokens)
