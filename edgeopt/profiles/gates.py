"""What must hold between a mixture's layers and the measured frequencies of its gates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from edgeopt.profiles.model import CausalLM, Layer
from edgeopt.profiles.reader import Flaw

__all__ = ["check_gates", "layers_with_experts"]

#: Rows of measured frequencies are rounded: they may miss their sum by this much for each expert.
_ROUNDING = 1e-3


def layers_with_experts(model: CausalLM) -> list[Layer]:
    """Return the layers that route tokens to experts, one per element."""
    return [layer for layer in model.layers if layer.experts is not None for _ in range(layer.count)]


def check_gates(model: CausalLM) -> Iterator[Flaw]:
    """Frequencies and pairs have a row for each layer with experts, which adds up to the experts that are chosen."""
    if model.gates is None:
        return
    layers = layers_with_experts(model)
    if not layers:
        message = f"are given, and no layer of '{model.name}' has experts"
        yield Flaw(("gates",), message, "remove them, or add `experts:` to the layers that route tokens")
        return
    for name, rows in (("frequencies", model.gates.frequencies), ("pairs", model.gates.pairs)):
        if name == "pairs" and not rows:
            continue
        if len(rows) != len(layers):
            message = f"has {len(rows)} rows, '{model.name}' has {len(layers)} layers with experts"
            yield Flaw(("gates", name), message, "give one row for each of them, in order")
            continue
        for i, (row, layer) in enumerate(zip(rows, layers, strict=True)):
            yield from _check_row(name, i, row, layer)


def _check_row(name: str, i: int, row: Sequence[float], layer: Layer) -> Iterator[Flaw]:
    assert layer.experts is not None
    E, k = layer.experts.num_experts, layer.experts.num_active
    count, total = (E, k) if name == "frequencies" else (math.comb(E, 2), math.comb(k, 2))
    what = f"{E} experts" if name == "frequencies" else f"{count} pairs of {E} experts"
    if len(row) != count:
        yield Flaw(("gates", name, i), f"has {len(row)} values for {what}", "give one for each, measured together")
    elif abs(math.fsum(row) - total) > _ROUNDING * count:
        message = (
            f"adds up to {math.fsum(row):.6g}; each token is sent to {k} of {E} experts, so that {total} is expected"
        )
        yield Flaw(
            ("gates", name, i), message, "give parts of the tokens, as `edgeopt profile model --gates` measures them"
        )
