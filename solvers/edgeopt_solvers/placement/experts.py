"""Experts of a mixture-of-experts model on unequal devices, as data: sizes, gate frequencies, links."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array, whole_number
from edgeopt_solvers.data import JsonInstance
from edgeopt_solvers.errors import InstanceError
from edgeopt_solvers.policy.validate import amounts

__all__ = ["EXPERTS_FEATURES", "Experts", "ExpertsSolution"]

_ABSENT: Any = None

#: The tokens that come to an expert may miss its load by this part of it: measured counts are rounded.
TRAFFIC_TOLERANCE = 1e-6

EXPERTS_FEATURES = frozenset({"experts", "memory", "links", "latency", "max_replicas", "exchange"})


@dataclass(frozen=True, eq=False)
class ExpertsSolution:
    """Decisions of an expert placement.

    Attributes
    ----------
    replicas : (G, E, D) of bool
        Which devices hold which experts.
    share : (G, E, D)
        Part of each expert's load that each device serves; sums to 1 over the devices.
    route : (G - 1, E, D, D), optional
        Only where experts exchange tokens: ``route[g, f, i, j]`` is the part of the tokens on device i, after layer g,
        for expert f of layer g + 1 that the copy on device j serves; sums to 1 over j.
    """

    replicas: NDArray[np.bool_]
    share: Array
    route: Array | None = None

    def __post_init__(self) -> None:
        for name, dtype in (("replicas", np.bool_), ("share", np.float64), ("route", np.float64)):
            if getattr(self, name) is None:
                continue
            array = np.array(getattr(self, name), dtype=dtype)
            array.flags.writeable = False
            object.__setattr__(self, name, array)


@dataclass(frozen=True, eq=False)
class Experts(JsonInstance):
    """Place the experts of a model, with replicas, and split the tokens of each among its replicas.

    G layers of E experts on D devices. In layer g, device d takes

        latencies of the homes + Σ_e load[g,e] share[g,e,d] (unit_s[g,d] + seconds to move one unit from and to the
        homes)

    seconds if it serves anything; a layer takes as long as its slowest device, and layers follow each other. The
    messages of a device take turns: a token from home h crosses h→d and d→h; what is served at home does not travel.

    With ``traffic``, tokens also go from the experts of a layer straight to those of the next. A device then receives
    before it computes, in turns: from every other device i that sends it any, latency_s[i,d] + tokens ×
    exchange_bytes / rate_bytes_per_s[i,d] more. Each sender chooses among the copies of an expert.

    Parameters
    ----------
    load : (G, E)
        Expected tokens per batch that the gate sends to each expert (tokens times measured frequency).
    unit_s : (D,) or (G, D)
        Seconds per token; ``inf``: the device cannot run experts (of that layer).
    expert_bytes : float, (G,) or (G, E)
        Memory of each copy of an expert.
    memory_bytes : (D,), optional
        Usable memory; ``inf``: unlimited.
    reserved_bytes : (D,), optional
        Memory taken by everything else.
    dispatch_bytes, combine_bytes : float or (G,)
        Bytes per token to the expert, and back.
    rate_bytes_per_s, latency_s : (D, D), optional
        Links; the diagonal is ignored, rate 0: no link.
    home : (D,), optional
        Share of the tokens that live on each device (attention, router); default: all on device 0.
    max_replicas : int, optional
        Most copies of one expert.
    traffic : (G - 1, E, E), optional
        Tokens per batch that go from each expert of a layer to each of the next (co-activation); the sum over the
        senders is the load of the receiver, up to rounding.
    exchange_bytes : float or (G - 1,), optional
        Bytes per token between layers; given with ``traffic``.

    Raises
    ------
    InstanceError
        A shape, sign, magnitude or reference is wrong; the message names the field, the value and the mend.
    """

    family: ClassVar[str] = "placement"
    problem: ClassVar[str] = "experts"

    load: Array
    unit_s: Array
    expert_bytes: Array = _ABSENT
    memory_bytes: Array = _ABSENT
    reserved_bytes: Array = _ABSENT
    dispatch_bytes: Array = _ABSENT
    combine_bytes: Array = _ABSENT
    rate_bytes_per_s: Array = _ABSENT
    latency_s: Array = _ABSENT
    home: Array = _ABSENT
    max_replicas: int | None = None
    traffic: Array | None = None
    exchange_bytes: Array | None = None

    def __post_init__(self) -> None:
        for name, value in _normalised(self).items():
            object.__setattr__(self, name, value)

    @property
    def num_layers(self) -> int:
        """G."""
        return int(self.load.shape[0])

    @property
    def num_experts(self) -> int:
        """E, experts of one layer."""
        return int(self.load.shape[1])

    @property
    def num_devices(self) -> int:
        """D."""
        return int(self.unit_s.shape[1])

    @property
    def exchanges(self) -> bool:
        """Whether tokens travel between the devices of consecutive layers."""
        return self.traffic is not None and self.exchange_bytes is not None and bool(self.exchange_bytes.any())

    def features(self) -> frozenset[str]:
        """Names (from :data:`EXPERTS_FEATURES`) of the optional features that this instance uses."""
        sends = bool(self.dispatch_bytes.any() or self.combine_bytes.any())
        used = {
            "experts": True,
            "memory": bool(np.isfinite(self.memory_bytes).any()),
            "links": sends,
            "latency": (sends or self.exchanges) and bool(self.latency_s.any()),
            "max_replicas": self.max_replicas is not None,
            "exchange": self.exchanges,
        }
        return frozenset(name for name, present in used.items() if present)


def _normalised(given: Experts) -> dict[str, Any]:
    load = amounts("load", given.load, [(None, None)], "give finite tokens >= 0 per layer and expert")
    G, E = load.shape
    mend = "give seconds per token >= 0 for each device, or each layer and device; inf: cannot run there"
    shapes: list[tuple[int | None, ...]] = [(None,), (G, None)]
    unit_s = amounts("unit_s", given.unit_s, shapes, mend, inf=True)
    D = unit_s.shape[-1]

    def optional(
        name: str, shapes: list[tuple[int | None, ...]], default: float, mend: str, inf: bool = False
    ) -> Array:
        value = getattr(given, name)
        return amounts(name, np.full(shapes[-1], default) if value is None else value, shapes, mend, inf=inf)

    sizes = optional("expert_bytes", [(), (G,), (G, E)], 0.0, "give finite bytes >= 0 per expert")
    fields: dict[str, Any] = {
        "load": load,
        "unit_s": _frozen(np.broadcast_to(unit_s, (G, D))),
        "expert_bytes": _frozen(np.broadcast_to(sizes if sizes.ndim != 1 else sizes[:, None], (G, E))),
        "memory_bytes": optional("memory_bytes", [(D,)], math.inf, "give bytes >= 0 per device", inf=True),
        "reserved_bytes": optional("reserved_bytes", [(D,)], 0.0, "give finite bytes >= 0 per device"),
    }
    for name in ("dispatch_bytes", "combine_bytes"):
        value = optional(name, [(), (G,)], 0.0, "give finite bytes per token >= 0, or per layer")
        fields[name] = _frozen(np.broadcast_to(value, (G,)))
    sends = bool(fields["dispatch_bytes"].any() or fields["combine_bytes"].any())
    fields |= _traffic(given, load)
    exchanges = fields["exchange_bytes"] is not None and bool(fields["exchange_bytes"].any())
    if (sends or exchanges) and given.rate_bytes_per_s is None and D > 1:
        names = "dispatch_bytes, combine_bytes" if sends else "exchange_bytes"
        raise InstanceError(f"rate_bytes_per_s is missing: tokens travel ({names}); give bytes/s")
    fields["rate_bytes_per_s"] = optional(
        "rate_bytes_per_s", [(D, D)], 0.0, "give bytes/s >= 0 per pair of devices, 0: no link", inf=True
    )
    fields["latency_s"] = optional("latency_s", [(D, D)], 0.0, "give finite seconds >= 0 per pair of devices")
    home = np.eye(D)[0] if given.home is None else given.home
    fields["home"] = amounts("home", home, [(D,)], "give the share of tokens that live on each device, summing to 1")
    total = math.fsum(fields["home"].tolist())
    if abs(total - 1) > 1e-6:
        raise InstanceError(f"home adds up to {total:.9g}; give shares of the tokens that sum to 1")
    fields["max_replicas"] = None
    if given.max_replicas is not None:
        fields["max_replicas"] = whole_number("max_replicas", given.max_replicas, 1, None, "give None for no limit")
    return fields


def _traffic(given: Experts, load: Array) -> dict[str, Any]:
    """Check that the tokens that come from the layer before are the load of every expert."""
    if (given.traffic is None) != (given.exchange_bytes is None):
        missing = "traffic" if given.traffic is None else "exchange_bytes"
        raise InstanceError(f"{missing} is missing; give both, or neither when nothing travels between layers")
    if given.traffic is None:
        return {"traffic": None, "exchange_bytes": None}
    G, E = load.shape
    if G == 1:
        raise InstanceError("traffic needs two layers or more, load has 1; leave traffic and exchange_bytes out")
    traffic = amounts("traffic", given.traffic, [(G - 1, E, E)], "give finite tokens >= 0 per layer, sender, receiver")
    came = traffic.sum(axis=1)
    wrong = np.abs(came - load[1:]) > TRAFFIC_TOLERANCE * load[1:]
    if wrong.any():
        g, f = (int(i) for i in np.argwhere(wrong)[0])
        raise InstanceError(
            f"traffic[{g}, :, {f}] adds up to {came[g, f]:.9g}, load[{g + 1}, {f}] is {load[g + 1, f]:.9g} tokens; "
            "scale the tokens that come to each expert to its load"
        )
    each = amounts("exchange_bytes", given.exchange_bytes, [(), (G - 1,)], "give finite bytes per token >= 0")
    return {"traffic": traffic, "exchange_bytes": _frozen(np.broadcast_to(each, (G - 1,)))}


def _frozen(array: Array) -> Array:
    copy = np.array(array)
    copy.flags.writeable = False
    return copy
