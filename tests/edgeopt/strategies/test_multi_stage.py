"""Multi-stage diffusion against arithmetic done by hand, and against published tables."""

from __future__ import annotations

import numpy as np
import pytest

from edgeopt import planner
from edgeopt.costs.quality import resample
from edgeopt.errors import InputError, NoPlanError
from edgeopt.profiles import load_problem
from edgeopt.questions.frontier import frontier
from tests.edgeopt.factories import SOURCE, device, diffusion_model, image_problem, network

# T-Stitch LDM, ImageNet-256, 100 steps (NVlabs/T-Stitch ldm/README.md): FID-5K by leading fraction run small.
FRACTIONS = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
SECONDS = [7.1, 6.7, 6.2, 5.8, 5.3, 4.9, 4.5, 4.1, 3.6, 3.1, 2.9]
FID = [20.11, 19.54, 18.74, 18.64, 18.60, 19.33, 21.81, 26.03, 30.41, 35.24, 40.92]
TABLE = {
    "form": "table", "metric": "FID-5K", "first": "small", "second": "large",
    "fraction": FRACTIONS, "quality": FID, "source": "NVlabs/T-Stitch ldm/README.md",
}  # fmt: skip
ADDITIVE = {
    "form": "additive", "metric": "FID", "base": 2.0, "steps": 10, "source": SOURCE,
    "loss": {"large": [0.0] * 10, "small": [0.1 * i for i in range(10)]}, "handoff": 0.05,
}  # fmt: skip


def test_fast_server_takes_the_steps_and_latents_travel():
    plan = planner.solve(image_problem(model=diffusion_model(components=False)))
    assert (plan.status, plan.gap) == ("optimal", 0.0)
    assert [(s.device, s.variant, s.start, s.stop) for s in plan.stages] == [("server", "small", 0, 10)]
    # 10 steps of 1 GFLOP at 100 GFLOP/s, the prompt there and the latent back.
    assert plan.latency_s == pytest.approx(0.1 + 0.01 + 100 / 1e6 + 0.01 + 10_000 / 1e6, rel=1e-6)


def test_text_encoder_and_decoder_are_elements_with_their_own_memory():
    devices = [device("phone", gflops=10, memory=0.9e9), device("server", gflops=100, memory=1.4e9)]
    plan = planner.solve(image_problem(devices=devices))
    # The small denoiser (1 GB) and the text encoder (0.5 GB) do not fit one device together.
    by_element = {s.elements: s for s in plan.stages}
    assert by_element["step.0 … step.9"].device == "server"
    assert by_element["text_encoder"].device == "phone"
    assert by_element["text_encoder"].variant is None
    assert by_element["text_encoder"].memory_bytes == pytest.approx(5e8)
    assert by_element["step.0 … step.9"].memory_bytes == pytest.approx(1e9 + 1e6)
    purposes = [(t.purpose, t.bytes) for t in plan.transfers]
    assert purposes[0] == ("cut", 50_000.0)


def test_guidance_doubles_the_work_of_a_step():
    one = planner.solve(image_problem(devices=[device("phone")]))
    two = planner.solve(
        image_problem(devices=[device("phone")], workload={"kind": "image", "steps": 10, "guidance": 7.5})
    )
    steps = next(s for s in one.stages if s.variant)
    assert next(s for s in two.stages if s.variant).compute_s == pytest.approx(2 * steps.compute_s, rel=1e-6)


def test_quality_floor_picks_the_cheapest_mix():
    floor = 2.0 + 0.05 + 0.1 * (0 + 1 + 2 + 3)
    plan = planner.solve(image_problem(model=diffusion_model(ADDITIVE), constraints={"quality": floor + 1e-9}))
    denoisers = [(s.variant, s.stop - s.start) for s in plan.stages if s.variant]
    assert denoisers == [("small", 4), ("large", 6)]
    assert plan.quality == pytest.approx(floor)


class TestMargin:
    """A quality that was fitted leaves a margin: losses of 0.1 i per small step i, and 0.05 per hand-off."""

    def _plan(self, margin, asked, **fields):
        model = diffusion_model({**ADDITIVE, "margin": margin})
        return planner.solve(image_problem(model=model, constraints={"quality": asked}, **fields))

    def _small(self, plan):
        return sum(stage.stop - stage.start for stage in plan.stages if stage.variant == "small")

    def test_the_plan_keeps_what_is_asked_for_even_if_samples_exceed_it(self):
        # Small steps cost 0, 0.1, 0.3, 0.6, 1.0, … in all, after a hand-off of 0.05 over a base of 2.
        assert self._small(self._plan(None, 3.06)) == self._small(self._plan(0.0, 3.06)) == 5
        plan = self._plan(0.15, 3.06)  # 3.06 / 1.15 = 2.661
        assert (self._small(plan), plan.quality) == (4, pytest.approx(2.65))
        assert plan.quality * 1.15 <= 3.06
        assert any("3.06 is planned as 2.661" in note and "15.0%" in note for note in plan.notes)
        assert not planner.verify(plan)

    def test_the_best_run_was_sampled_itself_and_needs_none(self):
        plan = self._plan(0.5, 2.0 + 1e-9)
        assert (plan.quality, self._small(plan)) == (pytest.approx(2.0), 0)

    def test_what_cannot_be_kept_names_the_margin(self):
        with pytest.raises(NoPlanError) as error:
            self._plan(0.15, 2.2, devices=[device("phone", memory=1.8e9)])
        assert "margin of the model's quality profile" in str(error.value)

    def test_a_frontier_is_drawn_in_predicted_quality(self):
        lines = []
        for margin in (0.0, 0.3):
            model = diffusion_model({**ADDITIVE, "margin": margin}, components=False)
            problem = image_problem(model=model, workload={"kind": "image", "steps": 5})
            found = frontier(problem, ("quality", "latency"))
            lines.append([(point.first, point.second) for point in found.points])
            assert found.complete
        assert len(lines[0]) > 3
        assert np.array(lines[0]) == pytest.approx(np.array(lines[1]))


