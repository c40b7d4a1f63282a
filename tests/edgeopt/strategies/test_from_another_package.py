"""``docs/add-a-strategy.md``, followed to the letter: files are written, installed, planned with, run and tested."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from edgeopt.profiles import load_plan
from edgeopt.report.data import Report

pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.processes]

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "add-a-strategy.md").read_text(encoding="utf-8")
#: A file's name, alone at the end of a line, and the block that follows.
FILES = dict(re.findall(r"`([\w./-]+)`:\n\n```\w+\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
CONSOLE = re.findall(r"^\$ edgeopt (.*)$", "".join(re.findall(r"^```console\n(.*?)^```$", TEXT, re.M | re.S)), re.M)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Write the files and what an installer makes of the entry points; return the folder and its environment."""
    folder = tmp_path_factory.mktemp("edgeopt-encoder")
    for name, text in FILES.items():
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        target.write_text(text, encoding="utf-8")
    (folder / "edgeopt_encoder" / "__init__.py").touch()
    project = tomllib.loads(FILES["pyproject.toml"])["project"]
    installed = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1.0\n")
    points = [
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (installed / "entry_points.txt").write_text("\n".join(points))
    paths = [str(folder), str(ROOT), str(ROOT / "solvers"), os.environ.get("PYTHONPATH", "")]
    return folder, {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _run(package, *words):
    folder, environment = package
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=200,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_the_page_has_every_file():
    listed = re.search(r"^edgeopt-encoder/\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)[1]
    names = {line.split()[0] for line in listed.splitlines()}
    assert names == {*FILES, "edgeopt_encoder/__init__.py"}


def test_its_commands_end_well(package):
    assert [command.split()[0] for command in CONSOLE] == ["profiles", "solve", "verify", "execute", "report"]
    for command in CONSOLE:
        done = _run(package, "-m", "edgeopt", *shlex.split(command))
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    folder, _ = package
    plan = load_plan(folder / "plan.yaml")
    assert plan.strategy == "encoder"
    assert plan.status == "optimal"
    assert len({stage.device for stage in plan.stages}) == 2
    report = Report.model_validate_json((folder / "report.json").read_text(encoding="utf-8"))
    assert report.output.equal
    assert report.plan_digest == plan.digest()
    assert "encoder" in (folder / "page.html").read_text(encoding="utf-8")


def test_its_own_tests_pass(package):
    done = _run(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", "test_encoder.py")
    assert done.returncode == 0, done.stdout[-4000:]
    assert "2 passed" in done.stdout


def test_others_do_not_see_it():
    from edgeopt.strategies import strategy_names

    assert "encoder" not in strategy_names()
