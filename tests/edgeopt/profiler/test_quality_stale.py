"""What asynchronous patches lose: measured, with every division of the rows between two strides."""

from __future__ import annotations

import pytest

from edgeopt import planner
from edgeopt.profiles import load_model
from tests.edgeopt.factories import device, image_problem, network

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]


def test_the_largest_loss_over_divisions_is_written_down():
    from edgeopt.profiler.quality.stale import stale_quality

    digits = load_model("digits")
    small = digits.model_copy(update={"variants": {"small": digits.variants["small"]}})
    lines: list[str] = []
    found = stale_quality(
        small, steps=6, warmup_steps=(1,), strides=(2,), strided_warmup_steps=(1, 6), num_samples=64,
        progress=lines.append,
    )  # fmt: skip
    (strided,) = found.strided
    losses = [float(one) for one in lines[1].split(":")[-1].split(" to ")[0].split(",")]
    assert len(losses) == 6
    assert len(set(losses)) > 3, "each of another division"
    assert strided.loss["small"][0] == pytest.approx(max(*losses, 0.0), abs=1e-4)
    assert strided.loss["small"][0] > found.loss["small"][0] > 0
    assert strided.loss["small"][1] == pytest.approx(0.0, abs=1e-2), "nothing is stale after the last step"


def test_the_bundled_losses_decide():
    """Of the largest digits model: within a floor that only strides of 2, or none, keep."""
    digits = load_model("digits")
    machines = [device("phone", 1, launch_overhead=1e-6), device("desktop", 2, launch_overhead=1e-6)]
    chosen = {}
    for floor in (2.1, 2.45, 3.6):
        problem = image_problem(
            model=digits.model_copy(update={"variants": {"large": digits.variants["large"]}}), devices=machines,
            network=network(rate=1e10, latency=1e-7), strategy="patch",
            workload={"kind": "image", "steps": 25, "images": 64},
            constraints={
                "quality": floor, "patch": {"mode": "asynchronous", "warmup_steps": 1, "max_stride": 4}
            },
        )  # fmt: skip
        plan = planner.solve(problem)
        chosen[floor] = (max(plan.decisions["strides"]), plan.quality)
    assert [stride for stride, _ in chosen.values()] == [1, 2, 4]
    assert all(quality <= floor for floor, (_, quality) in chosen.items())