def test_unreachable_quality_floor_says_what_is_reachable():
    with pytest.raises(NoPlanError, match="quality"):
        planner.solve(image_problem(model=diffusion_model(ADDITIVE), constraints={"quality": 1.9}))


@pytest.mark.parametrize("components", [True, False])
def test_published_table_gives_its_best_fraction(components):
    model = diffusion_model(TABLE, components=components)
    workload = {"kind": "image", "steps": 100}
    plan = planner.solve(image_problem(model=model, objective="quality", workload=workload))
    small = sum(s.stop - s.start for s in plan.stages if s.variant == "small")
    assert (small, plan.quality) == (40, pytest.approx(18.60))


@pytest.fixture(scope="module")
def problem():
    """Return T-Stitch's table as a problem; its seconds are a straight line to within 0.13 s."""
    return load_problem("tstitch-ldm")


class TestPublishedBudgets:
    def _within(self, problem, **limits):
        kept = problem.constraints.model_copy(update=limits)
        objective = "latency" if "quality" in limits else "quality"
        plan = planner.solve(problem.model_copy(update={"constraints": kept, "objective": objective}))
        assert [stage.variant for stage in plan.stages] in (["small", "large"], ["small"], ["large"])
        return plan, sum(stage.stop - stage.start for stage in plan.stages if stage.variant == "small")

    def test_without_a_budget_the_best_fraction(self, problem):
        plan, small = self._within(problem)
        assert (small, plan.quality, plan.status) == (40, pytest.approx(18.60), "optimal")

    @pytest.mark.parametrize("budget", SECONDS)
    def test_the_right_fraction_for_each_time_budget(self, problem, budget):
        plan, small = self._within(problem, deadline=budget)
        within = [(fid, r) for r, fid, seconds in zip(FRACTIONS, FID, SECONDS, strict=True) if seconds <= budget]
        assert round(small / 100, 1) == min(within)[1]
        # Every hand-off there is, priced without the planner: no other within the budget is better.
        cuts = np.arange(101)
        table = np.interp(cuts / 100, FRACTIONS, FID)
        seconds = 1e-3 * (27.73 * cuts + 70.82 * (100 - cuts))
        assert plan.latency_s == pytest.approx(seconds[small])
        assert plan.quality == pytest.approx(table[seconds <= budget].min())

    @pytest.mark.parametrize(("fraction", "fid"), list(zip(FRACTIONS, FID, strict=True))[4:])
    def test_the_fastest_within_each_published_quality(self, problem, fraction, fid):
        plan, small = self._within(problem, quality=fid)
        assert small == round(100 * fraction)
        assert plan.quality == pytest.approx(fid)

    def test_a_budget_below_the_table(self, problem):
        with pytest.raises(NoPlanError, match="latency"):
            self._within(problem, deadline=2.7)


@pytest.mark.parametrize(("variant", "fid"), [("small", 40.92), ("large", 20.11)])
def test_published_table_holds_at_both_ends(variant, fid):
    model = diffusion_model(TABLE)
    only = model.model_copy(update={"variants": {**model.variants}})
    memory = {"small": 1.8e9, "large": 3.8e9}[variant]
    # Memory for one denoiser; a slow small or a forbidden large leaves a single choice.
    variants = dict(only.variants)
    other = "large" if variant == "small" else "small"
    variants[other] = variants[other].model_copy(update={"weights": 1e12})
    only = model.model_copy(update={"variants": variants})
    plan = planner.solve(image_problem(model=only, devices=[device("one", memory=memory)]))
    assert {s.variant for s in plan.stages} == {None, variant}
    assert plan.quality == pytest.approx(fid)


def test_quality_without_a_profile_is_refused():
    with pytest.raises(InputError, match="no quality profile"):
        planner.solve(image_problem(constraints={"quality": 20.0}))


def test_energy_is_power_times_time():
    powered = device("phone", power={"busy": 10.0})
    plan = planner.solve(image_problem(devices=[powered], objective="energy"))
    assert plan.energy_j == pytest.approx(10 * plan.latency_s)
    assert planner.solve(image_problem()).energy_j is None


def test_resampled_losses_keep_every_leading_sum():
    losses = [1.0, 2.0, 3.0, 4.0]
    assert resample(losses, 4) == pytest.approx(losses)
    assert resample(losses, 8).reshape(4, 2).sum(axis=1) == pytest.approx(losses)
    assert resample(losses, 2) == pytest.approx([3.0, 7.0])


def test_slow_link_keeps_everything_at_the_source():
    plan = planner.solve(image_problem(network=network(rate=100.0)))
    assert {s.device for s in plan.stages} == {"phone"}
