"""Clusters of emulated devices, and plans for them: the best one and others that were merely drawn.

Devices differ by the fraction of this machine's speed that they compute at. Their profiles are measured once, before
anything is planned. No device is given memory for a whole model, so every plan is split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from edgeopt import planner
from edgeopt.executor.cores import awake
from edgeopt.plan import Plan
from edgeopt.profiler import profile_device, profile_model
from edgeopt.profiler.device import slowed
from edgeopt.profiles import load_model
from edgeopt.profiles.device import Device
from edgeopt.profiles.model import CausalLM, Model
from edgeopt.profiles.network import Link, Network
from edgeopt.profiles.problem import Constraints, ImageWorkload, Problem, TextWorkload, Workload
from edgeopt_solvers import Result, Status
from edgeopt_solvers.chain import Solution, evaluate

__all__ = [
    "MODELS", "PROMPTS", "SPEEDS", "Cluster", "draw_cluster", "draw_plan", "draw_problem", "measured_devices", "priced",
    "timed_again",
]  # fmt: skip

#: Fractions of this machine's speed: 1 to 4 times.
SPEEDS = (1.0, 0.8, 0.6, 0.5, 0.35, 0.25)
MODELS = {"pipeline": "demo-llm", "multi_stage": "demo-diffusion"}
#: Prompts that are profiled, and the most tokens that are made.
PROMPTS, NEW_TOKENS = (32, 64), 16
_MBIT = 1e6 / 8
_COMMAND = "tests/benchmarks/executor.py"


@dataclass(frozen=True)
class Cluster:
    """A drawn problem and its name."""

    name: str
    problem: Problem


def measured_devices(
    repeats: int, processes: int, say, measured: Sequence[tuple[Model, Workload]] | None = None, command: str = _COMMAND
) -> list[Device]:
    """Measure this machine with one thread, and derive the slower devices from it.

    ``measured`` are the models to time, each under a workload; default: those of :data:`MODELS`.
    """
    with awake():  # as on emulated hosts
        pairs = _measured() if measured is None else measured
        whole = profile_device(
            "speed-100", threads=1, models=[model for model, _ in pairs], workloads=[load for _, load in pairs],
            repeats=repeats, processes=processes, progress=say, command=command,
        )  # fmt: skip
    return _slower_ones(whole)


def timed_again(whole: Device, model: Model, load: Workload, repeats: int, command: str) -> list[Device]:
    """Time one request by one process more, and derive all devices from what it took this time."""
    with awake():
        return _slower_ones(profile_model(whole, [model], [load], repeats=repeats, processes=1, command=command))


def _slower_ones(whole: Device) -> list[Device]:
    return [slowed(whole, quota, f"speed-{round(100 * quota)}") for quota in SPEEDS]


def _measured() -> list[tuple[Model, Workload]]:
    llm, diffusion = (load_model(name) for name in MODELS.values())
    loads = [TextWorkload(prompt_tokens=prompt, new_tokens=NEW_TOKENS) for prompt in PROMPTS]
    return [*((llm, load) for load in loads), (diffusion, ImageWorkload(steps=4))]


def draw_cluster(rng: np.random.Generator, name: str, strategy: str, devices: list[Device], steps: int) -> Cluster:
    """Draw 2 to 5 devices, links of 10 to 1000 Mbit/s and 1 to 50 ms, and a request."""

    def load_of(model: Model) -> Workload:
        if isinstance(model, CausalLM):
            return TextWorkload(prompt_tokens=int(rng.choice(PROMPTS)), new_tokens=int(rng.integers(6, NEW_TOKENS + 1)))
        return ImageWorkload(steps=int(rng.integers(steps - 1, steps + 2)))

    return Cluster(name, draw_problem(rng, name, strategy, load_model(MODELS[strategy]), load_of, devices))


def draw_problem(
    rng: np.random.Generator,
    name: str,
    strategy: str,
    model: Model,
    load_of: Callable[[Model], Workload],
    devices: list[Device],
    most: int = 5,
) -> Problem:
    """Draw 2 to ``most`` devices, links, and what ``load_of`` draws for the model."""
    chosen = [devices[i] for i in rng.permutation(len(devices))[: rng.integers(2, most + 1)]]
    needed = _needed_bytes(model)
    shares = rng.uniform(0.5, 1.0, len(chosen))
    # Together they hold more than the model, and none of them all of it.
    memory = needed * np.clip(1.6 * shares / shares.sum(), 0.3, 0.8)
    chosen = [
        device.model_copy(update={"memory": float(room), "margin": None})
        for device, room in zip(chosen, memory, strict=True)
    ]
    links = []
    for i, a in enumerate(chosen):
        for b in chosen[i + 1 :]:
            rate = _MBIT * float(np.exp(rng.uniform(np.log(10), np.log(1000))))
            latency = 1e-3 * float(np.exp(rng.uniform(np.log(1), np.log(50))))
            links.append(Link(between=(a.name, b.name), rate=rate, latency=latency))
    network = Network(name=f"links-{name}", source="drawn for the campaign", links=links)
    return Problem(
        name=name, model=model, strategy=strategy, workload=load_of(model), devices=chosen, network=network,
        constraints=Constraints(source=chosen[0].name),
    )  # fmt: skip


def _needed_bytes(model) -> float:
    if isinstance(model, CausalLM):
        return sum(layer.count * layer.weights for layer in model.layers)
    return sum(part.weights for part in (model.text_encoder, model.decoder, *model.variants.values()))


def draw_plan(rng: np.random.Generator, problem: Problem, tries: int = 2000) -> Plan | None:
    """Draw decisions that keep every limit, and write them down as a plan; ``None``: none was found."""
    technique = planner.choose_strategy(problem, problem.strategy)
    chain = technique.build(problem)
    draw = _language_decisions if chain.reuse == "once" else _diffusion_decisions
    for _ in range(tries):
        solution = draw(rng, chain)
        if solution is not None and not evaluate(chain, solution).violations:
            return priced(problem, solution)
    return None


def priced(problem: Problem, solution: Solution) -> Plan:
    """Return the plan of given decisions: what the profiles predict for them, with no claim to be good."""
    technique = planner.choose_strategy(problem, problem.strategy)
    chain = technique.build(problem)
    found = evaluate(chain, solution)
    status = Status("gap_reached", True)
    result = Result(status, found.objective, 0.0, solution, "drawn", 0.0, dict(found.metrics))
    return technique.plan(problem, chain, result)


def _language_decisions(rng: np.random.Generator, chain) -> Solution:
    count = int(rng.integers(1, chain.num_devices + 1))
    cuts = sorted(int(c) for c in rng.permutation(np.arange(1, chain.num_elements))[: count - 1])
    devices = tuple(int(d) for d in rng.permutation(chain.num_devices)[:count])
    return Solution((*cuts, chain.num_elements), devices, (0,) * count, None)


def _diffusion_decisions(rng: np.random.Generator, chain) -> Solution | None:
    """Encoder, one to three groups of steps with a denoiser each, decoder: all somewhere."""
    last = chain.num_elements - 1
    inner = sorted(int(c) for c in rng.permutation(np.arange(2, last))[: rng.integers(3)])
    groups = len(inner) + 1  # a run of two steps has two at most
    cuts = (1, *inner, last, chain.num_elements)
    devices = tuple(int(d) for d in rng.integers(chain.num_devices, size=len(cuts)))
    # The large denoiser costs five times the small one: one group of three uses it.
    variants = (0, *(2 if rng.random() < 2 / 3 else 1 for _ in range(groups)), 0)
    if any(a == b for a, b in pairwise(zip(devices, variants, strict=True))):
        return None
    return Solution(cuts, devices, variants, None)
