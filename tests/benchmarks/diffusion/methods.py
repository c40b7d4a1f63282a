"""Ways to share one diffusion run among the three boards of the curve, each planned at its best, and their images.

``multi-stage`` and ``hierarchical`` are planned for the best quality within a time. The others run one denoiser from
first step to last, so each denoiser is planned for latency and the best one in time is taken. ``split`` cuts the large
denoiser, which neither fast board can hold alone, in two for them; ``patch`` gives each of the two its rows. Left free,
the planner would use one board for both wherever that is faster, which is what the ``single`` ones are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from edgeopt import planner
from edgeopt.costs.quality import asked_for
from edgeopt.errors import NoPlanError
from edgeopt.plan import Plan
from edgeopt.profiler.quality.cascade import LevelSampler, runs_of
from edgeopt.profiles import load_model
from edgeopt.profiles.device import Device
from edgeopt.profiles.model import Diffusion
from edgeopt.profiles.problem import CascadeWorkload, ImageWorkload, PatchOptions, Problem
from edgeopt.quality import SampleQuality
from edgeopt.training.digits import SIDE
from tests.benchmarks.diffusion.bench import Bench, limited, steps_of

__all__ = ["METHODS", "Methods", "Way", "at_speed", "cascade_problem", "is_cascade"]

METHODS = ("multi-stage", "split", "patch", "hierarchical", "single small", "single large")
#: The two fast boards.
PAIR = ("left", "right")


@dataclass(frozen=True)
class Way:
    """A plan of a method, what it runs in words, and the quality that its profile predicts.

    For a cascade that is of 16 x 16 images, in other features than the rest.
    """

    method: str
    plan: Plan
    text: str
    predicted: float


class Methods:
    """Plans of the methods, and what they make."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.cascade = load_model("digits-levels")
        self._levels: LevelSampler | None = None

    def best(self, method: str, problem: Problem, deadline_s: float | None = None) -> Way | None:
        """Return a method's plan of the best predicted quality within a time, the fastest of those if several are."""
        if method == "multi-stage":
            plan = _best_quality(problem, deadline_s)
        elif method == "hierarchical":
            plan = _best_quality(cascade_problem(problem, self.cascade), deadline_s)
        else:
            return self._one_denoiser(method, problem, deadline_s)
        return None if plan is None else self._way(method, plan)

    def as_good(self, problem: Problem, quality: float) -> Way | None:
        """Return the fastest multi-stage plan of at least this quality, as in the curves."""
        plan = _solved(limited(problem, quality=quality), "multi_stage")
        return None if plan is None else self._way("multi-stage", plan)

    def _one_denoiser(self, method: str, problem: Problem, deadline_s: float | None) -> Way | None:
        names = {"split": ["large"], "patch": self.bench.names}.get(method) or [method.removeprefix("single ")]
        found = []
        for name in names:
            plan = _whole(method, problem, name)
            if plan is not None and (deadline_s is None or plan.latency_s <= deadline_s):
                found.append(self._way(method, plan, name))
        return min(found, key=lambda way: (way.predicted, way.plan.latency_s), default=None)

    def _way(self, method: str, plan: Plan, denoiser: str | None = None) -> Way:
        if denoiser is not None:
            run = [self.bench.names.index(denoiser)] * self.bench.steps
            return Way(method, plan, denoiser, self.bench.predicted(run))
        if is_cascade(plan):
            assert plan.quality is not None
            return Way(method, plan, ", ".join(map(str, runs_of(plan))), plan.quality)
        run = steps_of(plan)
        return Way(method, plan, self.bench.spelled(run), self.bench.predicted(run))

    def images(self, way: Way) -> torch.Tensor:
        """Return a plan's images for the held-out labels, all plans' from the same noise; (N, 1, side, side)."""
        if is_cascade(way.plan):
            if self._levels is None:
                self._levels = LevelSampler(self.cascade, self.bench.reference.labels)
            return self._levels(runs_of(way.plan))
        return self.bench.drawn(self._run(way))

    def quality(self, way: Way) -> SampleQuality:
        """Compare a plan's images with held-out digits of 8 x 8 pixels; larger ones are averaged to that before."""
        if not is_cascade(way.plan):
            return self.bench.quality(self._run(way), 0)
        key = f"0 {self.bench.images} averaged {way.text}"
        return self.bench.kept(key, lambda: self.bench.reference.measure(averaged(self.images(way))))

    def _run(self, way: Way) -> list[int]:
        if way.text in self.bench.names:
            return [self.bench.names.index(way.text)] * self.bench.steps
        return steps_of(way.plan)

    def averaging(self) -> SampleQuality:
        """Return what real training digits score that were enlarged to 16 x 16 by the data's rule and averaged back."""
        from edgeopt.training.digits import enlarged_digits, load_digits

        train, _ = load_digits()
        images = enlarged_digits(train).images[: self.bench.images]
        return self.bench.kept(f"0 {self.bench.images} averaged real", lambda: self._compared(averaged(images)))

    def _compared(self, images: torch.Tensor) -> SampleQuality:
        return self.bench.reference.measure(images)


def averaged(images: torch.Tensor) -> torch.Tensor:
    """Average images to 8 x 8 pixels."""
    return torch.nn.functional.avg_pool2d(images, images.shape[-1] // SIDE)


def is_cascade(plan: Plan) -> bool:
    """Say whether a plan draws in two levels."""
    return plan.strategy == "hierarchical"


def cascade_problem(problem: Problem, cascade: Any) -> Problem:
    """Return the same boards and number of images with a cascade to run; its steps are the planner's to choose."""
    assert isinstance(problem.workload, ImageWorkload)
    load = CascadeWorkload(images=problem.workload.images)
    return problem.model_copy(update={"model": cascade, "strategy": "hierarchical", "workload": load})


def at_speed(device: Device, factor: float) -> Device:
    """Return a device that computes and reads its memory so many times as fast."""
    return device.model_copy(
        update={
            "compute": {dtype: factor * rate for dtype, rate in device.compute.items()},
            "memory_bandwidth": factor * device.memory_bandwidth,
            "launch_overhead": device.launch_overhead / factor,
        }
    )


def _whole(method: str, problem: Problem, denoiser: str) -> Plan | None:
    assert isinstance(problem.model, Diffusion)
    only = {denoiser: problem.model.variants[denoiser]}
    model = problem.model.model_copy(update={"variants": only, "quality": None})
    alone = problem.model_copy(update={"model": model})
    if method == "split":
        others = [device.name for device in problem.devices if device.name not in PAIR]
        return _solved(limited(alone, forbid=others), "split_diffusion")
    if method == "patch":
        return _solved(limited(alone, patch=PatchOptions(devices=list(PAIR))), "patch")
    return _solved(limited(alone, max_stages=1), "multi_stage")


def _best_quality(problem: Problem, deadline_s: float | None) -> Plan | None:
    limits = {} if deadline_s is None else {"deadline": deadline_s}
    best = _solved(limited(problem, **limits).model_copy(update={"objective": "quality"}), problem.strategy)
    if best is None:
        return None
    assert best.quality is not None
    floor = asked_for(problem, best.quality + 1e-9)
    return _solved(limited(problem, **limits, quality=floor), problem.strategy)


def _solved(problem: Problem, strategy: str) -> Plan | None:
    try:
        return planner.solve(problem.model_copy(update={"strategy": strategy}), strategy=strategy, diagnose=False)
    except NoPlanError:
        return None
