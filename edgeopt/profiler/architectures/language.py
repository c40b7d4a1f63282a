"""Language models: coefficients of each layer from counts at a few points, not from a formula per family.

With T new tokens on top of C cached ones a layer does T (a + b (T + C)) FLOPs: ``a`` per token in matrix products,
``b`` per token and attended token in attention. Two prefills give a and b; a decode step on a filled cache must agree,
or the model does not follow this form and is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgeopt.errors import Finding, InputError
from edgeopt.profiler.architectures.building import build_module, library_module
from edgeopt.profiler.architectures.trace import Trace
from edgeopt.profiles.model import Architecture, CausalLM, Experts, Layer
from edgeopt.programs.weights import torch_dtype

__all__ = ["QUANTISATION", "causal_lm", "with_weights"]

#: Tokens of the two prefills; short enough for every sliding window.
_PREFILLS = (16, 32)

#: Weights in a group that share a scale, and bytes of a scale.
_GROUP, _SCALE_BYTES = 128, 2

QUANTISATION = (
    "derived: the block's matrices in int8 with one 16-bit scale per row, or int4 with one 16-bit scale per group of "
    f"{_GROUP} in a row (no zero points); its vectors, the embedding and the head stay in the model's dtype"
)

_TOKEN_BYTES = torch.int64.itemsize


@dataclass(frozen=True, slots=True)
class _Counts:
    """One part of the model (embedding, a layer, head) at one point."""

    flop: int
    weights_bytes: dict[str, int]
    output_bytes: int
    cache_bytes: int
    traffic_bytes: int
    kernels: int


def causal_lm(
    architecture: Architecture, *, name: str, source: str, dtype: str = "bfloat16", description: str = ""
) -> CausalLM:
    """Derive a decoder-only language model.

    Layers that are built alike are counted once and get the same figures.

    Raises
    ------
    InputError
        Not such a model, or its FLOPs do not follow tokens and context as above.
    """
    # Experts computed as batched products take shapes from the number of active experts; other ways look at values.
    whole = build_module(architecture, torch_dtype(dtype), _experts_implementation="batched_mm")
    decoder, layers = _layers(whole)
    kinds = [_kind(layer) for layer in layers]
    first = {kind: kinds.index(kind) for kind in kinds}
    num_run = max(first.values()) + 1
    parameters = sum(parameter.numel() for parameter in whole.parameters())
    tied = whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
    decoder.layers = nn.ModuleList(layers[:num_run])
    whole.config.num_hidden_layers = num_run
    if isinstance(vars(whole.config).get("layer_types"), list):
        whole.config.layer_types = whole.config.layer_types[:num_run]
    counts = _count(whole, decoder, tuple(_PREFILLS))
    figures = [_figures([point[i] for point in counts], i) for i in range(num_run + 2)]
    for index, layer in enumerate(decoder.layers, start=1):
        figures[index]["experts"] = _experts(whole, layer)
        if figures[index]["experts"] is not None:  # it was run with copies of the experts' weights for every token
            figures[index]["traffic_per_token"] = None
    blocks = _blocks([figures[1 + first[kind]] for kind in kinds])
    embed, head = (Layer(name=label, **figures[i]) for label, i in (("embed", 0), ("head", -1)))
    embed = embed.model_copy(update={"weights_by_dtype": {}})
    head = head.model_copy(update={"weights_by_dtype": {}, "output_per_token": float(_TOKEN_BYTES)})
    return CausalLM(
        name=name, family="causal_lm", description=description, source=source, architecture=architecture,
        sources={f"{_each(blocks)}.weights_by_dtype": QUANTISATION, "layers.head.output_per_token": _SAMPLED},
        dtype=dtype, layers=[embed, *blocks, head], token=float(_TOKEN_BYTES), parameters=parameters,
        tied_embeddings=tied,
    )  # fmt: skip


_SAMPLED = "derived: the head samples, so a token id of 64 bits leaves it, not the logits"


def _each(blocks: list[Layer]) -> str:
    """What ``sources`` calls the blocks: by the one name they have, or all layers."""
    return "layers.block" if len(blocks) == 1 else "layers.*"


def _blocks(figures: list[dict[str, Any]]) -> list[Layer]:
    """One entry for blocks that all have the same figures, else one for each."""
    if all(each == figures[0] for each in figures):
        return [Layer(name="block", count=len(figures), **figures[0])]
    return [Layer(name=f"block.{i}", **each) for i, each in enumerate(figures)]


def _layers(model: Any) -> tuple[nn.Module, list[nn.Module]]:
    """Return the module that owns the list ``layers``, and the layers."""
    depth = getattr(model.config, "num_hidden_layers", None)
    for module in model.modules():
        layers = getattr(module, "layers", None)
        if isinstance(layers, nn.ModuleList) and len(layers) == depth and model.get_output_embeddings() is not None:
            return module, list(layers)
    raise InputError(
        Finding(
            "config",
            f"{type(model).__name__} is not built of embedding, `layers` and head",
            "derive a decoder-only language model with a list of equal-looking layers, such as Llama, Qwen or Mixtral",
        )
    )


def _kind(layer: nn.Module) -> tuple[Any, ...]:
    """Describe how a layer is built; equal descriptions, equal figures. Its own index is not part of it."""
    shapes = tuple((name, tuple(parameter.shape)) for name, parameter in layer.named_parameters())
    settings = tuple(
        (type(module).__name__, key, value)
        for module in layer.modules()
        for key, value in sorted(vars(module).items())
        if isinstance(value, (int, float, str)) and not key.startswith("_") and "idx" not in key
    )
    return shapes, settings


def _count(model: Any, decoder: nn.Module, prefills: tuple[int, int]) -> list[list[_Counts]]:
    """Run both prefills and a decode step after the second; embedding, layers, head at each."""
    points = []
    for tokens in prefills:
        cache = library_module("transformers").DynamicCache(config=model.config)
        points.append(_run(model, decoder, tokens, cache))
    points.append(_run(model, decoder, 1, cache))
    return points


def _run(model: Any, decoder: nn.Module, tokens: int, cache: Any) -> list[_Counts]:
    trace, outputs = Trace(model), []
    before = [_cache_bytes(layer) for layer in cache.layers]
    handles = []
    for index, layer in enumerate(decoder.layers):

        def entered(module: nn.Module, args: Any, kwargs: Any, index: int = index) -> None:
            if index == 0:
                outputs.append((args[0] if args else kwargs["hidden_states"]).nbytes)
                trace.mark("embed", "block.0")

        def left(module: nn.Module, args: Any, output: Any, index: int = index) -> None:
            outputs.append((output[0] if isinstance(output, tuple) else output).nbytes)
            trace.mark(f"block.{index}", "head")

        handles += [layer.register_forward_pre_hook(entered, with_kwargs=True), layer.register_forward_hook(left)]
    try:
        with trace.running():
            model(torch.zeros(1, tokens, dtype=torch.long, device="meta"), past_key_values=cache, use_cache=True)
    finally:
        for handle in handles:
            handle.remove()
    outputs.append(0)
    grown = [_cache_bytes(layer) - (before[i] if before else 0) for i, layer in enumerate(cache.layers)]
    cached = [0, *grown, *[0] * (len(trace.parts) - 1 - len(grown))]
    return [
        _Counts(part.flop, _weights(trace, part.weights), output, kept, part.traffic_bytes, part.num_kernels)
        for part, output, kept in zip(trace.parts, outputs, cached, strict=True)
    ]


def _weights(trace: Trace, names: set[str]) -> dict[str, int]:
    """Bytes of a part's weights by format: as they are, and with matrices in int8 or int4."""
    stored = {name for name in names if trace.tensors[name].dim() > 1 and not name.endswith(_ROUTER)}
    matrices = [trace.tensors[name] for name in stored]
    rest = trace.weight_bytes(name for name in names if name not in stored)
    sizes = {dtype: rest + sum(_quantised_bytes(matrix, dtype) for matrix in matrices) for dtype in ("int8", "int4")}
    return {"": trace.weight_bytes(names), **sizes}


