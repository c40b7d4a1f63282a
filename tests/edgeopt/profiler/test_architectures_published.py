"""The planner on shipped model profiles reproduces published tables. Needs no torch."""

from __future__ import annotations

import pytest

from edgeopt import planner
from edgeopt.costs.diffusion import DiffusionCosts
from edgeopt.profiles import load_device, load_model
from edgeopt.profiles.device import Device
from edgeopt.profiles.problem import Constraints, ImageWorkload, Problem
from edgeopt.strategies import get_strategy
from edgeopt_solvers.chain import Solution, evaluate
from tests.edgeopt.factories import network

# NVlabs/T-Stitch ldm/README.md: seconds for 100 steps with a leading fraction on the small denoiser.
SECONDS = [7.1, 6.7, 6.2, 5.8, 5.3, 4.9, 4.5, 4.1, 3.6, 3.1, 2.9]
# Two constants for eleven rows, the least squares line through them: seconds of a step of the large and small denoiser.
LARGE_S, SMALL_S = 0.07107, 0.02784


@pytest.fixture(scope="module")
def tstitch():
    """One card, timed with both denoisers."""
    rows = [
        {
            "model": "tstitch-ldm", "variant": name, "phase": "step", "dtype": "float32", "batch": 2, "unit": "s",
            "elements": [seconds], "repeats": 1, "source": "fitted to NVlabs/T-Stitch ldm/README.md",
        }
        for name, seconds in (("large", LARGE_S), ("small", SMALL_S))
    ]  # fmt: skip
    card = load_device("rtx-3090")
    return Problem(
        name="tstitch",
        model=load_model("tstitch-ldm"),
        workload=ImageWorkload(steps=100, guidance=3.0),
        devices=[Device.model_validate({**card.model_dump(by_alias=True), "timings": rows})],
        network=network(),
    )


def test_tstitch_seconds_at_all_eleven_fractions(tstitch):
    strategy = get_strategy("multi_stage")
    chain = strategy.build(tstitch)
    for tenth, published in enumerate(SECONDS):
        small = 10 * tenth  # chain variant 1 is the large denoiser, 2 the small
        cuts = [cut for cut in (small, 100) if cut]
        stages = [variant for variant, length in ((2, small), (1, 100 - small)) if length]
        solution = Solution(cuts=tuple(dict.fromkeys(cuts)), devices=(0,) * len(stages), variants=tuple(stages))
        assert evaluate(chain, solution).metrics["latency_s"] == pytest.approx(published, rel=0.05)


def test_tstitch_best_fraction_is_found(tstitch):
    plan = planner.solve(tstitch.model_copy(update={"objective": "quality"}))
    assert plan.status == "optimal"
    assert [(stage.variant, stage.start, stage.stop) for stage in plan.stages] == [("small", 0, 40), ("large", 40, 100)]
    assert plan.quality == pytest.approx(18.60)


def test_tstitch_fastest_plan_within_a_quality_limit(tstitch):
    plan = planner.solve(tstitch.model_copy(update={"constraints": Constraints(quality=20.11)}))
    assert plan.stages[0].variant == "small"
    assert 50 <= plan.stages[0].stop <= 60  # as good as the large denoiser alone, at 70% of its time
    assert plan.latency_s < 0.7 * SECONDS[0]


@pytest.mark.parametrize("name", ["rtx-3060-12gb", "jetson-orin-nano-8gb", "macbook-m2-pro"])
def test_bk_sdm_variants_are_ordered_as_published(name):
    """Seconds fall from SD 1.5 to base, small and tiny; each distillation keeps less quality (MODEL_CARD.md)."""
    costs = DiffusionCosts(load_model("sd15-bksdm"), ImageWorkload(steps=25, guidance=7.5))
    seconds, _ = costs.compute_s(load_device(name))
    steps = seconds[1:, costs.first_step]
    assert costs.variants[1:] == ["sd15", "bk-base", "bk-small", "bk-tiny"]
    assert list(steps) == sorted(steps, reverse=True)
    assert len(set(steps)) == 4


def test_decoding_an_image_takes_three_denoising_calls_of_sd15():
    """KL-f8 at 512 x 512 is 2.515 TFLOP, one call of the U-Net 0.803: the decoder is a stage worth placing."""
    model = load_model("sd15-bksdm")
    assert model.decoder.flop == pytest.approx(2.515e12, rel=0.01)
    assert model.variants["sd15"].flop == pytest.approx(0.803e12, rel=0.01)
    assert model.decoder.flop / model.variants["sd15"].flop == pytest.approx(3.1, abs=0.05)
