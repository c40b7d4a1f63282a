"""Bins of recorded queries for which a router promises like gains, and what it takes the source to tell them apart."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.costs.routing import score_s
from edgeopt.errors import Finding, InputError, NoPlanError
from edgeopt.profiles.routers import (
    bins_of,
    cut_bins,
    features_of,
    gains_of,
    num_bins,
    predicted,
    router_of,
    write_cuts,
)
from edgeopt.strategies.answer_pool import AnswerPool

__all__ = ["DEFAULT_BINS", "RouterBins"]

#: Where a problem does not say how many.
DEFAULT_BINS = 6
#: Recorded queries that a bin's accuracies are counted on, at least.
_LEAST = 10

Array = NDArray[np.float64]


class RouterBins:
    """A pool's queries by bin.

    The source looks at every query before it asks anybody. That takes a part of its time, ``load``, and whatever else
    it computes takes 1 / (1 - load) times as long; a query waits for those that are looked at before it (M/G/1).

    Raises
    ------
    InputError
        The family has no router that fits it, or there are too many bins for the recorded queries.
    NoPlanError
        Looking at the queries takes all of the source's time.
    """

    def __init__(self, pool: AnswerPool) -> None:
        self.pool = pool
        router = router_of(pool.model, pool.trace.feature_names)
        count = pool.problem.constraints.routing.bins or DEFAULT_BINS
        most = len(pool.fit) // _LEAST
        if count > most:
            message = f"is {count}, and {len(pool.fit)} recorded queries (split fit) make bins of fewer than {_LEAST}"
            mend = f"lower it to {most}, or record more queries" if most else "record more queries"
            raise InputError(Finding("constraints.routing.bins", message, mend))
        self.over = pool.order[0]
        self.chances = predicted(router, pool.trace.models, features_of(pool.fit, router.features))
        gains = gains_of(self.chances, self.over)
        self.tree = cut_bins(gains, count)
        self.bins = bins_of(self.tree, gains)
        self.names = [f"bin-{k + 1}" for k in range(num_bins(self.tree))]
        source = pool.problem.devices[pool.source]
        self.score_s, self.measured = score_s(pool.model, router, source, pool.prompt_tokens)
        self.memory_bytes = 8.0 * len(pool.trace.models) * (len(router.features) + 1)
        if self.load >= 1:
            raise NoPlanError(
                f"no plan exists for {pool.problem.name!r}: load: device {source.name!r} takes "
                f"{1e3 * float(self.score_s.mean()):.4g} ms to score a query, and workload.requests_per_s is "
                f"{self._rate:g}: lower it, or route by class (constraints.routing.by)"
            )

    @property
    def _rate(self) -> float:
        assert self.pool.load.requests_per_s is not None
        return self.pool.load.requests_per_s

    @cached_property
    def load(self) -> float:
        """Part of the source's time that scoring takes."""
        return self._rate * float(self.score_s.mean())

    @cached_property
    def waiting_s(self) -> float:
        """Mean seconds that a query waits to be scored."""
        return self._rate * float((self.score_s**2).mean()) / (2 * (1 - self.load))

    def decisions(self) -> dict[str, Any]:
        """Return what the source needs to know: cuts of the gains over the cheapest model."""
        models = self.pool.trace.models
        return {"over": models[self.over], "bins": self.names, "cuts": write_cuts(self.tree, models, self.names)}
