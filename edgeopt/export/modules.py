"""Names of a language model's modules, as `transformers` classes call them.

Decoder-only classes of `transformers` share ``model.embed_tokens``, ``model.layers``, ``model.norm``,
``model.rotary_emb`` and ``lm_head`` (https://github.com/huggingface/transformers, models/llama/modeling_llama.py and
its sisters); the tests build every class of the table and look for the names.
"""

from __future__ import annotations

from edgeopt.errors import Finding, InputError
from edgeopt.export.base import Segment, Split

__all__ = ["CLASSES", "EMBED", "HEAD", "NORM", "ROTARY", "block", "check_class", "first_module", "modules_of"]

#: Classes whose modules have these names.
CLASSES = (
    "LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM", "Gemma2ForCausalLM",
)  # fmt: skip

EMBED, ROTARY, NORM, HEAD = "model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"


def block(index: int) -> str:
    """Return the name of a block, which counts from 0."""
    return f"model.layers.{index}"


def check_class(split: Split) -> None:
    """Refuse a class whose module names are not known here.

    Raises
    ------
    InputError
        It is none of :data:`CLASSES`.
    """
    architecture = split.architecture
    if architecture.library != "transformers" or architecture.class_name not in CLASSES:
        message = f"the module names of {architecture.library} {architecture.class_name} are not known"
        raise InputError(Finding("problem.model.architecture.class", message, f"known: {', '.join(CLASSES)}"))


def modules_of(segment: Segment) -> list[str]:
    """Return the modules of a segment in order; the rotary tables are made where the embedding is."""
    names = [EMBED, ROTARY] if segment.has_embed else []
    names += [block(index) for index in range(segment.start, segment.stop)]
    return names + ([NORM, HEAD] if segment.has_head else [])


def first_module(segment: Segment) -> str:
    """Return the module with which a segment begins."""
    return next(name for name in modules_of(segment) if name != ROTARY)
