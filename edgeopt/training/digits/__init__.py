"""Handwritten digits: class-conditional denoisers of two resolutions, and classifiers whose features measure quality.

``make train-digits`` trains everything anew on one core from fixed seeds; the manifest beside the checkpoints says
from which data, seeds and versions they come.
"""

from __future__ import annotations

from edgeopt.training.digits.classifier import METRICS, Classifier, load_classifier
from edgeopt.training.digits.data import DATA_FOLDER, NUM_CLASSES, SIDE, Digits, load_digits
from edgeopt.training.digits.denoisers import DENOISERS, ENLARGERS, SAMPLER, SINGLES, Recipe
from edgeopt.training.digits.enlarging import enlarged, enlarged_digits

__all__ = [
    "DATA_FOLDER", "DENOISERS", "ENLARGERS", "METRICS", "NUM_CLASSES", "SAMPLER", "SIDE", "SINGLES", "Classifier",
    "Digits", "Recipe", "enlarged", "enlarged_digits", "load_classifier", "load_digits",
]  # fmt: skip
