"""The blocks of a denoiser: which of its modules follow each other as a chain, by class."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["CHAINS", "INPUT", "OUTPUT", "block_modules", "mark_blocks"]

#: What comes before the first block and after the last.
INPUT, OUTPUT = "input", "output"

_UNET = re.compile(r"((down|up)_blocks\.\d+|mid_block)\.(resnets|attentions|downsamplers|upsamplers)\.\d+")
_TRANSFORMER = re.compile(r"(single_)?transformer_blocks\.\d+")
_BLOCKS = re.compile(r"blocks\.\d+")

#: Class to the names of its blocks. A new denoiser is one row.
CHAINS = {
    "UNet2DConditionModel": _UNET,
    "UNet2DModel": _UNET,
    "DiTTransformer2DModel": _TRANSFORMER,
    "PixArtTransformer2DModel": _TRANSFORMER,
    "SD3Transformer2DModel": _TRANSFORMER,
    "FluxTransformer2DModel": _TRANSFORMER,
    "WanTransformer3DModel": _BLOCKS,
}


def block_modules(module: nn.Module) -> dict[str, nn.Module]:
    """Return the blocks of a denoiser by name (not in order of execution)."""
    chain = CHAINS[type(module).__name__]
    return {name: child for name, child in module.named_modules() if chain.fullmatch(name)}


def mark_blocks(module: nn.Module, mark: Callable[[str], None]) -> list[str]:
    """Have ``mark`` called in every forward pass, with what has just ended: the input, then each block.

    Returns
    -------
    list of str
        The blocks' names (not in order of execution).
    """
    begun = False

    def start(*_: Any) -> None:
        nonlocal begun
        begun = False

    def entered(*_: Any) -> None:
        nonlocal begun
        if not begun:
            begun = True
            mark(INPUT)

    def left(name: str) -> Callable[..., None]:
        return lambda *_: mark(name)

    module.register_forward_pre_hook(start)
    blocks = block_modules(module)
    for name, child in blocks.items():
        child.register_forward_pre_hook(entered)
        child.register_forward_hook(left(name))
    return list(blocks)
