"""The wheels, not the checkout: built, installed into an empty environment, used from another folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _run(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done


def _clean_environment():
    """Return the environment without what could point Python or edgeopt back at this checkout."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "EDGEOPT"))}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    target = tmp_path_factory.mktemp("wheels")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    _run([*pip, "wheel", "--no-deps", "--wheel-dir", str(target), str(ROOT / "solvers"), str(ROOT)])
    built = sorted(target.glob("*.whl"))
    assert [wheel.name.split("-")[0] for wheel in built] == ["edgeopt", "edgeopt_solvers"]
    return built


@pytest.fixture(scope="module")
def environment(wheels, tmp_path_factory):
    """Install both wheels into an environment that holds nothing else; return its folder of programs."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    venv.create(folder, with_pip=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    pip = [str(programs / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    _run([*pip, "install", "-c", str(ROOT / "constraints.txt"), *map(str, wheels)], env=_clean_environment())
    return programs


@pytest.mark.wheel
@pytest.mark.timeout(900)
class TestWheels:
    def test_hold_the_library_and_the_markers(self, wheels):
        names = {wheel.name.split("-")[0]: set(zipfile.ZipFile(wheel).namelist()) for wheel in wheels}
        for package in ("edgeopt", "edgeopt_solvers"):
            assert f"{package}/py.typed" in names[package]
            assert any(name.endswith("licenses/LICENSE") for name in names[package])
        files = [path for path in (ROOT / "profiles").rglob("*") if path.is_file()]
        in_checkout = {path.relative_to(ROOT / "profiles").as_posix() for path in files}
        library = "edgeopt/_library/"
        in_wheel = {name.removeprefix(library) for name in names["edgeopt"] if name.startswith(library)}
        assert in_checkout == in_wheel
        assert in_checkout
        assert {f"edgeopt/report/{name}" for name in ("page.html.j2", "page.css")} <= names["edgeopt"]
        outside = {name for name in names["edgeopt"] if not name.startswith(("edgeopt/", "edgeopt-"))}
        assert outside == set()

    def test_solve_a_bundled_problem_from_another_folder(self, environment, tmp_path):
        plan = tmp_path / "plan.yaml"
        command = [str(environment / "edgeopt"), "solve", "home-cluster", "-o", str(plan), "--json"]
        done = _run(command, cwd=tmp_path, env=_clean_environment())
        document = json.loads(done.stdout)
        assert document["status"] == "optimal"
        assert document["gap"] == 0
        assert plan.is_file()
        _run([str(environment / "edgeopt"), "verify", str(plan)], cwd=tmp_path, env=_clean_environment())

    def test_list_the_same_library_as_the_checkout(self, environment, tmp_path):
        installed = _run(
            [str(environment / "edgeopt"), "profiles", "list", "--json"], cwd=tmp_path, env=_clean_environment()
        )
        here = _run([sys.executable, "-m", "edgeopt", "profiles", "list", "--json"], cwd=ROOT)

        def names(text):
            return sorted((entry["kind"], entry["name"]) for entry in json.loads(text))

        assert names(installed.stdout) == names(here.stdout)

    def test_bring_no_torch_and_say_how_to_get_it(self, environment, tmp_path):
        probe = (
            "import importlib.util as u; print([n for n in ('torch', 'transformers', 'diffusers') if u.find_spec(n)])"
        )
        assert _run([str(environment / "python"), "-c", probe], cwd=tmp_path).stdout.strip() == "[]"
        plan = tmp_path / "plan.json"
        edgeopt = str(environment / "edgeopt")
        _run([edgeopt, "solve", "home-cluster", "-o", str(plan)], cwd=tmp_path, env=_clean_environment())
        done = subprocess.run(
            [edgeopt, "execute", str(plan)],
            cwd=tmp_path,
            env=_clean_environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 2
        assert "pip install 'edgeopt[" in done.stderr
        assert "Traceback" not in done.stderr
