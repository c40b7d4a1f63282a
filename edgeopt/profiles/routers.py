"""Routers at work: features of a query, the chance that each model answers it right, and bins of like queries.

What a plan decides from is not the chances themselves but bins: queries for which they promise like gains. A bin's
accuracies are counted on recorded queries that the router has not learnt from, so that a router that is wrong makes a
poor plan, not a false one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import Finding, InputError
from edgeopt.profiles.answers import Trace, model_names
from edgeopt.profiles.model import CausalLM, Router

__all__ = [
    "Cut", "Scorer", "bins_of", "cut_bins", "feature_values", "features_of", "gains_of", "is_own", "name_of_run",
    "num_bins", "predicted", "read_cuts", "router_of", "write_cuts",
]  # fmt: skip

#: Chances are compared with so many decimals, when a plan is made as when it runs.
_DECIMALS = 6

Array = NDArray[np.float64]


def router_of(model: CausalLM, feature_names: Sequence[str]) -> Router:
    """Return a family's router.

    Raises
    ------
    InputError
        There is none, it was trained for other models, it has not one weight per feature, or the trace lacks a feature.
    """
    anew = f"train it anew: edgeopt profile router {model.name} -o FILE"
    router = None if model.answers is None else model.answers.router
    if router is None:
        raise InputError(Finding("model.answers.router", f"of '{model.name}' is missing", anew))
    names, findings = model_names(model), []
    if set(router.weights) != set(names):
        message = f"was trained for {', '.join(sorted(router.weights))}, and the family is {', '.join(sorted(names))}"
        findings.append(Finding("model.answers.router.weights", message, anew))
    for name, weights in router.weights.items():
        if len(weights) != len(router.features) + 1:
            message = f"has {len(weights)} numbers for {len(router.features)} features and a constant"
            findings.append(Finding(f"model.answers.router.weights.{name}", message, anew))
    for name in router.features:
        if name not in feature_names:
            assert model.answers is not None
            message, mend = f"column 'feature:{name}' is missing, and the router looks at it", f"add it, or {anew}"
            findings.append(Finding("model.answers.trace", message, mend, model.answers.trace, 1))
    if findings:
        raise InputError(findings)
    return router


def predicted(router: Router, models: Sequence[str], features: Array) -> Array:
    """Chance that each model is right, (N, M), from features, (N, F)."""
    weights = np.array([router.weights[name] for name in models])
    linear = features @ weights[:, :-1].T + weights[:, -1]
    return np.round(0.5 * (1.0 + np.tanh(0.5 * linear)), _DECIMALS)


def features_of(trace: Trace, names: Sequence[str]) -> Array:
    """Columns of a trace by name, (N, F)."""
    assert trace.features is not None
    return trace.features[:, [trace.feature_names.index(name) for name in names]]


def gains_of(chances: Array, cheapest: int) -> Array:
    """By how much likelier each model is right than the cheapest, (N, M)."""
    gains: Array = chances - chances[:, cheapest : cheapest + 1]
    return gains


def name_of_run(where: str, tokens: Sequence[int]) -> str:
    """Name the feature that a query contains a run of tokens (``has``) or ends with it (``ends``)."""
    return f"{where} {'-'.join(map(str, tokens))}"


def is_own(name: str) -> bool:
    """Whether a feature comes with a query, and is not taken from its tokens."""
    return name != "length" and not name.startswith(("has ", "ends "))


def feature_values(
    names: Sequence[str], tokens: Sequence[int], recorded: Mapping[str, float] | None = None
) -> list[float]:
    """Values of features of one query, by their names.

    ``length`` is the number of tokens, ``has 7-12`` whether they contain these two in a row, ``ends 7-12`` whether they
    end so; others come with the query.

    Raises
    ------
    KeyError
        A feature comes with the query, and did not.
    """
    text = "".join(map(chr, tokens))
    found = []
    for name in names:
        where, _, run = name.partition(" ")
        if name == "length":
            found.append(float(len(tokens)))
        elif where in ("has", "ends"):
            wanted = "".join(chr(int(token)) for token in run.split("-"))
            found.append(float(wanted in text if where == "has" else text.endswith(wanted)))
        else:
            found.append((recorded or {})[name])
    return found


@dataclass(frozen=True, slots=True)
class Cut:
    """Queries whose gain from a model is at most ``at`` are below, others above; a side is cut further, or a bin."""

    model: int
    at: float
    below: Cut | int
    above: Cut | int


def cut_bins(gains: Array, count: int) -> Cut | int:
    """Cut queries into ``count`` bins of like sizes: always across the gain that differs most, at its quantile.

    Parameters
    ----------
    gains : (N, M)
        By how much likelier each model is right than the cheapest.

    Returns
    -------
    Cut or int
        Bins count 0, 1, 2 … from below; they are fewer where gains do not differ. 0: there is but one.
    """
    tree, _ = _cut(gains, count, 0)
    return tree


def _cut(gains: Array, count: int, first: int) -> tuple[Cut | int, int]:
    """Return the cuts of some queries, whose bins count from ``first``, and the number after their last bin."""
    if count > 1:
        for model in np.argsort(-gains.std(axis=0), kind="stable").tolist():
            values = np.unique(gains[:, model])
            if len(values) < 2:
                continue
            parts = np.searchsorted(np.sort(gains[:, model]), values[:-1], side="right") / len(gains)
            lower = count // 2
            k = int(np.abs(parts - lower / count).argmin())
            at = float(values[k] + values[k + 1]) / 2
            here = gains[:, model] <= at
            below, following = _cut(gains[here], lower, first)
            above, following = _cut(gains[~here], count - lower, following)
            return Cut(model, at, below, above), following
    return first, first + 1


def num_bins(tree: Cut | int) -> int:
    """Bins that cuts make."""
    return 1 if isinstance(tree, int) else num_bins(tree.below) + num_bins(tree.above)


def bins_of(tree: Cut | int, gains: Array) -> NDArray[np.int64]:
    """Bin of each query, (N,), from its gains, (N, M)."""
    if isinstance(tree, int):
        return np.full(len(gains), tree, np.int64)
    return np.where(gains[:, tree.model] <= tree.at, bins_of(tree.below, gains), bins_of(tree.above, gains))


def write_cuts(tree: Cut | int, models: Sequence[str], names: Sequence[str]) -> Any:
    """Return cuts in names, as plans hold them."""
    if isinstance(tree, int):
        return names[tree]
    sides = {"below": write_cuts(tree.below, models, names), "above": write_cuts(tree.above, models, names)}
    return {"gain": models[tree.model], "at": tree.at, **sides}


def read_cuts(given: Any, models: Sequence[str], names: Sequence[str]) -> Cut | int:
    """Read what :func:`write_cuts` wrote.

    Raises
    ------
    ValueError
        It is nothing of the kind, or names a model or a bin that is not there.
    """
    tree = _read(given, models, names)
    if sorted(_leaves(tree)) != list(range(len(names))):
        raise ValueError(f"cuts do not lead to each of the bins {', '.join(names)} once")
    return tree


def _read(given: Any, models: Sequence[str], names: Sequence[str]) -> Cut | int:
    if isinstance(given, str) and given in names:
        return list(names).index(given)
    if isinstance(given, dict) and given.get("gain") in models and isinstance(given.get("at"), int | float):
        sides = (_read(given.get(side), models, names) for side in ("below", "above"))
        return Cut(list(models).index(given["gain"]), float(given["at"]), *sides)
    raise ValueError(f"{given!r} is no bin, and no cut with gain, at, below and above")


def _leaves(tree: Cut | int) -> Iterator[int]:
    if isinstance(tree, int):
        yield tree
    else:
        yield from _leaves(tree.below)
        yield from _leaves(tree.above)


class Scorer:
    """What the source does with a query: its features, the chances that the router sees in them, the bin.

    Parameters
    ----------
    trace
        Has the features that come with recorded queries.
    over, tree
        The cheapest model, and the cuts of gains over it.
    """

    def __init__(self, model: CausalLM, trace: Trace, over: int, tree: Cut | int) -> None:
        self._router, self._models = router_of(model, trace.feature_names), trace.models
        self._over, self._tree = over, tree
        own = [name for name in self._router.features if is_own(name)]
        table = features_of(trace, own) if own else np.zeros((len(trace), 0))
        self._recorded = {
            int(row): dict(zip(own, values.tolist(), strict=True))
            for row, values in zip(trace.query, table, strict=True)
        }

    def bin_of(self, row: int, tokens: Sequence[int]) -> int:
        """Bin of a query: its number in the trace, and its tokens."""
        values = feature_values(self._router.features, tokens, self._recorded[row])
        gains = gains_of(predicted(self._router, self._models, np.array([values])), self._over)
        return int(bins_of(self._tree, gains)[0])
