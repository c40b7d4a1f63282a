"""Seconds of every chain element inside whole runs of a program, by the very code that executes plans.

An element lasts from the end of the one before it to its own end, so that the elements of a stage add up to the stage:
masks and positions count to the first block that needs them, sampling to the head, the solver's update to its step.
"""

from __future__ import annotations

import gc
import statistics
import time
from pathlib import Path

import torch

from edgeopt import programs
from edgeopt.executor import yardstick
from edgeopt.plan import Plan, Stage
from edgeopt.profiler.clocks import clock_for
from edgeopt.profiler.jobs import ElementAnswer, ElementJob, ElementSamples
from edgeopt.profiler.slabs import Slab
from edgeopt.programs.base import Program
from edgeopt.programs.placing import stage_device

__all__ = ["measure_elements"]

#: A stage of a plan over a few devices waits about that long for its next round.
_REST_S = 0.1
#: A process rests before every fourth element (stages of a model split over a few devices hold about four: the cost
#: of waking lies in the first block, the rest of it in the two after that), in the rounds after the first of all.
_RESTS_EVERY, _RESTED_ROUNDS = 4, 5


def measure_elements(job: ElementJob) -> ElementAnswer:
    """Run whole requests of one plan after the other, all stages in this process."""
    return ElementAnswer(plans=[_samples(plan, job) for plan in job.plans])


def _samples(plan: Plan, job: ElementJob) -> ElementSamples:
    if plan.strategy == "patch":
        return _slab_samples(Slab(plan), job)
    program = programs.build(plan, range(len(plan.stages)))
    requests, waited_s, wakes_s, yardsticks_s = [], [], [], []
    for number in range(job.warmup + job.repeats):
        before_s = _waited_s()
        readings: list[float] = []
        requests.append(_request(program, job, readings))
        yardsticks_s += [statistics.fmean(readings)] if readings else []
        waited_s.append(_waited_s() - before_s)
        if program.rounds > 1 and not job.whole and number >= job.warmup:
            wakes_s += _wakes_s(program, job, requests[-1])
    requests = requests[job.warmup :]
    return ElementSamples(
        elements_s=requests,
        requests_s=[sum(map(sum, rounds)) for rounds in requests],
        waited_s=waited_s[job.warmup :],
        wakes_s=wakes_s,
        yardsticks_s=yardsticks_s[job.warmup :],
    )


def _slab_samples(slab: Slab, job: ElementJob) -> ElementSamples:
    requests, waited_s = [], []
    for _ in range(job.warmup + job.repeats):
        gc.collect()
        before_s = _waited_s()
        requests.append([slab.steps_s(job.seed)])
        waited_s.append(_waited_s() - before_s)
    requests = requests[job.warmup :]
    return ElementSamples(
        elements_s=requests, requests_s=[sum(steps) for (steps,) in requests], waited_s=waited_s[job.warmup :]
    )


def _wakes_s(program: Program, job: ElementJob, without: list[list[float]]) -> list[float]:
    """Begin the request again with rests in its rounds; what one of a round's stages took longer, by round."""
    rested = _request(program, job, [], resting=True)
    rests = sum(_rests_before(stage, e) for stage in program.plan.stages for e in range(stage.start, stage.stop))
    return [(sum(slow) - sum(fast)) / rests for slow, fast in zip(rested[1:], without[1:], strict=False)]


def _rests_before(stage: Stage, element: int) -> bool:
    return element == stage.start or element % _RESTS_EVERY == 0


def _request(program: Program, job: ElementJob, readings: list[float], *, resting: bool = False) -> list[list[float]]:
    """Run a request; ``readings`` receives what the yardstick takes around its rounds."""
    measured = job.yardstick is not None and not resting
    message = program.request(job.seed)
    gc.collect()  # as between requests of a run
    program.begin()
    with torch.inference_mode():
        rounds = []
        for round_index in range(min(program.rounds, 1 + _RESTED_ROUNDS) if resting else program.rounds):
            if measured:
                readings.append(yardstick.applied(job.yardstick))
            seconds: list[float] = []
            for stage in program.plan.stages:
                rests = resting and round_index > 0
                message, found = _stage(program, stage, round_index, message, whole=job.whole, resting=rests)
                seconds += found
            rounds.append([sum(seconds)] if job.whole else seconds)
        if measured:
            readings.append(yardstick.applied(job.yardstick))
    return rounds


def _stage(
    program: Program, stage: Stage, round_index: int, message: list[torch.Tensor], *, whole: bool, resting: bool = False
) -> tuple[list[torch.Tensor], list[float]]:
    """Run a stage in a round; seconds of each of its elements, or of all of it. Rests are not counted."""
    clock = clock_for(stage_device(program.plan, stage.index))
    done: list[int] = []
    if resting:
        time.sleep(_REST_S)  # before the first element
    marks = [clock.mark()]  # begin and end of every element, the begin again after a rest

    def on_element(element: int) -> None:
        done.append(element)
        marks.append(clock.mark())
        if element + 1 < stage.stop:
            if resting and _rests_before(stage, element + 1):
                time.sleep(_REST_S)
                marks.append(clock.mark())
            else:
                marks.append(marks[-1])

    program.on_element = None if whole else on_element
    message = program.run(stage.index, round_index, message)
    if whole:
        marks.append(clock.mark())
    else:
        assert done == list(range(stage.start, stage.stop))
        marks[-1] = clock.mark()  # handing over belongs to the last element
    return message, clock.seconds(marks)[::2]


def _waited_s() -> float:
    """Seconds that this process's threads could have run and had no core (Linux; 0 where the system does not say)."""
    total_ns = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total_ns += int(file.read_text().split()[1])
        except (OSError, IndexError, ValueError):  # a thread that just ended
            continue
    return total_ns * 1e-9
