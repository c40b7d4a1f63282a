"""Handwritten digits: a family of class-conditional denoisers, and the classifier whose features measure quality.

``make train-digits`` trains everything anew on one core from fixed seeds; the manifest beside the checkpoints says
from which data, seeds and versions they come.
"""

from __future__ import annotations

from edgeopt.training.digits.classifier import Classifier, load_classifier
from edgeopt.training.digits.data import DATA_FOLDER, NUM_CLASSES, Digits, load_digits
from edgeopt.training.digits.denoisers import DENOISERS, SAMPLER, Recipe

__all__ = [
    "DATA_FOLDER", "DENOISERS", "NUM_CLASSES", "SAMPLER", "Classifier", "Digits", "Recipe", "load_classifier",
    "load_digits",
]  # fmt: skip
