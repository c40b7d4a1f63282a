"""Slabs that are timed alone: they compute what patches do, and a plan made of their timings runs."""

from __future__ import annotations

import pytest

from edgeopt import planner, programs
from edgeopt.costs.diffusion import DiffusionCosts
from edgeopt.costs.patch import PatchCosts
from edgeopt.profiler.timings import Measuring, slab_rows
from edgeopt.profiles.device import Runtime
from edgeopt.profiles.model import Architecture, Sampler
from edgeopt.profiles.problem import ImageWorkload, PatchOptions
from tests.edgeopt.factories import device, image_problem, network

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
from edgeopt.profiler import slabs  # noqa: E402
from edgeopt.profiler.architectures.family import Family, diffusion  # noqa: E402
from edgeopt.profiler.elements import measure_elements  # noqa: E402
from edgeopt.programs import patch  # noqa: E402
from edgeopt.programs.parties import rehearse  # noqa: E402
from edgeopt.programs.slabs import StandIn, cut_into_slabs  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def model():
    config = {
        "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 4, "num_layers": 2,
        "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 10, "norm_num_groups": 1,
    }  # fmt: skip
    small = Architecture(library="diffusers", class_name="DiTTransformer2DModel", config=config)
    unet = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "block_out_channels": [8, 16],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "norm_num_groups": 4, "attention_head_dim": 8, "num_class_embeds": 11,
    }  # fmt: skip
    variants = {"dit": small, "unet": Architecture(library="diffusers", class_name="UNet2DModel", config=unet)}
    family = Family([4, 8, 8], Sampler(class_name="DDIMScheduler"), variants, dtype="float32")
    return diffusion(family, name="tiny", source="made up for a test")


@pytest.mark.parametrize(
    ("total", "multiple", "rows"),
    [(48, 2, [12, 24, 36]), (8, 2, [2, 4, 6]), (6, 2, [2, 4]), (4, 2, []), (8, 8, []), (64, 8, [16, 32, 48])],
)
def test_heights_that_are_timed(total, multiple, rows):
    assert slab_rows(total, multiple) == rows


def test_slabs_are_timed_beside_whole_steps_and_planned_with(model):
    model = model.model_copy(update={"variants": {"dit": model.variants["dit"]}})
    load = ImageWorkload(steps=3, images=2)
    measuring = Measuring(model, [load], Runtime(threads=1), patches=True)
    measuring.add(measure_elements(measuring.job(1, warmup=0)))
    rows = measuring.timings("a test")
    assert [(row.phase, row.variant, row.rows, row.batch) for row in rows] == [
        ("step", "dit", None, 2), ("slab", "dit", 2, 2), ("slab", "dit", 4, 2), ("slab", "dit", 6, 2),
    ]  # fmt: skip
    line = PatchCosts(DiffusionCosts(model, load), PatchOptions()).slab_line(device("a", timings=rows))
    assert line is not None
    assert sum(line[:2]) > 0

    # Whatever this machine took, these pay in patches; the plan is then run.
    rows = [row.model_copy(update={"elements": [1.0 + (row.rows or 40)]}).model_dump() for row in rows]
    plan = planner.solve(
        image_problem(
            model=model, strategy="patch", workload={"kind": "image", "steps": 3, "images": 2},
            devices=[device(name, timings=rows) for name in ("a", "b")], network=network(rate=1e12, latency=0.0),
        )
    )  # fmt: skip
    assert [stage.stop - stage.start for stage in plan.stages] == [4, 4]
    assert plan.latency_s == pytest.approx(3 * 5e-3, rel=1e-3)
    verdict = programs.compare(plan, rehearse(plan, 5), patch.reference(plan, 5))
    assert verdict["equal"]


def test_only_what_lies_between_exchanges_is_timed(model, monkeypatch):
    """A clock that goes on by one whenever it is read: a step of n exchanges is read 2 (n + 1) times."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(slabs.time, "perf_counter", lambda: float(next(ticks)))
    measuring = Measuring(model, [ImageWorkload(steps=3)], Runtime(threads=1), patches=True)
    plans = {(p.stages[0].variant, p.stages[0].stop): p for p in measuring.job(1).plans if p.strategy == "patch"}
    exchange = model.variants["dit"].patch
    assert slabs.Slab(plans["dit", 6]).steps_s(0) == [exchange.messages + 1.0] * 3
    assert slabs.Slab(plans["unet", 4]).steps_s(0) == [next(iter(slabs.Slab(plans["unet", 2]).steps_s(0)))] * 3


def test_who_is_not_there_has_as_much_to_say():
    asked = []

    class Asked(StandIn):
        def swap(self, kind, outgoing, expected):
            found = super().swap(kind, outgoing, expected)
            asked.append((kind, {k: tuple(each.shape) for k, each in found.items()}))
            return found

    exchange = Asked(2, 6)
    both = exchange.gather([torch.ones(1, 4, 3), torch.full((1, 4, 2), 2.0)])
    assert asked == [("context", {1: (1, 12, 5)})]
    assert both.shape == (1, 16, 5)
    assert (both[..., :3] == 1).all()
    assert (both[..., 3:] == 2).all()


def test_one_slab_is_left_as_it_is():
    module = torch.nn.Conv2d(4, 4, 3, padding=1)
    before = module.forward
    exchange = StandIn(8, 0)
    exchange.rows = (8,)
    cut_into_slabs(module, exchange)
    assert module.forward == before
