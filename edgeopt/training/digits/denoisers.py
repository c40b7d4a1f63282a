"""A family of class-conditional denoisers of one latent space: three transformers and a U-Net with skips.

Noise prediction under a linear schedule of 1000 steps (Ho et al., arXiv 2006.11239), an average of the weights over
the last iterations, and the null label in a tenth of the examples so that the models can be guided.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import nn
from torch.nn import functional

from edgeopt.profiles.model import Architecture, Sampler
from edgeopt.programs.denoisers import predictor
from edgeopt.training.digits.data import NUM_CLASSES, Digits

__all__ = ["DENOISERS", "SAMPLER", "Recipe", "train_denoiser"]

#: Drives every run. Pixels are clipped, as they are known to lie in [-1, 1]; the last step starts near noise level 40.
SAMPLER = Sampler.model_validate(
    {
        "class": "DDIMScheduler",
        "config": {
            "num_train_timesteps": 1000,
            "beta_start": 0.0001,
            "beta_end": 0.02,
            "beta_schedule": "linear",
            "clip_sample": True,
            "timestep_spacing": "trailing",
        },
    }
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one denoiser is built and trained."""

    class_name: str
    config: dict[str, Any]
    iterations: int
    learning_rate: float
    batch: int = 128
    seed: int = 0
    ema: float = 0.995

    def architecture(self, checkpoint: str | None = None) -> Architecture:
        """Return what a model profile says of it."""
        fields = {"library": "diffusers", "class": self.class_name, "config": self.config, "checkpoint": checkpoint}
        return Architecture.model_validate(fields)

    def build(self) -> nn.Module:
        """Return the untrained module, initialised from the recipe's seed."""
        torch.manual_seed(self.seed)
        return getattr(diffusers, self.class_name)(**self.config)


def _transformer(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 1,
        "out_channels": 1,
        "num_layers": layers,
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "num_embeds_ada_norm": NUM_CLASSES,
        "norm_num_groups": 1,
    }


_UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 16,
    "norm_num_groups": 8,
    "num_class_embeds": NUM_CLASSES + 1,
}

DENOISERS: dict[str, Recipe] = {
    "large": Recipe("DiTTransformer2DModel", _transformer(64, 4, 4), 2000, 2e-3),
    "medium": Recipe("DiTTransformer2DModel", _transformer(32, 2, 2), 2000, 4e-3),
    "small": Recipe("DiTTransformer2DModel", _transformer(16, 1, 1), 2000, 8e-3),
    "unet": Recipe("UNet2DModel", _UNET, 800, 3e-3),
}


def train_denoiser(recipe: Recipe, train: Digits) -> tuple[nn.Module, float]:
    """Train one denoiser.

    Returns
    -------
    module
        With averaged weights, in evaluation mode.
    loss
        Mean squared error of the noise over the last tenth of the iterations.
    """
    model = recipe.build().eval()  # the library's own dropping of labels would differ from block to block
    predict, _ = predictor(recipe.architecture())
    generator = torch.Generator().manual_seed(recipe.seed)
    scheduler = diffusers.DDIMScheduler.from_config(dict(SAMPLER.config))
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
    warmup = max(1, recipe.iterations // 20)
    rates = [
        torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, 1.0, warmup),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.iterations - warmup),
    ]
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, rates, [warmup])
    average = [parameter.detach().clone() for parameter in model.parameters()]
    losses = []
    for iteration in range(recipe.iterations):
        chosen = torch.randint(len(train.images), (recipe.batch,), generator=generator)
        images, labels = train.images[chosen], train.labels[chosen].clone()
        labels[torch.rand(recipe.batch, generator=generator) < 0.1] = NUM_CLASSES
        timesteps = torch.randint(1000, (recipe.batch,), generator=generator)
        noise = torch.randn(images.shape, generator=generator)
        prediction = predict(model, scheduler.add_noise(images, noise, timesteps), timesteps, labels)
        loss = functional.mse_loss(prediction, noise)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        decay = min(recipe.ema, (1 + iteration) / (10 + iteration))
        with torch.no_grad():
            torch._foreach_lerp_(average, [parameter.detach() for parameter in model.parameters()], 1 - decay)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), average, strict=True):
            parameter.copy_(value)
    last = losses[-max(1, recipe.iterations // 10) :]
    return model.requires_grad_(False), sum(last) / len(last)
