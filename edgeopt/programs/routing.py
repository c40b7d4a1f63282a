"""Queries of several classes that arrive by themselves, each answered by the model and device that chance gives it.

Where a router tells them apart, the source knows no class: it computes the features of a query when it arrives, the
gains that the router predicts from them, and so the bin, whose fractions count. What a query is right for is not used.

The source draws for every query which of its class's ways it goes, with the planned fractions as probabilities. Chance
is meant: of a Poisson stream it leaves a Poisson stream on every device, as the plan's queues assume. Fractions kept by
turns would wait less than predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import accumulate
from typing import Any

import torch

from edgeopt.errors import Finding, InputError
from edgeopt.plan import Plan
from edgeopt.profiles.answers import read_answers
from edgeopt.profiles.routers import Scorer, read_cuts
from edgeopt.programs.answers import Answers, Told, ask_here
from edgeopt.programs.arrivals import draw_stream
from edgeopt.programs.parties import Links

__all__ = ["TOLERANCE", "Routing", "build", "reference"]

#: Tokens are integers: nothing but equality counts.
TOLERANCE: float | None = None

#: Beside the request's seed, what the choice of ways starts from.
_WAYS = 1 << 21
#: The stage that scores, where a router tells classes: the plan's first.
_ROUTER = 0

_ANEW = "write the plan with edgeopt solve"


class Routing(Answers):
    """The source, which sends each query to one party, or the host of some models."""

    _links: Links | None = None
    _scorer: Scorer | None = None

    def decide(self) -> None:
        """Read each class's fractions by stage, and how a router tells classes.

        Raises
        ------
        InputError
            They name what is no stage, or are no fractions of these classes; the router is another one.
        """
        given, router = self.plan.decisions.get("fractions"), self.plan.decisions.get("router")
        scored = router is not None
        stages = {(stage.variant or self._model.name, stage.device): stage.index for stage in self.plan.stages[scored:]}
        self._fractions: dict[str, list[float]] = {}
        for name, ways in given.items() if isinstance(given, dict) else ():
            parts = [0.0] * len(self.plan.stages)
            for way in ways if isinstance(ways, list) else ():
                stage = stages.get((way["model"], way["device"])) if isinstance(way, dict) else None
                if stage is None:
                    message = f"{way!r} is none of the plan's stages"
                    raise InputError(Finding(f"decisions.fractions.{name}", message, _ANEW))
                parts[stage] += float(way["fraction"])
            self._fractions[name] = parts
        wrong = [name for name, parts in self._fractions.items() if abs(sum(parts) - 1.0) > 1e-6 or min(parts) < 0]
        if wrong or not self._fractions:
            field = f"decisions.fractions.{wrong[0]}" if wrong else "decisions.fractions"
            raise InputError(Finding(field, "are no fractions of a whole", _ANEW))
        if scored:
            self._scorer = self._read_router(router)
            self.stages = tuple(stage for stage in self.stages if stage != _ROUTER)  # of these models are loaded

    def _read_router(self, given: Any) -> Scorer:
        trace = read_answers(self._model)
        try:
            self._bins: list[str] = given["bins"]
            over, tree = trace.models.index(given["over"]), read_cuts(given["cuts"], trace.models, self._bins)
            if sorted(self._bins) != sorted(self._fractions):
                raise ValueError(f"bins {', '.join(self._bins)} have no fractions ({', '.join(self._fractions)})")
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(Finding("decisions.router", f"cannot be read: {error}", _ANEW)) from None
        return Scorer(self._model, trace, over, tree)

    def request(self, seed: int) -> list[torch.Tensor]:
        """Draw held-out queries: arrivals, (requests,) float64, their rows, int64, and where chance sends them.

        That is their stages, int64; where a router tells classes, numbers from 0 to 1, float64, that choose among the
        ways of whatever bin a query turns out to be of.

        Raises
        ------
        InputError
            A class has no held-out query.
        """
        held_out = read_answers(self._model).part("held-out")
        generator = torch.Generator().manual_seed(_WAYS + seed)
        if self._scorer is not None:
            times, _, queries = draw_stream(self._load, [held_out.query.tolist()], [1.0], seed)
            return [times, queries, torch.rand(len(times), generator=generator, dtype=torch.float64)]
        names = list(self._fractions)
        pools = [held_out.query[held_out.classes == name].tolist() for name in names]
        for name, pool in zip(names, pools, strict=True):
            if not pool:
                message = f"class '{name}' has no query of the split 'held-out'"
                raise InputError(Finding("model.answers.trace", message, "record some, or solve again"))
        shares = self.plan.decisions["shares"]
        assert isinstance(shares, dict)
        weights = [float(shares[name]) for name in names]  # type: ignore[arg-type]
        times, classes, queries = draw_stream(self._load, pools, weights, seed)
        ways = torch.tensor([self._fractions[name] for name in names], dtype=torch.float64)
        return [times, queries, torch.multinomial(ways[classes], 1, generator=generator)[:, 0]]

    def play(self, links: Links, inputs: list[torch.Tensor] | None) -> list[torch.Tensor] | None:
        """Answer what is asked here; at the source score what arrives, and ask."""
        self._links = links
        return super().play(links, inputs)

    def told(self, inputs: list[torch.Tensor]) -> Told:
        """Return what keeps the answers; a query goes where it was drawn to go."""
        _, rows, ways = (each.tolist() for each in inputs)
        return _Routed(ways if self._scorer is None else _ByRouter(self, rows, ways))

    def way(self, query: int, row: int, chance: float) -> int:
        """Stage that a query goes to, which is scored for that."""
        assert self._scorer is not None
        with nullcontext() if self._links is None else self._links.computing(_ROUTER, query):
            name = self._bins[self._scorer.bin_of(row, self._known.queries[row])]
        ways = self._fractions[name]
        last = max(k for k, part in enumerate(ways) if part > 0)
        return next((k for k, end in enumerate(accumulate(ways)) if chance < end), last)


class _ByRouter:
    """Stages of queries as they arrive."""

    def __init__(self, party: Routing, rows: list[int], chances: list[float]) -> None:
        self.party, self.rows, self.chances = party, rows, chances

    def __getitem__(self, query: int) -> int:
        return self.party.way(query, self.rows[query], self.chances[query])


class _Routed(Told):
    """Each query is asked once."""

    def __init__(self, stages: Sequence[int] | _ByRouter) -> None:
        super().__init__()
        self.stages = stages

    def first(self, query: int) -> int:
        return self.stages[query]


def build(plan: Plan, stages: Sequence[int]) -> Routing:
    """Load the models that this process hosts."""
    return Routing(plan, stages)


def reference(plan: Plan, seed: int) -> list[torch.Tensor]:
    """Ask the same models one after the other in this process, without caches, by the library's own classes.

    Returns
    -------
    list of tensors
        Rows, stages and tokens, (requests,), (requests,) and (requests, longest), padded by -1.
    """
    return ask_here(Routing(plan, ()), seed)
