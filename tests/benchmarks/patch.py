"""Patches in proportion to speed against equal ones, on two emulated hosts of which one has half the other's speed.

    python tests/benchmarks/patch.py [--quick] [--repeat 5] [--rate "1 Gbit/s"] [--latency "0.2 ms"]

Needs root on Linux and two idle cores, and takes about two minutes. A step of the denoiser is measured first, on one
thread; then both divisions are planned and executed, synchronously and with stale context. The last line is one JSON
document: measured and predicted seconds, and how many times faster the planned division is (the goal is 1.25).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edgeopt.executor import execute
from edgeopt.executor.netlab import missing
from edgeopt.plan import Plan
from edgeopt.profiles import load_model
from edgeopt.profiles.device import Device
from edgeopt.profiles.model import Diffusion
from edgeopt.profiles.problem import Problem
from edgeopt.strategies import get_strategy
from edgeopt_solvers import Result, Status, solve
from edgeopt_solvers.divisible import Divisible, Solution, evaluate

SOURCE = "measured by tests/benchmarks/patch.py in this run"
SPEEDS = {"slow": 0.5, "fast": 1.0}
MODES = ("synchronous", "asynchronous")


def step_seconds(model: Diffusion, repeats: int) -> float:
    """Median seconds of one step of the whole latent, on one thread."""
    import torch

    from edgeopt.programs.denoisers import DENOISERS, build_component, predictor

    (variant,) = model.variants.values()
    assert variant.architecture is not None
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    module = build_component(variant.architecture, tuple(DENOISERS), "model.variants", dtype=torch.float32, device=cpu)
    call = predictor(variant.architecture)[0]
    x, label = torch.randn(1, *model.latent_shape), torch.zeros(1, dtype=torch.int64)
    taken = []
    with torch.inference_mode():
        for _ in range(repeats + 2):
            started = time.perf_counter()
            call(module, x, torch.tensor(500), label)
            taken.append(time.perf_counter() - started)
    return statistics.median(taken[2:])


def problem_of(model: Diffusion, step_s: float, steps: int, mode: str, rate: str, latency: str) -> Problem:
    """Return two devices that differ by their pace alone."""
    devices = [
        Device.model_validate(
            {
                "name": name, "source": SOURCE, "compute": {"float32": 1e11}, "memory": 4e9, "memory_bandwidth": 1e10,
                "launch_overhead": 1e-6, "efficiency": {"compute": 1.0, "memory_bandwidth": 1.0, "basis": "assumed"},
                "runtime": {"threads": 1, "cpu_quota": None if speed == 1 else speed},
                "timings": [
                    {"model": model.name, "phase": "step", "variant": next(iter(model.variants)), "dtype": "float32",
                     "batch": 1, "unit": "s", "repeats": 5, "source": SOURCE, "elements": [step_s / speed]}
                ],
            }
        )
        for name, speed in SPEEDS.items()
    ]  # fmt: skip
    network = {"name": "wire", "source": SOURCE, "default": {"rate": rate, "latency": latency}}
    return Problem.model_validate(
        {
            "name": "patch-benchmark", "model": model, "strategy": "patch",
            "workload": {"kind": "image", "steps": steps}, "devices": devices, "network": network,
            "constraints": {"source": "fast", "patch": {"mode": mode, "warmup_steps": 2, "devices": list(SPEEDS)}},
        }
    )  # fmt: skip


def plans_of(problem: Problem) -> dict[str, Plan]:
    """Return the equal division and the planned one."""
    technique = get_strategy("patch")
    instance: Divisible = technique.build(problem)
    half = instance.num_units // 2
    equal = Solution((half, instance.num_units - half), (1.0, 1.0))
    value = evaluate(instance, equal)
    given = Result(Status("gap_reached", True), value.objective, 0.0, equal, "hand", 0.0, dict(value.metrics))
    return {
        "equal": technique.plan(problem, instance, given),
        "planned": technique.plan(problem, instance, solve(instance)),
    }


def main() -> None:
    """Measure, plan, execute, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one repeat of four steps, to see that all of it works")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--rate", default="1 Gbit/s")
    parser.add_argument("--latency", default="0.2 ms")
    asked = parser.parse_args()
    if reason := missing():
        raise SystemExit(f"no emulated hosts here: {reason}")
    model = load_model("demo-patch")
    assert isinstance(model, Diffusion)
    repeat, steps = (1, 4) if asked.quick else (asked.repeat, 12)
    step_s = step_seconds(model, 3 if asked.quick else 9)
    print(f"a step of the whole latent takes {step_s:.4g} s on one thread", file=sys.stderr, flush=True)
    found: dict[str, Any] = {}
    for mode in MODES:
        for name, plan in plans_of(problem_of(model, step_s, steps, mode, asked.rate, asked.latency)).items():
            report = execute(plan, on="emulated", repeat=repeat, warmup=1, timeout_s=600)
            assert report.output is not None
            found[f"{mode} {name}"] = {
                "units": plan.decisions["units"],
                "predicted_s": plan.latency_s,
                "measured_s": report.latency_s.median,
                "spread_s": report.latency_s.spread,
                "relative_error": report.latency_s.relative_error,
                "equal": report.output.equal,
            }
            print(f"{mode} {name}: {found[f'{mode} {name}']}", file=sys.stderr, flush=True)
    gains = {mode: found[f"{mode} equal"]["measured_s"] / found[f"{mode} planned"]["measured_s"] for mode in MODES}
    document = {"benchmark": "patch", "quick": asked.quick, "step_s": step_s, "runs": found, "times_faster": gains}
    print(json.dumps(document, allow_nan=False))


if __name__ == "__main__":
    main()
