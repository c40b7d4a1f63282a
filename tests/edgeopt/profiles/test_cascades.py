"""Cascades in files: what is wrong with one is said with its field and the way to mend it; what is right survives."""

from __future__ import annotations

import pytest

from edgeopt.errors import InputError
from edgeopt.profiles import dump_yaml, load_model, load_problem
from edgeopt.profiles.checkpoints import with_relative_checkpoints
from edgeopt.profiles.checks import check_fit, check_model, check_timings
from edgeopt.profiles.problem import CascadeWorkload
from tests.edgeopt.factories import cascade_model, device, image_problem, text_problem


def _level(model, index, **fields):
    levels = list(model.levels)
    levels[index] = levels[index].model_copy(update=fields)
    return model.model_copy(update={"levels": levels})


def _runs(*changes):
    return cascade_model([(("large", "sharp"), (3, 2), 1.0), *changes])


MODEL = cascade_model()


@pytest.mark.parametrize(
    ("model", "field", "message", "mend"),
    [
        (_level(MODEL, 1, name="low"), "levels.1.name", "a second level is called 'low'", "another name"),
        (_level(MODEL, 0, augmentation=0.1), "levels.0.augmentation", "the first level sees no image", "remove it"),
        (_level(MODEL, 1, augmentation=None), "levels.1", "`augmentation` is missing", "standard deviation"),
        (_level(MODEL, 1, latent_shape=[3, 4, 32]), "levels.1.latent_shape", "is smaller than", "growing"),
        (
            _level(MODEL, 1, variants=MODEL.levels[1].variants | {"large": MODEL.levels[0].variants["large"]}),
            "levels.1.variants.large", "level 'low' has a variant 'large' too", "once",
        ),
        (
            _level(MODEL, 1, variants=MODEL.levels[1].variants | {"a@2": MODEL.levels[0].variants["large"]}),
            "levels.1.variants.a@2", "cannot name a variant", "use no '@'",
        ),
        (_runs((("smal", "sharp"), (3, 2), 1.0)), "quality.runs.1.variants.0", "no variant 'smal'", "'small'"),
        (_runs((("large", "xyz"), (3, 2), 1.0)), "quality.runs.1.variants.1", "level 'high' has no", "sharp, quick"),
        (_runs((("large",), (3, 2), 1.0)), "quality.runs.1.variants", "has 1 entries for 2 levels", "one per level"),
        (_runs((("large", "sharp"), (3, 2, 1), 1.0)), "quality.runs.1.steps", "has 3 entries for 2", "one per level"),
        (_runs((("large", "sharp"), (3, 0), 1.0)), "quality.runs.1.steps.1", "0 steps make no image", "1 or more"),
        (_runs((("large", "sharp"), (3, 2), 2.0)), "quality.runs.1", "repeats runs[0]", "keep one"),
    ],
)  # fmt: skip
def test_mistakes(model, field, message, mend):
    flaws = {".".join(map(str, flaw.path)): flaw for flaw in check_model(model)}
    assert list(flaws) == [field]
    assert message in flaws[field].message
    assert mend in flaws[field].mend


def test_runs_are_of_two_levels():
    third = MODEL.levels[1].model_copy(update={"name": "huge", "variants": {"x": MODEL.levels[1].variants["sharp"]}})
    model = MODEL.model_copy(update={"levels": [*MODEL.levels, third]})
    (flaw,) = check_model(model)
    assert "'toy-cascade' has 3" in flaw.message
    assert list(check_model(model.model_copy(update={"quality": None}))) == []


def test_a_workload_has_steps_for_every_level():
    assert list(check_fit(CascadeWorkload(), MODEL)) == []
    assert list(check_fit(CascadeWorkload(steps=[1, 2]), MODEL)) == []
    (flaw,) = check_fit(CascadeWorkload(steps=[1]), MODEL)
    assert flaw.mend == "give one for each of low, high"
    for other in (image_problem(), text_problem()):
        (flaw,) = check_fit(other.workload, MODEL)
        assert "which is a cascade of diffusion models" in flaw.message
        (flaw,) = check_fit(CascadeWorkload(), other.model)
        assert "a workload of cascade does not fit" in flaw.message


def test_measured_rows_speak_of_any_level():
    row = {
        "model": "toy-cascade", "phase": "step", "dtype": "float32", "batch": 1, "unit": "ms", "elements": [1.0],
        "repeats": 3, "spread": 0.1, "source": "made for a test",
    }  # fmt: skip
    timed = device("phone", timings=[row | {"variant": "sharp"}, row | {"variant": "large"}])
    assert list(check_timings(timed, MODEL)) == []
    (flaw,) = check_timings(device("phone", timings=[row | {"variant": "sharpe"}]), MODEL)
    assert (flaw.message, flaw.mend) == ("there is no variant 'sharpe'", "did you mean 'sharp'?")
    (flaw,) = check_timings(device("phone", timings=[row | {"variant": None, "phase": "decoder"}]), MODEL)
    assert "no phase of 'toy-cascade', a cascade" in flaw.message


def test_a_file_gives_back_the_model_and_finds_its_checkpoints(tmp_path):
    variant = MODEL.levels[0].variants["large"]
    where = str(tmp_path / "large.safetensors")
    architecture = {"library": "diffusers", "class": "UNet2DModel", "config": {}, "checkpoint": where}
    variant = type(variant).model_validate(variant.model_dump() | {"architecture": architecture})
    model = _level(MODEL, 0, variants=MODEL.levels[0].variants | {"large": variant})
    path = tmp_path / "models" / "toy.yaml"
    path.parent.mkdir()
    path.write_text(dump_yaml(with_relative_checkpoints(model, path.parent)))
    assert "../large.safetensors" in path.read_text()
    assert load_model(path).levels[0].variants["large"].architecture.checkpoint == str(
        path.parent / "../large.safetensors"
    )
    path.write_text(dump_yaml(MODEL))
    assert load_model(path) == MODEL


@pytest.mark.parametrize("steps", [None, [3, 2]])
def test_a_problem_file_needs_no_kind_of_workload(tmp_path, steps):
    (tmp_path / "toy.yaml").write_text(dump_yaml(MODEL))
    (tmp_path / "phone.yaml").write_text(dump_yaml(device("phone")))
    words = "" if steps is None else f", steps: {steps}"
    path = tmp_path / "problem.yaml"
    path.write_text(
        f"name: p\nmodel: ./toy.yaml\nworkload: {{images: 2{words}}}\ndevices: [./phone.yaml]\nnetwork: {{}}\n"
    )
    loaded = load_problem(path)
    assert loaded.workload == CascadeWorkload(images=2, steps=steps)
    assert loaded.model == MODEL
    if steps:
        path.write_text(path.read_text().replace("[3, 2]", "[3, 2, 1]"))
        with pytest.raises(InputError, match="3 numbers of steps for 2 levels"):
            load_problem(path)
