"""Real data and the classifier that samples are compared by; what two sets of real data score against each other."""

from __future__ import annotations

from functools import cached_property

import torch

from edgeopt.errors import Finding, InputError
from edgeopt.profiles.model import CascadedDiffusion, Diffusion
from edgeopt.quality import FeatureSpace, SampleQuality, evaluate, frechet_distance
from edgeopt.training.digits import METRICS, SIDE, enlarged_digits, load_classifier, load_digits

__all__ = ["Reference"]


class Reference:
    """Held-out digits in standardised features.

    Parameters
    ----------
    side
        Pixels along an edge, 8 or 16; each has a classifier and a metric of its own, and figures of one say nothing
        about the other.
    num_samples
        Real and sampled images on each side of every comparison; default: all that are held out. The same for all
        figures that are to be compared, since the Fréchet distance is biased by it.

    Raises
    ------
    InputError
        More than are held out, or too few for neighbours.
    """

    def __init__(self, num_samples: int | None = None, side: int = SIDE) -> None:
        self.metric = METRICS[side]
        self._train, held_out = load_digits()
        if side > SIDE:
            self._train, held_out = enlarged_digits(self._train), enlarged_digits(held_out)
        available = len(held_out.images)
        count = available if num_samples is None else num_samples
        if not 8 <= count <= available:
            raise InputError(
                Finding("samples", f"{count} of {available} held-out digits", f"compare 8 to {available} of them")
            )
        self.images, self.labels = held_out.images[:count], held_out.labels[:count]
        self._classifier = load_classifier(side=side)
        self._space = FeatureSpace.fit(self._features(self._train.images))
        self._real = self._space(self._features(self.images))

    @classmethod
    def of(cls, model: Diffusion | CascadedDiffusion, num_samples: int | None = None) -> Reference:
        """Return what a model's images are compared with.

        Raises
        ------
        InputError
            It makes other images than digits, or has a text encoder or a decoder.
        """
        is_cascade = isinstance(model, CascadedDiffusion)
        shape = model.levels[-1].latent_shape if is_cascade else model.latent_shape
        known = {(1, side, side): side for side in METRICS}
        side = known.get(tuple(shape))
        if side is None or model.text_encoder is not None or (not is_cascade and model.decoder is not None):
            sizes = " or ".join(str(list(size)) for size in known)
            message = f"'{model.name}' makes latents {shape}; quality is measured on digits {sizes}"
            raise InputError(Finding("model", message, "give a family trained on them, such as 'digits'"))
        return cls(num_samples, side)

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return self._classifier.features(images.float())

    def measure(self, images: torch.Tensor) -> SampleQuality:
        """Compare images, made for :attr:`labels` in this order, with the held-out ones."""
        with torch.inference_mode():
            predicted = self._classifier(images.float()).argmax(1)
        samples = self._space(self._features(images))
        return evaluate(self._real, samples, self.labels.numpy(), predicted.numpy())

    def frechet(self, images: torch.Tensor) -> float:
        """Return the Fréchet distance of :meth:`measure` alone, without looking for neighbours and labels."""
        return frechet_distance(self._real, self._space(self._features(images)))

    @cached_property
    def floor(self) -> SampleQuality:
        """What real training images score, at the same count: nothing that samples can be asked to beat.

        Agreement is the classifier's with the labels of the held-out images.
        """
        with torch.inference_mode():
            predicted = self._classifier(self.images).argmax(1)
        train = self._space(self._features(self._train.images[: len(self.images)]))
        return evaluate(self._real, train, self.labels.numpy(), predicted.numpy())