def _cache_bytes(layer: Any) -> int:
    tensors = [value for value in vars(layer).values() if isinstance(value, torch.Tensor)]
    return sum(tensor.nbytes for tensor in tensors if tensor.dim() > 1)


def _figures(points: list[_Counts], index: int) -> dict[str, Any]:
    """Solve the coefficients of one part and check them against the decode step."""
    (short, long), (first, second, decode) = _PREFILLS, points
    per_context = (second.flop / long - first.flop / short) / (long - short)
    per_token = first.flop / short - per_context * short
    expected = per_token + per_context * (long + 1)
    if per_token < 0 or per_context < 0 or not math.isclose(decode.flop, expected, rel_tol=1e-9, abs_tol=0.5):
        message = f"part {index} does {decode.flop} FLOP for one token after {long}, its prefills say {expected:g}"
        raise InputError(Finding("config", message, "FLOPs of this model are no function of tokens and context here"))
    sizes = second.weights_bytes
    # T new tokens on C cached ones move T a + (C + T) b bytes; the prefills give a + b, the decode step b.
    grown = (second.traffic_bytes - first.traffic_bytes) / (long - short)
    rest = second.traffic_bytes - grown * long
    cached = max(0.0, (decode.traffic_bytes - rest - grown) / long)
    return {
        "weights": float(sizes[""]),
        "flop_per_token": per_token,
        "flop_per_token_context": per_context,
        "kv_per_token": second.cache_bytes / long,
        "output_per_token": second.output_bytes / long or float(_TOKEN_BYTES),
        "traffic_per_token": max(0.0, grown - cached),
        "traffic_per_cached_token": cached,
        "kernels": decode.kernels,
        "weights_by_dtype": {dtype: float(size) for dtype, size in sizes.items() if dtype},
    }


