"""Routers: logistic regressions of who answers a query right, on features of the query alone.

For each model of a family, P(right | query) = σ(w · features + c). Features are what a trace holds of each query
(``feature:NAME``) and, where its tokens are known, whether it contains or ends with certain runs of tokens; which ones
is chosen here, one after the other: always the candidate that tells most of what the regressions so far get wrong
(orthogonal matching pursuit, Pati et al. 1993). The number of features and the weight of the ridge penalty are those
with the least log loss in cross-validation. Only the split ``train`` is seen: accuracies that a plan rests on come from
the split ``fit``, of which a router knows nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import Finding, InputError
from edgeopt.profiles.answers import Trace
from edgeopt.profiles.model import CausalLM, Router
from edgeopt.profiles.routers import feature_values, features_of, is_own, name_of_run, predicted

__all__ = ["Fitting", "fit_router", "log_loss", "tokens_of", "with_training_rows"]

Array = NDArray[np.float64]

_NEWTON_STEPS = 6
#: Decimals of weights: a probability changes by less than its own sixth decimal.
_DECIMALS = 5


@dataclass(frozen=True, slots=True)
class Fitting:
    """How a router is fitted.

    Attributes
    ----------
    most_features
        Most of them; cross-validation may stop before.
    longest_run
        Tokens of the longest run that is looked for.
    rarest
        Part of the queries that a run must occur in, and be missing from.
    penalties
        Ridge penalties to choose from, on standardised features.
    folds, seed
        Of cross-validation.
    """

    most_features: int = 48
    longest_run: int = 6
    rarest: float = 0.02
    penalties: tuple[float, ...] = (4.0, 16.0, 64.0)
    folds: int = 5
    seed: int = 0


def fit_router(
    trace: Trace, queries: Sequence[Sequence[int]] | None, fitting: Fitting | None = None
) -> tuple[Router, Trace]:
    """Fit a router to a trace's split ``train``.

    Parameters
    ----------
    queries
        Tokens by :attr:`Trace.query`; ``None``: only the trace's own features are used.

    Returns
    -------
    Router, Trace
        The trace has the features that the router looks at, and no others.

    Raises
    ------
    InputError
        No query has the split ``train``, nothing is known of queries, or one model alone answered.
    """
    fitting = fitting or Fitting()
    train = np.flatnonzero(trace.splits == "train")
    _check(trace, queries, len(train), fitting)
    names, values = _candidates(trace, queries, train, fitting)
    right, known = trace.correct[train], values[train]
    folds = np.random.default_rng(fitting.seed).permutation(len(train)) % fitting.folds
    most = min(fitting.most_features, len(names))
    losses = np.zeros((len(fitting.penalties), most + 1))
    for k, penalty in enumerate(fitting.penalties):
        for fold in range(fitting.folds):
            path = _Pursuit(known[folds != fold], right[folds != fold], penalty, most)
            losses[k] += path.losses(known[folds == fold], right[folds == fold])
    best, count = np.unravel_index(int(losses.argmin()), losses.shape)
    pursuit = _Pursuit(known, right, fitting.penalties[best], max(1, int(count)))
    chosen, weights = pursuit.chosen, pursuit.unscaled()
    kept = replace(trace, features=values[:, chosen], feature_names=tuple(names[i] for i in chosen))
    source = (
        f"trained {date.today().isoformat()} on {len(train)} queries (split train): {len(chosen)} features of "
        f"{len(names)}, ridge penalty {fitting.penalties[best]:g}, seed {fitting.seed}"
    )
    router = Router(
        features=list(kept.feature_names),
        weights={name: np.round(row, _DECIMALS).tolist() for name, row in zip(trace.models, weights, strict=True)},
        source=source,
    )
    fit = kept.part("fit")
    assert fit.features is not None
    loss = log_loss(predicted(router, trace.models, fit.features), fit.correct)
    base = log_loss(np.broadcast_to(right.mean(axis=0), fit.correct.shape), fit.correct)
    told = f"{source}; log loss on the {len(fit)} queries of split fit {loss:.4f}, of constant chances {base:.4f}"
    return router.model_copy(update={"source": told}), kept


def tokens_of(model: CausalLM) -> list[list[int]] | None:
    """Return the tokens of a family's recorded queries, ``None`` where the profile names no file of them."""
    if model.answers is None or model.answers.queries is None:
        return None
    from edgeopt.programs.answering import read_queries

    return read_queries(model.answers.queries).queries


def with_training_rows(trace: Trace, share: float, seed: int) -> Trace:
    """Return a trace of which so large a part of each class's split ``fit`` is for training."""
    draw, splits = np.random.default_rng(seed), trace.splits.astype(np.dtype("<U8"))
    for name in sorted(set(trace.classes.tolist())):
        rows = np.flatnonzero((trace.classes == name) & (trace.splits == "fit"))
        splits[draw.permutation(rows)[: round(share * len(rows))]] = "train"
    return replace(trace, splits=splits)


def log_loss(chances: Array, right: Array) -> float:
    """Mean nats by which what happened surprised: chances and outcomes, (N, M)."""
    sure = np.clip(chances, 1e-6, 1 - 1e-6)
    return float(-(right * np.log(sure) + (1 - right) * np.log1p(-sure)).mean())


