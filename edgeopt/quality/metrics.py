"""Distances between two sets of samples, in the standardised features of a classifier.

Raw features have no scale: a Fréchet distance in them can be 0.3 or 1000. Every feature is divided by its standard
deviation over real training data first, and features that never move are dropped. The Fréchet distance is biased by
an amount that depends on the number of samples and on the model (Chong and Forsyth, arXiv 1911.07023), so counts are
part of the result, sets are compared at equal counts only, and the distance between two real sets stands beside it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "FeatureSpace", "SampleQuality", "evaluate", "frechet_distance", "kernel_distance", "label_agreement",
    "precision_recall",
]  # fmt: skip

Array = NDArray[np.float64]

#: A feature whose standard deviation is below this share of the largest one never moves.
_DEAD = 1e-3


@dataclass(frozen=True, slots=True)
class FeatureSpace:
    """Where samples are compared: features standardised by real training data.

    Attributes
    ----------
    mean, scale : (D,)
        Of the live features.
    live : (F,) bool
        Features that move at all.
    """

    mean: Array
    scale: Array
    live: NDArray[np.bool_]

    @classmethod
    def fit(cls, features: ArrayLike) -> FeatureSpace:
        """Take mean and standard deviation from real data.

        Parameters
        ----------
        features : (N, F)

        Raises
        ------
        ValueError
            Not a matrix of finite numbers, or no feature moves.
        """
        x = _matrix(features, "features")
        scale = x.std(axis=0, ddof=1)
        live = scale > _DEAD * scale.max()
        if not live.any():
            raise ValueError(f"none of {x.shape[1]} features differs between {len(x)} samples")
        return cls(x.mean(axis=0)[live], scale[live], live)

    def __call__(self, features: ArrayLike) -> Array:
        """Return live features (N, D) with mean 0 and standard deviation 1 over the training data."""
        return (_matrix(features, "features")[:, self.live] - self.mean) / self.scale


def frechet_distance(first: ArrayLike, second: ArrayLike) -> float:
    """Return the squared Wasserstein distance of the Gaussians fitted to two sets (Heusel et al., arXiv 1706.08500).

    |m1 - m2|² + tr(C1 + C2 - 2 (C1^½ C2 C1^½)^½), with unbiased covariances.

    Parameters
    ----------
    first, second : (N, D), (M, D)
        At least two samples each.
    """
    x, y = _pair(first, second)
    left, right = np.atleast_2d(np.cov(x, rowvar=False)), np.atleast_2d(np.cov(y, rowvar=False))
    values, vectors = np.linalg.eigh(left)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    middle = root @ right @ root
    cross = np.sqrt(np.linalg.eigvalsh((middle + middle.T) / 2).clip(min=0)).sum()
    shift = x.mean(axis=0) - y.mean(axis=0)
    return float(max(0.0, shift @ shift + np.trace(left) + np.trace(right) - 2 * cross))


def kernel_distance(first: ArrayLike, second: ArrayLike) -> float:
    """Return the unbiased squared maximum mean discrepancy with kernel (x·y / D + 1)³ (Binkowski et al., 1801.01401).

    Its expectation is zero for sets of one distribution, so it can be negative; it does not depend on the counts.

    Parameters
    ----------
    first, second : (N, D), (M, D)
        At least two samples each.
    """
    x, y = _pair(first, second)

    def kernel(a: Array, b: Array) -> Array:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: Array) -> float:
        gram = kernel(a, a)
        return float(gram.sum() - np.trace(gram)) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * float(kernel(x, y).mean())


def precision_recall(real: ArrayLike, samples: ArrayLike, neighbours: int = 3) -> tuple[float, float]:
    """Return precision and recall by nearest neighbours (Kynkäänniemi et al., arXiv 1904.06991).

    Precision is the share of samples that lie within the distance of some real point to its k-th nearest real one;
    recall the same with the roles exchanged. Fidelity and variety: copies of one good image have precision 1.

    Parameters
    ----------
    real, samples : (N, D), (M, D)
        More than ``neighbours`` each.
    """
    x, y = _pair(real, samples)
    if not 1 <= neighbours < min(len(x), len(y)):
        raise ValueError(f"neighbours = {neighbours} needs more samples than {len(x)} and {len(y)}")
    across = _squared_distances(x, y)

    def radii(a: Array) -> Array:
        within = _squared_distances(a, a)
        np.fill_diagonal(within, np.inf)
        return np.partition(within, neighbours - 1, axis=1)[:, neighbours - 1]

    precision = (across <= radii(x)[:, None]).any(axis=0).mean()
    recall = (across <= radii(y)[None, :]).any(axis=1).mean()
    return float(precision), float(recall)


def label_agreement(requested: ArrayLike, predicted: ArrayLike) -> float:
    """Return the share of samples that the classifier takes for the class that was asked for."""
    asked, seen = np.asarray(requested), np.asarray(predicted)
    if asked.shape != seen.shape or asked.ndim != 1 or not len(asked):
        raise ValueError(f"labels of shapes {asked.shape} and {seen.shape}: give two lists of one length")
    return float((asked == seen).mean())


@dataclass(frozen=True, slots=True)
class SampleQuality:
    """What is known of a set of samples; ``num_real`` and ``num_samples`` belong to the figures."""

    frechet: float
    kernel: float
    precision: float
    recall: float
    agreement: float
    num_real: int
    num_samples: int

    def __str__(self) -> str:
        return (
            f"Fréchet {self.frechet:.3f}, kernel {self.kernel:.4f}, precision {self.precision:.3f}, recall "
            f"{self.recall:.3f}, agreement {self.agreement:.3f}"
        )

    def document(self) -> dict[str, float]:
        """Return the figures by name."""
        return asdict(self)


def evaluate(real: ArrayLike, samples: ArrayLike, requested: ArrayLike, predicted: ArrayLike) -> SampleQuality:
    """Compare samples with real data, both standardised, and the labels asked for with those seen."""
    x, y = _pair(real, samples)
    precision, recall = precision_recall(x, y)
    return SampleQuality(
        frechet_distance(x, y), kernel_distance(x, y), precision, recall,
        label_agreement(requested, predicted), len(x), len(y),
    )  # fmt: skip


def _squared_distances(x: Array, y: Array) -> Array:
    # Differences, not |x|² + |y|² - 2 x·y: that form cancels between near points, where neighbours are decided.
    return np.stack([((row - y) ** 2).sum(axis=1) for row in x])


def _matrix(values: ArrayLike, name: str) -> Array:
    x = np.asarray(values, dtype=float)
    if x.ndim != 2 or len(x) < 2 or not np.isfinite(x).all():
        raise ValueError(f"{name} of shape {x.shape}: give finite numbers (samples, features), two samples or more")
    return x


def _pair(first: ArrayLike, second: ArrayLike) -> tuple[Array, Array]:
    x, y = _matrix(first, "the first set"), _matrix(second, "the second set")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"the sets have {x.shape[1]} and {y.shape[1]} features: compare them in one space")
    return x, y
