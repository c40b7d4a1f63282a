"""The trained family: what is stored is what the manifest says, and training repeats itself."""

from __future__ import annotations

import gzip
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeopt.errors import InputError
from edgeopt.profiles import load_model
from edgeopt.profiles.checkpoints import with_relative_checkpoints

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]


class TestStored:
    def test_files_are_those_of_the_manifest_and_small(self):
        from edgeopt.training.digits.checkpoints import NAMES
        from edgeopt.training.digits.data import data_folder
        from edgeopt.training.library import read_manifest, sha256

        folder = data_folder()
        manifest = read_manifest(folder)
        assert set(manifest["models"]) == set(NAMES)
        files = [manifest["data"], *manifest["models"].values()]
        for entry in files:
            assert sha256(folder / entry["file"]) == entry["sha256"], entry["file"]
        assert {path.name for path in folder.iterdir()} == {entry["file"] for entry in files} | {"manifest.json"}
        assert sum(path.stat().st_size for path in folder.iterdir()) < 6e6

    def test_recipes_are_those_of_the_manifest(self):
        from edgeopt.training.digits.data import data_folder
        from edgeopt.training.digits.denoisers import RECIPES
        from edgeopt.training.library import read_manifest

        models = read_manifest(data_folder())["models"]
        for name, recipe in RECIPES.items():
            entry = models[name]
            assert (entry["seed"], entry["iterations"], entry["batch"]) == (
                recipe.seed, recipe.iterations, recipe.batch,
            )  # fmt: skip
        assert min(models[name]["accuracy"] for name in ("classifier", "classifier-16")) > 0.97

    def test_the_profile_is_what_the_recipes_give(self):
        from edgeopt.training.digits.data import data_folder
        from edgeopt.training.digits.profile import digits_model

        stored, derived = load_model("digits"), digits_model(data_folder())
        here = stored.variants["large"].architecture.checkpoint
        assert os.path.samefile(here, data_folder() / "large.safetensors")
        folder = Path("/elsewhere/models")
        left, right = (with_relative_checkpoints(model, folder) for model in (stored, derived))
        assert left.variants == right.variants
        assert stored.sampler == derived.sampler
        sizes = [variant.parameters for variant in stored.variants.values()]
        assert len({round(np.log2(size)) for size in sizes}) >= 3

    def test_the_profiles_of_larger_digits_are_what_the_recipes_give(self):
        from edgeopt.training.digits.data import data_folder
        from edgeopt.training.digits.profile import LEVEL_STEPS, digits_16_model, digits_levels_model

        folder = Path("/elsewhere/models")
        stored, derived = load_model("digits-16"), digits_16_model(data_folder())
        left, right = (with_relative_checkpoints(model, folder) for model in (stored, derived))
        assert left.variants == right.variants
        assert stored.quality.form == "whole"
        stored, derived = load_model("digits-levels"), digits_levels_model(data_folder())
        left, right = (with_relative_checkpoints(model, folder) for model in (stored, derived))
        assert left.levels == right.levels
        assert [level.latent_shape for level in stored.levels] == [[1, 8, 8], [1, 16, 16]]
        assert min(len(level.variants) for level in stored.levels) >= 2
        # What a step makes is the level's image, though its denoiser is shown two.
        assert {variant.blocks[-1].output for variant in stored.levels[1].variants.values()} == {4 * 256.0}
        counts = [{run.steps[k] for run in stored.quality.runs} for k in range(2)]
        assert counts == [set(steps) for steps in LEVEL_STEPS]
        assert stored.quality.floor == load_model("digits-16").quality.floor


