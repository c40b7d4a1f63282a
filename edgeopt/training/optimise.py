"""How the small models are trained: AdamW, a short warm-up, cosine decay, and an average of the last weights."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["optimise"]


def optimise(
    model: torch.nn.Module,
    loss_of_batch: Callable[[], torch.Tensor],
    *,
    iterations: int,
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
    ema: float,
) -> float:
    """Train a model in place; its weights end as their average, which follows faster at the beginning.

    Parameters
    ----------
    loss_of_batch
        Draws a batch and returns its loss, a scalar.
    learning_rate
        At the end of the warm-up, a twentieth of the iterations.
    ema
        Share of the average that an iteration keeps.

    Returns
    -------
    float
        Mean loss over the last tenth of the iterations.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=betas, weight_decay=weight_decay)
    warmup = max(1, iterations // 20)
    rates = [
        torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, 1.0, warmup),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, iterations - warmup)),
    ]
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, rates, [warmup])
    average = [parameter.detach().clone() for parameter in model.parameters()]
    losses = []
    for iteration in range(iterations):
        loss = loss_of_batch()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        decay = min(ema, (1 + iteration) / (10 + iteration))
        with torch.no_grad():
            torch._foreach_lerp_(average, [parameter.detach() for parameter in model.parameters()], 1 - decay)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), average, strict=True):
            parameter.copy_(value)
    last = losses[-max(1, iterations // 10) :]
    return sum(last) / len(last)