def _quantised_bytes(matrix: torch.Tensor, dtype: str) -> int:
    rows, width = matrix.numel() // matrix.shape[-1], matrix.shape[-1]
    if dtype == "int8":
        return matrix.numel() + rows * _SCALE_BYTES
    return rows * (math.ceil(width / 2) + math.ceil(width / _GROUP) * _SCALE_BYTES)


def _experts(model: Any, layer: nn.Module) -> Experts | None:
    """Find the experts' tensors: three axes, the first as long as there are experts."""
    config = model.config
    number = next((n for key in _EXPERT_KEYS if (n := getattr(config, key, None))), None)
    tensors = [tensor for tensor in layer.parameters() if tensor.dim() == 3 and tensor.shape[0] == number]
    if not tensors:
        return None
    sizes = {dtype: sum(_quantised_bytes(tensor, dtype) for tensor in tensors) / number for dtype in ("int8", "int4")}
    return Experts(
        num_experts=number,
        num_active=config.num_experts_per_tok,
        weights=sum(tensor.nbytes for tensor in tensors) / number,
        weights_by_dtype=sizes,
    )


#: Matrices of routers keep the model's dtype: they are small, and choose.
_ROUTER = ".gate.weight"
_EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts")


def with_weights(model: CausalLM, dtype: str) -> CausalLM:
    """Return the model with its blocks' matrices stored as ``int8`` or ``int4``; it computes in its own dtype still.

    Raises
    ------
    InputError
        The model does not say how large its layers are in this format.
    """
    if all(dtype not in layer.weights_by_dtype for layer in model.layers):
        known = sorted({key for layer in model.layers for key in layer.weights_by_dtype})
        mend = f"use {', '.join(known)}" if known else "derive the model anew"
        raise InputError(Finding("weights", f"'{model.name}' has no size for {dtype} weights", mend))
    sources = {key: text for key, text in model.sources.items() if not key.endswith("weights_by_dtype")}
    sources[f"{_each(model.layers[1:-1])}.weights"] = QUANTISATION
    return model.model_copy(
        update={
            "name": f"{model.name}-{dtype}",
            "description": f"{model.description}; blocks' matrices stored in {dtype}, computed in {model.dtype}",
            "layers": [layer.stored_as(dtype) for layer in model.layers],
            "sources": sources,
        }
    )
