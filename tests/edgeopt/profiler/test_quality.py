"""Quality measured on the trained digits: the sampler, the figures, the profile, and a plan sampled again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeopt import planner
from edgeopt.cli import main
from edgeopt.errors import InputError
from edgeopt.profiles import load_model, load_problem, save_plan
from edgeopt.profiles.model import AdditiveQuality

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def digits():
    return load_model("digits")


@pytest.fixture
def two(digits):
    """Return the two cheapest members of the family."""
    return digits.model_copy(update={"variants": {name: digits.variants[name] for name in ("medium", "small")}})


@pytest.fixture
def plan():
    return planner.solve(load_problem("digits-multistage"))


def _samples(model, count, steps, plan, guidance=1.0, seed=0):
    from edgeopt.profiler.quality import PlanSampler
    from edgeopt.profiler.quality.family import noise_of

    labels = torch.arange(count) % 10
    sampler = PlanSampler(model, steps, labels, noise_of(model, count, seed), guidance=guidance)
    return sampler, sampler(plan)


class TestSampler:
    @pytest.mark.parametrize("guidance", [1.0, 2.5])
    def test_samples_are_those_of_the_plan_that_is_executed(self, plan, guidance):
        from edgeopt import programs
        from edgeopt.profiler.quality import PlanSampler
        from edgeopt.profiler.quality.family import noise_of

        problem = plan.problem
        load = problem.workload.model_copy(update={"images": 3, "guidance": guidance, "seed": 5})
        plan = plan.model_copy(update={"problem": problem.model_copy(update={"workload": load})})
        names = list(problem.model.variants)
        steps = [names.index(stage.variant) for stage in plan.stages for _ in range(stage.start, stage.stop)]
        assert len(set(steps)) > 1
        (labels,) = programs.build(plan, []).request(11)
        sampler = PlanSampler(problem.model, load.steps, labels, noise_of(problem.model, 3, 5), guidance=guidance)
        threads = {device.runtime.threads for device in problem.devices}
        assert threads == {1}
        (expected,) = programs.reference(plan, 11)
        assert torch.equal(sampler(steps), expected)

    def test_shared_beginnings_change_nothing(self, two):
        mixed = [1, 1, 0, 1]
        sampler, fresh = _samples(two, 4, 4, mixed)
        for plan in ([1] * 4, [0] * 4, [1, 1, 1, 0]):
            sampler(plan)
        assert torch.equal(sampler(mixed), fresh)
        assert not torch.equal(sampler([1, 1, 1, 0]), fresh)
        assert len(sampler._kept) == 8

    def test_a_plan_of_another_length(self, two):
        with pytest.raises(ValueError, match="3 variants for 4 steps"):
            _samples(two, 2, 4, [0, 0, 0])

    def test_random_weights_have_no_quality(self, two):
        bare = two.variants["small"].architecture.model_copy(update={"checkpoint": None})
        variant = two.variants["small"].model_copy(update={"architecture": bare})
        model = two.model_copy(update={"variants": two.variants | {"small": variant}})
        with pytest.raises(InputError, match="random weights"):
            _samples(model, 2, 4, [0] * 4)

    def test_classes_that_the_family_does_not_know(self, two):
        from edgeopt.profiler.quality import PlanSampler

        with pytest.raises(InputError, match="knows 10 classes, 12 are asked for"):
            PlanSampler(two, 4, torch.tensor([3, 11]), torch.zeros(2, 1, 8, 8))


def test_noise_errors_rank_the_family(digits):
    from edgeopt.profiler.quality import Reference, noise_errors

    reference = Reference(128)
    errors = noise_errors(digits, 6, reference.images, reference.labels, draws=1)
    mean = dict(zip(digits.variants, errors.mean(dim=1).tolist(), strict=True))
    assert mean["large"] < mean["medium"] < mean["small"] < 1
    assert mean["unet"] < mean["small"]
    small = errors[list(digits.variants).index("small")]
    assert small[0] < small[-1]  # almost pure noise is easily told, little noise is not


def test_noise_errors_need_noise_prediction(two):
    from edgeopt.profiler.quality import Reference, noise_errors

    reference = Reference(8)
    config = two.sampler.config | {"prediction_type": "v_prediction"}
    model = two.model_copy(update={"sampler": two.sampler.model_copy(update={"config": config})})
    with pytest.raises(InputError, match="noise prediction"):
        noise_errors(model, 4, reference.images, reference.labels)


class TestReference:
    def test_real_data_stands_far_from_noise(self):
        from edgeopt.profiler.quality import Reference

        reference = Reference()
        noise = torch.randn(len(reference.images), 1, 8, 8, generator=torch.Generator().manual_seed(0))
        floor, bad = reference.floor, reference.measure(noise)
        assert floor.frechet < 1 < bad.frechet == reference.frechet(noise)
        assert abs(floor.kernel) < 0.05 < bad.kernel
        assert min(floor.precision, floor.recall) > 0.8 > bad.precision
        assert floor.agreement > 0.97
        assert bad.agreement < 0.3
        assert floor.num_real == floor.num_samples == 597

    def test_images_against_themselves(self):
        from edgeopt.profiler.quality import Reference

        reference = Reference(100)
        same = reference.measure(reference.images)
        assert same.frechet == pytest.approx(0, abs=1e-6)
        assert (same.precision, same.recall) == (1, 1)

    @pytest.mark.parametrize("count", [7, 598])
    def test_counts(self, count):
        from edgeopt.profiler.quality import Reference

        with pytest.raises(InputError, match="597 held-out digits"):
            Reference(count)

    def test_another_family(self):
        from edgeopt.profiler.quality import profile_quality

        with pytest.raises(InputError, match="measured on digits"):
            profile_quality(load_model("demo-diffusion"), samples=8)


def test_the_largest_makes_digits_that_are_recognised(digits):
    from edgeopt.profiler.quality import PlanSampler, Reference
    from edgeopt.profiler.quality.family import noise_of

    reference = Reference(200)
    sampler = PlanSampler(digits, 10, reference.labels, noise_of(digits, 200, 0))
    large, small = (reference.measure(sampler([list(digits.variants).index(name)] * 10)) for name in ("large", "small"))
    assert large.agreement >= 0.9
    assert large.frechet < small.frechet


class TestProfile:
    def test_a_table_and_whole_runs_agree_on_the_ends(self, two):
        from edgeopt.profiler.quality import profile_quality

        asked = {"samples": 64, "steps": 5, "cuts": 2}
        table = profile_quality(two, form="table", first="small", second="medium", **asked).quality
        whole = profile_quality(two, form="whole", **asked).quality
        assert table.fraction == [0, 0.4, 0.6, 1]
        assert table.quality[0] == whole.quality["medium"]
        assert table.quality[-1] == whole.quality["small"]
        assert table.floor == whole.floor > 0
        for words in ("64 images", "5 steps", "noise seed 0"):
            assert words in whole.source

    def test_additive(self, two, tmp_path):
        from edgeopt.profiler.quality import profile_quality

        measured = profile_quality(two, samples=64, steps=5, cuts=2, checks=3)
        quality = measured.quality
        assert isinstance(quality, AdditiveQuality)
        assert quality.loss["medium"] == [0.0] * 5  # the better one costs nothing
        assert sum(quality.loss["small"]) > 0
        assert quality.fit_error > 0
        assert quality.margin >= 0
        assert "fit_error and margin" in quality.source
        assert profile_quality(two, samples=64, steps=5, cuts=2, checks=3) == measured

    @pytest.mark.parametrize(
        ("asked", "why"),
        [
            ({"form": "table", "first": "small"}, "second is missing"),
            ({"form": "table", "first": "small", "second": "huge"}, "no variant 'huge'"),
            ({"form": "table", "first": "small", "second": "small"}, "also the first"),
            ({"form": "whole", "first": "small"}, "of all variants"),
            ({"cuts": 25}, "25 hand-over points inside 25 steps"),
            ({"checks": 1}, "tell no error"),
        ],
    )
    def test_refusals(self, two, asked, why):
        from edgeopt.profiler.quality import profile_quality

        with pytest.raises(InputError, match="(?s).*" + why.replace("second is", "is")):
            profile_quality(two, samples=8, **asked)

    def test_the_command_writes_a_family_that_can_be_planned(self, tmp_path, capsys):
        target = tmp_path / "digits.yaml"
        words = ["--form", "table", "--first", "small", "--second", "medium", "--samples", "16", "--steps", "3"]
        assert main(["profile", "quality", "digits", "-o", str(target), *words, "--cuts", "1"]) == 0
        capsys.readouterr()
        text = target.read_text()
        assert 'checkpoint: "../' in text  # seen from the file, wherever it was written
        measured = load_model(target)
        assert measured.quality.first == "small"
        files = [variant.architecture.checkpoint for variant in measured.variants.values()]
        assert [Path(file).resolve().name for file in files] == [f"{name}.safetensors" for name in measured.variants]
        assert all(Path(file).is_file() for file in files)
        problem = load_problem("digits-multistage")
        limits = problem.constraints.model_copy(update={"quality": measured.quality.quality[0]})
        chosen = planner.solve(problem.model_copy(update={"model": measured, "constraints": limits}))
        assert chosen.quality <= measured.quality.quality[0] + 1e-9
        assert {stage.variant for stage in chosen.stages} <= {"small", "medium"}


class TestPlan:
    def test_the_bundled_problem_is_sampled_near_its_prediction(self, plan, tmp_path, capsys):
        path = tmp_path / "plan.yaml"
        save_plan(plan, path)
        assert main(["quality", str(path), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["predicted"] == plan.quality
        assert found["error"] == pytest.approx(found["predicted"] - found["sampled"]["frechet"])
        assert abs(found["error"]) < 3 * found["fit_error"]
        assert found["sampled"]["frechet"] <= plan.problem.constraints.quality
        assert plan.quality * (1 + plan.problem.model.quality.margin) <= plan.problem.constraints.quality + 1e-9
        assert found["floor"]["frechet"] < found["sampled"]["frechet"]
        assert found["sampled"]["agreement"] > 0.8

    def test_the_bundled_problem_runs_in_parts_as_it_does_whole(self, plan):
        from edgeopt import programs

        assert len({stage.device for stage in plan.stages}) > 1
        assert {stage.variant for stage in plan.stages} >= {"small", "large"}
        parts = [programs.build(plan, [k]) for k in range(len(plan.stages))]
        tensors = programs.build(plan, []).request(3)
        for k, part in enumerate(parts):
            part.begin()
            tensors = part.run(k, 0, tensors)
        assert programs.compare(plan, tensors, programs.reference(plan, 3))["kind"] == "bitwise"

    def test_prints_samples_beside_real_data(self, plan, tmp_path, capsys):
        path = tmp_path / "plan.yaml"
        save_plan(plan, path)
        assert main(["quality", str(path), "--samples", "40"]) == 0
        printed = capsys.readouterr().out
        for words in ("samples  real data", "label agreement", "40 images against 40", "off by"):
            assert words in printed

    def test_other_plans_are_refused(self, tmp_path, capsys):
        for name, why in (("home-cluster", "makes no images"), ("demo-diffusion", "measured on digits")):
            path = tmp_path / f"{name}.yaml"
            save_plan(planner.solve(load_problem(name)), path)
            assert main(["quality", str(path)]) == 2
            assert why in capsys.readouterr().err