def _check(trace: Trace, queries: Sequence[Sequence[int]] | None, count: int, fitting: Fitting) -> None:
    field, findings = "model.answers.trace", []
    if len(trace.models) < 2:
        findings.append(Finding("model.drafts", "has no model to choose beside the profile's own", "add one"))
    if count < 4 * fitting.folds:
        message = f"{count} queries have the split 'train', and a router needs {4 * fitting.folds} or more"
        findings.append(Finding(field, message, "give more queries that split, or use --train-share 0.5"))
    if queries is None and not trace.feature_names:
        message = "nothing is known of a query: no column 'feature:NAME', and no tokens (model.answers.queries)"
        findings.append(Finding(field, message, "add such columns, or the file of queries"))
    if queries is not None and int(trace.query.max()) >= len(queries):
        message = f"query {int(trace.query.max())} is in the trace, and there are {len(queries)} queries"
        findings.append(Finding("model.answers.queries", message, "record the answers anew"))
    if findings:
        raise InputError(findings)


def _candidates(
    trace: Trace, queries: Sequence[Sequence[int]] | None, train: NDArray[np.int64], fitting: Fitting
) -> tuple[list[str], Array]:
    """Names and values, (N, candidates): recorded features, then runs of tokens neither rare nor everywhere."""
    names = [name for name in trace.feature_names if queries is None or is_own(name)]
    columns = list(features_of(trace, names).T) if names else []
    if queries is not None:
        runs = _runs([queries[row] for row in trace.query[train]], fitting)
        table = np.array([feature_values(runs, queries[row]) for row in trace.query], float).reshape(len(trace), -1)
        _, first = np.unique(table[train], axis=1, return_index=True)  # of runs that always come together, one
        names += [runs[i] for i in sorted(first)]
        columns += list(table[:, sorted(first)].T)
    return names, np.stack(columns, axis=1)


def _runs(queries: Sequence[Sequence[int]], fitting: Fitting) -> list[str]:
    """Names of candidates: ``length``, runs that queries contain, and runs that they end with; short ones first."""
    least = max(2.0, fitting.rarest * len(queries))
    found = ["length"]
    for size in range(1, fitting.longest_run + 1):
        inside: dict[tuple[int, ...], int] = {}
        ends: dict[tuple[int, ...], int] = {}
        for query in queries:
            for run in {tuple(query[i : i + size]) for i in range(len(query) - size + 1)}:
                inside[run] = inside.get(run, 0) + 1
            if len(query) >= size:
                ends[tuple(query[-size:])] = ends.get(tuple(query[-size:]), 0) + 1
        for where, counts in (("has", inside), ("ends", ends)):
            kept = [run for run, count in counts.items() if least <= count <= len(queries) - least]
            found += [name_of_run(where, run) for run in sorted(kept)]
    return found


class _Pursuit:
    """Features taken up one by one, with the regressions on them after each: coefficients on standardised features."""

    def __init__(self, values: Array, right: Array, penalty: float, most: int) -> None:
        self.mean, self.scale = values.mean(axis=0), values.std(axis=0)
        self.scale[self.scale < 1e-9] = np.inf
        known = (values - self.mean) / self.scale
        self.penalty, self.chosen = penalty, list[int]()
        ones = np.ones((len(values), 1))
        self.path = [_regress(ones, right, penalty, np.zeros((right.shape[1], 1)))]
        while len(self.chosen) < most:
            wrong = right - _logistic(ones @ self.path[-1].T)
            told = ((known.T @ wrong) ** 2).sum(axis=1)
            told[self.chosen] = -1.0
            self.chosen.append(int(told.argmax()))
            ones = np.concatenate([ones, known[:, self.chosen[-1:]]], axis=1)
            start = np.concatenate([self.path[-1], np.zeros((right.shape[1], 1))], axis=1)
            self.path.append(_regress(ones, right, penalty, start))

    def losses(self, values: Array, right: Array) -> Array:
        """Log loss on other queries with 0, 1, 2 … features."""
        known = (values[:, self.chosen] - self.mean[self.chosen]) / self.scale[self.chosen]
        table = np.concatenate([np.ones((len(values), 1)), known], axis=1)
        found = [log_loss(_logistic(table[:, : w.shape[1]] @ w.T), right) * len(values) for w in self.path]
        return np.array(found)

    def unscaled(self) -> Array:
        """(M, features + 1): a weight for each feature as it is, and the constant."""
        last = self.path[-1]
        weights = last[:, 1:] / self.scale[self.chosen]
        constant = last[:, :1] - weights @ self.mean[self.chosen][:, None]
        return np.concatenate([weights, constant], axis=1)


def _regress(table: Array, right: Array, penalty: float, start: Array) -> Array:
    """Newton's method on the penalised log likelihood of each model, (M, columns); the first column goes free."""
    ridge = penalty * np.eye(table.shape[1])
    ridge[0, 0] = 1e-3  # keeps a model that is always right finite
    found = start.copy()
    for m, weights in enumerate(found):
        for _ in range(_NEWTON_STEPS):
            chances = _logistic(table @ weights)
            slope = table.T @ (right[:, m] - chances) - ridge @ weights
            curve = (table * (chances * (1 - chances))[:, None]).T @ table + ridge
            step = np.linalg.solve(curve, slope)
            weights += step
            if float(np.abs(step).max()) < 1e-6:
                break
    return found


def _logistic(values: Array) -> Array:
    found: Array = 0.5 * (1.0 + np.tanh(0.5 * values))
    return found
