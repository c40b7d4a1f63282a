"""The trained digits as a bench: every run is sampled once per noise seed, beside what the profile predicts of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeopt.executor.netlab import missing
from edgeopt.plan import Plan
from edgeopt.profiler.quality import PlanSampler, Reference
from edgeopt.profiler.quality.family import noise_of
from edgeopt.profiles import load_model, load_problem
from edgeopt.profiles.model import AdditiveQuality, Diffusion
from edgeopt.profiles.problem import Problem
from edgeopt.quality import AdditiveFit, SampleQuality

__all__ = ["Bench", "limited", "runs", "steps_of"]

#: Held-out images that are compared when figures are to mean something, and in a shake-down.
FULL, QUICK = None, 64


class Bench:
    """Sampled and predicted quality of runs of the digits family.

    Parameters
    ----------
    quick
        Few images: everything runs, no figure means anything.
    store
        File that keeps what was sampled, so that a run that was cut off does not sample it again.
    figures
        Folder of the pictures of parts that draw; default: beside the store.
    predict_only
        No plan is run to measure its latency.
    """

    def __init__(self, quick: bool, store: Path, figures: Path | None = None, predict_only: bool = False) -> None:
        model = load_model("digits")
        assert isinstance(model, Diffusion)
        assert isinstance(model.quality, AdditiveQuality)
        self.model, self.profile, self.quick = model, model.quality, quick
        self.names, self.steps = list(model.variants), model.quality.steps
        self.reference = Reference(QUICK if quick else FULL)
        self.images = len(self.reference.images)
        loss = np.array([self.profile.loss[name] for name in self.names])
        self.fit = AdditiveFit(self.profile.base, loss, float("nan"))
        self._samplers: dict[int, PlanSampler] = {}
        self._store = store
        self.predict_only = predict_only or quick
        self.figures = figures or store.parent / "figures"
        self._known: dict[str, dict[str, Any]] = {}
        self.sampled_now = 0
        if store.exists():
            lines = [json.loads(line) for line in store.read_text(encoding="utf-8").splitlines()]
            self._known = {line["run"]: line["quality"] for line in lines}

    def not_run(self) -> str:
        """Say why latencies are predicted only; empty where plans are run on emulated hosts."""
        why = "a shake-down" if self.quick else "asked for without running" if self.predict_only else ""
        return why or missing() or ""

    def quality(self, run: Sequence[int], seed: int) -> SampleQuality:
        """Sample a run, given as its variant at each step, from the noise of a seed, and compare its images."""
        key = f"{seed} {self.images} {''.join(map(str, run))}"
        return self.kept(key, lambda: self.reference.measure(self.drawn(run, seed)))

    def drawn(self, run: Sequence[int], seed: int = 0) -> torch.Tensor:
        """Return the images of a run, one for each held-out digit's label."""
        if seed not in self._samplers:
            noise = noise_of(self.model, self.images, seed)
            self._samplers[seed] = PlanSampler(self.model, self.steps, self.reference.labels, noise)
        return self._samplers[seed](list(run))

    def kept(self, key: str, make: Callable[[], SampleQuality]) -> SampleQuality:
        """Return what was measured under a name, or measure it now."""
        if key not in self._known:
            self._known[key] = make().document()
            self.sampled_now += 1
            with self._store.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"run": key, "quality": self._known[key]}) + "\n")
        record = self._known[key]
        return SampleQuality(
            **{**record, "num_real": int(record["num_real"]), "num_samples": int(record["num_samples"])}
        )

    def sampled(self, run: Sequence[int], seed: int = 0) -> float:
        """Return the Fréchet distance of a run's samples."""
        return self.quality(run, seed).frechet

    def predicted(self, run: Sequence[int]) -> float:
        """Return what the profile's sum over steps says."""
        return float(self.fit.predict([run])[0])

    def without_margin(self, problem: Problem) -> Problem:
        """Return the problem with the profile's margin taken away."""
        bare = self.profile.model_copy(update={"margin": 0.0})
        return problem.model_copy(update={"model": self.model.model_copy(update={"quality": bare})})

    def problem(self, name: str = "digits-multistage") -> Problem:
        """Return a bundled problem."""
        return load_problem(name)

    def spelled(self, run: Sequence[int]) -> str:
        """Write a run as ``10 small, 15 large``."""
        return ", ".join(f"{len(list(same))} {self.names[v]}" for v, same in groupby(run))


def steps_of(plan: Plan) -> list[int]:
    """Return the index of a plan's variant at each step."""
    names = list(plan.problem.model.variants)  # type: ignore[union-attr]
    return [names.index(f"{stage.variant}") for stage in plan.stages for _ in range(stage.start, stage.stop)]


def runs(stages: Sequence[tuple[int, int]]) -> list[int]:
    """Write (variant, steps) pairs as a run."""
    return [variant for variant, count in stages for _ in range(count)]


def limited(problem: Problem, **limits: Any) -> Problem:
    """Return a problem with other constraints."""
    return problem.model_copy(update={"constraints": problem.constraints.model_copy(update=limits)})
