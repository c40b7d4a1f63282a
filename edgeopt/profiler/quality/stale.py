"""What asynchronous patches lose: the same images from the same noise, with fresh context and with stale.

Every denoiser runs in equal patches on devices that do not exist. A run that happens to come out better loses nought.
Where one of two patches leaves steps out, the largest loss counts: of a quarter, half and three quarters of the rows,
above and below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from fractions import Fraction
from itertools import pairwise

import torch

from edgeopt.plan import Plan
from edgeopt.profiler.quality.reference import Reference
from edgeopt.profiles.device import Device
from edgeopt.profiles.model import Diffusion, StaleQuality, StridedLoss
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
    strides: Sequence[int] = (2, 4),
    strided_warmup_steps: Sequence[int] = (1, 4),
    num_samples: int | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> StaleQuality:
    """Measure by how much the metric rises.

    Parameters
    ----------
    warmup_steps
        Synchronous steps before the stale ones.
    strides, strided_warmup_steps
        Every how many steps one of two patches computes after so many synchronous ones.
    num_samples
        As in :class:`~edgeopt.profiler.quality.reference.Reference`.
    seed
        Of the noise, the same for every run.

    Raises
    ------
    InputError
        The model does not make the images that its quality is measured on.
    """
    reference = Reference.of(model, num_samples)
    losses: dict[str, list[float]] = {}
    strided: dict[int, dict[str, list[float]]] = {stride: {} for stride in strides}
    for name, variant in model.variants.items():
        if variant.patch is None:
            continue
        alone = model.model_copy(update={"variants": {name: variant}, "quality": None})
        images = len(reference.labels)

        equal = [Fraction(1, patches)] * patches

        def distance(
            mode: str,
            warmup: int,
            shares: Sequence[Fraction] = equal,
            taken: Sequence[int] = (),
            alone: Diffusion = alone,
            images: int = images,
        ) -> float:
            plan = _patches(alone, steps, images, shares, mode, warmup, taken, seed)
            (made,) = rehearse(plan, seed, lambda plan, stages: _Labelled(plan, stages, reference.labels))
            return reference.frechet(made)

        fresh = distance("synchronous", 1)
        losses[name] = []
        for warmup in warmup_steps:
            loss = distance("asynchronous", warmup) - fresh
            progress(f"{name}: {warmup} synchronous steps of {steps}: {loss:+.4f} to {fresh:.4f}")
            losses[name].append(round(max(loss, 0.0), 4))
        for stride in strides:
            strided[stride][name] = []
            for warmup in strided_warmup_steps:
                found = [
                    distance("asynchronous", warmup, [share, 1 - share], taken) - fresh
                    for share in (Fraction(1, 4), Fraction(1, 2), Fraction(3, 4))
                    for taken in ([1, stride], [stride, 1])
                ]
                each = ", ".join(f"{loss:+.4f}" for loss in found)
                progress(
                    f"{name}: every {stride}. step after {warmup} synchronous ones of {steps}: {each} to {fresh:.4f}"
                )
                strided[stride][name].append(round(max(*found, 0.0), 4))
    measured = f"measured on {date.today().isoformat()} by python -m edgeopt.profiler.quality.stale: "
    measured += f"{len(reference.labels)} images, the same labels and noise with fresh context and with stale"
    return StaleQuality(
        steps=steps,
        patches=patches,
        warmup_steps=list(warmup_steps),
        loss=losses,
        strided=[
            StridedLoss(
                stride=stride,
                warmup_steps=list(strided_warmup_steps),
                loss=loss,
                source=f"{measured}; the largest over a quarter, half and three quarters of the rows, above and below",
            )
            for stride, loss in strided.items()
        ],
        source=measured,
    )


class _Labelled(Patch):
    """Makes images of given labels."""

    def __init__(self, plan: Plan, stages: Sequence[int], labels: torch.Tensor) -> None:
        super().__init__(plan, stages)
        self._asked = labels

    def request(self, seed: int) -> list[torch.Tensor]:
        """Ask for the reference's labels."""
        return [self._asked]


def _patches(
    model: Diffusion,
    steps: int,
    images: int,
    shares: Sequence[Fraction],
    mode: str,
    warmup: int,
    strides: Sequence[int],
    seed: int,
) -> Plan:
    devices = [
        Device.model_validate(
            {
                "name": f"d{k}", "source": _SOURCE, "compute": {model.dtype: 1e9}, "memory": 1e12,
                "memory_bandwidth": 1e9, "launch_overhead": 1e-6, "runtime": {"threads": 1},
                "efficiency": {"compute": 1.0, "memory_bandwidth": 1.0, "basis": "assumed"},
            }
        )
        for k in range(len(shares))
    ]  # fmt: skip
    network = Network.model_validate({"name": "n", "source": _SOURCE, "default": {"rate": 1e9, "latency": 0.0}})
    problem = Problem.model_validate(
        {
            "name": "stale", "model": model, "strategy": "patch", "devices": devices, "network": network,
            "workload": {"kind": "image", "steps": steps, "images": images, "seed": seed},
            "constraints": {
                "patch": {
                    "mode": mode, "warmup_steps": warmup, "devices": [d.name for d in devices],
                    "strides": list(strides), "max_stride": max(strides, default=1),
                }
            },
        }
    )  # fmt: skip
    technique = get_strategy("patch")
    instance = technique.build(problem)
    bounds = [int(instance.num_units * sum(shares[:k])) for k in range(len(shares) + 1)]
    loads = [b - a for a, b in pairwise(bounds)]
    solution = Solution(tuple(loads), (1.0,) * len(shares))
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
