"""Queries of several classes that arrive by themselves, each answered by the model and device that chance gives it.

The source draws for every query which of its class's ways it goes, with the planned fractions as probabilities. Chance
is meant: of a Poisson stream it leaves a Poisson stream on every device, as the plan's queues assume. Fractions kept by
turns would wait less than predicted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edgeopt.errors import Finding, InputError
from edgeopt.plan import Plan
from edgeopt.profiles.answers import read_answers
from edgeopt.programs.answers import Answers, Told, ask_here
from edgeopt.programs.arrivals import draw_stream

__all__ = ["TOLERANCE", "Routing", "build", "reference"]

#: Tokens are integers: nothing but equality counts.
TOLERANCE: float | None = None

#: Beside the request's seed, what the choice of ways starts from.
_WAYS = 1 << 21


class Routing(Answers):
    """The source, which sends each query to one party, or the host of some models."""

    def decide(self) -> None:
        """Read each class's fractions by stage.

        Raises
        ------
        InputError
            They name what is no stage, or are no fractions of these classes.
        """
        given = self.plan.decisions.get("fractions")
        stages = {(stage.variant or self._model.name, stage.device): stage.index for stage in self.plan.stages}
        self._fractions: dict[str, list[float]] = {}
        for name, ways in given.items() if isinstance(given, dict) else ():
            parts = [0.0] * len(self.plan.stages)
            for way in ways if isinstance(ways, list) else ():
                stage = stages.get((way["model"], way["device"])) if isinstance(way, dict) else None
                if stage is None:
                    message = f"{way!r} is none of the plan's stages"
                    raise InputError(
                        Finding(f"decisions.fractions.{name}", message, "write the plan with edgeopt solve")
                    )
                parts[stage] += float(way["fraction"])
            self._fractions[name] = parts
        wrong = [name for name, parts in self._fractions.items() if abs(sum(parts) - 1.0) > 1e-6 or min(parts) < 0]
        if wrong or not self._fractions:
            field = f"decisions.fractions.{wrong[0]}" if wrong else "decisions.fractions"
            raise InputError(Finding(field, "are no fractions of a whole", "write the plan with edgeopt solve"))

    def request(self, seed: int) -> list[torch.Tensor]:
        """Draw held-out queries: arrivals, (requests,) float64, their rows and the stages they go to, int64.

        Raises
        ------
        InputError
            A class has no held-out query.
        """
        held_out = read_answers(self._model).part("held-out")
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
        generator = torch.Generator().manual_seed(_WAYS + seed)
        ways = torch.tensor([self._fractions[name] for name in names], dtype=torch.float64)
        return [times, queries, torch.multinomial(ways[classes], 1, generator=generator)[:, 0]]

    def told(self, inputs: list[torch.Tensor]) -> Told:
        """Return what keeps the answers; a query goes where it was drawn to go."""
        return _Routed(inputs[2].tolist())


class _Routed(Told):
    """Each query is asked once."""

    def __init__(self, stages: Sequence[int]) -> None:
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
