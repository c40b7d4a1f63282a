"""Small convolutional classifiers: their penultimate layers are the spaces in which samples are compared.

One per side of the images, since a classifier of the smaller ones cannot see what the larger ones show.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from edgeopt.training.digits.data import NUM_CLASSES, SIDE, Digits, data_folder

__all__ = ["CLASSIFIERS", "METRICS", "Classifier", "load_classifier", "train_classifier"]

#: Name of the classifier by the side of its images.
CLASSIFIERS = {SIDE: "classifier", 2 * SIDE: "classifier-16"}
#: What the Fréchet distance in the features of each classifier is called; figures of the two cannot be compared.
METRICS = {
    SIDE: "Fréchet distance in digit features",
    2 * SIDE: "Fréchet distance in features of 16 x 16 digits",
}

_FEATURES = 64


class Classifier(nn.Module):
    """Two convolutions (three for twice the side) and two linear layers for images (N, 1, side, side)."""

    def __init__(self, side: int = SIDE) -> None:
        super().__init__()
        further = [nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU()] if side > SIDE else []
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), *further,
            nn.Flatten(), nn.Dropout(0.3),
            nn.Linear(32 * 16, _FEATURES), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(_FEATURES, NUM_CLASSES)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the penultimate layer, shape (N, 64), not standardised."""
        return self.body(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits, shape (N, 10)."""
        return self.head(self.body(images))


def train_classifier(train: Digits, *, iterations: int = 1500, batch: int = 128, seed: int = 0) -> Classifier:
    """Train with AdamW, cosine decay, and shifts by at most one pixel of the 8 x 8 images."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Classifier(train.images.shape[-1]).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in range(iterations):
        chosen = torch.randint(len(train.images), (batch,), generator=generator)
        images = _shifted(train.images[chosen], generator)
        loss = functional.cross_entropy(model(images), train.labels[chosen], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def _shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Move half of the batches by one pixel of the smaller images; what comes in at the border is paper."""
    side = images.shape[-1]
    far = side // SIDE
    rows, columns = (far + far * int(torch.randint(-1, 2, (), generator=generator)) for _ in range(2))
    padded = functional.pad(images, (far, far, far, far), value=-1.0)
    return padded[:, :, rows : side + rows, columns : side + columns]


def load_classifier(folder: Path | None = None, side: int = SIDE) -> Classifier:
    """Return the trained classifier of images of a side, in evaluation mode."""
    model = Classifier(side)
    values = load_file((folder or data_folder()) / f"{CLASSIFIERS[side]}.safetensors")
    model.load_state_dict({name: value.float() for name, value in values.items()})
    return model.eval().requires_grad_(False)
