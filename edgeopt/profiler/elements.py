"""Seconds of every chain element inside whole runs of a program, by the very code that executes plans.

An element lasts from the end of the one before it to its own end, so that the elements of a stage add up to the stage:
masks and positions count to the first block that needs them, sampling to the head, the solver's update to its step.
"""

from __future__ import annotations

import gc
from pathlib import Path

import torch

from edgeopt import programs
from edgeopt.plan import Plan, Stage
from edgeopt.profiler.clocks import clock_for
from edgeopt.profiler.jobs import ElementAnswer, ElementJob, ElementSamples
from edgeopt.programs.base import Program
from edgeopt.programs.placing import stage_device

__all__ = ["measure_elements"]


def measure_elements(job: ElementJob) -> ElementAnswer:
    """Run whole requests of one plan after the other, all stages in this process."""
    return ElementAnswer(plans=[_samples(plan, job) for plan in job.plans])


def _samples(plan: Plan, job: ElementJob) -> ElementSamples:
    program = programs.build(plan, range(len(plan.stages)))
    requests, waited_s = [], []
    for _ in range(job.warmup + job.repeats):
        before_s = _waited_s()
        requests.append(_request(program, job))
        waited_s.append(_waited_s() - before_s)
    requests = requests[job.warmup :]
    return ElementSamples(
        elements_s=requests, requests_s=[sum(map(sum, rounds)) for rounds in requests], waited_s=waited_s[job.warmup :]
    )


def _request(program: Program, job: ElementJob) -> list[list[float]]:
    message = program.request(job.seed)
    gc.collect()  # as between requests of a run
    program.begin()
    with torch.inference_mode():
        rounds = []
        for round_index in range(program.rounds):
            seconds: list[float] = []
            for stage in program.plan.stages:
                message, found = _stage(program, stage, round_index, message, whole=job.whole)
                seconds += found
            rounds.append([sum(seconds)] if job.whole else seconds)
    return rounds


def _stage(
    program: Program, stage: Stage, round_index: int, message: list[torch.Tensor], *, whole: bool
) -> tuple[list[torch.Tensor], list[float]]:
    """Run a stage in a round; seconds of each of its elements, or of all of it."""
    clock = clock_for(stage_device(program.plan, stage.index))
    done: list[int] = []
    marks = [clock.mark()]

    def on_element(element: int) -> None:
        done.append(element)
        marks.append(clock.mark())

    program.on_element = None if whole else on_element
    message = program.run(stage.index, round_index, message)
    if whole:
        marks.append(clock.mark())
    else:
        assert done == list(range(stage.start, stage.stop))
        marks[-1] = clock.mark()  # handing over belongs to the last element
    return message, clock.seconds(marks)


def _waited_s() -> float:
    """Seconds that this process's threads could have run and had no core (Linux; 0 where the system does not say)."""
    total_ns = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total_ns += int(file.read_text().split()[1])
        except (OSError, IndexError, ValueError):  # a thread that just ended
            continue
    return total_ns * 1e-9
