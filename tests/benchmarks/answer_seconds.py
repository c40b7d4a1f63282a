"""Seconds of answers for the campaigns of cascades and routing: timed here, and again where they are asked.

Both on devices that keep their speed on a machine that does not (:mod:`edgeopt.executor.yardstick`).
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from edgeopt.costs.drafting import draft_model
from edgeopt.executor.cores import awake
from edgeopt.executor.layout import Host
from edgeopt.executor.pacing import computing_begins, rest
from edgeopt.plan import Plan
from edgeopt.profiles.model import CausalLM
from edgeopt.profiles.problem import Problem
from edgeopt.programs.answering import answer
from edgeopt.programs.drafting import CachedScorer
from edgeopt.report.data import Report
from edgeopt.strategies.base import Strategy
from edgeopt_solvers import Result, Status
from tests.benchmarks.trials import rested_messages_s

__all__ = [
    "Known",
    "Seconds",
    "at_other_seconds",
    "between_queries",
    "device_rows",
    "family",
    "measured_seconds",
    "planned",
]

#: Prompts that answers are timed on, decode rounds of each, and the pace.
PROMPTS, ROUNDS, PACE = (24, 64, 112, 160, 200), 16, 0.4
#: Of a machine at whose whole speed devices are told in fractions: an EPYC core that nobody else uses.
YARDSTICK_S = 30e-6
#: A device that had another query waiting begins it within this.
MOST_BETWEEN_S = 0.002


@dataclass(frozen=True, slots=True)
class Known:
    """Seconds by model at the speed at which the yardstick takes ``yardstick_s``, and what was found in place.

    That is by what factor a model takes longer on a device, and the seconds there between two queries. ``rested_s``
    is what an end of a message takes longer where it waited.
    """

    seconds: dict[str, Seconds]
    yardstick_s: float
    factors: dict[tuple[str, str], float]
    between_s: dict[str, float]
    rested_s: float = 0.0

    def beside(self, other: Known) -> Known:
        """Return the means of what was found in place before and after something else."""
        factors = {pair: (f + other.factors.get(pair, f)) / 2 for pair, f in self.factors.items()}
        between_s = {name: (s + other.between_s.get(name, s)) / 2 for name, s in self.between_s.items()}
        return replace(self, factors={**other.factors, **factors}, between_s={**other.between_s, **between_s})

    def drift(self, other: Known) -> float:
        """Largest difference of a factor."""
        return max((abs(f / other.factors.get(pair, f) - 1) for pair, f in self.factors.items()), default=0.0)

    def factor(self, model: str, device: str) -> float:
        """1 where nothing was compared."""
        return self.factors.get((model, device), 1.0)


@dataclass(frozen=True, slots=True)
class Seconds:
    """Of one model on one thread of this machine: prefills by tokens, decode rounds by cached tokens."""

    prefill: dict[int, float]
    decode: dict[int, float]


class _Watched:
    """A scorer that notes the processor time at the beginning of every pass."""

    def __init__(self, scorer: CachedScorer) -> None:
        self.scorer, self.begun_s = scorer, list[float]()

    def score(self, tokens: Sequence[int], last: int) -> torch.Tensor:
        self.begun_s.append(time.thread_time())
        return self.scorer.score(tokens, last)


def measured_seconds(models: Mapping[str, CausalLM], repeats: int) -> Known:
    """Time answers pass by pass, with what is done beside the passes, on a device paced like those that are emulated.

    It rests after every answer, so that caches are as cold as theirs.
    """
    host = Host(0, "profiled", (), 1, PACE, 0.0, "cpu", YARDSTICK_S)
    options = {"dtype": torch.float32, "device": torch.device("cpu"), "max_tokens": max(PROMPTS) + ROUNDS + 8}
    scorers = {name: CachedScorer(model.architecture, **options) for name, model in models.items()}  # type: ignore[arg-type]
    passes: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    with torch.inference_mode(), awake():
        for k in range(-2, repeats):
            for name, tokens in itertools.product(models, PROMPTS):
                scorer = _Watched(scorers[name])
                scorer.scorer.reset()
                started = computing_begins(host)
                answer(scorer, [1 + n % 26 for n in range(tokens)], -1, 1 + ROUNDS)
                took = np.diff([*scorer.begun_s, time.thread_time()])
                scale = rest(started, PACE) / took.sum()  # type: ignore[operator]
                if k >= 0:
                    passes[name, tokens].append((scale * took[0], scale * took[1:].mean()))

    def mean_s(column: int, name: str) -> list[float]:
        return [statistics.fmean(sample[column] for sample in passes[name, tokens]) for tokens in PROMPTS]

    contexts = [tokens + ROUNDS // 2 for tokens in PROMPTS]
    seconds = {
        name: Seconds(
            dict(zip(PROMPTS, mean_s(0, name), strict=True)), dict(zip(contexts, mean_s(1, name), strict=True))
        )
        for name in models
    }
    return Known(seconds, YARDSTICK_S, {}, {}, rested_messages_s())


def device_rows(model: CausalLM, known: Known, device: str, quota: float) -> list[dict[str, Any]]:
    """Rows of a device profile: what was measured here, at a fraction of the speed; a query begins with a pause."""
    seconds, pace, between_s = known.seconds[model.name], quota / known.factor(model.name, device), known.between_s
    others = [0.0] * (sum(layer.count for layer in model.layers) - 1)
    common = {
        "model": model.name, "dtype": model.dtype, "batch": 1, "unit": "s", "repeats": 20,
        "source": "measured by tests/benchmarks/answer_seconds.py",
    }  # fmt: skip
    rows = [{**common, "phase": "prefill", "tokens": n, "elements": [s / pace + between_s.get(device, 0.0), *others]}
            for n, s in seconds.prefill.items()]  # fmt: skip
    return rows + [{**common, "phase": "decode", "context": n, "elements": [s / pace, *others]}
                   for n, s in seconds.decode.items()]  # fmt: skip


def planned(technique: Strategy, problem: Problem, instance: Any, solution: Any) -> Plan:
    """Write a solution that was chosen elsewhere as a plan."""
    value = technique.evaluate(instance, solution).objective
    return technique.plan(problem, instance, Result(Status("gap_reached", True), value, 0.0, solution, "exact", 0.0))


def at_other_seconds(technique: Strategy, plan: Plan, problem: Problem) -> Plan:
    """Return what the same decisions come to where the same devices take other seconds."""
    solution = technique.solution(plan.model_copy(update={"problem": problem}))
    return planned(technique, problem, technique.build(problem), solution)


def between_queries(report: Report, problem: Problem) -> dict[str, float]:
    """By device the seconds from an answer to the next query's beginning, where that was waiting."""
    between_s = {}
    for device in problem.devices:
        bars = [bar for bar in report.timeline if bar.lane == device.name]
        gaps = [b.start_s - a.stop_s for a, b in pairwise(bars) if b.start_s - a.stop_s < MOST_BETWEEN_S]
        between_s[device.name] = statistics.median(gaps) if gaps else 0.0
    return between_s


def family(model: CausalLM) -> dict[str, CausalLM]:
    """Return the models by their names in the trace."""
    return {**{name: draft_model(model, name) for name in model.drafts}, model.name: model}
