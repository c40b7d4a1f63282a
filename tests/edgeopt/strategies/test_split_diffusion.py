"""Split diffusion against arithmetic done by hand, brute force over cuts, and multi-stage on the same request."""

from __future__ import annotations

import itertools

import pytest

from edgeopt import planner
from edgeopt.errors import InputError, NoPlanError
from edgeopt.profiles import load_problem
from edgeopt.profiles.model import Diffusion
from edgeopt.questions.terms import element_names, latency_terms
from edgeopt.questions.why_not import why_not
from edgeopt.strategies import get_strategy
from edgeopt_solvers.chain import Solution, evaluate
from tests.edgeopt.factories import GIGA, device, diffusion_model, image_problem, network

OUTPUTS = [3e4, 9e4, 2e4]


def split_model(quality=None, components=True, legal=(True, True), **variants) -> Diffusion:
    """Return the toy family with its large denoiser (or those named) in three blocks."""
    model = diffusion_model(quality, components).model_dump(by_alias=True)
    blocks = [
        {"name": name, "weights": 1e9, "flop": share * GIGA, "output": output, "traffic": 0, "kernels": 0, "legal": ok}
        for name, share, output, ok in zip("abc", (2, 5, 3), OUTPUTS, (*legal, True), strict=True)
    ]
    model["variants"]["large"] |= {"blocks": blocks, "common_weights": 1e8} | variants
    return Diffusion.model_validate(model)


def split_problem(**fields):
    return image_problem(**{"model": split_model(), "strategy": "split_diffusion", **fields})


def test_bytes_and_seconds_by_hand():
    devices = [device("phone", gflops=10, memory=2.2e9), device("server", gflops=100, memory=1.2e9)]
    pins = {"first": "phone", "last": "phone"}
    problem = split_problem(
        model=split_model(components=False), devices=devices, workload={"kind": "image", "steps": 4, "guidance": 3.0},
        constraints=pins,
    )  # fmt: skip
    chain = get_strategy("split_diffusion").build(problem)
    assert chain.cut_bytes.tolist() == [100, 5e4 + 4 * 2 * 3e4, 5e4 + 4 * 2 * 9e4, 10_000]
    assert chain.cut_messages.tolist() == [1, 4, 4, 1]
    assert (chain.loop_bytes, chain.loop_messages) == (3 * 10_000, 3)
    # Four calls of a batch of two, at 10 and 100 GFLOP/s.
    assert chain.compute_s[:, 1] == pytest.approx(
        8 * (chain.compute_s[:, 1] > 0) * [[0.2, 0.5, 0.3], [0.02, 0.05, 0.03]]
    )
    plan = planner.solve(problem)
    assert [(s.device, s.variant, s.start, s.stop) for s in plan.stages] == [
        ("phone", "large", 0, 1), ("server", "large", 1, 2), ("phone", "large", 2, 3)
    ]  # fmt: skip
    hops = (4 * 0.01 + (5e4 + 24e4) / 1e6) + (4 * 0.01 + (5e4 + 72e4) / 1e6)
    assert plan.latency_s == pytest.approx(8 * (0.2 + 0.05 + 0.3) + hops, rel=1e-6)
    assert plan.stages[0].memory_bytes == pytest.approx(1e9 + 1e8 + 2 * 1e6)
    first = 2 * 0.55 + 2 * 0.01 + (2 * 5e4 + 6e4 + 18e4) / 1e6  # with the conditioning
    assert plan.timeline[-1].stop_s == pytest.approx(first + 2 * 0.55 + 2 * 0.01 + (6e4 + 18e4) / 1e6, rel=1e-6)


def test_encoder_and_decoder_alone_pass_latents_on():
    chain = get_strategy("split_diffusion").build(split_problem(workload={"kind": "image", "steps": 4, "images": 3}))
    assert chain.num_elements == 5
    assert chain.cut_bytes.tolist() == [
        300,
        3 * (5e4 + 3 * 1e4),
        3 * (5e4 + 4 * 3e4),
        3 * (5e4 + 4 * 9e4),
        3 * 4 * 1e4,
        3 * 2e5,
    ]
    assert chain.cut_messages.tolist() == [1, 4, 4, 4, 4, 1]


