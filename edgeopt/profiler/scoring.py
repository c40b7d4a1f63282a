"""Time a router here: what the source of queries does before it asks anybody."""

from __future__ import annotations

import time

import numpy as np

from edgeopt.profiles.answers import Trace, read_answers
from edgeopt.profiles.device import Timing
from edgeopt.profiles.model import CausalLM, Model
from edgeopt.profiles.routers import Cut, Scorer, cut_bins, features_of, gains_of, predicted

__all__ = ["score_rows"]

_REPEATS = 400
#: As many bins as problems mostly ask for; what a cut more takes cannot be measured.
_BINS = 6


def score_rows(model: Model, source: str) -> list[Timing]:
    """Time the scoring of a family's shortest and longest recorded query; nothing where it has no router or tokens."""
    if not isinstance(model, CausalLM) or model.answers is None:
        return []
    if model.answers.router is None or model.answers.queries is None:
        return []
    from edgeopt.programs.answering import read_queries

    trace, queries = read_answers(model), read_queries(model.answers.queries).queries
    scorer = Scorer(model, trace, 0, _cuts(model, trace))
    asked = sorted((len(queries[row]), row) for row in trace.query.tolist())
    rows = []
    for length, row in dict((asked[0], asked[-1])).items():
        seconds = []
        for _ in range(_REPEATS):
            started = time.thread_time()
            scorer.bin_of(row, queries[row])
            seconds.append(time.thread_time() - started)
        low, middle, high = np.percentile(seconds, [25, 50, 75])
        rows.append(
            Timing(
                model=model.name, phase="score", dtype=model.dtype, batch=1, tokens=length, unit="ms",
                elements=[round(1e3 * float(middle), 6)], repeats=_REPEATS,
                spread=round(min(max(float(high - low) / 2 / float(middle), 1e-4), 1.0), 4), source=source,
            )
        )  # fmt: skip
    return rows


def _cuts(model: CausalLM, trace: Trace) -> Cut | int:
    assert model.answers is not None
    assert model.answers.router is not None
    fit = trace.part("fit")
    chances = predicted(model.answers.router, trace.models, features_of(fit, model.answers.router.features))
    return cut_bins(gains_of(chances, 0), _BINS)
