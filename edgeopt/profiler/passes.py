"""Seconds of drafting and verifying on this machine, by the program's own two sides, between rests as in a run.

A side that waited finds its caches cold: on a virtual machine a pass after 20 ms takes about twice as long as one right
after another, and the loss is the same for one token, seventeen, or a draft of fifteen steps. So passes are timed after
a rest; a draft of several lengths says what a step takes and what each round takes beside its steps; and a model that
decodes alone is timed token after token, with the rests that its own pace makes and no others. What counts is
processor time, as where devices are paced, at the speed that the machine has on average meanwhile
(:mod:`edgeopt.executor.yardstick`).
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from edgeopt.costs.drafting import draft_model
from edgeopt.executor import yardstick
from edgeopt.executor.cores import awake
from edgeopt.executor.layout import yardstick_for
from edgeopt.executor.pacing import Started, exact_sleeps, rest
from edgeopt.profiler.jobs import PassJob, PassSamples
from edgeopt.profiles.device import Yardstick
from edgeopt.profiles.model import CausalLM
from edgeopt.profiles.problem import TextWorkload
from edgeopt.programs.drafting import CachedScorer, Drafter, Verifier

__all__ = ["answer_passes", "measure_passes"]

#: Lengths of drafts whose seconds differ by steps alone.
_SHORT, _LONG = 4, 12
#: Seconds after which caches are as cold as they get.
_REST_S = 0.03
#: Tokens of decoding alone, of which the first are not counted.
_ALONE, _FIRST = 10, 3
#: How often the yardstick is applied to know the speed that everything is told at.
_SPEEDS = 50

_Run = Callable[[], object]


def measure_passes(
    model: CausalLM,
    draft: str,
    load: TextWorkload,
    lengths: Sequence[int],
    *,
    pace: float | None,
    repeats: int,
    yardstick_s: float | None = None,
) -> dict[str, dict[int, float]]:
    """Measure the target and one draft, with one thread.

    Parameters
    ----------
    lengths
        Of the drafts that the target is to check, at least 1.
    pace
        Fraction of this machine's speed at which the target decodes alone; ``None``: all of it.
    repeats
        Of everything, one after the other, so that a slow minute of the machine does not fall on one of them.
    yardstick_s
        What the yardstick took at the speed that everything is told at; ``None``: what it takes now.

    Returns
    -------
    dict
        ``target`` and ``draft``: median seconds by number of new tokens; ``target`` has length + 1 for each length, and
        1 for a token of decoding alone; ``draft`` has 1 for a step, and 0 for what a round takes beside its steps. Both
        have the prompt's number with a minus sign, for the prefill. ``yardstick``: what it took, as 0, for the device's
        ``runtime``.
    """
    exact_sleeps()
    gc.collect()
    gc.freeze()  # as in a worker: libraries are never garbage
    which = yardstick_for(model)
    yardstick_s = yardstick_s or statistics.median(yardstick.applied(which) for _ in range(_SPEEDS))
    speed = which, yardstick_s
    sides = _Sides(model, draft, load, max(*lengths, _LONG))
    rested: dict[tuple[str, int], Callable[[], _Run]] = {}
    for length in lengths:
        rested["target", length + 1] = lambda length=length: sides.check(length)  # type: ignore[misc]
    for length in (_SHORT, _LONG):
        rested["draft", length] = lambda length=length: sides.guess(length)  # type: ignore[misc]
    for name in ("target", "draft"):
        rested[name, -load.prompt_tokens] = lambda name=name: sides.prefill(name)  # type: ignore[misc]
    samples: dict[tuple[str, int], list[float]] = {key: [] for key in rested}
    alone: list[float] = []
    with torch.inference_mode(), awake():
        sides.start()
        for number in range(1 + repeats):
            for key, prepare in rested.items():
                run = prepare()
                time.sleep(_REST_S)
                took_s = _timed(run, speed, 1.0)
                samples[key] += [took_s] if number else []  # the first turn warms up
            tokens_s = _alone(sides, pace or 1.0, speed)
            alone += tokens_s if number else []
    gc.unfreeze()
    found = {key: statistics.median(values) for key, values in samples.items()}
    step_s = max((found["draft", _LONG] - found["draft", _SHORT]) / (_LONG - _SHORT), 0.0)
    seconds = {name: {count: s for (owner, count), s in found.items() if owner == name} for name in ("target", "draft")}
    seconds["target"][1] = statistics.median(alone)
    round_s = max(seconds["draft"].pop(_SHORT) - _SHORT * step_s, 0.0)
    del seconds["draft"][_LONG]
    draft_s = {**seconds["draft"], 1: step_s, 0: round_s}
    return {"target": seconds["target"], "draft": draft_s, "yardstick": {0: yardstick_s}}


def answer_passes(job: PassJob) -> PassSamples:
    """Time every draft of a job's model."""
    found = {
        name: measure_passes(
            job.model, name, job.workload, job.lengths, pace=job.pace, repeats=job.repeats,
            yardstick_s=job.yardstick_s,
        )  # fmt: skip
        for name in job.model.drafts
    }
    return PassSamples(drafts=found)