class TestData:
    def test_split_is_fixed_and_disjoint(self):
        from edgeopt.training.digits import load_digits

        train, test = load_digits()
        assert (len(train.images), len(test.images)) == (1200, 597)
        assert train.images.min() == -1
        assert train.images.max() == 1
        assert (torch.cat([train.labels, test.labels]).bincount() == torch.tensor(
            [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
        )).all()  # fmt: skip
        rows = {image.numpy().tobytes() for image in train.images}
        assert len(rows & {image.numpy().tobytes() for image in test.images}) == 0

    def test_they_are_those_of_scikit_learn(self):
        datasets = pytest.importorskip("sklearn.datasets")
        from safetensors.numpy import load_file

        from edgeopt.training.digits.data import data_folder

        theirs, ours = datasets.load_digits(), load_file(data_folder() / "digits.safetensors")
        assert np.array_equal(theirs.images, ours["images"])
        assert np.array_equal(theirs.target, ours["labels"])

    def test_packing_a_table(self, tmp_path):
        from safetensors.numpy import load_file

        from edgeopt.training.digits.data import pack_csv

        table = np.random.default_rng(0).integers(0, 10, (5, 65))
        with gzip.open(tmp_path / "d.csv.gz", "wt") as file:
            np.savetxt(file, table, fmt="%d", delimiter=",")
        packed = load_file(pack_csv(tmp_path / "d.csv.gz", tmp_path))
        assert np.array_equal(packed["images"].reshape(5, 64), table[:, :64])
        assert np.array_equal(packed["labels"], table[:, 64])
        with gzip.open(tmp_path / "d.csv.gz", "wt") as file:
            np.savetxt(file, table + 12, fmt="%d", delimiter=",")
        with pytest.raises(InputError, match="grey levels"):
            pack_csv(tmp_path / "d.csv.gz", tmp_path)


class TestEnlarging:
    def test_blocks_keep_their_means_and_edges_are_sharp(self):
        from torch.nn import functional

        from edgeopt.training.digits import enlarged, load_digits

        images = load_digits()[0].images
        large = enlarged(images)
        assert large.shape == (1200, 1, 16, 16)
        assert large.abs().max() <= 1
        off = (functional.avg_pool2d(large, 2) - images).abs()
        assert off.max() < 0.05  # of a range of 2
        assert off.mean() < 0.005
        smooth = functional.interpolate(images, scale_factor=2, mode="bicubic", align_corners=False)
        assert large.diff(dim=-1).square().mean() > 1.1 * smooth.diff(dim=-1).square().mean()
        assert torch.equal(large, enlarged(images))

    def test_flat_stays_flat(self):
        from edgeopt.training.digits import enlarged

        for value in (-1.0, 0.25, 1.0):
            flat = torch.full((1, 1, 8, 8), value)
            assert enlarged(flat) == pytest.approx(torch.full((1, 1, 16, 16), value), abs=1e-6)


class TestTraining:
    def test_an_enlarger_learns_from_the_smaller_image(self):
        from edgeopt.training.digits import ENLARGERS, load_digits
        from edgeopt.training.digits.denoisers import train_denoiser

        train, _ = load_digits()
        recipe = replace(ENLARGERS["enlarge-small"], iterations=40, batch=16)
        (first, loss), (again, _) = (train_denoiser(recipe, train) for _ in range(2))
        assert all(map(torch.equal, first.parameters(), again.parameters()))
        # The second channel is read: the embedding of patches has learned from it.
        before = recipe.build().pos_embed.proj.weight[:, 1]
        assert not torch.allclose(first.pos_embed.proj.weight[:, 1], before, atol=1e-3)
        assert loss < 0.9

    def test_repeats_bit_for_bit_and_learns(self):
        from edgeopt.training.digits import DENOISERS, load_digits
        from edgeopt.training.digits.denoisers import train_denoiser

        train, _ = load_digits()
        recipe = replace(DENOISERS["small"], iterations=60, batch=64)
        (first, loss), (again, _), (other, _) = (
            train_denoiser(replace(recipe, seed=seed), train) for seed in (0, 0, 1)
        )
        weights, repeated, different = (list(module.parameters()) for module in (first, again, other))
        assert all(map(torch.equal, weights, repeated))
        assert not all(map(torch.equal, weights, different))
        assert loss < 0.8  # of noise with variance one

    def test_one_model_into_a_folder(self, tmp_path, monkeypatch):
        from edgeopt.training.digits.checkpoints import train_all
        from edgeopt.training.digits.denoisers import RECIPES
        from edgeopt.training.library import read_manifest

        monkeypatch.setitem(RECIPES, "small", replace(RECIPES["small"], iterations=10, batch=16))
        said = []
        train_all(tmp_path, ["small"], said.append)
        train_all(tmp_path, ["small"], said.append)
        assert [text.endswith("the same bits as before") for text in said] == [False, True]
        assert list(read_manifest(tmp_path)["models"]) == ["small"]
        with pytest.raises(InputError, match="no 'huge'"):
            train_all(tmp_path, ["huge"])

    def test_the_classifier_learns(self):
        from edgeopt.training.digits import load_digits
        from edgeopt.training.digits.classifier import train_classifier

        train, test = load_digits()
        model = train_classifier(train, iterations=200)
        assert (model(test.images).argmax(1) == test.labels).float().mean() > 0.85

    def test_the_program_hands_its_arguments_on_and_writes_a_profile(self, tmp_path, monkeypatch):
        import edgeopt.training.digits.__main__ as program
        from edgeopt.training.digits.data import data_folder

        asked = []
        monkeypatch.setattr(program, "train_all", lambda out, only: asked.append((out, only)))
        monkeypatch.setattr(program, "profile_quality", lambda model, **_: model)
        monkeypatch.setattr(program, "profile_cascade", lambda model, *_, **__: model)
        monkeypatch.setattr(program, "stale_quality", lambda model, **_: model.stale)
        words = ["--only", "small", "--only", "unet", "--profiles", str(tmp_path)]
        monkeypatch.setattr("sys.argv", ["digits", *words])
        program.main()
        assert asked == [(data_folder(), ["small", "unet"])]
        assert {path.name for path in tmp_path.iterdir()} == {"digits.yaml", "digits-16.yaml", "digits-levels.yaml"}
        written = load_model(tmp_path / "digits.yaml")
        assert os.path.samefile(written.variants["unet"].architecture.checkpoint, data_folder() / "unet.safetensors")
        upper = load_model(tmp_path / "digits-levels.yaml").levels[1].variants["enlarge-small"]
        assert os.path.samefile(upper.architecture.checkpoint, data_folder() / "enlarge-small.safetensors")
        monkeypatch.setattr("sys.argv", ["digits", "--no-train", "--measure", "digits", "--profiles", str(tmp_path)])
        program.main()
        assert len(asked) == 1
