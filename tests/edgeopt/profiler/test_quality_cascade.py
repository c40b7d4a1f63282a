"""Quality of a cascade: its sampler, its table of runs, and a plan sampled again."""

from __future__ import annotations

import json

import pytest

from edgeopt import planner
from edgeopt.cli import main
from edgeopt.costs.cascade import Run
from edgeopt.errors import InputError
from edgeopt.profiles import load_model, load_problem, save_plan
from edgeopt.profiles.model import RunsQuality

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def levels():
    return load_model("digits-levels")


@pytest.fixture(scope="module")
def plan():
    return planner.solve(load_problem("digits-hierarchical"))


def _cheap(model):
    """Return the cascade with the smallest denoiser of each level alone."""
    kept = [
        level.model_copy(update={"variants": {name: level.variants[name]}})
        for level, name in zip(model.levels, ("small", "enlarge-small"), strict=True)
    ]
    return model.model_copy(update={"levels": kept, "quality": None})


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_samples_are_those_of_the_plan_that_is_executed(plan, guidance):
    from edgeopt import programs
    from edgeopt.profiler.quality import LevelSampler
    from edgeopt.profiler.quality.cascade import runs_of

    problem = plan.problem
    load = problem.workload.model_copy(update={"images": 3, "guidance": guidance, "seed": 5})
    plan = plan.model_copy(update={"problem": problem.model_copy(update={"workload": load})})
    (labels,) = programs.build(plan, []).request(11)
    (expected,) = programs.reference(plan, 11)
    sampled = LevelSampler(problem.model, labels, seed=5, guidance=guidance)(runs_of(plan))
    assert torch.equal(sampled, expected)


def test_runs_that_begin_alike_share_the_beginning(levels):
    from edgeopt.profiler.quality import LevelSampler

    model, labels = _cheap(levels), torch.arange(4)
    sampler = LevelSampler(model, labels)
    below = Run(0, "small", 3)
    pairs = [(below, Run(1, "enlarge-small", 1)), (below, Run(1, "enlarge-small", 2))]
    one, two = (sampler(pair) for pair in pairs)
    assert len(sampler._kept) == 3
    assert not torch.equal(one, two)
    assert torch.equal(two, LevelSampler(model, labels)(pairs[1]))


def test_the_table_of_runs(levels):
    from edgeopt.profiler.quality import profile_cascade

    said = []
    measured = profile_cascade(_cheap(levels), [[2, 3, 3], [1]], samples=32, progress=said.append)
    quality = measured.quality
    assert isinstance(quality, RunsQuality)
    assert [(run.variants, run.steps) for run in quality.runs] == [(["small", "enlarge-small"], [s, 1]) for s in (2, 3)]
    assert said[0].startswith("small@2, enlarge-small@1: Fréchet")
    assert quality.floor > 0
    assert "16 x 16" in quality.metric
    for words in ("2 runs sampled", "32 images", "noise seed 0"):
        assert words in quality.source
    with pytest.raises(InputError, match="1 lists of steps for 2 levels"):
        profile_cascade(_cheap(levels), [[2]], samples=32)


def test_random_weights_have_no_quality(levels):
    from edgeopt.profiler.quality import LevelSampler

    model = _cheap(levels)
    variant = model.levels[1].variants["enlarge-small"]
    bare = variant.model_copy(update={"architecture": variant.architecture.model_copy(update={"checkpoint": None})})
    upper = model.levels[1].model_copy(update={"variants": {"enlarge-small": bare}})
    with pytest.raises(InputError, match="random weights"):
        LevelSampler(model.model_copy(update={"levels": [model.levels[0], upper]}), torch.arange(2))(
            [Run(0, "small", 1), Run(1, "enlarge-small", 1)]
        )


def test_real_digits_of_16_pixels_stand_far_from_what_is_blurred():
    from torch.nn import functional

    from edgeopt.profiler.quality import Reference

    reference = Reference(side=16)
    coarse = functional.avg_pool2d(reference.images, 2)
    blurred = functional.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    floor, found = reference.floor, reference.measure(blurred)
    # An image of the right digit that only lacks sharpness: a classifier of 8 x 8 pixels would hardly see it.
    assert found.agreement > 0.95
    assert found.frechet > 2 * floor.frechet
    assert floor.agreement > 0.97


class TestPlan:
    def test_the_bundled_problem_is_sampled_as_predicted(self, plan, tmp_path, capsys):
        assert len({stage.device for stage in plan.stages}) > 1
        assert plan.quality <= plan.problem.constraints.quality
        path = tmp_path / "plan.yaml"
        save_plan(plan, path)
        assert main(["quality", str(path), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        # A table holds the run itself, so nothing but the processor's rounding may stand between the two.
        assert found["sampled"]["frechet"] == pytest.approx(found["predicted"], abs=0.05)
        assert found["floor"]["frechet"] < found["sampled"]["frechet"]
        assert found["sampled"]["agreement"] > 0.8

    def test_it_runs_in_parts_as_it_does_whole(self, plan):
        from edgeopt import programs

        parts = [programs.build(plan, [k]) for k in range(len(plan.stages))]
        tensors = programs.build(plan, []).request(3)
        for k, part in enumerate(parts):
            part.begin()
            tensors = part.run(k, 0, tensors)
        assert programs.compare(plan, tensors, programs.reference(plan, 3))["kind"] == "bitwise"

    def test_a_level_in_two_denoisers_is_not_sampled(self, plan, tmp_path, capsys):
        first, *rest = plan.stages
        half = first.stop // 2
        halves = [
            first.model_copy(update={"stop": half}), first.model_copy(update={"start": half, "variant": "small@10"})
        ]  # fmt: skip
        path = tmp_path / "plan.yaml"
        save_plan(plan.model_copy(update={"stages": [*halves, *rest]}), path)
        assert main(["quality", str(path), "--samples", "8"]) == 2
        assert "one denoiser per level" in capsys.readouterr().err


def test_the_command_measures_a_cascade(levels, tmp_path, capsys):
    from edgeopt.profiles import dump_yaml

    family, target = tmp_path / "family.yaml", tmp_path / "measured.yaml"
    family.write_text(dump_yaml(_cheap(levels)))
    asked = ["profile", "quality", str(family), "-o", str(target), "--samples", "16"]
    assert main(asked) == 2
    assert "holds none" in capsys.readouterr().err
    assert main([*asked, "--level-steps", "2", "--level-steps", "1,x"]) == 2
    assert "one list per level" in capsys.readouterr().err
    assert main([*asked, "--level-steps", "2,3", "--level-steps", "1"]) == 0
    capsys.readouterr()
    assert [run.steps for run in load_model(target).quality.runs] == [[2, 1], [3, 1]]
    assert main(["profile", "quality", "digits", "--level-steps", "2"]) == 2
    assert "has one level" in capsys.readouterr().err