class _Sides:
    """Both sides in the middle of a request."""

    def __init__(self, model: CausalLM, draft: str, load: TextWorkload, longest: int) -> None:
        small = draft_model(model, draft)
        assert model.architecture is not None
        assert small.architecture is not None
        most = load.prompt_tokens + load.new_tokens + longest + _ALONE
        options: dict[str, Any] = {"dtype": torch.float32, "device": torch.device("cpu"), "max_tokens": most}
        self.verifier = Verifier(CachedScorer(model.architecture, **options), 0.0, 0)
        self.drafter = Drafter(CachedScorer(small.architecture, **options), 0.0, 0)
        self.context = [1] * (load.prompt_tokens + load.new_tokens // 2)
        self.prompt = self.context[: load.prompt_tokens]

    def start(self) -> None:
        """Fill both caches."""
        for side in (self.verifier, self.drafter):
            side.start(self.context)

    def check(self, length: int) -> _Run:
        """Prepare a pass over a draft and the token before it."""
        if self.verifier.scorer.num_cached < len(self.context):
            self.verifier.scorer.reset()  # type: ignore[union-attr]
            self.verifier.start(self.context)
        self.verifier.settled = [*self.context, 1]
        self.verifier.scorer.keep(len(self.context))
        return lambda: self.verifier.check([1] * length, torch.empty(0))

    def guess(self, length: int) -> _Run:
        """Prepare a draft, as after a round whose guesses were all taken: two tokens are new to it."""
        if self.drafter.scorer.num_cached < len(self.context) - 1:
            self.drafter.scorer.reset()  # type: ignore[union-attr]
            self.drafter.start(self.context)
        self.drafter.settled = list(self.context)
        self.drafter.scorer.keep(len(self.context) - 1)

        def run() -> None:
            self.drafter.settle([1])
            self.drafter.guess(length)

        return run

    def prefill(self, name: str) -> _Run:
        """Prepare a prefill."""
        side = self.verifier if name == "target" else self.drafter
        side.scorer.reset()  # type: ignore[union-attr]
        return lambda: side.start(self.prompt)


def _timed(run: _Run, speed: tuple[Yardstick, float], pace: float) -> float:
    """Run and rest as a paced device does; seconds at the whole speed."""
    clock_s = time.monotonic()
    which, usual_s = speed
    yardstick.lately(which)
    started = Started(clock_s, time.thread_time(), usual_s, which)
    run()
    took_s = rest(started, pace)
    assert took_s is not None
    return took_s


def _alone(sides: _Sides, pace: float, speed: tuple[Yardstick, float]) -> list[float]:
    """Decode alone, resting after each token as long as the pace says."""
    run = sides.check(0)
    return [_timed(run, speed, pace) for _ in range(_ALONE)][_FIRST:]