@pytest.mark.parametrize("rate", [1e5, 1e6, 1e8])
def test_best_of_all_plans(rate):
    devices = [
        device("phone", gflops=10, memory=2.5e9),
        device("server", gflops=40, memory=1.8e9),
        device("tablet", gflops=20),
    ]
    problem = split_problem(devices=devices, network=network(rate=rate), workload={"kind": "image", "steps": 3})
    chain = get_strategy("split_diffusion").build(problem)
    best = float("inf")
    for places in itertools.product(range(3), repeat=5):
        variants = (0, 1, 1, 1, 0)
        cuts = [i + 1 for i in range(5) if i == 4 or (places[i], variants[i]) != (places[i + 1], variants[i + 1])]
        starts = [0, *cuts[:-1]]
        decided = Solution(tuple(cuts), tuple(places[i] for i in starts), tuple(variants[i] for i in starts))
        found = evaluate(chain, decided)
        if not found.violations:
            best = min(best, found.objective)
    plan = planner.solve(problem)
    assert plan.status == "optimal"
    assert plan.objective == pytest.approx(best, rel=1e-9)
    assert planner.verify(plan) == []


def test_blocks_that_stay_together_do_and_the_reason_is_given():
    model = split_model(legal=(False, True), components=False)
    devices = [device("phone", gflops=10, memory=2.2e9), device("server", gflops=100, memory=1.2e9)]
    pins = {"pin": {"a": "phone", "b": "server"}}
    with pytest.raises(NoPlanError, match="the library keeps 'a' and what follows on one device"):
        planner.solve(split_problem(model=model, devices=devices, constraints=pins))


def test_every_denoiser_with_blocks_is_a_case():
    quality = {"form": "whole", "metric": "FID", "quality": {"large": 3.0, "small": 9.0}, "source": "made up"}
    model = split_model(quality)
    blocks = [block.model_copy(update={"flop": block.flop / 10}) for block in model.variants["large"].blocks]
    small = model.variants["small"].model_copy(update={"blocks": blocks, "common_weights": 0.0})
    model = model.model_copy(update={"variants": {"large": model.variants["large"], "small": small}})
    devices = [device("one", memory=9e9)]
    fast = planner.solve(split_problem(model=model, devices=devices))
    good = planner.solve(split_problem(model=model, devices=devices, constraints={"quality": 5.0}))
    assert (fast.stages[1].variant, fast.quality) == ("small", 9.0)
    assert (good.stages[1].variant, good.quality) == ("large", 3.0)
    assert list(good.problem.model.variants) == ["large"]
    assert planner.verify(fast) == planner.verify(good) == []
    with pytest.raises(NoPlanError, match="quality"):
        planner.solve(split_problem(model=model, devices=devices, constraints={"quality": 2.0}))
    with pytest.raises(InputError, match="has none for a denoiser with blocks"):
        planner.solve(split_problem(constraints={"quality": 2.0}))


def test_models_without_blocks_do_not_fit():
    assert "lists none" in get_strategy("split_diffusion").unfit(image_problem())
    assert get_strategy("split_diffusion").unfit(split_problem()) is None


def test_a_measured_step_is_divided_among_its_blocks():
    row = {"model": "toy-diffusion", "variant": "large", "phase": "step", "dtype": "float32", "batch": 1, "unit": "s",
           "elements": [0.4], "repeats": 1, "source": "made up"}  # fmt: skip
    problem = split_problem(devices=[device("phone", gflops=10, timings=[row])], model=split_model(components=False))
    chain = get_strategy("split_diffusion").build(problem)
    assert chain.compute_s[0, 1] == pytest.approx([10 * 0.4 * share for share in (0.2, 0.5, 0.3)])
    assert any("divided among its blocks" in note for note in planner.solve(problem).notes)


