"""Small problems with every kind of limit, small enough that all their plans can be listed."""

from __future__ import annotations

import numpy as np

from edgeopt import planner
from edgeopt.profiles.problem import Problem
from tests.edgeopt.factories import device, diffusion_model, image_problem, language_model, network, text_problem
from tests.solvers.chain.brute import all_plans, metrics_of

QUALITY = {
    "form": "additive", "metric": "loss", "steps": 3, "base": 1.0, "handoff": 0.125,
    "loss": {"large": [0.0, 0.0, 0.0], "small": [0.25, 0.5, 1.0]}, "source": "numbers made for a test",
}  # fmt: skip


def drawn(seed: int, **fields) -> Problem:
    """Draw a problem of two or three devices: a language model of five elements, or three denoising steps."""
    rng = np.random.default_rng(seed)
    names = ["phone", "laptop", "server"][: rng.integers(2, 4)]
    devices = [
        device(
            name, gflops=float(rng.choice([1, 2, 5, 10, 20])), memory=1e9 * float(rng.choice([1.2, 2.2, 3.3, 4.5])),
            power={"busy": float(rng.choice([2, 5, 20])), "send": 1.0, "receive": 0.5},
        )
        for name in names
    ]  # fmt: skip
    limits = dict(fields.pop("constraints", {}))
    if rng.random() < 0.3:
        limits["deadline"] = float(rng.choice([3.0, 6.0, 12.0]))
    if rng.random() < 0.3:
        limits["max_stages"] = int(rng.integers(2, 4))
    if rng.random() < 0.3:
        limits["first"] = str(rng.choice(names))
    rest = {
        "devices": devices,
        "network": network(rate=float(rng.choice([1e4, 1e5, 1e6])), latency=float(rng.choice([0.01, 0.1]))),
        "objective": str(rng.choice(["latency", "latency", "throughput", "energy"])),
    }
    if rng.random() < 0.5:
        model = language_model(num_blocks=3, block_gflop=float(rng.choice([0.1, 0.5])), weights=1e9)
        workload = {"kind": "text", "prompt_tokens": 4, "new_tokens": 3}
        return text_problem(model=model, workload=workload, constraints=limits, **(rest | fields))
    if rng.random() < 0.5:
        limits["quality"] = float(rng.choice([1.0, 1.375, 2.0]))
    workload = {"kind": "image", "steps": 3}
    return image_problem(model=diffusion_model(QUALITY), workload=workload, constraints=limits, **(rest | fields))


def listed(problem: Problem, chain=None):
    """Return chain, devices, variants, metrics (in the problem's own words) and values of all plans that keep limits.

    ``chain`` stands in for the one that the problem's strategy builds.
    """
    technique = planner.choose_strategy(problem, problem.strategy)
    chain = chain or technique.build(problem)
    dev, var = all_plans(chain)
    metrics, ok = metrics_of(chain, dev, var)
    base = 1.0 if problem.strategy == "multi_stage" else 0.0
    kept = {name: values[ok] for name, values in metrics.items()}
    kept["quality"] = kept["quality"] + base
    return chain, dev[ok], var[ok], kept, kept[str(problem.objective)]


def fifty(first: int) -> list[Problem]:
    """Draw fifty problems that have a plan: of the first seeds any, then those of two devices, listed fast."""
    found: list[Problem] = []
    seed = -1
    while len(found) < 50:
        seed += 1
        problem = drawn(seed)
        if (seed < first or len(problem.devices) == 2) and listed(problem)[-1].size:
            found.append(problem)
    return found
