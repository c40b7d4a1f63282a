"""Seconds of every chain element inside whole runs of a program, by the very code that executes plans.

An element lasts from the end of the one before it to its own end, so that the elements of a stage add up to the stage:
masks and positions count to the first block that needs them, sampling to the head, the solver's update to its step.
"""

from __future__ import annotations

import gc
import time
from pathlib import Path

import torch

from edgeopt import programs
from edgeopt.plan import Plan
from edgeopt.profiler.jobs import ElementAnswer, ElementJob, ElementSamples
from edgeopt.programs.base import Program

__all__ = ["measure_elements"]


def measure_elements(job: ElementJob) -> ElementAnswer:
    """Run whole requests of one plan after the other, all stages in this process."""
    return ElementAnswer(plans=[_samples(plan, job) for plan in job.plans])


def _samples(plan: Plan, job: ElementJob) -> ElementSamples:
    program = programs.build(plan, range(len(plan.stages)))
    requests, waited_s = [], []
    for _ in range(job.warmup + job.repeats):
        before_s = _waited_s()
        requests.append(_request(program, job.seed))
        waited_s.append(_waited_s() - before_s)
    requests = requests[job.warmup :]
    return ElementSamples(
        elements_s=requests, requests_s=[sum(map(sum, rounds)) for rounds in requests], waited_s=waited_s[job.warmup :]
    )


def _request(program: Program, seed: int) -> list[list[float]]:
    stages = program.plan.stages
    message = program.request(seed)
    rounds: list[list[float]] = []
    gc.collect()  # as between requests of a run
    program.begin()
    with torch.inference_mode():
        for round_index in range(program.rounds):
            elements = [0.0] * stages[-1].stop
            for stage in stages:
                marks: list[tuple[int, float]] = []
                program.on_element = lambda element, marks=marks: marks.append((element, time.perf_counter()))
                before = time.perf_counter()
                message = program.run(stage.index, round_index, message)
                marks[-1] = (marks[-1][0], time.perf_counter())
                assert [element for element, _ in marks] == list(range(stage.start, stage.stop))
                for element, moment in marks:
                    elements[element] = moment - before
                    before = moment
            rounds.append(elements)
    return rounds


def _waited_s() -> float:
    """Seconds that this process's threads could have run and had no core (Linux; 0 where the system does not say)."""
    total_ns = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total_ns += int(file.read_text().split()[1])
        except (OSError, IndexError, ValueError):  # a thread that just ended
            continue
    return total_ns * 1e-9
