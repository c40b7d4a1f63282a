"""What asynchronous patches lose: the same images from the same noise, with fresh context and with stale.

Every denoiser runs in equal patches on devices that do not exist. A run that happens to come out better loses nought.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from itertools import pairwise

import torch

from edgeopt.plan import Plan
from edgeopt.profiler.quality.reference import Reference
from edgeopt.profiles.device import Device
from edgeopt.profiles.model import Diffusion, StaleQuality
from edgeopt.profiles.network import Network
from edgeopt.profiles.problem import Problem
from edgeopt.programs.parties import rehearse
from edgeopt.programs.patch import Patch
from edgeopt.strategies import get_strategy
from edgeopt_solvers import Result, Status
from edgeopt_solvers.divisible import Solution, evaluate

__all__ = ["stale_quality"]

_SOURCE = "made up: quality does not depend on how fast a device is"


def stale_quality(
    model: Diffusion,
    *,
    steps: int = 25,
    patches: int = 2,
    warmup_steps: Sequence[int] = (1, 2, 4, 8),
    num_samples: int | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> StaleQuality:
    """Measure by how much the metric rises.

    Parameters
    ----------
    warmup_steps
        Synchronous steps before the stale ones.
    num_samples
        As in :class:`~edgeopt.profiler.quality.reference.Reference`.
    seed
        Of the noise, the same for every run.

    Raises
    ------
    InputError
        The model does not make the images that its quality is measured on.
    """
    reference = Reference(num_samples)
    reference.check(model)
    losses: dict[str, list[float]] = {}
    for name, variant in model.variants.items():
        if variant.patch is None:
            continue
        alone = model.model_copy(update={"variants": {name: variant}, "quality": None})
        images = len(reference.labels)

        def distance(mode: str, warmup: int, alone: Diffusion = alone, images: int = images) -> float:
            plan = _equal_patches(alone, steps, images, patches, mode, warmup, seed)
            (made,) = rehearse(plan, seed, lambda plan, stages: _Labelled(plan, stages, reference.labels))
            return reference.measure(made).frechet

        fresh = distance("synchronous", 1)
        losses[name] = []
        for warmup in warmup_steps:
            loss = distance("asynchronous", warmup) - fresh
            progress(f"{name}: {warmup} synchronous steps of {steps}: {loss:+.4f} to {fresh:.4f}")
            losses[name].append(round(max(loss, 0.0), 4))
    return StaleQuality(
        steps=steps,
        patches=patches,
        warmup_steps=list(warmup_steps),
        loss=losses,
        source=f"measured on {date.today().isoformat()} by python -m edgeopt.profiler.quality.stale: "
        f"{len(reference.labels)} images, the same labels and noise with fresh context and with stale",
    )


class _Labelled(Patch):
    """Makes images of given labels."""

    def __init__(self, plan: Plan, stages: Sequence[int], labels: torch.Tensor) -> None:
        super().__init__(plan, stages)
        self._asked = labels

    def request(self, seed: int) -> list[torch.Tensor]:
        """Ask for the reference's labels."""
        return [self._asked]


def _equal_patches(model: Diffusion, steps: int, images: int, patches: int, mode: str, warmup: int, seed: int) -> Plan:
    devices = [
        Device.model_validate(
            {
                "name": f"d{k}", "source": _SOURCE, "compute": {model.dtype: 1e9}, "memory": 1e12,
                "memory_bandwidth": 1e9, "launch_overhead": 1e-6, "runtime": {"threads": 1},
                "efficiency": {"compute": 1.0, "memory_bandwidth": 1.0, "basis": "assumed"},
            }
        )
        for k in range(patches)
    ]  # fmt: skip
    network = Network.model_validate({"name": "n", "source": _SOURCE, "default": {"rate": 1e9, "latency": 0.0}})
    problem = Problem.model_validate(
        {
            "name": "stale", "model": model, "strategy": "patch", "devices": devices, "network": network,
            "workload": {"kind": "image", "steps": steps, "images": images, "seed": seed},
            "constraints": {"patch": {"mode": mode, "warmup_steps": warmup, "devices": [d.name for d in devices]}},
        }
    )  # fmt: skip
    technique = get_strategy("patch")
    instance = technique.build(problem)
    bounds = [instance.num_units * k // patches for k in range(patches + 1)]
    loads = [b - a for a, b in pairwise(bounds)]
    solution = Solution(tuple(loads), (1.0,) * patches)
    value = evaluate(instance, solution)
    status = Status("gap_reached", True)
    return technique.plan(
        problem, instance, Result(status, value.objective, 0.0, solution, "hand", 0.0, dict(value.metrics))
    )


if __name__ == "__main__":
    from edgeopt.profiles import load_model
    from edgeopt.profiles.writer import to_yaml

    digits = load_model("digits")
    assert isinstance(digits, Diffusion)
    print(to_yaml({"stale": stale_quality(digits, progress=print).model_dump(mode="json")}))
