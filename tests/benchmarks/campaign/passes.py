"""Seconds that drafting and verifying take on this machine: the program's own two sides, timed between rests.

Each is asked in the middle of a request and after a rest, as in a run, where one side rests while the other computes:
caches are cold then. What counts is processor time, as where devices are emulated.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from edgeopt.costs.drafting import draft_model
from edgeopt.executor.cores import awake
from edgeopt.executor.pacing import exact_sleeps
from edgeopt.profiles.model import CausalLM
from edgeopt.profiles.problem import TextWorkload
from edgeopt.programs.drafting import CachedScorer, Drafter, Verifier

__all__ = ["TYPICAL", "measure_passes"]

#: Length of the drafts that a step's seconds are a share of.
TYPICAL = 6
#: Seconds between passes.
_REST_S = 0.006
_WARMUP = 3


def measure_passes(
    model: CausalLM, draft: str, load: TextWorkload, lengths: Sequence[int], repeats: int
) -> dict[str, dict[int, float]]:
    """Measure the target and one draft, with one thread.

    Parameters
    ----------
    lengths
        Of the drafts that the target is to check.

    Returns
    -------
    dict
        ``target`` and ``draft``: median seconds by number of new tokens; ``target`` has length + 1 for each length,
        ``draft`` 1, and both the prompt's number with a minus sign, for the prefill.
    """
    exact_sleeps()
    longest = load.prompt_tokens + load.new_tokens + max(lengths) + 2
    options = {"dtype": torch.float32, "device": torch.device("cpu"), "max_tokens": longest}
    context = [1] * (load.prompt_tokens + load.new_tokens // 2)
    small = draft_model(model, draft)
    assert model.architecture is not None
    assert small.architecture is not None
    verifier = Verifier(CachedScorer(model.architecture, **options), 0.0, 0)
    drafter = Drafter(CachedScorer(small.architecture, **options), 0.0, 0)
    sides = (verifier, drafter)
    with torch.inference_mode(), awake():
        for side in sides:
            side.start(context)

        def check(length: int) -> Callable[[], object]:
            verifier.settled = [*context, 1]
            verifier.scorer.keep(len(context))
            return lambda: verifier.check([1] * length, torch.empty(0))

        def guess() -> Callable[[], object]:
            drafter.settled = list(context)
            drafter.scorer.keep(len(context) - 1)

            def settle_and_guess() -> None:
                drafter.settle([1])
                drafter.guess(TYPICAL)

            return settle_and_guess

        passes: dict[tuple[str, int], Callable[[], Callable[[], object]]] = {
            ("target", length + 1): partial(check, length) for length in lengths
        } | {("draft", 1): guess}
        samples = _timed(passes, repeats)
        samples["draft", 1] = samples["draft", 1] / TYPICAL
        prompt = context[: load.prompt_tokens]

        def prefill(side: Verifier | Drafter) -> Callable[[], object]:
            side.scorer.reset()
            return lambda: side.start(prompt)

        names = {"target": verifier, "draft": drafter}
        starts = {(name, -len(prompt)): partial(prefill, side) for name, side in names.items()}
        samples |= _timed(starts, repeats)
    return {name: {count: s for (owner, count), s in samples.items() if owner == name} for name in names}


def _timed(
    passes: dict[tuple[str, int], Callable[[], Callable[[], object]]], repeats: int
) -> dict[tuple[str, int], float]:
    """Time every pass in turn; each is prepared by a call that is not counted, and rested before."""
    samples: dict[tuple[str, int], list[float]] = {key: [] for key in passes}
    for _ in range(repeats + _WARMUP):
        for key, prepare in passes.items():
            run = prepare()
            time.sleep(_REST_S)
            started = time.thread_time()
            run()
            samples[key].append(time.thread_time() - started)
    return {key: statistics.median(found[_WARMUP:]) for key, found in samples.items()}
