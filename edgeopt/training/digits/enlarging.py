"""Digits of 16 x 16 pixels, made from those of 8 x 8 by a fixed rule.

The data are counts of ink in 4 x 4 blocks of bitmaps that are not part of them, so nobody can say what the bitmaps
held. The rule draws what a smooth, sharp stroke with the same counts looks like: bicubic interpolation, then a few
rounds of sharpening (unsharp masking) and of putting back each block's mean (iterative back-projection, Irani and
Peleg, CVGIP 53(3), 1991). The larger images so carry no knowledge that the smaller ones lack.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from edgeopt.training.digits.data import Digits

__all__ = ["enlarged", "enlarged_digits"]

_ROUNDS = 6
#: Share of the difference to the blurred image that a round adds.
_SHARPENING = 0.3


def enlarged(images: torch.Tensor) -> torch.Tensor:
    """Return images (N, 1, 2 H, 2 W) in [-1, 1] whose 2 x 2 blocks have the pixels of (N, 1, H, W) as means.

    The means hold up to what the range allows: a last correction that leaves it is cut off.
    """
    large = _bicubic(images)
    for _ in range(_ROUNDS):
        blurred = functional.avg_pool2d(functional.pad(large, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        large = (large + _SHARPENING * (large - blurred)).clamp(-1, 1)
        large = (large + _bicubic(images - functional.avg_pool2d(large, 2))).clamp(-1, 1)
    missing = images - functional.avg_pool2d(large, 2)
    return (large + functional.interpolate(missing, scale_factor=2, mode="nearest")).clamp(-1, 1)


def _bicubic(images: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(images, scale_factor=2, mode="bicubic", align_corners=False)


def enlarged_digits(digits: Digits) -> Digits:
    """Return the digits at twice their side."""
    return Digits(enlarged(digits.images), digits.labels)
