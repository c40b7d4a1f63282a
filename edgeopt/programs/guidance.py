"""One evaluation of a denoiser, with or without classifier-free guidance (Ho and Salimans, arXiv 2207.12598)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edgeopt.programs.denoisers import Predict

__all__ = ["estimate", "scaled", "unconditional"]


def estimate(
    predict: Predict,
    denoiser: nn.Module,
    x: torch.Tensor,
    timestep: torch.Tensor,
    conditioning: torch.Tensor,
    labels: int | None,
    guidance: float,
) -> torch.Tensor:
    """Return a denoiser's prediction; guidance above 1 evaluates every image twice, in one batch.

    Parameters
    ----------
    x
        Latents, scaled as the solver wants them, with the channels of a smaller image behind them where there is one.
    labels
        Classes that the denoiser knows; ``None`` where it is conditioned on text.
    """
    if guidance <= 1:
        return predict(denoiser, x, timestep, conditioning)
    both = torch.cat([unconditional(conditioning, labels), conditioning])
    free, guided = predict(denoiser, torch.cat([x, x]), timestep, both).chunk(2)
    return free + guidance * (guided - free)


def unconditional(conditioning: torch.Tensor, labels: int | None) -> torch.Tensor:
    """Return what guidance steers away from: an empty text embedding, or the null label after all others."""
    return torch.zeros_like(conditioning) if labels is None else torch.full_like(conditioning, labels)


def scaled(scheduler: Any, latent: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Return a latent as the solver wants it before the denoiser sees it; flow matching knows no input scaling."""
    return scheduler.scale_model_input(latent, timestep) if hasattr(scheduler, "scale_model_input") else latent
