"""Which devices a step of a mixture asks, from how often the gates choose each expert.

A token is sent to k of E experts. Tokens are taken as independent; what is chosen together for one token follows from
the measured pairs where k = 2, and otherwise from the one distribution of k-sets that has the measured frequencies and
no further structure: a set's chance is proportional to the product of its experts' weights (conditional Bernoulli;
Chen, Dempster, Liu, Biometrika 81(3), 1994, https://doi.org/10.1093/biomet/81.3.457).
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.profiles.gates import layers_with_experts
from edgeopt.profiles.model import CausalLM

__all__ = ["GateChances", "asked_subsets"]

Array = NDArray[np.float64]

#: Chances of nought and of one have no finite weights.
_NEAREST = 1e-9
#: The iteration for the weights ends when it moves no chance by more than this, or after so many rounds.
_SETTLED, _MOST_ROUNDS = 1e-7, 60
#: Subsets of more devices than this are not told apart: all are taken to be asked in every step.
_MOST_DEVICES = 10


class GateChances:
    """Chances of G gates over E experts, of which k are chosen for a token.

    Attributes
    ----------
    frequency : (G, E)
        Part of the tokens that is sent to each expert.
    pairs : (G, E, E) or None
        Part of the tokens that is sent to both, symmetric with an empty diagonal.
    measured
        Whether the profile has them; otherwise every expert is chosen equally often.
    """

    def __init__(self, model: CausalLM) -> None:
        layers = layers_with_experts(model)
        assert layers[0].experts is not None
        self.num_active, E = layers[0].experts.num_active, layers[0].experts.num_experts
        self.measured = model.gates is not None
        self.pairs: Array | None = None
        if model.gates is None:
            self.frequency: Array = np.full((len(layers), E), self.num_active / E)
            return
        frequency = np.array(model.gates.frequencies, float)
        self.frequency = frequency * (self.num_active / frequency.sum(axis=1, keepdims=True))
        if model.gates.pairs and self.num_active > 1:
            upper = np.array(model.gates.pairs, float)
            pairs = np.zeros((len(layers), E, E))
            pairs[:, *np.triu_indices(E, 1)] = upper * (
                math.comb(self.num_active, 2) / upper.sum(axis=1, keepdims=True)
            )
            self.pairs = pairs + pairs.transpose(0, 2, 1)

    def within(self, g: int, part: ArrayLike) -> Array:
        """Chance that all experts of a token are served within a set of devices.

        Parameters
        ----------
        part : (..., E)
            Part of each expert's tokens that the set serves.

        Returns
        -------
        ndarray of shape (...)
        """
        inside = np.asarray(part, float)
        if self.num_active == 1:
            return inside @ self.frequency[g]
        if self.num_active == 2 and self.pairs is not None:
            return np.einsum("...e,ef,...f->...", inside, self.pairs[g], inside) / 2
        weights = self._weights[g]
        whole = _symmetric(weights, self.num_active)[self.num_active]
        return np.asarray(_symmetric(weights * inside, self.num_active)[self.num_active] / whole)

    @cached_property
    def _weights(self) -> Array:
        """Weights of the experts, (G, E), for which the chances of the k-sets give the frequencies."""
        k, E = self.num_active, self.frequency.shape[1]
        wanted = np.clip(self.frequency, _NEAREST, 1 - _NEAREST)
        weights = wanted / (1 - wanted)
        if k == E:
            return np.ones_like(wanted)
        others = ~np.eye(E, dtype=np.bool_)
        for _ in range(_MOST_ROUNDS):
            weights = weights / np.exp(np.log(weights).mean(axis=1, keepdims=True))
            without = _symmetric(np.where(others, weights[:, None, :], 0.0), k)
            found = weights * without[k - 1] / (without[k] + weights * without[k - 1])
            if np.abs(found - wanted).max() < _SETTLED:
                break
            # The odds of an expert are its weight times a ratio over the others: solved for the weight.
            weights = wanted / (1 - wanted) * without[k] / without[k - 1]
        return weights


def _symmetric(values: Array, degree: int) -> Array:
    """Elementary symmetric polynomials of the last axis up to a degree: shape (degree + 1, ...)."""
    sums = np.zeros((degree + 1, *values.shape[:-1]))
    sums[0] = 1.0
    for e in range(values.shape[-1]):
        sums[1:] = sums[1:] + values[..., e] * sums[:-1]
    return sums


def asked_subsets(gates: GateChances, g: int, share: Array, tokens: float) -> tuple[Array, Array]:
    """Return which devices a step of ``tokens`` tokens asks in layer g.

    Parameters
    ----------
    share : (E, D)
        Part of each expert's tokens that each device serves.

    Returns
    -------
    chance : (S,)
        Of each set of devices, that exactly they are asked.
    asked : (S, D) of bool
        The sets.
    """
    D = share.shape[1]
    if D > _MOST_DEVICES:
        return np.ones(1), (gates.frequency[g] @ share > 0)[None]
    asked = (np.arange(2**D)[:, None] >> np.arange(D) & 1).astype(np.bool_)
    chance = np.clip(gates.within(g, asked.astype(float) @ share.T), 0.0, 1.0) ** tokens
    for d in range(D):  # from "no device outside the set" to "exactly the set"
        chance[asked[:, d]] -= chance[~asked[:, d]]
    return np.clip(chance, 0.0, 1.0), asked
