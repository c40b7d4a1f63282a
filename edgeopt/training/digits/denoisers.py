"""Class-conditional denoisers: a family of one latent space, and what makes larger images of what it drew.

``DENOISERS`` share 8 x 8 pixels: three transformers and a U-Net with skips. ``ENLARGERS`` are the second level of a
cascade (Ho et al., arXiv 2106.15282): they denoise 16 x 16 pixels and see, as a second channel, the 8 x 8 image
enlarged, with noise added in training and sampling so that they forgive what a first level draws wrongly.
``SINGLES`` draw 16 x 16 pixels at once, which is what the cascade has to beat.

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
from edgeopt.programs.cascade import augmented
from edgeopt.programs.denoisers import predictor
from edgeopt.training.digits.data import NUM_CLASSES, SIDE, Digits
from edgeopt.training.digits.enlarging import enlarged_digits

__all__ = ["AUGMENTATION", "DENOISERS", "ENLARGERS", "RECIPES", "SAMPLER", "SINGLES", "Recipe", "train_denoiser"]

#: Standard deviation of the noise on the image that an enlarger is shown.
AUGMENTATION = 0.2

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
    """How one denoiser is built and trained; one with two channels sees the smaller image in the second."""

    class_name: str
    config: dict[str, Any]
    iterations: int
    learning_rate: float
    batch: int = 128
    seed: int = 0
    ema: float = 0.995

    @property
    def enlarges(self) -> bool:
        """Whether it is shown a smaller image."""
        return self.config["in_channels"] > self.config["out_channels"]

    def architecture(self, checkpoint: str | None = None) -> Architecture:
        """Return what a model profile says of it."""
        fields = {"library": "diffusers", "class": self.class_name, "config": self.config, "checkpoint": checkpoint}
        return Architecture.model_validate(fields)

    def build(self) -> nn.Module:
        """Return the untrained module, initialised from the recipe's seed."""
        torch.manual_seed(self.seed)
        return getattr(diffusers, self.class_name)(**self.config)


def _transformer(width: int, layers: int, heads: int, *, side: int = SIDE, channels: int = 1) -> dict[str, Any]:
    return {
        "sample_size": side,
        "patch_size": 2,
        "in_channels": channels,
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

ENLARGERS: dict[str, Recipe] = {
    "enlarge-large": Recipe("DiTTransformer2DModel", _transformer(48, 2, 3, side=16, channels=2), 1500, 3e-3, batch=64),
    "enlarge-small": Recipe("DiTTransformer2DModel", _transformer(24, 1, 1, side=16, channels=2), 1500, 6e-3, batch=64),
}

SINGLES: dict[str, Recipe] = {
    "single": Recipe("DiTTransformer2DModel", _transformer(48, 3, 3, side=16), 4000, 3e-3, batch=64),
}

RECIPES = DENOISERS | ENLARGERS | SINGLES


def train_denoiser(recipe: Recipe, train: Digits) -> tuple[nn.Module, float]:
    """Train one denoiser.

    Parameters
    ----------
    train
        Digits of 8 x 8 pixels, from which those of larger denoisers are made.

    Returns
    -------
    module
        With averaged weights, in evaluation mode.
    loss
        Mean squared error of the noise over the last tenth of the iterations.
    """
    targets = train if recipe.config["sample_size"] == SIDE else enlarged_digits(train)
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
        chosen = torch.randint(len(targets.images), (recipe.batch,), generator=generator)
        images, labels = targets.images[chosen], targets.labels[chosen].clone()
        labels[torch.rand(recipe.batch, generator=generator) < 0.1] = NUM_CLASSES
        timesteps = torch.randint(1000, (recipe.batch,), generator=generator)
        noise = torch.randn(images.shape, generator=generator)
        noisy = scheduler.add_noise(images, noise, timesteps)
        if recipe.enlarges:
            spoiled = torch.randn(images.shape, generator=generator)
            noisy = torch.cat([noisy, augmented(train.images[chosen], spoiled, AUGMENTATION)], dim=1)
        prediction = predict(model, noisy, timesteps, labels)
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
