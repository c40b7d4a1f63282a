"""A small convolutional classifier: its penultimate layer is the space in which samples are compared."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from edgeopt.training.digits.data import NUM_CLASSES, Digits, data_folder

__all__ = ["Classifier", "load_classifier", "train_classifier"]

_FEATURES = 64


class Classifier(nn.Module):
    """Two convolutions and two linear layers for images (N, 1, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
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
    """Train with AdamW, cosine decay, and shifts by at most one pixel."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Classifier().train()
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
    """Move half of the batches by one pixel; what comes in at the border is paper."""
    rows, columns = (int(torch.randint(-1, 2, (), generator=generator)) for _ in range(2))
    padded = functional.pad(images, (1, 1, 1, 1), value=-1.0)
    return padded[:, :, 1 + rows : 9 + rows, 1 + columns : 9 + columns]


def load_classifier(folder: Path | None = None) -> Classifier:
    """Return the trained classifier, in evaluation mode."""
    model = Classifier()
    values = load_file((folder or data_folder()) / "classifier.safetensors")
    model.load_state_dict({name: value.float() for name, value in values.items()})
    return model.eval().requires_grad_(False)