def test_terms_add_up_and_wishes_are_priced():
    problem = load_problem("digits-split")
    plan = planner.solve(problem)
    assert {stage.device for stage in plan.stages} == {"desktop", "tablet"}  # no board has memory for all blocks
    assert planner.verify(plan) == []
    names = element_names(plan.problem, plan.strategy)
    assert names[0] == "input"
    assert names[plan.stages[1].start].startswith("up_blocks")
    terms = latency_terms(plan)
    assert sum(term.seconds for term in terms) == pytest.approx(plan.latency_s, rel=1e-9)
    assert all(term.causes for term in terms)
    answer = why_not(plan, "mid_block.attentions.0 on tablet")
    assert answer.price > 0
    assert "cut" in {t.purpose for t in answer.plan.transfers}


def test_the_same_request_by_either_technique():
    problem = load_problem("demo-diffusion")
    staged, split = (planner.solve(problem, strategy=name) for name in ("multi_stage", "split_diffusion"))
    assert staged.status == split.status == "optimal"
    # One stage boundary carries a latent; a block boundary carries features and skips in each of twelve steps.
    assert sum(t.bytes for t in split.transfers) > 20 * sum(t.bytes for t in staged.transfers)
    assert staged.latency_s < split.latency_s


class TestMargin:
    """A whole run's quality that was fitted leaves the family's margin; the best run of the fit was sampled itself."""

    def _model(self, quality):
        model = split_model(quality)
        blocks = [block.model_copy(update={"flop": block.flop / 10}) for block in model.variants["large"].blocks]
        small = model.variants["small"].model_copy(update={"blocks": blocks, "common_weights": 0.0})
        return model.model_copy(update={"variants": {"large": model.variants["large"], "small": small}})

    def _plan(self, quality, asked):
        return planner.solve(
            split_problem(
                model=self._model(quality), devices=[device("one", memory=9e9)], constraints={"quality": asked}
            )
        )

    def _fitted(self, margin):
        loss = {"large": [0.0] * 10, "small": [0.1] * 10}
        return {
            "form": "additive", "metric": "FID", "base": 2.0, "steps": 10, "loss": loss, "margin": margin,
            "source": "made up",
        }  # fmt: skip

    @pytest.mark.parametrize(("asked", "variant"), [(3.4, "large"), (3.61, "small")])
    def test_a_fitted_run_is_held_to_less_than_asked(self, asked, variant):
        # Small is 2 + 10 * 0.1 = 3, of which samples may make 3 * 1.2 = 3.6.
        plan = self._plan(self._fitted(0.2), asked)
        assert plan.stages[1].variant == variant
        assert not planner.verify(plan)
        assert self._plan(self._fitted(None), asked).stages[1].variant == "small"

    def test_the_case_carries_the_margin_and_the_plan_says_so(self):
        plan = self._plan(self._fitted(0.2), 3.61)
        assert plan.problem.model.quality.margin == 0.2
        assert any("3.61 is planned as 3.008" in note and "20.0%" in note for note in plan.notes)

    def test_the_best_run_was_sampled_itself_and_needs_none(self):
        plan = self._plan(self._fitted(0.5), 2.0)
        assert (plan.stages[1].variant, plan.quality) == ("large", 2.0)
        assert plan.problem.model.quality.margin is None

    def test_a_profile_of_whole_runs_may_state_one(self):
        whole = {"form": "whole", "metric": "FID", "quality": {"large": 2.0, "small": 3.0}, "source": "made up"}
        assert self._plan(whole, 3.0).stages[1].variant == "small"
        assert self._plan(whole | {"margin": 0.2}, 3.0).stages[1].variant == "large"
        with pytest.raises(NoPlanError, match="margin of the model's quality profile"):
            self._plan(whole | {"margin": 0.2}, 2.3)
        mixed = image_problem(model=diffusion_model(whole | {"margin": 0.2}), constraints={"quality": 3.0})
        assert {stage.variant for stage in planner.solve(mixed).stages if stage.variant} == {"large"}
