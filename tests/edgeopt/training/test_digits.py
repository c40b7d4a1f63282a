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
        from edgeopt.training.digits import DENOISERS
        from edgeopt.training.digits.checkpoints import read_manifest, sha256
        from edgeopt.training.digits.data import data_folder

        folder = data_folder()
        manifest = read_manifest(folder)
        assert set(manifest["models"]) == {"classifier", *DENOISERS}
        files = [manifest["data"], *manifest["models"].values()]
        for entry in files:
            assert sha256(folder / entry["file"]) == entry["sha256"], entry["file"]
        assert {path.name for path in folder.iterdir()} == {entry["file"] for entry in files} | {"manifest.json"}
        assert sum(path.stat().st_size for path in folder.iterdir()) < 6e6

    def test_recipes_are_those_of_the_manifest(self):
        from edgeopt.training.digits import DENOISERS
        from edgeopt.training.digits.checkpoints import read_manifest
        from edgeopt.training.digits.data import data_folder

        models = read_manifest(data_folder())["models"]
        for name, recipe in DENOISERS.items():
            entry = models[name]
            assert (entry["seed"], entry["iterations"], entry["batch"]) == (
                recipe.seed, recipe.iterations, recipe.batch,
            )  # fmt: skip
        assert models["classifier"]["accuracy"] > 0.97

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


class TestTraining:
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
        from edgeopt.training.digits import DENOISERS
        from edgeopt.training.digits.checkpoints import read_manifest, train_all

        monkeypatch.setitem(DENOISERS, "small", replace(DENOISERS["small"], iterations=10, batch=16))
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

        asked, target = [], tmp_path / "digits.yaml"
        monkeypatch.setattr(program, "train_all", lambda out, only: asked.append((out, only)))
        monkeypatch.setattr(program, "profile_quality", lambda model, progress: model)
        monkeypatch.setattr("sys.argv", ["digits", "--only", "small", "--only", "unet", "--profile", str(target)])
        program.main()
        assert asked == [(data_folder(), ["small", "unet"])]
        written = load_model(target)
        assert os.path.samefile(written.variants["unet"].architecture.checkpoint, data_folder() / "unet.safetensors")
